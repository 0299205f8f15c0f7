from django.urls import path

from generation import views

app_name = "generation"
urlpatterns = [
    path("generate/", views.generate, name="generate"),
    path("generate/<int:pk>/", views.job, name="job"),
    path("generate/<int:pk>/progress/", views.job_progress, name="job-progress"),
    path("generate/<int:pk>/gallery/", views.job_gallery, name="job-gallery"),
    path("generate/<int:pk>/cancel/", views.job_cancel, name="job-cancel"),
    path("generate/<int:pk>/retry/", views.job_retry, name="job-retry"),
    path("generate/<int:pk>/images.zip", views.job_archive, name="job-archive"),
    path("images/", views.images, name="images"),
    path("images/<uuid:public_id>/", views.image, name="image"),
    path("images/<uuid:public_id>/file/", views.image_file, name="image-file"),
    path("images/<uuid:public_id>/sidecar/", views.image_sidecar, name="image-sidecar"),
    path("releases/", views.releases, name="releases"),
    path("releases/<int:pk>/activate/", views.release_activate, name="release-activate"),
]
