"""Pages of certificates. Above generation, whose rows they are, because calibration ratings are here."""

from django.urls import path

from ratings.views import certificates as views

app_name = "certificates"
urlpatterns = [
    path("certificates/", views.CertificateList.as_view(), name="certificates"),
    path("certificates/plan/", views.PlanCreate.as_view(), name="plan-new"),
    path("certificates/plans/<uuid:plan_id>/", views.PlanDetail.as_view(), name="plan"),
    path("certificates/plans/<uuid:plan_id>/test/", views.PlanTest.as_view(), name="plan-test"),
    path("certificates/<int:pk>/", views.CertificateDetail.as_view(), name="certificate"),
    path("certificates/<int:pk>/observe/", views.CertificateObserve.as_view(), name="observe"),
    path("certificates/<int:pk>/revoke/", views.CertificateRevoke.as_view(), name="revoke"),
    path("certificates/<int:pk>/watch/", views.CertificateWatch.as_view(), name="watch"),
]
