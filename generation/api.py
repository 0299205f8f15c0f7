"""The API of generation. For administrators only, by the default permission."""

from typing import Any

from django.http import FileResponse, Http404
from django.utils.cache import patch_cache_control
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet, ReadOnlyModelViewSet

from generation.models import KIND_CHOICES, GeneratedImage, GenerationJob, Release
from generation.parameters import ParameterError, Parameters
from generation.serializers import ImageSerializer, JobSerializer, NewJobSerializer, ReleaseSerializer
from generation.services import (
    ReleaseError,
    activate_release,
    active_release,
    retry_generation,
    start_generation,
)

_VERDICT = OpenApiParameter("verdict", enum=GeneratedImage.Verdict.values)
_KIND = OpenApiParameter("kind", enum=[slug for slug, _ in KIND_CHOICES])
_JOB = OpenApiParameter("job", OpenApiTypes.INT)
_RELEASE = OpenApiParameter("release", OpenApiTypes.STR, description="Digest.")
_FILTERS = {"verdict": "verdict", "kind": "prompt__kind", "job": "job", "release": "release__digest"}


def _start_arguments(values: dict[str, Any]) -> dict[str, Any]:
    """The validated request as `start_generation` takes it."""
    given = dict(values.pop("parameters", {}))
    release = values["release"] or (None if values["pretrained_model"] else active_release())
    if release is not None:
        given.setdefault("quality_threshold", release.quality_threshold)
    return values | {"parameters": Parameters.from_mapping(given)}


class JobViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet):
    """Generation jobs."""

    serializer_class = JobSerializer
    queryset = GenerationJob.objects.select_related("release").prefetch_related("job_prompts__prompt")

    @extend_schema(request=NewJobSerializer, responses={201: JobSerializer})
    def create(self, request: Request) -> Response:
        """Queue a job."""
        new = NewJobSerializer(data=request.data)
        new.is_valid(raise_exception=True)
        try:
            job = start_generation(user=request.user, **_start_arguments(new.validated_data))
        except ParameterError as error:
            raise ValidationError({error.key: [error.message]}) from error
        return Response(self.get_serializer(job).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=None, responses=JobSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Ask the job to end; images it has made stay. A finished job is left as it is."""
        job = self.get_object()
        job.request_cancel()
        return Response(self.get_serializer(job).data)

    @extend_schema(request=None, responses=JobSerializer)
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: str) -> Response:
        """Put a failed or cancelled job back into the queue; it goes on after what it has stored."""
        job = self.get_object()
        try:
            retry_generation(job=job)
        except ParameterError as error:
            raise ValidationError({error.key: [error.message]}) from error
        job.refresh_from_db()
        return Response(self.get_serializer(job).data)


@extend_schema_view(list=extend_schema(parameters=[_VERDICT, _KIND, _JOB, _RELEASE]))
class ImageViewSet(ReadOnlyModelViewSet):
    """Images with everything needed to make them again."""

    serializer_class = ImageSerializer
    queryset = GeneratedImage.objects.select_related("prompt", "release").order_by("-pk")
    lookup_field = "public_id"
    lookup_value_converter = "uuid"

    def filter_queryset(self, queryset):
        queryset = super().filter_queryset(queryset)
        if self.action != "list":
            return queryset
        for name, lookup in _FILTERS.items():
            if value := self.request.query_params.get(name):
                if name == "job" and not value.isdecimal():
                    raise ValidationError({"job": [f"{value!r} is not the number of a job."]})
                queryset = queryset.filter(**{lookup: value})
        return queryset

    @extend_schema(responses={(200, "image/png"): OpenApiTypes.BINARY})
    @action(detail=True)
    def file(self, request: Request, public_id: str) -> FileResponse:
        """The PNG."""
        image = self.get_object()
        try:
            response = FileResponse(image.path.open("rb"), content_type="image/png")
        except FileNotFoundError:
            raise Http404("The row is there, but its file is not.") from None
        patch_cache_control(response, private=True, max_age=3600)
        return response


class ReleaseViewSet(ReadOnlyModelViewSet):
    """Releases: generator, selector, policy and threshold."""

    serializer_class = ReleaseSerializer
    queryset = Release.objects.all()
    lookup_field = "digest"

    @extend_schema(request=None, responses=ReleaseSerializer)
    @action(detail=True, methods=["post"])
    def activate(self, request: Request, digest: str) -> Response:
        """Serve this release from now on; activating an earlier one rolls back."""
        release = self.get_object()
        try:
            release = activate_release(release=release)
        except ReleaseError as error:
            raise ValidationError({"release": [str(error)]}) from error
        return Response(self.get_serializer(release).data)
