"""The API of reading batches, for whoever runs the study. What is not yours does not exist (404)."""

from uuid import UUID

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import generics, serializers, status
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from generation.models import GenerationJob, Release
from medsyn.roles import IsStudyOwner
from ratings.hidden_grades import is_hidden
from ratings.models import Study
from ratings.services import StudyError
from training.models import ReadingBatch, ReadingPick
from training.reading.services import DEFAULT_RANDOM_SHARE, plan_batch


class NewReadingBatchSerializer(serializers.Serializer):
    jobs = serializers.PrimaryKeyRelatedField(
        queryset=GenerationJob.objects.all(), many=True, allow_empty=False, help_text="Whose images are the pool."
    )
    num_images = serializers.IntegerField(min_value=1)
    random_share = serializers.FloatField(
        min_value=0, max_value=1, default=DEFAULT_RANDOM_SHARE, help_text="Of the batch; 1: all."
    )
    release = serializers.SlugRelatedField(
        slug_field="digest",
        queryset=Release.objects.all(),
        required=False,
        allow_null=True,
        help_text="Whose selector chooses; left out: the active one.",
    )
    with_rejected = serializers.BooleanField(default=True)
    seed = serializers.IntegerField(min_value=0, max_value=2**62, required=False, help_text="Drawn where left out.")


class ReadingBatchSerializer(serializers.ModelSerializer):
    study = serializers.UUIDField(source="study.public_id")
    release = serializers.SlugRelatedField(slug_field="digest", read_only=True)

    class Meta:
        model = ReadingBatch
        fields = (
            "id",
            "study",
            "jobs",
            "release",
            "num_images",
            "random_share",
            "exploring_share",
            "shortlist_share",
            "with_rejected",
            "seed",
            "block",
            "state",
            "progress_done",
            "progress_total",
            "error",
            "created_at",
        )
        read_only_fields = fields


class ReadingPickSerializer(serializers.ModelSerializer):
    image = serializers.UUIDField(source="image.public_id")

    class Meta:
        model = ReadingPick
        fields = ("image", "position", "reason", "information", "poor")
        read_only_fields = fields


class ReadingBatchDetailSerializer(ReadingBatchSerializer):
    picks = serializers.SerializerMethodField(
        help_text="Why each image was chosen; null where you have some of the study left to rate, unless ?show."
    )

    class Meta(ReadingBatchSerializer.Meta):
        fields = (*ReadingBatchSerializer.Meta.fields, "picks")
        read_only_fields = fields

    @extend_schema_field(ReadingPickSerializer(many=True, allow_null=True))
    def get_picks(self, batch: ReadingBatch) -> list[dict] | None:
        if is_hidden(self.context["request"], batch.study):
            return None
        return ReadingPickSerializer(batch.picks.select_related("image"), many=True).data


class _OfStudy(generics.GenericAPIView):
    permission_classes = [IsStudyOwner]
    serializer_class = ReadingBatchSerializer
    queryset = ReadingBatch.objects.none()

    def managed(self, study_id: UUID) -> Study:
        return get_object_or_404(Study.objects.managed_by(self.request.user), public_id=study_id)

    def batch(self, study_id: UUID, pk: int) -> ReadingBatch:
        return get_object_or_404(self.managed(study_id).reading_batches.select_related("study", "release"), pk=pk)


class ReadingBatchList(_OfStudy):
    """Batches of images that were chosen for a study, the newest first; a new one."""

    @extend_schema(operation_id="studies_reading_batches_list", responses=ReadingBatchSerializer(many=True))
    def get(self, request: Request, study_id: UUID) -> Response:
        batches = self.managed(study_id).reading_batches.select_related("study", "release").prefetch_related("jobs")
        page = self.paginate_queryset(batches)
        return self.get_paginated_response(ReadingBatchSerializer(page, many=True).data)

    @extend_schema(request=NewReadingBatchSerializer, responses={201: ReadingBatchSerializer})
    def post(self, request: Request, study_id: UUID) -> Response:
        study = self.managed(study_id)
        given = NewReadingBatchSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        try:
            batch = plan_batch(study=study, user=request.user, **given.validated_data)
        except StudyError as error:
            raise ValidationError({"detail": [str(error)]}) from error
        return Response(ReadingBatchSerializer(batch).data, status=status.HTTP_201_CREATED)


class ReadingBatchDetail(_OfStudy):
    """One batch, with the reason for each image."""

    @extend_schema(responses=ReadingBatchDetailSerializer)
    def get(self, request: Request, study_id: UUID, pk: int) -> Response:
        batch = self.batch(study_id, pk)
        return Response(ReadingBatchDetailSerializer(batch, context={"request": request}).data)


class ReadingBatchCancel(_OfStudy):
    """Ends a choice that is not made yet."""

    @extend_schema(request=None, responses=ReadingBatchSerializer)
    def post(self, request: Request, study_id: UUID, pk: int) -> Response:
        batch = self.batch(study_id, pk)
        batch.request_cancel()
        return Response(ReadingBatchSerializer(batch).data)
