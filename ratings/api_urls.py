"""The API of this app, below /api/."""

from django.urls import path

from ratings import api

app_name = "ratings_api"
urlpatterns = [
    path("studies/", api.StudyList.as_view(), name="studies"),
    path("studies/<uuid:study_id>/", api.StudyDetail.as_view(), name="study"),
    path("studies/<uuid:study_id>/images/", api.StudyImages.as_view(), name="study-images"),
    path("studies/<uuid:study_id>/memberships/", api.MembershipList.as_view(), name="memberships"),
    path("studies/<uuid:study_id>/memberships/<int:pk>/", api.MembershipDetail.as_view(), name="membership"),
    path("studies/<uuid:study_id>/readers/", api.StudyReaders.as_view(), name="study-readers"),
    path("studies/<uuid:study_id>/progress/", api.StudyProgress.as_view(), name="study-progress"),
    path("studies/<uuid:study_id>/queue/", api.StudyQueue.as_view(), name="study-queue"),
    path("studies/<uuid:study_id>/undo/", api.StudyUndo.as_view(), name="study-undo"),
    path("assignments/<uuid:assignment_id>/rating/", api.AssignmentRating.as_view(), name="assignment-rating"),
    path("assignments/<uuid:assignment_id>/remarks/", api.AssignmentRemarks.as_view(), name="assignment-remarks"),
    path("assignments/<uuid:assignment_id>/image", api.AssignmentImage.as_view(), name="assignment-image"),
    path("ratings/", api.RatingList.as_view(), name="ratings"),
    path("exports/", api.ExportList.as_view(), name="exports"),
    path("exports/<int:pk>/", api.ExportDetail.as_view(), name="export"),
    path("exports/<int:pk>/<str:name>/", api.ExportFile.as_view(), name="export-file"),
]
