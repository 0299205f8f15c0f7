from django.urls import path

from generation.views import comparisons, images, jobs, releases

app_name = "generation"
urlpatterns = [
    path("generate/", jobs.generate, name="generate"),
    path("generate/<int:pk>/", jobs.job, name="job"),
    path("generate/<int:pk>/progress/", jobs.job_progress, name="job-progress"),
    path("generate/<int:pk>/gallery/", jobs.job_gallery, name="job-gallery"),
    path("generate/<int:pk>/scores/", jobs.job_scores, name="job-scores"),
    path("generate/<int:pk>/cancel/", jobs.job_cancel, name="job-cancel"),
    path("generate/<int:pk>/retry/", jobs.job_retry, name="job-retry"),
    path("generate/<int:pk>/images.zip", jobs.job_archive, name="job-archive"),
    path("images/", images.images, name="images"),
    path("images/<uuid:public_id>/", images.image, name="image"),
    path("images/<uuid:public_id>/file/", images.image_file, name="image-file"),
    path("images/<uuid:public_id>/sidecar/", images.image_sidecar, name="image-sidecar"),
    path("images/<uuid:public_id>/resembles/", images.resembled_image, name="image-resembles"),
    path("images/<uuid:public_id>/redraw/", images.image_redraw, name="image-redraw"),
    path("images/<uuid:public_id>/redrawn/<int:pk>/", images.image_redrawn, name="image-redrawn"),
    path("images/<uuid:public_id>/redrawn/<int:pk>/progress/", images.redrawing_progress, name="redrawing-progress"),
    path("releases/", releases.releases, name="releases"),
    path("releases/<int:pk>/activate/", releases.release_activate, name="release-activate"),
    path("releases/roll-back/", releases.release_roll_back, name="release-roll-back"),
    path("releases/compare/", comparisons.comparisons, name="comparisons"),
    path("releases/compare/<int:pk>/", comparisons.comparison, name="comparison"),
    path("releases/compare/<int:pk>/progress/", comparisons.comparison_progress, name="comparison-progress"),
    path("releases/compare/<int:pk>/cancel/", comparisons.comparison_cancel, name="comparison-cancel"),
    path("releases/compare/<int:pk>/retry/", comparisons.comparison_retry, name="comparison-retry"),
]
