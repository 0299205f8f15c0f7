"""The API of training runs, for administrators (the default permission)."""

from typing import Any

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import generics, status
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from generation.services import ReleaseError
from ratings.csv_schema import RatingsCSVError
from ratings.services import StudyError
from training import services
from training.curves import CHARTS, curves
from training.forms import RunFilter
from training.models import TrainingRun
from training.queueing import Queue
from training.runner import log_tail
from training.serializers import (
    ChartSerializer,
    EstimateSerializer,
    LogSerializer,
    NewFinetuningRunSerializer,
    NewReleaseSerializer,
    NewRLHFRunSerializer,
    PublishedReleaseSerializer,
    RunDetailSerializer,
    RunSerializer,
)
from training.services import TrainingError

LOG_LINES = 60


def _checked(serializer_class, request: Request) -> dict:
    serializer = serializer_class(data=request.data)
    serializer.is_valid(raise_exception=True)
    return serializer.validated_data


def _refused(error: Exception) -> ValidationError:
    return ValidationError({"detail": str(error)})


class RunList(generics.ListAPIView):
    """All runs, newest first; filtered by name, purpose and state."""

    serializer_class = RunSerializer
    queryset = TrainingRun.objects.select_related("release").order_by("-created_at", "-pk")

    @extend_schema(
        parameters=[
            OpenApiParameter("q", str, description="Part of the name."),
            OpenApiParameter("purpose", str, enum=TrainingRun.Purpose.values),
            OpenApiParameter("state", str, enum=TrainingRun.State.values),
        ]
    )
    def get(self, request: Request, *args, **kwargs) -> Response:
        return super().get(request, *args, **kwargs)

    def get_queryset(self):
        chosen = RunFilter(self.request.query_params)
        if not chosen.is_valid():
            raise ValidationError(chosen.errors)
        return chosen.apply(super().get_queryset())

    def get_serializer_context(self) -> dict[str, Any]:
        return super().get_serializer_context() | {"queue": Queue()}


class RunDetail(generics.RetrieveAPIView):
    """One run."""

    serializer_class = RunDetailSerializer
    queryset = TrainingRun.objects.select_related("release").prefetch_related("checkpoints")


class RLHFRunCreate(APIView):
    """Queues the training of selector and policy."""

    @extend_schema(request=NewRLHFRunSerializer, responses={201: RunDetailSerializer})
    def post(self, request: Request) -> Response:
        given = _checked(NewRLHFRunSerializer, request)
        try:
            run = services.train_on_ratings(user=request.user, **given)
        except (TrainingError, StudyError, RatingsCSVError, OSError) as error:
            raise _refused(error) from error
        return Response(RunDetailSerializer(run).data, status=status.HTTP_201_CREATED)


class FinetuningRunCreate(APIView):
    """Queues the fine-tuning of a generator."""

    @extend_schema(request=NewFinetuningRunSerializer, responses={201: RunDetailSerializer})
    def post(self, request: Request) -> Response:
        given = _checked(NewFinetuningRunSerializer, request)
        try:
            run = services.start_finetuning(arguments=given["arguments"], name=given["name"], user=request.user)
        except TrainingError as error:
            raise _refused(error) from error
        return Response(RunDetailSerializer(run).data, status=status.HTTP_201_CREATED)


class RLHFRunCost(APIView):
    """What training selector and policy would cost; the body is that of a new run, none is started."""

    @extend_schema(request=NewRLHFRunSerializer, responses=EstimateSerializer)
    def post(self, request: Request) -> Response:
        given = _checked(NewRLHFRunSerializer, request)
        chosen = {name: given.get(name) for name in ("study", "export")}
        try:
            estimate = services.estimate_rlhf(config=given["config"], **chosen)
        except (RatingsCSVError, OSError) as error:
            raise _refused(error) from error
        return Response(EstimateSerializer(estimate).data)


class FinetuningRunCost(APIView):
    """What fine-tuning would cost; the body is that of a new run, none is started."""

    @extend_schema(request=NewFinetuningRunSerializer, responses=EstimateSerializer)
    def post(self, request: Request) -> Response:
        given = _checked(NewFinetuningRunSerializer, request)
        return Response(EstimateSerializer(services.estimate_finetuning(arguments=given["arguments"])).data)


class RunLog(APIView):
    """The end of a run's log."""

    @extend_schema(operation_id="training_runs_log", responses=LogSerializer)
    def get(self, request: Request, pk: int) -> Response:
        run = get_object_or_404(TrainingRun, pk=pk)
        return Response({"log": log_tail(run, LOG_LINES)})


class RunCancel(APIView):
    """Ends a run: at once if it is queued, else at its next report. Its checkpoints stay."""

    @extend_schema(request=None, responses=RunSerializer)
    def post(self, request: Request, pk: int) -> Response:
        run = get_object_or_404(TrainingRun, pk=pk)
        services.cancel_run(run=run)
        return Response(RunSerializer(run).data)


class RunResume(APIView):
    """Queues a failed or cancelled run again; it goes on from its newest checkpoint."""

    @extend_schema(request=None, responses=RunSerializer)
    def post(self, request: Request, pk: int) -> Response:
        run = get_object_or_404(TrainingRun, pk=pk)
        try:
            services.resume_run(run=run)
        except TrainingError as error:
            raise _refused(error) from error
        run.refresh_from_db()
        return Response(RunSerializer(run).data)


class RunUpdate(APIView):
    """Queues an update of the generator by a finished run's selector and policy; asked again, it is the same one."""

    @extend_schema(request=None, responses={201: RunDetailSerializer})
    def post(self, request: Request, pk: int) -> Response:
        run = get_object_or_404(TrainingRun, pk=pk)
        try:
            update = services.update_after(run=run, user=request.user)
        except TrainingError as error:
            raise _refused(error) from error
        return Response(RunDetailSerializer(update).data, status=status.HTTP_201_CREATED)


class RunMetrics(APIView):
    """The curves of a run: losses, pass rate, learning rates and what else its process has logged."""

    @extend_schema(operation_id="training_runs_metrics", responses=ChartSerializer(many=True))
    def get(self, request: Request, pk: int) -> Response:
        run = get_object_or_404(TrainingRun, pk=pk)
        charts = [{"name": chart.name, **curves(run, chart)} for chart in CHARTS[run.purpose]]
        return Response(ChartSerializer(charts, many=True).data)


class RunRelease(APIView):
    """Publishes a run's selector and policy with their generator as a release."""

    @extend_schema(request=NewReleaseSerializer, responses={201: PublishedReleaseSerializer})
    def post(self, request: Request, pk: int) -> Response:
        run = get_object_or_404(TrainingRun, pk=pk)
        given = _checked(NewReleaseSerializer, request)
        name = given.pop("checkpoint")
        chosen = run.checkpoints.filter(name=name).first() if name else None
        if name and chosen is None:
            known = ", ".join(run.checkpoints.values_list("name", flat=True)) or "none"
            raise ValidationError({"checkpoint": [f"There is no checkpoint {name!r}. Checkpoints: {known}."]})
        try:
            release = services.release(run=run, checkpoint=chosen, **given)
        except (TrainingError, ReleaseError) as error:
            raise _refused(error) from error
        return Response(PublishedReleaseSerializer(release).data, status=status.HTTP_201_CREATED)
