"""Pages of training, for administrators; for everybody else they do not exist."""

import json
import re
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views import View

from generation.embedded_model import draws_phantoms
from generation.services import ReleaseError
from medsyn.roles import StaffMixin
from ratings.csv_schema import RatingsCSVError
from ratings.services import StudyError
from ratings.views import ordering, paged
from training import report_figures, services
from training.curves import CHARTS, chart_of, curves
from training.forms import FinetuneForm, ReleaseForm, RLHFRunForm, RunFilter
from training.models import TrainingRun
from training.run_directory import RunDirectory
from training.runner import last_values, log_tail
from training.services import TrainingError

LOG_LINES = 60
_VALIDATION_FOLDER = "validation"
_VALIDATION_FILE = re.compile(r"step_(\d+)\.png")


class RunList(StaffMixin, View):
    """All runs."""

    SORT_KEYS = {
        "name": "name",
        "purpose": "purpose",
        "state": "state",
        "created": "created_at",
        "finished": "finished_at",
    }

    def get(self, request: HttpRequest) -> HttpResponse:
        form = RunFilter(request.GET)
        runs = TrainingRun.objects.select_related("created_by", "release")
        runs = form.apply(runs) if form.is_valid() else runs.none()
        page = paged(runs.order_by(*ordering(request, self.SORT_KEYS, "-created")), request)
        rows = [(run, report_figures.headline(run)) for run in page]
        context = {"form": form, "page": page, "rows": rows, "any_run": TrainingRun.objects.exists()}
        return render(request, "training/runs.html", context)


class RLHFRunCreate(StaffMixin, View):
    """Trains selector and policy."""

    def get(self, request: HttpRequest) -> HttpResponse:
        initial = {name: request.GET.get(name) for name in ("study", "export", "generator")}
        return render(request, "training/new_rlhf.html", {"form": RLHFRunForm(initial=initial)})

    def post(self, request: HttpRequest) -> HttpResponse:
        form = RLHFRunForm(request.POST)
        if form.is_valid():
            try:
                return redirect(services.train_on_ratings(user=request.user, **form.service_arguments()))
            except (TrainingError, StudyError, RatingsCSVError, OSError) as error:
                form.add_error(None, str(error))
        return render(request, "training/new_rlhf.html", {"form": form}, status=422)


class FinetuneCreate(StaffMixin, View):
    """Fine-tunes the generator."""

    def get(self, request: HttpRequest) -> HttpResponse:
        return render(request, "training/new_finetune.html", {"form": FinetuneForm()})

    def post(self, request: HttpRequest) -> HttpResponse:
        form = FinetuneForm(request.POST)
        if form.is_valid():
            try:
                run = services.start_finetuning(
                    arguments=form.cleaned_data["arguments"], name=form.cleaned_data["name"], user=request.user
                )
                return redirect(run)
            except TrainingError as error:
                form.add_error(None, str(error))
        return render(request, "training/new_finetune.html", {"form": form}, status=422)


def status_of(run: TrainingRun) -> dict[str, str]:
    """Where the run stands, in words: stage, epoch, device."""
    values = last_values(RunDirectory(run.path), ("stage", "epoch", "device"))
    epoch = values.get("epoch")
    status = {"stage": str(values["stage"]) if "stage" in values else "–", "epoch": "–"}
    if run.purpose == run.Purpose.RLHF:
        status["stage"] += f" of {run.config['training']['stage']}"
        if epoch is not None:
            status["epoch"] = f"{epoch} of {run.config['training']['max_epochs']}"
    elif epoch is not None:
        status["epoch"] = f"{epoch:.1f}"
    return status | {"device": values.get("device") or settings.DEVICE}


def validation_steps(run: TrainingRun) -> list[int]:
    """Steps whose validation images were drawn, newest first."""
    names = (path.name for path in (run.path / _VALIDATION_FOLDER).glob("step_*.png"))
    return sorted((int(match[1]) for name in names if (match := _VALIDATION_FILE.fullmatch(name))), reverse=True)


class RunDetail(StaffMixin, View):
    """One run: where it stands, its curves, its log; when finished its report and the form that releases it."""

    def get(self, request: HttpRequest, pk: int) -> HttpResponse:
        run = _run(pk)
        return self.show(request, run, ReleaseForm(run=run) if can_release(run) else None)

    @classmethod
    def show(cls, request: HttpRequest, run: TrainingRun, form: ReleaseForm | None, status: int = 200):
        context = {
            "run": run,
            "status": status_of(run),
            "charts": CHARTS[run.purpose],
            "log": log_tail(run, LOG_LINES),
            "checkpoints": run.checkpoints.order_by("-step"),
            "release_form": form,
            "config": json.dumps(run.config, indent=2),
            **cls._finetuning(run),
            **cls._report(run),
        }
        return render(request, "training/run.html", context, status=status)

    @staticmethod
    def _finetuning(run: TrainingRun) -> dict[str, Any]:
        if run.purpose != run.Purpose.FINETUNE:
            return {}
        pipeline = run.path / services.PIPELINE_NAME
        return {
            "pipeline": pipeline if (pipeline / "model_index.json").is_file() else None,
            "validation_steps": validation_steps(run),
            "validation_prompts": run.config.get("validation_prompts", []),
            "shows_phantoms": run.generator == "medsyn-tiny" or draws_phantoms(Path(run.generator)),
        }

    @staticmethod
    def _report(run: TrainingRun) -> dict[str, Any]:
        if not run.figures:
            return {}
        return {
            "figures": report_figures.figures(run),
            "intervals": report_figures.intervals(run.figures),
            "counts": report_figures.counts(run.figures),
            "raters": report_figures.raters(run.figures),
            "report": json.dumps(run.figures, indent=2),
        }


def _run(pk: int) -> TrainingRun:
    rows = TrainingRun.objects.select_related("export__study", "release", "parent_release", "created_by")
    return get_object_or_404(rows, pk=pk)


def can_release(run: TrainingRun) -> bool:
    """Whether it has a selector and a policy that no longer change."""
    if run.purpose == run.Purpose.UPDATE:
        return run.is_finished and bool(run.figures.get("accepted"))
    return run.purpose == run.Purpose.RLHF and run.is_finished and run.checkpoints.exists()


class RunProgress(StaffMixin, View):
    """What js/progress.js and js/training.js ask for while the run is under way."""

    def get(self, request: HttpRequest, pk: int) -> JsonResponse:
        run = _run(pk)
        return JsonResponse({**run.as_progress(), **status_of(run), "log": log_tail(run, LOG_LINES)})


class RunChart(StaffMixin, View):
    """The numbers of one chart."""

    def get(self, request: HttpRequest, pk: int, name: str) -> JsonResponse:
        run = _run(pk)
        chart = chart_of(run, name)
        if chart is None:
            raise Http404(f"Run {pk} has no chart {name!r}.")
        return JsonResponse(curves(run, chart))


class RunCancel(StaffMixin, View):
    """Ends a run; its checkpoints stay."""

    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        run = _run(pk)
        services.cancel_run(run=run)
        if run.state == run.State.CANCELLED:
            messages.success(request, "The run is cancelled.")
        elif run.cancel_requested:
            messages.info(request, "The run was asked to stop; it will in a moment.")
        else:
            messages.warning(request, f"The run had {run.state} already: there was nothing to cancel.")
        return redirect(run)


class RunResume(StaffMixin, View):
    """Lets a failed or cancelled run go on."""

    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        run = _run(pk)
        try:
            services.resume_run(run=run)
        except TrainingError as error:
            messages.error(request, str(error))
        else:
            messages.success(request, "The run is queued again; it goes on from its newest checkpoint.")
        return redirect(run)


class RunRelease(StaffMixin, View):
    """Publishes a run's selector and policy with their generator."""

    def get(self, request: HttpRequest, pk: int) -> HttpResponse:
        return redirect(reverse("training:run", args=[pk]) + "#release")

    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        run = _run(pk)
        if not can_release(run):
            messages.error(request, "Only a finished selector-and-policy run with a checkpoint can be released.")
            return redirect(run)
        form = ReleaseForm(request.POST, run=run)
        if form.is_valid():
            try:
                release = services.release(run=run, **form.cleaned_data)
            except (TrainingError, ReleaseError) as error:
                form.add_error(None, str(error))
            else:
                state = "is served from now on" if release.is_active else "is published, not active"
                messages.success(request, f"Release {release} {state}.")
                return redirect(run)
        return RunDetail.show(request, run, form, status=422)


class ValidationImage(StaffMixin, View):
    """The validation images of one step. Only a number comes from the URL, so no other file can be asked for."""

    def get(self, request: HttpRequest, pk: int, step: int) -> FileResponse:
        folder = (_run(pk).path / _VALIDATION_FOLDER).resolve()
        path = (folder / f"step_{step}.png").resolve()
        if path.parent != folder or not path.is_file():
            raise Http404(f"Run {pk} has no validation images of step {step}.")
        response = FileResponse(path.open("rb"), content_type="image/png")
        response["Cache-Control"] = "private, max-age=3600"
        return response
