"""The API of this app, below /api/."""

from django.urls import path

from ratings import api, export_api, study_api

app_name = "ratings_api"
urlpatterns = [
    path("studies/", study_api.StudyList.as_view(), name="studies"),
    path("studies/<uuid:study_id>/", study_api.StudyDetail.as_view(), name="study"),
    path("studies/<uuid:study_id>/images/", study_api.StudyImages.as_view(), name="study-images"),
    path("studies/<uuid:study_id>/memberships/", study_api.MembershipList.as_view(), name="memberships"),
    path("studies/<uuid:study_id>/memberships/<int:pk>/", study_api.MembershipDetail.as_view(), name="membership"),
    path("studies/<uuid:study_id>/readers/", study_api.StudyReaders.as_view(), name="study-readers"),
    path("studies/<uuid:study_id>/protocol/", study_api.StudyProtocol.as_view(), name="study-protocol"),
    path("studies/<uuid:study_id>/release/", study_api.StudyRelease.as_view(), name="study-release"),
    path("studies/<uuid:study_id>/anchors/", api.StudyAnchors.as_view(), name="study-anchors"),
    path("studies/<uuid:study_id>/progress/", api.StudyProgress.as_view(), name="study-progress"),
    path("studies/<uuid:study_id>/queue/", api.StudyQueue.as_view(), name="study-queue"),
    path("studies/<uuid:study_id>/undo/", api.StudyUndo.as_view(), name="study-undo"),
    path("assignments/<uuid:assignment_id>/rating/", api.AssignmentRating.as_view(), name="assignment-rating"),
    path("assignments/<uuid:assignment_id>/remarks/", api.AssignmentRemarks.as_view(), name="assignment-remarks"),
    path("assignments/<uuid:assignment_id>/image", api.AssignmentImage.as_view(), name="assignment-image"),
    path("anchors/<uuid:anchor_id>/image", api.AnchorImage.as_view(), name="anchor-image"),
    path("gold/", study_api.GoldList.as_view(), name="gold"),
    path("gold/<uuid:image_id>/", study_api.GoldDetail.as_view(), name="gold-image"),
    path("ratings/<int:pk>/void/", study_api.RatingVoid.as_view(), name="rating-void"),
    path("ratings/<int:pk>/restore/", study_api.RatingRestore.as_view(), name="rating-restore"),
    path("ratings/", study_api.RatingList.as_view(), name="ratings"),
    path("exports/", export_api.ExportList.as_view(), name="exports"),
    path("exports/<int:pk>/", export_api.ExportDetail.as_view(), name="export"),
    path("exports/<int:pk>/rerun/", export_api.ExportRerun.as_view(), name="export-rerun"),
    path("exports/<int:pk>/<str:name>/", export_api.ExportFile.as_view(), name="export-file"),
]
