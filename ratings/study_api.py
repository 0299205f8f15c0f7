"""The API of studies for those who run them: study owners their own, administrators all. Readers see of a study that
it is there and how far they are. What is not yours does not exist (404)."""

from contextlib import contextmanager

from django.shortcuts import get_object_or_404
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import generics, status
from rest_framework.exceptions import ValidationError
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from generation.models import GeneratedImage
from medsyn.roles import IsAdmin, IsStudyOwner, is_admin
from ratings import services
from ratings.forms import RatingFilter
from ratings.hidden_grades import hidden_studies, told
from ratings.models import GoldGrade, Membership, Protocol, Rating, Study
from ratings.serializers import (
    AddedImagesSerializer,
    GivenBackSerializer,
    GivingBackSerializer,
    GoldSerializer,
    LevelSerializer,
    MembershipSerializer,
    NewStudySerializer,
    ProtocolSerializer,
    RatingSerializer,
    ReaderProgressSerializer,
    ReasonSerializer,
    StudyImagesSerializer,
    StudySerializer,
)


def _checked(serializer_class, request: Request, **options) -> dict:
    serializer = serializer_class(data=request.data, **options)
    serializer.is_valid(raise_exception=True)
    return serializer.validated_data


@contextmanager
def _refusing(field: str):
    """What a service refuses is a bad request: 400 that says so under ``field``."""
    try:
        yield
    except services.StudyError as error:
        raise ValidationError({field: [str(error)]}) from error


class _ForOwners(APIView):
    """For whoever runs the study."""

    permission_classes = [IsStudyOwner]

    def managed(self, study_id) -> Study:
        return get_object_or_404(Study.objects.managed_by(self.request.user), public_id=study_id)


class _ForReadersAndOwners:
    """Reading is open to the study's readers too, changes to whoever runs it."""

    request: Request

    def get_permissions(self):
        return [IsAuthenticated()] if self._is_reading() else [IsStudyOwner()]

    def get_queryset(self):
        user = self.request.user
        return Study.objects.visible_to(user) if self._is_reading() else Study.objects.managed_by(user)

    def _is_reading(self) -> bool:
        return self.request.method in ("GET", "HEAD", "OPTIONS")

    def _progress(self, studies: list[Study]) -> dict:
        """Of all readers in studies that the person runs, else the person's own."""
        user = self.request.user
        run = [study for study in studies if is_admin(user) or study.created_by_id == user.pk]
        others = [study for study in studies if study not in run]
        return services.progress_of(run) | (services.progress_of(others, user) if others else {})


class StudyList(_ForReadersAndOwners, generics.GenericAPIView):
    """The studies that the person reads or runs; for administrators all of them."""

    serializer_class = StudySerializer
    queryset = Study.objects.none()

    @extend_schema(operation_id="studies_list", responses=StudySerializer(many=True))
    def get(self, request: Request) -> Response:
        studies = self.paginate_queryset(self.get_queryset())
        context = {"progress": self._progress(studies)}
        return self.get_paginated_response(StudySerializer(studies, many=True, context=context).data)

    @extend_schema(request=NewStudySerializer, responses={201: StudySerializer})
    def post(self, request: Request) -> Response:
        given = _checked(NewStudySerializer, request)
        with _refusing("detail"):
            study = services.create_study(**given, created_by=request.user)
        data = StudySerializer(study, context={"progress": self._progress([study])}).data
        return Response(data, status=status.HTTP_201_CREATED)


class StudyDetail(_ForReadersAndOwners, generics.GenericAPIView):
    """One study. Changing its description or whether it is open is for whoever runs it, and its name as long as
    nobody rated; ratings are never deleted, so a study is closed, not removed."""

    serializer_class = StudySerializer
    queryset = Study.objects.none()
    lookup_field = "public_id"
    lookup_url_kwarg = "study_id"

    def get_serializer_context(self) -> dict:
        return {"progress": {}, **super().get_serializer_context()}

    def get(self, request: Request, study_id) -> Response:
        return self._reply(self.get_object())

    def patch(self, request: Request, study_id) -> Response:
        study = self.get_object()
        given = self.get_serializer(study, data=request.data, partial=True)
        given.is_valid(raise_exception=True)
        with _refusing("name"):
            services.describe_study(study=study, **given.validated_data)
        return self._reply(study)

    def _reply(self, study: Study) -> Response:
        return Response(StudySerializer(study, context={"progress": self._progress([study])}).data)


class StudyImages(_ForOwners):
    """Images put into a study as a new block behind every reader's list, gold and real ones mixed in by the
    protocol's shares."""

    @extend_schema(request=StudyImagesSerializer, responses={200: AddedImagesSerializer})
    def post(self, request: Request, study_id) -> Response:
        study = self.managed(study_id)
        given = _checked(StudyImagesSerializer, request)
        with _refusing("images"):
            return Response({"added": services.add_images(study=study, **given)})


class StudyProtocol(_ForOwners):
    """How the study is read. A change after the first rating makes a new version and needs a reason."""

    @extend_schema(responses=ProtocolSerializer)
    def get(self, request: Request, study_id) -> Response:
        return self._reply(self.managed(study_id))

    @extend_schema(request=ProtocolSerializer, responses=ProtocolSerializer)
    def patch(self, request: Request, study_id) -> Response:
        study = self.managed(study_id)
        given = _checked(ProtocolSerializer, request, partial=True)
        with _refusing("detail"):
            services.revise_protocol(study=study, created_by=request.user, **given)
        return self._reply(study)

    @staticmethod
    def _reply(study: Study) -> Response:
        versions = Protocol.objects.select_related("study").prefetch_related("anchors__image")
        return Response(ProtocolSerializer(versions.get(study=study, version=study.protocol_version)).data)


class StudyRelease(_ForOwners):
    """The places that a reader of an open pool has not answered, given to others."""

    @extend_schema(request=GivingBackSerializer, responses={200: GivenBackSerializer})
    def post(self, request: Request, study_id) -> Response:
        study = self.managed(study_id)
        reader = _checked(GivingBackSerializer, request)["reader"]
        if not study.memberships.filter(reader=reader).exists():
            raise ValidationError({"reader": [f"{reader.get_username()} does not read this study."]})
        with _refusing("detail"):
            return Response({"released": services.release_places(study=study, reader=reader)})


class MembershipList(_ForOwners, generics.GenericAPIView):
    """The readers of a study and their levels."""

    serializer_class = MembershipSerializer
    queryset = Membership.objects.select_related("reader").order_by("pk")

    @extend_schema(operation_id="studies_memberships_list", responses=MembershipSerializer(many=True))
    def get(self, request: Request, study_id) -> Response:
        members = self.paginate_queryset(self.get_queryset().filter(study=self.managed(study_id)))
        return self.get_paginated_response(MembershipSerializer(members, many=True).data)

    @extend_schema(responses={201: MembershipSerializer})
    def post(self, request: Request, study_id) -> Response:
        study = self.managed(study_id)
        given = _checked(MembershipSerializer, request)
        with _refusing("reader"):
            services.enrol_reader(study=study, **given)
        member = self.get_queryset().get(study=study, reader=given["reader"])
        return Response(MembershipSerializer(member).data, status=status.HTTP_201_CREATED)


class MembershipDetail(generics.GenericAPIView):
    """A reader's level, verified by an administrator: it holds in all open studies for what is rated from now on.
    Ratings given before keep the level they were given under."""

    permission_classes = [IsAdmin]
    serializer_class = LevelSerializer

    def get_queryset(self):
        return Membership.objects.filter(study__public_id=self.kwargs["study_id"]).select_related("reader", "study")

    @extend_schema(parameters=[OpenApiParameter("id", OpenApiTypes.INT, OpenApiParameter.PATH)])
    def patch(self, request: Request, study_id, pk: int) -> Response:
        member = self.get_object()
        if member.is_simulated or not member.study.is_open:
            raise ValidationError({"expert_level": ["The level of a simulated reader or in a closed study stays."]})
        given = _checked(LevelSerializer, request)
        services.verify_level(person=member.reader, verified_by=request.user, **given)
        member.refresh_from_db()
        return Response(LevelSerializer(member).data)


class StudyReaders(_ForOwners):
    """Progress of every reader of a study."""

    @extend_schema(responses=ReaderProgressSerializer(many=True))
    def get(self, request: Request, study_id) -> Response:
        return Response(ReaderProgressSerializer(self.managed(study_id).reader_progress(), many=True).data)


_RATINGS = Rating.objects.select_related("assignment__study", "assignment__reader", "assignment__image__prompt")


class RatingList(generics.ListAPIView):
    """The ratings of the person's studies, newest first; filtered by study, reader, modality, value, state and
    simulated. Others' ratings of studies that the person has images left to rate in are left out without ``show``."""

    permission_classes = [IsStudyOwner]
    serializer_class = RatingSerializer
    queryset = _RATINGS

    @extend_schema(
        parameters=[
            OpenApiParameter("study", OpenApiTypes.UUID),
            OpenApiParameter("reader", str),
            OpenApiParameter("modality", str),
            OpenApiParameter("value", int),
            OpenApiParameter("state", str),
            OpenApiParameter("simulated", str, enum=["yes", "no"]),
            OpenApiParameter("show", str, description="Any value: tell also what others rate while you do."),
        ]
    )
    def get(self, request: Request, *args, **kwargs) -> Response:
        return super().get(request, *args, **kwargs)

    def get_queryset(self):
        managed = Study.objects.managed_by(self.request.user)
        chosen = RatingFilter(self.request.query_params, studies=managed)
        if not chosen.is_valid():
            raise ValidationError(chosen.errors)
        ratings = super().get_queryset()
        if not is_admin(self.request.user):
            ratings = ratings.filter(assignment__study__in=managed)
        ratings = told(ratings, self.request, hidden_studies(self.request, managed))
        return chosen.apply(ratings).order_by("-submitted_at", "-pk")


class _RatingChange(APIView):
    """Something that whoever runs the study does to a rating, with a reason. A rating that is kept from the person,
    as in the list of ratings, does not exist without ``show``."""

    permission_classes = [IsStudyOwner]

    def _change(self, request: Request, pk: int, service) -> Response:
        managed = Study.objects.managed_by(request.user)
        ratings = told(_RATINGS.filter(assignment__study__in=managed), request, hidden_studies(request, managed))
        rating = get_object_or_404(ratings, pk=pk)
        given = _checked(ReasonSerializer, request)
        with _refusing("detail"):
            service(rating=rating, actor=request.user, **given)
        return Response(RatingSerializer(_RATINGS.get(pk=pk)).data)


class RatingVoid(_RatingChange):
    """Declares a rating void: it counts nowhere, and nothing is deleted."""

    @extend_schema(request=ReasonSerializer, responses={200: RatingSerializer})
    def post(self, request: Request, pk: int) -> Response:
        return self._change(request, pk, services.void_rating)


class RatingRestore(_RatingChange):
    """Lets a void rating count again."""

    @extend_schema(request=ReasonSerializer, responses={200: RatingSerializer})
    def post(self, request: Request, pk: int) -> Response:
        return self._change(request, pk, services.restore_rating)


class GoldList(generics.GenericAPIView):
    """Images whose grade is known, newest first. To set another grade is refused while the known one is in use."""

    permission_classes = [IsStudyOwner]
    serializer_class = GoldSerializer
    queryset = GoldGrade.objects.select_related("image").order_by("-pk")

    @extend_schema(operation_id="gold_list", responses=GoldSerializer(many=True))
    def get(self, request: Request) -> Response:
        rows = self.paginate_queryset(self.get_queryset())
        return self.get_paginated_response(GoldSerializer(rows, many=True).data)

    @extend_schema(responses={200: GoldSerializer})
    def post(self, request: Request) -> Response:
        given = _checked(GoldSerializer, request)
        with _refusing("grade"):
            return Response(GoldSerializer(services.set_gold(**given, set_by=request.user)).data)


class GoldDetail(APIView):
    """The known grade of one image."""

    permission_classes = [IsStudyOwner]

    @extend_schema(responses={204: None})
    def delete(self, request: Request, image_id) -> Response:
        """Forget it; refused while it is in use."""
        image = get_object_or_404(GeneratedImage.objects.filter(gold__isnull=False), public_id=image_id)
        with _refusing("detail"):
            services.clear_gold(image=image)
        return Response(status=status.HTTP_204_NO_CONTENT)
