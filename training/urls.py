from django.urls import path

from training import views
from training.reading import views as reading_views

app_name = "training"
urlpatterns = [
    path("training/", views.RunList.as_view(), name="runs"),
    path("training/new/rlhf/", views.RLHFRunCreate.as_view(), name="new-rlhf"),
    path("training/new/finetune/", views.FinetuneCreate.as_view(), name="new-finetune"),
    path("training/cost/<slug:purpose>/", views.RunCost.as_view(), name="cost"),
    path("training/compare/", views.RunComparison.as_view(), name="compare"),
    path("training/<int:pk>/", views.RunDetail.as_view(), name="run"),
    path("training/<int:pk>/progress/", views.RunProgress.as_view(), name="progress"),
    path("training/<int:pk>/report.json", views.RunReport.as_view(), name="report"),
    path("training/<int:pk>/charts/<slug:name>/", views.RunChart.as_view(), name="chart"),
    path("training/<int:pk>/cancel/", views.RunCancel.as_view(), name="cancel"),
    path("training/<int:pk>/resume/", views.RunResume.as_view(), name="resume"),
    path("training/<int:pk>/release/", views.RunRelease.as_view(), name="release"),
    path("training/<int:pk>/update/", views.RunUpdate.as_view(), name="update"),
    path("studies/<uuid:study_id>/batches/", reading_views.ReadingBatches.as_view(), name="reading-batches"),
    path(
        "studies/<uuid:study_id>/batches/<int:pk>/", reading_views.ReadingBatchDetail.as_view(), name="reading-batch"
    ),
    path(
        "studies/<uuid:study_id>/batches/<int:pk>/progress/",
        reading_views.ReadingBatchProgress.as_view(),
        name="reading-batch-progress",
    ),
    path(
        "studies/<uuid:study_id>/batches/<int:pk>/cancel/",
        reading_views.ReadingBatchCancel.as_view(),
        name="reading-batch-cancel",
    ),
    path("training/<int:pk>/validation/<int:step>.png", views.ValidationImage.as_view(), name="validation"),
]
