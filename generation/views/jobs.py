"""Pages of generation jobs: the form, a job with its gallery, its files."""

from functools import partial
from typing import Any

from django.core.paginator import Paginator
from django.db.models import Count, Q
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.cache import patch_cache_control
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from generation.archive import build_archive
from generation.certification import certificate_for, standing_of_job
from generation.filtering import Ledger
from generation.forms import GenerateForm, as_fields, examples, initial_from_image, initial_from_job
from generation.job_figures import job_figures, scores_of
from generation.models import Certificate, GeneratedImage, GenerationJob, Prompt, Release
from generation.output_folder import FORMATS
from generation.parameters import ParameterError
from generation.services import (
    active_release,
    ledger_of,
    recommended_sampling,
    retry_generation,
    start_generation,
)
from generation.views.access import staff_only
from generation.views.images import FILE_GONE, image_or_404
from generation.views.running import do_or_say_why, end, progress_reply, unstored_reply

JOBS_SHOWN = 20
GALLERY_PAGE = 96  # served images on a page of a job's gallery
REJECTED_SHOWN = 60  # rejected candidates in its fold; the list of images has them all


@staff_only
@require_http_methods(["GET", "HEAD", "POST"])
def generate(request: HttpRequest) -> HttpResponse:
    """The form, and the recent jobs below it."""
    release = active_release()
    if request.method == "POST":
        form = GenerateForm(request.POST)
        if form.is_valid():
            try:
                return redirect(start_generation(user=request.user, **form.service_arguments()))
            except ParameterError as error:
                form.take_error(error)
    else:
        form = GenerateForm(initial=_initial(request, release))
    jobs = GenerationJob.objects.annotate(
        num_served=Count("images", filter=~Q(images__verdict__in=GeneratedImage.WITHHELD), distinct=True),
        num_prompts=Count("job_prompts", distinct=True),
    ).prefetch_related("job_prompts__prompt")
    jobs = jobs.order_by("-created_at")  # aggregation drops the order of the model
    context = {"form": form, "examples": examples(), "jobs": jobs[:JOBS_SHOWN], "release": release}
    context["certificates"] = release.certificates.valid() if release else ()
    return render(request, "generation/generate.html", context, status=422 if form.errors else 200)


def _initial(request: HttpRequest, release: Release | None) -> dict[str, Any]:
    """An image's settings (?like=), a job's (?again=), a prompt (?prompt=), the prompts of a certificate
    (?certificate=), or the active release's defaults; under a certificate where one holds for the prompts.
    ?threshold= goes on top, and is no certificate's."""
    initial: dict[str, Any] = {"prompts": request.GET.get("prompt", "")} | as_fields(recommended_sampling(release))
    if release is not None:
        initial |= {"mode": GenerationJob.Mode.RLHF, "quality_threshold": release.quality_threshold}
    if "like" in request.GET:
        initial |= initial_from_image(image_or_404(request.GET["like"], request.user))
    elif request.GET.get("again", "").isdecimal():
        initial |= initial_from_job(get_object_or_404(GenerationJob, pk=request.GET["again"]))
    elif request.GET.get("certificate", "").isdecimal():
        certificate = get_object_or_404(Certificate, pk=request.GET["certificate"])
        initial["prompts"] = "\n".join(certificate.pipeline["prompts"])
    if "threshold" in request.GET:
        initial["quality_threshold"] = request.GET["threshold"]
    prompts = [line.strip() for line in initial["prompts"].splitlines() if line.strip()]
    is_certified = "threshold" not in request.GET and certificate_for(release, prompts) is not None
    return initial | {"certified": is_certified}


@staff_only
@require_safe
def job(request: HttpRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(GenerationJob.objects.select_related("release", "created_by"), pk=pk)
    prompts = _prompts(row)
    standing = standing_of_job(row)
    context = {"job": row, "prompts": prompts, "can_go_on": _can_go_on(row), "standing": standing}
    return render(request, "generation/job.html", context | _gallery(row, prompts, request.GET.get("page")))


def _prompts(row: GenerationJob) -> list[Prompt]:
    return [one.prompt for one in row.job_prompts.select_related("prompt")]


def _can_go_on(row: GenerationJob) -> bool:
    """Whether a retry would draw anything: a job whose attempts are spent would only fail again."""
    if row.state not in (row.State.FAILED, row.State.CANCELLED):
        return False
    return row.mode != row.Mode.RLHF or bool(ledger_of(row).open_places)


@staff_only
@require_safe
def job_gallery(request: HttpRequest, pk: int) -> HttpResponse:
    """The gallery alone: the page asks for it again as images arrive."""
    row = get_object_or_404(GenerationJob, pk=pk)
    context = {"job": row} | _gallery(row, _prompts(row), request.GET.get("page"))
    response = render(request, "generation/_gallery.html", context)
    patch_cache_control(response, no_store=True)
    return response


def _gallery(row: GenerationJob, prompts: list[Prompt], page: str | None) -> dict[str, Any]:
    images = row.images.select_related("prompt").defer("parameters").order_by("position")
    rejected = images.filter(verdict=GeneratedImage.Verdict.REJECTED)
    counts = row.images.aggregate(
        num_drawn=Count("pk"),
        num_rejected=Count("pk", filter=Q(verdict=GeneratedImage.Verdict.REJECTED)),
        num_blocked=Count("pk", filter=Q(verdict=GeneratedImage.Verdict.BLOCKED)),
        num_phantoms=Count("pk", filter=Q(is_phantom=True)),
        num_scored=Count("pk", filter=Q(selector_score__isnull=False)),
    )
    ledger = ledger_of(row) if row.mode == row.Mode.RLHF else None
    return counts | {
        "has_prompts": len(prompts) > 1,
        "page": Paginator(images.served(), GALLERY_PAGE).get_page(page),
        # The best of the rejected first: how near they came says whether the threshold is too high.
        "rejected": rejected.order_by("-selector_score", "position")[:REJECTED_SHOWN],
        "blocked": images.blocked()[:REJECTED_SHOWN],
        "shortfall": _shortfall(row, ledger),
        "figures": job_figures(row, ledger, [prompt.text for prompt in prompts]) if ledger else None,
    }


def _shortfall(row: GenerationJob, ledger: Ledger | None) -> str:
    """Why a finished job has fewer images than were asked for; "" where it has them all."""
    if ledger is None or row.state != row.State.SUCCEEDED:
        return ""
    return ledger.explain_empty() if ledger.empty_places else ""


@staff_only
@require_safe
def job_progress(request: HttpRequest, pk: int) -> JsonResponse:
    return progress_reply(get_object_or_404(GenerationJob, pk=pk))


@staff_only
@require_safe
def job_scores(request: HttpRequest, pk: int) -> JsonResponse:
    """The scores of its candidates: the threshold slider of its page works with them."""
    return unstored_reply(scores_of(get_object_or_404(GenerationJob, pk=pk)))


@staff_only
@require_POST
def job_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(GenerationJob, pk=pk)
    return end(request, row, row.request_cancel, name="job", kept="Images it has made so far stay.")


@staff_only
@require_POST
def job_retry(request: HttpRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(GenerationJob, pk=pk)
    do_or_say_why(request, partial(retry_generation, job=row))
    return redirect(row)


@staff_only
@require_safe
def job_archive(request: HttpRequest, pk: int) -> HttpResponse:
    """ZIP of what the job serves: its accepted images, in baseline all. ``?format=dicom`` for DICOM files."""
    image_format = request.GET.get("format", "png")
    if image_format not in FORMATS:
        raise Http404(f"There is no image format {image_format!r}. Known: {', '.join(FORMATS)}.")
    row = get_object_or_404(GenerationJob.objects.select_related("release"), pk=pk)
    images = list(row.images.served().select_related("prompt", "release").order_by("position"))
    if not images:
        raise Http404("This job has no image to hand on.")
    try:
        archive = build_archive(row, images, image_format)
        return FileResponse(archive, as_attachment=True, filename=f"generation_{row.pk}.zip")
    except FileNotFoundError:
        raise Http404(FILE_GONE) from None
