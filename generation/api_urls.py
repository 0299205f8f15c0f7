"""The API of this app, below /api/."""

from django.urls import path

urlpatterns: list[path] = []
