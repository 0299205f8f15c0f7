from django.urls import path

from ratings import views

app_name = "ratings"
urlpatterns = [
    path("studies/", views.StudyList.as_view(), name="studies"),
    path("studies/new/", views.StudyCreate.as_view(), name="study-new"),
    path("studies/new/planned/", views.StudyPlanned.as_view(), name="study-planned"),
    path("studies/<uuid:study_id>/", views.StudyDetail.as_view(), name="study"),
    path("studies/<uuid:study_id>/readers/", views.StudyReaders.as_view(), name="study-readers"),
    path("studies/<uuid:study_id>/places/", views.StudyPlaces.as_view(), name="study-places"),
    path("studies/<uuid:study_id>/protocol/", views.StudyProtocol.as_view(), name="study-protocol"),
    path("studies/<uuid:study_id>/images/", views.StudyImages.as_view(), name="study-images"),
    path("studies/<uuid:study_id>/images/add/", views.StudyImagesAdd.as_view(), name="study-images-add"),
    path("studies/<uuid:study_id>/state/", views.StudyState.as_view(), name="study-state"),
    path("studies/<uuid:study_id>/agreement/", views.StudyAgreement.as_view(), name="study-agreement"),
    path("studies/<uuid:study_id>/tables/<str:table>", views.StudyTable.as_view(), name="study-table"),
    path("studies/<uuid:study_id>/images.csv", views.StudyImageGrades.as_view(), name="study-image-grades"),
    path("studies/<uuid:study_id>/rate/", views.Rate.as_view(), name="rate"),
    path("data/", views.RatingList.as_view(), name="data"),
    path("data/gold/", views.GoldList.as_view(), name="gold"),
    path("data/<int:pk>/", views.RatingDetail.as_view(), name="rating"),
    path("data/<int:pk>/void/", views.RatingVoid.as_view(), name="rating-void"),
    path("data/<int:pk>/restore/", views.RatingRestore.as_view(), name="rating-restore"),
    path("images/<uuid:public_id>/gold/", views.ImageGold.as_view(), name="image-gold"),
    path("data/exports/", views.ExportList.as_view(), name="exports"),
    path("data/exports/<int:pk>/rerun/", views.ExportRerun.as_view(), name="export-rerun"),
    path("data/exports/<int:pk>/<str:name>/", views.ExportFile.as_view(), name="export-file"),
]
