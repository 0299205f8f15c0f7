"""Pages of training, for administrators; for everybody else they do not exist."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

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
from training import charts, comparison, report_figures, services
from training.curves import CHARTS, chart_of, curves
from training.forms import FinetuneForm, ReleaseForm, RLHFRunForm, RunFilter
from training.models import TrainingRun
from training.queueing import beside
from training.run_status import progress_of, status_of
from training.runner import REPORT_NAME, log_tail
from training.services import TrainingError

LOG_LINES = 60
_MOST_DIGITS = 10  # of a run's key in a query
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
        places = {pk: n for n, pk in enumerate(TrainingRun.objects.waiting().values_list("pk", flat=True), start=1)}
        rows = [(run, report_figures.headline(run), places.get(run.pk)) for run in page]
        context = {
            "form": form,
            "page": page,
            "rows": rows,
            "any_run": TrainingRun.objects.exists(),
            "beside": beside(),
        }
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
            "progress": progress_of(run),
            "status": status_of(run),
            "beside": "" if run.is_finished else beside(),
            "charts": CHARTS[run.purpose],
            "log": log_tail(run, LOG_LINES),
            "checkpoints": run.checkpoints.order_by("-step"),
            "release_form": form,
            "can_update": run.purpose == run.Purpose.RLHF and run.state == run.State.SUCCEEDED,
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
        figures, threshold = run.figures, _threshold(run)
        return {
            "figures": report_figures.figures(run),
            "intervals": report_figures.intervals(figures),
            "reliability": charts.reliability(figures),
            "histograms": charts.histograms(figures, threshold),
            "pass_curve": charts.pass_curve(figures, threshold),
            "mistakes": report_figures.mistakes(figures),
            "counts": report_figures.counts(figures),
            "left_out": report_figures.left_out(figures),
            "timing": charts.timing(figures),
            "raters": report_figures.raters(figures),
            "report": json.dumps(figures, indent=2),
        }


def _threshold(run: TrainingRun) -> float | None:
    """The score that an image needed to be served when the report was made."""
    configured = run.config.get("generation", {}).get("quality_threshold")
    return run.figures.get("serving", {}).get("quality_threshold", configured)


def _run(pk: int) -> TrainingRun:
    rows = TrainingRun.objects.select_related("export__study", "release", "parent_release", "created_by")
    return get_object_or_404(rows, pk=pk)


def can_release(run: TrainingRun) -> bool:
    """Whether it has a selector and a policy that no longer change."""
    if run.purpose == run.Purpose.UPDATE:
        return run.is_finished and bool(run.figures.get("accepted"))
    return run.purpose == run.Purpose.RLHF and run.is_finished and run.checkpoints.exists()


def _pair(*keys: str) -> list[TrainingRun]:
    """Two runs by their keys; raises Http404 unless both exist and have the same purpose."""
    runs = [_run(int(key)) for key in keys if key.isdecimal() and len(key) < _MOST_DIGITS]
    if len(runs) != 2 or runs[0].purpose != runs[1].purpose:
        raise Http404("Only two runs of the same purpose can be compared.")
    return runs


class RunProgress(StaffMixin, View):
    """What js/progress.js and js/training.js ask for while the run is under way."""

    def get(self, request: HttpRequest, pk: int) -> JsonResponse:
        run = _run(pk)
        return JsonResponse({**progress_of(run), **status_of(run), "log": log_tail(run, LOG_LINES)})


class RunReport(StaffMixin, View):
    """report.json: the bytes that the training process wrote, or the row's copy where the folder is gone."""

    def get(self, request: HttpRequest, pk: int) -> HttpResponse:
        run = _run(pk)
        if not run.figures:
            raise Http404(f"Run {pk} has no report yet.")
        path = run.path / REPORT_NAME
        content = path.read_bytes() if path.is_file() else json.dumps(run.figures, indent=2).encode()
        name = f"run-{pk}-report.json"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return HttpResponse(content, content_type="application/json", headers=headers)


class RunChart(StaffMixin, View):
    """The numbers of one chart; ?with=2 adds those of run 2 for a comparison."""

    def get(self, request: HttpRequest, pk: int, name: str) -> JsonResponse:
        run = _run(pk)
        chart = chart_of(run, name)
        if chart is None:
            raise Http404(f"Run {pk} has no chart {name!r}.")
        if "with" in request.GET:
            return JsonResponse(comparison.merged_curves(*_pair(str(pk), request.GET["with"]), chart))
        return JsonResponse(curves(run, chart))


class RunCost(StaffMixin, View):
    """What the run that a form describes would cost; js/training.js asks whenever a value changes."""

    FORMS = {"rlhf": RLHFRunForm, "finetune": FinetuneForm}

    def post(self, request: HttpRequest, purpose: str) -> JsonResponse:
        if purpose not in self.FORMS:
            raise Http404(f"There is no form for {purpose!r}.")
        form = self.FORMS[purpose](request.POST)
        if not form.is_valid():
            return JsonResponse({"problem": next(iter(form.errors.values()))[0]})
        try:
            return JsonResponse(form.cost().as_json())
        except (RatingsCSVError, OSError) as error:
            return JsonResponse({"problem": str(error)})


class RunComparison(StaffMixin, View):
    """Two runs side by side. ?run=1&run=2, as the list's checkboxes send it, leads to ?a=1&b=2."""

    def get(self, request: HttpRequest) -> HttpResponse:
        if not {"a", "b"} <= request.GET.keys():
            return self._choose(request)
        a, b = _pair(request.GET["a"], request.GET["b"])
        context = {
            "runs": [{"name": name, "run": run} for name, run in zip(comparison.NAMES, (a, b), strict=True)],
            "a": a,
            "b": b,
            "differences": comparison.differences(a, b),
            "intervals": comparison.interval_pairs(a, b),
            "figures": comparison.figure_pairs(a, b),
            "data": comparison.data_pairs(a, b),
            "charts": CHARTS[a.purpose],
            "is_live": not (a.is_finished and b.is_finished),
        }
        return render(request, "training/compare.html", context)

    @staticmethod
    def _choose(request: HttpRequest) -> HttpResponse:
        """To the comparison of the two that are ticked, the older one first; else back to the list."""
        keys = [key for key in request.GET.getlist("run") if key.isdecimal() and len(key) < _MOST_DIGITS]
        runs = list(TrainingRun.objects.filter(pk__in=keys).order_by("pk"))
        if len(runs) == 2 and runs[0].purpose == runs[1].purpose:
            return redirect(reverse("training:compare") + "?" + urlencode({"a": runs[0].pk, "b": runs[1].pk}))
        if "run" in request.GET:
            messages.error(request, "Choose two runs of the same purpose to compare.")
        return redirect("training:runs")


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
            messages.error(
                request,
                "Only a finished selector-and-policy run with a checkpoint, or an accepted update, can be released.",
            )
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


class RunUpdate(StaffMixin, View):
    """Queues an update of the generator by a finished run's selector and policy; one that exists is shown."""

    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        run = _run(pk)
        try:
            return redirect(services.update_after(run=run, user=request.user))
        except TrainingError as error:
            messages.error(request, str(error))
            return redirect(run)


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
