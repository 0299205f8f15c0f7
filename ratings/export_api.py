"""The API of exports: written, looked at, downloaded, repeated by whoever runs the study. Readers export nothing."""

from django.http import FileResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import generics, serializers, status
from rest_framework.exceptions import NotFound, PermissionDenied, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.throttling import UserRateThrottle
from rest_framework.views import APIView

from medsyn.modalities import MODALITIES
from medsyn.roles import IsStudyOwner, is_admin
from ratings import services
from ratings.downloads import download
from ratings.export import FILE_NAMES
from ratings.hidden_grades import hidden_in
from ratings.models import Export, Study


class ExportThrottle(UserRateThrottle):
    """Writing files, by page and API together: more than a person needs, too little to fill a disk unseen."""

    scope = "exports"
    rate = "60/hour"

    def allow_request(self, request, view) -> bool:
        """Reading is not counted."""
        return request.method != "POST" or super().allow_request(request, view)


class NewExportSerializer(serializers.Serializer):
    """What to export."""

    content = serializers.ChoiceField(
        choices=Export.Content.choices,
        default=Export.Content.RATINGS,
        help_text="images: one row per image of ``study``, what its readers say together.",
    )
    study = serializers.SlugRelatedField(
        slug_field="public_id",
        queryset=Study.objects.all(),
        required=False,
        allow_null=True,
        default=None,
        help_text="One that you run; null: all, for administrators.",
    )
    modality = serializers.ChoiceField(choices=MODALITIES, required=False, allow_blank=True, default="")
    include_simulated = serializers.BooleanField(
        required=False,
        allow_null=True,
        default=None,
        help_text="Null: ratings of simulated experts only where the study is a simulated one.",
    )

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if request := self.context.get("request"):
            self.fields["study"].queryset = Study.objects.managed_by(request.user)

    def validate(self, attrs: dict) -> dict:
        user, study = self.context["request"].user, attrs["study"]
        if study is None and not is_admin(user):
            raise serializers.ValidationError({"study": ["Name a study that you run; all are for administrators."]})
        if attrs["content"] == Export.Content.IMAGES:
            if study is None:
                raise serializers.ValidationError({"study": ["Name the study whose images are to be exported."]})
            if attrs["modality"] or attrs["include_simulated"] is not None:
                raise serializers.ValidationError({"content": ["An export of images is of the whole study."]})
        return attrs


class ExportSerializer(serializers.ModelSerializer):
    """An export as it was recorded."""

    study = serializers.UUIDField(source="study.public_id", allow_null=True, default=None)
    created_by = serializers.CharField(source="created_by.username", allow_null=True, default=None)
    files = serializers.SerializerMethodField(help_text="By name: where it is downloaded, its sha256 and its rows.")
    differing_files = serializers.ListField(
        child=serializers.CharField(), help_text="Of a repetition: files whose bytes are others than before."
    )

    class Meta:
        model = Export
        fields = [
            "id", "content", "study", "row_count", "sha256", "has_simulated", "filters", "last_event", "code_version",
            "rerun_of", "differing_files", "created_by", "created_at", "files",
        ]  # fmt: skip

    def get_files(self, export: Export) -> dict[str, dict[str, str | int]]:
        return {
            name: {
                "url": reverse("ratings_api:export-file", args=[export.pk, name]),
                "sha256": export.files[name]["sha256"],
                "row_count": export.files[name]["row_count"],
            }
            for name in export.file_names
        }


class _OfOwners:
    """Exports of studies that the person runs; to others they do not exist."""

    request: Request
    permission_classes = [IsStudyOwner]
    serializer_class = ExportSerializer
    queryset = Export.objects.none()

    def get_queryset(self):
        return Export.objects.managed_by(self.request.user).select_related("study", "created_by", "rerun_of")


class ExportList(_OfOwners, generics.ListAPIView):
    """The exports that were written."""

    throttle_classes = [ExportThrottle]

    @extend_schema(request=NewExportSerializer, responses={201: ExportSerializer})
    def post(self, request: Request) -> Response:
        """Write the ratings that stand now, or what they say of each image, to a new export."""
        asked = NewExportSerializer(data=request.data, context={"request": request})
        asked.is_valid(raise_exception=True)
        chosen = dict(asked.validated_data)
        try:
            if chosen.pop("content") == Export.Content.IMAGES:
                export = services.freeze_images(study=chosen["study"], created_by=request.user)
            else:
                export = services.freeze_export(**chosen, created_by=request.user)
        except services.StudyError as error:
            raise ValidationError({"detail": str(error)}) from error
        return Response(ExportSerializer(export).data, status=status.HTTP_201_CREATED)


class ExportDetail(_OfOwners, generics.RetrieveAPIView):
    """One export."""


class ExportRerun(_OfOwners, generics.GenericAPIView):
    """Writes an export again from the same events and says whether the bytes are the same."""

    throttle_classes = [ExportThrottle]

    @extend_schema(operation_id="exports_rerun", request=None, responses={201: ExportSerializer})
    def post(self, request: Request, pk: int) -> Response:
        try:
            export = services.rerun_export(export=self.get_object(), created_by=request.user)
        except services.StudyError as error:
            raise ValidationError({"detail": str(error)}) from error
        return Response(ExportSerializer(export).data, status=status.HTTP_201_CREATED)


class ExportFile(APIView):
    """One file of an export. Refused without ``show`` while the person has images of its studies left to rate."""

    permission_classes = [IsStudyOwner]

    @extend_schema(
        operation_id="exports_download",
        parameters=[
            OpenApiParameter("name", str, OpenApiParameter.PATH, enum=FILE_NAMES),
            OpenApiParameter("show", str, description="Any value: tell also what others rate while you do."),
        ],
        responses={(200, "text/csv"): OpenApiTypes.BINARY},
    )
    def get(self, request: Request, pk: int, name: str) -> FileResponse:
        export = get_object_or_404(Export.objects.managed_by(request.user), pk=pk)
        if hidden := hidden_in(request, export):
            names = ", ".join(study.name for study in hidden)
            raise PermissionDenied(f"You have images of {names} left to rate. Rate them first, or ask with ?show=1.")
        try:
            return download(export, name)
        except FileNotFoundError as error:
            raise NotFound(f"Export {pk} has no file {name!r} on the disk. Export again.") from error
