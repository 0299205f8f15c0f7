"""The API of the rating page: readers reach what is their own; what is not yours does not exist (404)."""

import functools

from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import status
from rest_framework.exceptions import NotFound, PermissionDenied, ValidationError
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from ratings import services
from ratings.models import NO_PROGRESS, Anchor, Assignment, Study
from ratings.reader_images import image_reply
from ratings.serializers import (
    AnchorsSerializer,
    AnsweredSerializer,
    ConflictSerializer,
    OwnProgressSerializer,
    OwnRatingSerializer,
    QueueSerializer,
    RemarkSerializer,
    SubmissionSerializer,
    UndoneSerializer,
    UndoSerializer,
)

MAX_QUEUE = 50  # places in one reply


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


_CONFLICTS = (  # the first that fits
    (services.VoidRating, "void"),
    (services.StaleRevision, "stale_revision"),
    (services.StudyClosed, "study_closed"),
    (services.PlaceGivenAway, "place_given_away"),
)


def _refusal(error: Exception) -> Response:
    """409 with how the rating stands, where the answer came too late; ValidationError where it is none."""
    code = next((code for kind, code in _CONFLICTS if isinstance(error, kind)), None)
    if code is None:
        field = "defects" if isinstance(error, services.UnknownDefects) else "detail"
        raise ValidationError({field: [str(error)]}) from error
    rating = getattr(error, "rating", None)
    stands = _lasting(OwnRatingSerializer).to_representation(rating) if rating else None
    return Response({"detail": str(error), "code": code, "rating": stands}, status=status.HTTP_409_CONFLICT)


def _own_study(request: Request, study_id) -> Study:
    """The study if the person reads it; 404 otherwise, for administrators too."""
    return get_object_or_404(Study.objects.read_by(request.user), public_id=study_id)


class StudyProgress(APIView):
    """The person's own progress in a study."""

    permission_classes = [IsAuthenticated]

    @extend_schema(responses=OwnProgressSerializer)
    def get(self, request: Request, study_id) -> Response:
        study = _own_study(request, study_id)
        nothing = {**NO_PROGRESS, "left_in_pool": 0}
        row = services.progress_of([study], request.user).get(study.pk, nothing)
        return Response(OwnProgressSerializer(row).data)


class StudyQueue(APIView):
    """The next open places of the person's reading list, in its order; those of a training round first, and no
    others until they are answered.

    In an open pool a GET gives the person more images where fewer than a handful are left. That writes, which a GET
    seldom should: but it asks for what is next and gets it, asked again it gets the same, and whoever rates need not
    wait for a second request. HEAD and OPTIONS draw nothing.
    """

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
        study = get_object_or_404(Study.objects.read_by(request.user).with_pool(), public_id=study_id)
        limit = request.query_params.get("limit", "10")
        if not limit.isdecimal() or not 1 <= int(limit) <= MAX_QUEUE:
            raise ValidationError({"limit": [f"limit is {limit!r}; it must be a whole number, 1 to {MAX_QUEUE}."]})
        places = self._places(request, study, int(limit))
        shape = _lasting(QueueSerializer)
        return Response([shape.to_representation(place) for place in places])

    @staticmethod
    def _places(request: Request, study: Study, limit: int) -> list[Assignment]:
        opened = Assignment.objects.visible_to(request.user).filter(study=study).open()
        opened = opened.select_related("image__prompt", "rating").order_by("position")
        # What the reply needs and no more: whole rows of four tables take as long again as all the rest.
        opened = opened.only("public_id", "kind", "image__prompt__text", "rating__revision")[:limit]
        places = list(opened)
        training = [place for place in places if place.kind == Assignment.Kind.TRAINING]
        if training:
            return training
        is_short = len(places) < min(limit, services.FEWEST_OPEN)
        if study.has_pool and study.is_open and is_short and request.method == "GET":
            drawn = services.draw_places(study=study, reader=request.user)
            return list(opened.all()) if drawn else places
        return places


class StudyUndo(APIView):
    """Takes back the person's last answer that stands, or the one that is named."""

    permission_classes = [IsAuthenticated]

    @extend_schema(request=UndoSerializer, responses={200: UndoneSerializer, 409: ConflictSerializer})
    def post(self, request: Request, study_id) -> Response:
        study = _own_study(request, study_id)
        try:
            place = services.undo(study=study, reader=request.user, **_from_reader(UndoSerializer, request))
        except (services.StaleRevision, services.StudyError) as error:
            return _refusal(error)
        value = place.rating.value if place else None
        return Response(UndoneSerializer({"assignment": place, "value": value}).data)


class _OwnAnswer(APIView):
    """Something said of one place of the person's reading list."""

    permission_classes = [IsAuthenticated]

    def _answer(self, request: Request, assignment_id, serializer_class, service, shown=OwnRatingSerializer):
        given = _from_reader(serializer_class, request)
        try:
            rating = service(assignment=assignment_id, reader=request.user, **given)
        except Assignment.DoesNotExist as error:
            raise NotFound from error
        except (services.StaleRevision, services.StudyError) as error:
            return _refusal(error)
        return Response(_lasting(shown).to_representation(rating))


class AssignmentRating(_OwnAnswer):
    """The person's rating of one place of the reading list, or why it cannot be judged. Only the training round
    answers with the grade that the image is known to have (``feedback``)."""

    @extend_schema(request=SubmissionSerializer, responses={200: AnsweredSerializer, 409: ConflictSerializer})
    def post(self, request: Request, assignment_id) -> Response:
        return self._answer(
            request, assignment_id, SubmissionSerializer, services.submit_rating, shown=AnsweredSerializer
        )


class AssignmentRemarks(_OwnAnswer):
    """Defects and comment of an answer that stands, replaced as a whole."""

    @extend_schema(request=RemarkSerializer, responses={200: OwnRatingSerializer, 409: ConflictSerializer})
    def post(self, request: Request, assignment_id) -> Response:
        return self._answer(request, assignment_id, RemarkSerializer, services.remark)


class _Picture(APIView):
    """A picture as PNG, in the one form that all pictures of a study have: 16-bit grey with its first window where
    every one of them is that deep, else 8-bit RGB."""

    permission_classes = [IsAuthenticated]

    def perform_content_negotiation(self, request: Request, force: bool = False):
        return super().perform_content_negotiation(request, force=True)  # "Accept: image/png" is right here


class AssignmentImage(_Picture):
    """The picture of one place of the person's reading list."""

    @extend_schema(responses={(200, "image/png"): OpenApiTypes.BINARY})
    def get(self, request: Request, assignment_id) -> HttpResponse:
        places = Assignment.objects.visible_to(request.user).select_related("image__prompt", "study")
        place = get_object_or_404(places, public_id=assignment_id)
        return image_reply(place.image, place.study)


class StudyAnchors(APIView):
    """The examples of the grades that readers of the study can look at, under the protocol that holds now."""

    permission_classes = [IsAuthenticated]

    @extend_schema(responses=AnchorsSerializer)
    def get(self, request: Request, study_id) -> Response:
        study = get_object_or_404(Study.objects.visible_to(request.user), public_id=study_id)
        anchors = Anchor.objects.filter(protocol__study=study, protocol__version=study.protocol_version)
        return Response(AnchorsSerializer({"anchors": anchors.order_by("grade")}).data)


class AnchorImage(_Picture):
    """The picture of an example."""

    @extend_schema(responses={(200, "image/png"): OpenApiTypes.BINARY})
    def get(self, request: Request, anchor_id) -> HttpResponse:
        anchors = Anchor.objects.filter(protocol__study__in=Study.objects.visible_to(request.user))
        anchor = get_object_or_404(anchors.select_related("image__prompt", "protocol__study"), public_id=anchor_id)
        return image_reply(anchor.image, anchor.protocol.study)
