"""The API of studies and ratings. Readers reach what is their own, administrators the rest; what is not yours
does not exist (404)."""

import functools

from django.http import FileResponse, HttpResponse
from django.shortcuts import get_object_or_404
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import generics, mixins, status
from rest_framework.exceptions import NotFound, PermissionDenied, ValidationError
from rest_framework.permissions import IsAdminUser, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from ratings import services
from ratings.downloads import download
from ratings.export import FILE_NAMES
from ratings.forms import RatingFilter
from ratings.models import Assignment, Export, Membership, Rating, Study
from ratings.reader_images import image_reply
from ratings.serializers import (
    AddedImagesSerializer,
    ConflictSerializer,
    ExportSerializer,
    LevelSerializer,
    MembershipSerializer,
    NewExportSerializer,
    NewStudySerializer,
    OwnRatingSerializer,
    ProgressSerializer,
    QueueSerializer,
    RatingSerializer,
    ReaderProgressSerializer,
    RemarkSerializer,
    StudyImagesSerializer,
    StudySerializer,
    SubmissionSerializer,
    UndoneSerializer,
    UndoSerializer,
)

MAX_QUEUE = 50  # places in one reply


def _checked(serializer_class, request: Request) -> dict:
    serializer = serializer_class(data=request.data)
    serializer.is_valid(raise_exception=True)
    return serializer.validated_data


@functools.cache
def _lasting(serializer_class):
    """A serializer whose fields are made once: to make them takes longer than to check what a reader sent. Only for
    serializers that remember nothing between ``run_validation`` and ``to_representation``, as all of these do."""
    return serializer_class()


def _from_reader(serializer_class, request: Request) -> dict:
    """What the rating page sent; PermissionDenied where somebody else has signed in since it was done."""
    given = _lasting(serializer_class).run_validation(request.data)
    _require_reader(request, given.pop("reader", None))
    return given


def _require_reader(request: Request, reader: int | None) -> None:
    if reader not in (None, request.user.pk):
        raise PermissionDenied("Somebody else is signed in by now. Sign in again as the person who rated.")


def _conflict(detail: Exception, code: str, rating: Rating | None) -> Response:
    stands = _lasting(OwnRatingSerializer).to_representation(rating) if rating else None
    return Response({"detail": str(detail), "code": code, "rating": stands}, status=status.HTTP_409_CONFLICT)


def _own_study(request: Request, study_id) -> Study:
    """The study if the person reads it; 404 otherwise, for administrators too."""
    return get_object_or_404(Study.objects.read_by(request.user), public_id=study_id)


class _ForReadersAndStaff:
    """Reading is open to readers for their own studies; everything else is for administrators."""

    request: Request

    def get_permissions(self):
        return [IsAuthenticated()] if self.request.method in ("GET", "HEAD", "OPTIONS") else [IsAdminUser()]

    def get_queryset(self):
        studies = Study.objects.all()
        return studies if self.request.user.is_staff else studies.read_by(self.request.user)

    def _progress(self, studies: list[Study]) -> dict:
        reader = None if self.request.user.is_staff else self.request.user
        return services.progress_of(studies, reader)


class StudyList(_ForReadersAndStaff, generics.GenericAPIView):
    """The studies that the person reads; for administrators all of them."""

    serializer_class = StudySerializer
    queryset = Study.objects.none()

    @extend_schema(operation_id="studies_list", responses=StudySerializer(many=True))
    def get(self, request: Request) -> Response:
        studies = self.paginate_queryset(self.get_queryset())
        context = {"progress": self._progress(studies)}
        return self.get_paginated_response(StudySerializer(studies, many=True, context=context).data)

    @extend_schema(request=NewStudySerializer, responses={201: StudySerializer})
    def post(self, request: Request) -> Response:
        try:
            study = services.create_study(**_checked(NewStudySerializer, request), created_by=request.user)
        except services.StudyError as error:
            raise ValidationError({"name": [str(error)]}) from error
        data = StudySerializer(study, context={"progress": self._progress([study])}).data
        return Response(data, status=status.HTTP_201_CREATED)


class StudyDetail(_ForReadersAndStaff, mixins.UpdateModelMixin, generics.GenericAPIView):
    """One study. Changing its name, description or whether it is open is for administrators; ratings are never
    deleted, so a study is closed, not removed."""

    serializer_class = StudySerializer
    queryset = Study.objects.none()
    lookup_field = "public_id"
    lookup_url_kwarg = "study_id"

    def get_serializer_context(self) -> dict:
        return {"progress": {}, **super().get_serializer_context()}

    def get(self, request: Request, study_id) -> Response:
        study = self.get_object()
        return Response(StudySerializer(study, context={"progress": self._progress([study])}).data)

    def patch(self, request: Request, study_id) -> Response:
        self.partial_update(request)
        return self.get(request, study_id)


class StudyImages(APIView):
    """Images put into a study as a new block behind every reader's list."""

    @extend_schema(request=StudyImagesSerializer, responses={200: AddedImagesSerializer})
    def post(self, request: Request, study_id) -> Response:
        study = get_object_or_404(Study, public_id=study_id)
        added = services.add_images(study=study, **_checked(StudyImagesSerializer, request))
        return Response({"added": added})


class MembershipList(generics.GenericAPIView):
    """The readers of a study and their levels."""

    serializer_class = MembershipSerializer
    queryset = Membership.objects.select_related("reader").order_by("pk")

    @extend_schema(operation_id="studies_memberships_list", responses=MembershipSerializer(many=True))
    def get(self, request: Request, study_id) -> Response:
        study = get_object_or_404(Study, public_id=study_id)
        members = self.paginate_queryset(self.get_queryset().filter(study=study))
        return self.get_paginated_response(MembershipSerializer(members, many=True).data)

    def post(self, request: Request, study_id) -> Response:
        study = get_object_or_404(Study, public_id=study_id)
        try:
            services.enrol_reader(study=study, **_checked(MembershipSerializer, request))
        except services.StudyError as error:
            raise ValidationError({"reader": [str(error)]}) from error
        member = self.get_queryset().get(study=study, reader__username=request.data["reader"])
        return Response(MembershipSerializer(member).data, status=status.HTTP_201_CREATED)


class MembershipDetail(mixins.UpdateModelMixin, generics.GenericAPIView):
    """A reader's level; ratings given before keep the level they were given under."""

    serializer_class = LevelSerializer

    def get_queryset(self):
        return Membership.objects.filter(study__public_id=self.kwargs["study_id"])

    @extend_schema(parameters=[OpenApiParameter("id", OpenApiTypes.INT, OpenApiParameter.PATH)])
    def patch(self, request: Request, study_id, pk: int) -> Response:
        return self.partial_update(request)


class StudyProgress(APIView):
    """The person's own progress in a study."""

    permission_classes = [IsAuthenticated]

    @extend_schema(responses=ProgressSerializer)
    def get(self, request: Request, study_id) -> Response:
        study = _own_study(request, study_id)
        empty = {"done": 0, "total": 0, "mean_active_ms": None}
        return Response(ProgressSerializer(services.progress_of([study], request.user).get(study.pk, empty)).data)


class StudyReaders(APIView):
    """Progress of every reader of a study."""

    @extend_schema(responses=ReaderProgressSerializer(many=True))
    def get(self, request: Request, study_id) -> Response:
        study = get_object_or_404(Study, public_id=study_id)
        return Response(ReaderProgressSerializer(study.reader_progress(), many=True).data)


class StudyQueue(APIView):
    """The next open places of the person's reading list, in its order."""

    permission_classes = [IsAuthenticated]

    @extend_schema(
        parameters=[
            OpenApiParameter("limit", int, description=f"1 to {MAX_QUEUE}; 10 where left out."),
            OpenApiParameter(
                "reader", int, description="Whose list it must be; 403 where somebody else is signed in."
            ),
        ],
        responses=QueueSerializer(many=True),
    )
    def get(self, request: Request, study_id) -> Response:
        reader = request.query_params.get("reader", str(request.user.pk))
        _require_reader(request, int(reader) if reader.isdecimal() else 0)
        study = _own_study(request, study_id)
        limit = request.query_params.get("limit", "10")
        if not limit.isdecimal() or not 1 <= int(limit) <= MAX_QUEUE:
            raise ValidationError({"limit": [f"limit is {limit!r}; it must be a whole number, 1 to {MAX_QUEUE}."]})
        places = Assignment.objects.visible_to(request.user).filter(study=study).open()
        places = places.select_related("image__prompt", "rating").order_by("position")[: int(limit)]
        shape = _lasting(QueueSerializer)
        return Response([shape.to_representation(place) for place in places])


class StudyUndo(APIView):
    """Takes back the person's last answer that stands, or the one that is named."""

    permission_classes = [IsAuthenticated]

    @extend_schema(request=UndoSerializer, responses={200: UndoneSerializer, 409: ConflictSerializer})
    def post(self, request: Request, study_id) -> Response:
        study = _own_study(request, study_id)
        try:
            place = services.undo(study=study, reader=request.user, **_from_reader(UndoSerializer, request))
        except services.StaleRevision as error:
            return _conflict(error, "stale_revision", error.rating)
        except services.StudyClosed as error:
            return _conflict(error, "study_closed", None)
        value = place.rating.value if place else None
        return Response(UndoneSerializer({"assignment": place, "value": value}).data)


class _OwnAnswer(APIView):
    """Something said of one place of the person's reading list."""

    permission_classes = [IsAuthenticated]

    def _answer(self, request: Request, assignment_id, serializer_class, service) -> Response:
        given = _from_reader(serializer_class, request)
        try:
            rating = service(assignment=assignment_id, reader=request.user, **given)
        except Assignment.DoesNotExist as error:
            raise NotFound from error
        except services.StaleRevision as error:
            return _conflict(error, "stale_revision", error.rating)
        except services.StudyClosed as error:
            return _conflict(error, "study_closed", None)
        return Response(_lasting(OwnRatingSerializer).to_representation(rating))


class AssignmentRating(_OwnAnswer):
    """The person's rating of one place of the reading list, or why it cannot be judged."""

    @extend_schema(request=SubmissionSerializer, responses={200: OwnRatingSerializer, 409: ConflictSerializer})
    def post(self, request: Request, assignment_id) -> Response:
        return self._answer(request, assignment_id, SubmissionSerializer, services.submit_rating)


class AssignmentRemarks(_OwnAnswer):
    """Defects and comment of an answer that stands, replaced as a whole."""

    @extend_schema(request=RemarkSerializer, responses={200: OwnRatingSerializer, 409: ConflictSerializer})
    def post(self, request: Request, assignment_id) -> Response:
        return self._answer(request, assignment_id, RemarkSerializer, services.remark)


class AssignmentImage(APIView):
    """The picture of one place of the person's reading list as PNG, in the one form that all pictures of the study
    have: 16-bit grey with its first window where every one of them is that deep, else 8-bit RGB."""

    permission_classes = [IsAuthenticated]

    @extend_schema(responses={(200, "image/png"): OpenApiTypes.BINARY})
    def get(self, request: Request, assignment_id) -> HttpResponse:
        places = Assignment.objects.visible_to(request.user).select_related("image__prompt", "study")
        place = get_object_or_404(places, public_id=assignment_id)
        return image_reply(place.image, place.study)

    def perform_content_negotiation(self, request: Request, force: bool = False):
        return super().perform_content_negotiation(request, force=True)  # "Accept: image/png" is right here


class RatingList(generics.ListAPIView):
    """All ratings, newest first; filtered by study, reader, modality, value, state and simulated."""

    serializer_class = RatingSerializer
    queryset = Rating.objects.select_related("assignment__study", "assignment__reader", "assignment__image__prompt")

    @extend_schema(
        parameters=[
            OpenApiParameter("study", OpenApiTypes.UUID),
            OpenApiParameter("reader", str),
            OpenApiParameter("modality", str),
            OpenApiParameter("value", int),
            OpenApiParameter("state", str),
            OpenApiParameter("simulated", str, enum=["yes", "no"]),
        ]
    )
    def get(self, request: Request, *args, **kwargs) -> Response:
        return super().get(request, *args, **kwargs)

    def get_queryset(self):
        chosen = RatingFilter(self.request.query_params)
        if not chosen.is_valid():
            raise ValidationError(chosen.errors)
        return chosen.apply(super().get_queryset()).order_by("-submitted_at", "-pk")


class ExportList(generics.ListAPIView):
    """The exports that were written."""

    serializer_class = ExportSerializer
    queryset = Export.objects.select_related("study")

    @extend_schema(request=NewExportSerializer, responses={201: ExportSerializer})
    def post(self, request: Request) -> Response:
        """Write the ratings that stand now to a new export."""
        try:
            export = services.freeze_export(**_checked(NewExportSerializer, request), created_by=request.user)
        except services.StudyError as error:
            raise ValidationError({"detail": str(error)}) from error
        return Response(ExportSerializer(export).data, status=status.HTTP_201_CREATED)


class ExportDetail(generics.RetrieveAPIView):
    """One export."""

    serializer_class = ExportSerializer
    queryset = Export.objects.select_related("study")


class ExportFile(APIView):
    """One file of an export: ``ratings``, ``tidy`` or ``dictionary``."""

    @extend_schema(
        operation_id="exports_download",
        parameters=[OpenApiParameter("name", str, OpenApiParameter.PATH, enum=FILE_NAMES)],
        responses={(200, "text/csv"): OpenApiTypes.BINARY},
    )
    def get(self, request: Request, pk: int, name: str) -> FileResponse:
        try:
            return download(get_object_or_404(Export, pk=pk), name)
        except FileNotFoundError as error:
            raise NotFound(f"Export {pk} has no file {name!r} on the disk. Export again.") from error
