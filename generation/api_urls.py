"""The API of this app, below /api/."""

from rest_framework.routers import SimpleRouter

from generation.api import ActivationViewSet, ComparisonViewSet, ImageViewSet, JobViewSet, ReleaseViewSet
from generation.certificate_api import CertificateViewSet

router = SimpleRouter(use_regex_path=False)
router.register("generation-jobs", JobViewSet, basename="api-generation-job")
router.register("images", ImageViewSet, basename="api-image")
router.register("releases", ReleaseViewSet, basename="api-release")
router.register("release-activations", ActivationViewSet, basename="api-release-activation")
router.register("release-comparisons", ComparisonViewSet, basename="api-release-comparison")
router.register("certificates", CertificateViewSet, basename="api-certificate")
urlpatterns = router.urls
