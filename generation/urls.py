from django.urls import path

from generation.views import images, jobs, releases

app_name = "generation"
urlpatterns = [
    path("generate/", jobs.generate, name="generate"),
    path("generate/<int:pk>/", jobs.job, name="job"),
    path("generate/<int:pk>/progress/", jobs.job_progress, name="job-progress"),
    path("generate/<int:pk>/gallery/", jobs.job_gallery, name="job-gallery"),
    path("generate/<int:pk>/cancel/", jobs.job_cancel, name="job-cancel"),
    path("generate/<int:pk>/retry/", jobs.job_retry, name="job-retry"),
    path("generate/<int:pk>/images.zip", jobs.job_archive, name="job-archive"),
    path("images/", images.images, name="images"),
    path("images/<uuid:public_id>/", images.image, name="image"),
    path("images/<uuid:public_id>/file/", images.image_file, name="image-file"),
    path("images/<uuid:public_id>/sidecar/", images.image_sidecar, name="image-sidecar"),
    path("releases/", releases.releases, name="releases"),
    path("releases/<int:pk>/activate/", releases.release_activate, name="release-activate"),
]
