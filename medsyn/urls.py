"""Every URL of the application."""

from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import include, path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularAPIView

from medsyn.views import PasswordChange

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="ratings:studies"), name="home"),
    path("login/", LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("password/", PasswordChange.as_view(), name="password_change"),
    path("admin/", admin.site.urls),
    path("api/schema/", SpectacularAPIView.as_view(), name="schema"),
    path("api/", include("generation.api_urls")),
    path("api/", include("ratings.api_urls")),
    path("api/", include("training.api_urls")),
    path("", include("generation.urls")),
    path("", include("ratings.urls")),
    path("", include("training.urls")),
]
