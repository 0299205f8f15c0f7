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

from generation.comparisons import cancel_comparison, retry_comparison, start_comparison
from generation.models import (
    KIND_CHOICES,
    GeneratedImage,
    GenerationJob,
    Redrawing,
    Release,
    ReleaseActivation,
    ReleaseComparison,
)
from generation.parameters import ParameterError, Parameters
from generation.redrawings import redraw_image
from generation.serializers import (
    ActivationSerializer,
    ComparisonDetailSerializer,
    ComparisonSerializer,
    ImageSerializer,
    JobSerializer,
    NewComparisonSerializer,
    NewJobSerializer,
    RedrawingSerializer,
    ReleaseSerializer,
)
from generation.services import (
    ReleaseError,
    activate_release,
    active_release,
    retry_generation,
    roll_back_release,
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

    @extend_schema(responses=RedrawingSerializer(many=True), filters=False)
    @action(detail=True, pagination_class=None)
    def redrawings(self, request: Request, public_id: str) -> Response:
        """How far the image came out the same when it was drawn again, the newest first."""
        rows = Redrawing.objects.filter(image=self.get_object()).select_related("image")
        return Response(RedrawingSerializer(rows, many=True).data)

    @extend_schema(request=None, responses={201: RedrawingSerializer})
    @redrawings.mapping.post
    def redraw(self, request: Request, public_id: str) -> Response:
        """Draw the image again from its row and compare; one that is under way already is returned instead."""
        try:
            row = redraw_image(image=self.get_object(), user=request.user)
        except ParameterError as error:
            raise ValidationError({error.key: [error.message]}) from error
        return Response(RedrawingSerializer(row).data, status=status.HTTP_201_CREATED)


class ReleaseViewSet(ReadOnlyModelViewSet):
    """Releases: generator, selector, policy and threshold."""

    serializer_class = ReleaseSerializer
    queryset = Release.objects.all()
    lookup_field = "digest"

    @extend_schema(request=None, responses=ReleaseSerializer)
    @action(detail=True, methods=["post"])
    def activate(self, request: Request, digest: str) -> Response:
        """Serve this release from now on."""
        release = self.get_object()
        try:
            release = activate_release(release=release, by=request.user)
        except ReleaseError as error:
            raise ValidationError({"release": [str(error)]}) from error
        return Response(self.get_serializer(release).data)

    @extend_schema(request=None, responses=ReleaseSerializer)
    @action(detail=False, methods=["post"], url_path="roll-back")
    def roll_back(self, request: Request) -> Response:
        """Serve what was active before the active release; refused where nothing was."""
        try:
            release = roll_back_release(by=request.user)
        except ReleaseError as error:
            raise ValidationError({"release": [str(error)]}) from error
        return Response(self.get_serializer(release).data)


class ActivationViewSet(mixins.ListModelMixin, GenericViewSet):
    """Which release was put into service when, and by whom; the newest first."""

    serializer_class = ActivationSerializer
    queryset = ReleaseActivation.objects.select_related("release", "activated_by").order_by("-pk")


class ComparisonViewSet(ReadOnlyModelViewSet):
    """Two releases on the same prompts and seeds."""

    queryset = ReleaseComparison.objects.select_related("left__release", "right__release")

    def get_serializer_class(self):
        return ComparisonSerializer if self.action == "list" else ComparisonDetailSerializer

    @extend_schema(request=NewComparisonSerializer, responses={201: ComparisonDetailSerializer})
    def create(self, request: Request) -> Response:
        """Queue what is missing of a comparison; jobs and comparisons that exist already are used again."""
        new = NewComparisonSerializer(data=request.data)
        new.is_valid(raise_exception=True)
        values = new.validated_data
        try:
            parameters = Parameters.from_mapping(dict(values.pop("parameters", {})))
            row = start_comparison(user=request.user, parameters=parameters, **values)
        except ParameterError as error:
            raise ValidationError({error.key: [error.message]}) from error
        return Response(self.get_serializer(row).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=None, responses=ComparisonDetailSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """End the comparison and the jobs that nothing else waits for. A finished one is left as it is."""
        row = self.get_object()
        if not row.is_finished:
            cancel_comparison(comparison=row)
        return Response(self.get_serializer(row).data)

    @extend_schema(request=None, responses=ComparisonDetailSerializer)
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: str) -> Response:
        """Put a failed or cancelled comparison back into the queue, its failed or cancelled jobs with it."""
        row = self.get_object()
        try:
            retry_comparison(comparison=row)
        except ParameterError as error:
            raise ValidationError({error.key: [error.message]}) from error
        row.refresh_from_db()
        return Response(self.get_serializer(row).data)
