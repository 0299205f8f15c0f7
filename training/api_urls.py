"""The API of this app, below /api/."""

from django.urls import path

from training import api
from training.reading import api as reading_api

app_name = "training_api"
urlpatterns = [
    path("training/runs/", api.RunList.as_view(), name="runs"),
    path("training/runs/rlhf/", api.RLHFRunCreate.as_view(), name="new-rlhf"),
    path("training/runs/finetune/", api.FinetuningRunCreate.as_view(), name="new-finetune"),
    path("training/runs/rlhf/cost/", api.RLHFRunCost.as_view(), name="rlhf-cost"),
    path("training/runs/finetune/cost/", api.FinetuningRunCost.as_view(), name="finetune-cost"),
    path("training/runs/<int:pk>/", api.RunDetail.as_view(), name="run"),
    path("training/runs/<int:pk>/cancel/", api.RunCancel.as_view(), name="cancel"),
    path("training/runs/<int:pk>/resume/", api.RunResume.as_view(), name="resume"),
    path("training/runs/<int:pk>/log/", api.RunLog.as_view(), name="log"),
    path("training/runs/<int:pk>/metrics/", api.RunMetrics.as_view(), name="metrics"),
    path("training/runs/<int:pk>/update/", api.RunUpdate.as_view(), name="update"),
    path("training/runs/<int:pk>/release/", api.RunRelease.as_view(), name="release"),
    path("studies/<uuid:study_id>/reading-batches/", reading_api.ReadingBatchList.as_view(), name="reading-batches"),
    path(
        "studies/<uuid:study_id>/reading-batches/<int:pk>/",
        reading_api.ReadingBatchDetail.as_view(),
        name="reading-batch",
    ),
    path(
        "studies/<uuid:study_id>/reading-batches/<int:pk>/cancel/",
        reading_api.ReadingBatchCancel.as_view(),
        name="reading-batch-cancel",
    ),
]
