"""Every URL of the application."""

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularAPIView

from medsyn.views import ApiDocs

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="ratings:studies", http_method_names=["get", "head"]), name="home"),
    path("", include("accounts.urls")),  # before admin/, whose own sign-in it takes the place of
    path("admin/", admin.site.urls),
    path("api-docs/", ApiDocs.as_view(), name="api-docs"),
    path("api/schema/", SpectacularAPIView.as_view(), name="schema"),
    path("api/", include("generation.api_urls")),
    path("api/", include("ratings.api_urls")),
    path("api/", include("training.api_urls")),
    path("", include("generation.urls")),
    path("", include("ratings.urls")),
    path("", include("ratings.certificate_urls")),
    path("", include("training.urls")),
]
