"""Pages of generation: jobs, images, releases. For administrators only."""

from collections.abc import Callable
from functools import wraps
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db.models import Count, Q
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.cache import patch_cache_control
from django.views.decorators.http import condition, require_http_methods, require_POST, require_safe

from generation.archive import build_archive, file_name
from generation.forms import GenerateForm, ImageFilter, as_fields, examples, initial_from_image, initial_from_job
from generation.models import GeneratedImage, GenerationJob, Release
from generation.output_folder import FORMATS
from generation.parameters import ParameterError
from generation.release_figures import comparison
from generation.services import (
    ReleaseError,
    activate_release,
    active_release,
    ledger_of,
    recommended_sampling,
    retry_generation,
    start_generation,
)
from medsyn.roles import is_study_owner

JOBS_SHOWN = 20
GALLERY_LIMIT = 120  # images of one verdict on a job's page; the list of images has them all
IMAGES_PER_PAGE = 48
IMAGE_CACHE_SECONDS = 24 * 3600
_GRADES = {1: "Poor", 2: "Acceptable", 3: "Excellent"}  # as the ratings app names them
_FILE_GONE = "The row is there, but its file is not: restore the artifact folder from a backup."


def staff_only(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """403 for readers; people who have not signed in were sent to the sign-in page before (middleware)."""

    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not request.user.is_staff:
            raise PermissionDenied("Only administrators generate images and look at where they come from.")
        return view(request, *args, **kwargs)

    return guarded


def owners_too(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """For study owners as well: they choose images for their studies. 404 for everybody else."""

    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not is_study_owner(request.user):
            raise Http404
        return view(request, *args, **kwargs)

    return guarded


# --- jobs ---


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
        num_served=Count("images", filter=~Q(images__verdict=GeneratedImage.Verdict.REJECTED), distinct=True),
        num_prompts=Count("job_prompts", distinct=True),
    ).prefetch_related("job_prompts__prompt")
    jobs = jobs.order_by("-created_at")  # aggregation drops the order of the model
    context = {"form": form, "examples": examples(), "jobs": jobs[:JOBS_SHOWN], "release": release}
    return render(request, "generation/generate.html", context, status=422 if form.errors else 200)


def _initial(request: HttpRequest, release: Release | None) -> dict[str, Any]:
    """An image's settings (?like=), a job's (?again=), a prompt (?prompt=), or the active release's defaults."""
    initial: dict[str, Any] = {"prompts": request.GET.get("prompt", "")} | as_fields(recommended_sampling(release))
    if release is not None:
        initial |= {"mode": GenerationJob.Mode.RLHF, "quality_threshold": release.quality_threshold}
    if "like" in request.GET:
        initial |= initial_from_image(_image_or_404(request.GET["like"]))
    elif request.GET.get("again", "").isdecimal():
        initial |= initial_from_job(get_object_or_404(GenerationJob, pk=request.GET["again"]))
    return initial


def _image_or_404(public_id: str | UUID) -> GeneratedImage:
    try:
        public_id = UUID(str(public_id))
    except ValueError:
        raise Http404(f"{public_id!r} is no image's id.") from None
    images = GeneratedImage.objects.select_related("prompt", "release", "job")
    return get_object_or_404(images, public_id=public_id)


@staff_only
@require_safe
def job(request: HttpRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(GenerationJob.objects.select_related("release", "created_by"), pk=pk)
    prompts = [one.prompt for one in row.job_prompts.select_related("prompt")]
    context = {"job": row, "prompts": prompts, "can_go_on": _can_go_on(row)}
    return render(request, "generation/job.html", context | _gallery(row))


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
    response = render(request, "generation/_gallery.html", {"job": row} | _gallery(row))
    patch_cache_control(response, no_store=True)
    return response


def _gallery(row: GenerationJob) -> dict[str, Any]:
    images = row.images.select_related("prompt").order_by("position")
    served, rejected = images.served(), images.filter(verdict=GeneratedImage.Verdict.REJECTED)
    return {
        "served": served[:GALLERY_LIMIT],
        "num_served": served.count(),
        # The best of the rejected first: how near they came says whether the threshold is too high.
        "rejected": rejected.order_by("-selector_score", "position")[:GALLERY_LIMIT],
        "num_rejected": rejected.count(),
        "num_drawn": images.count(),
        "has_phantoms": images.filter(is_phantom=True).exists(),
        "shortfall": _shortfall(row),
    }


def _shortfall(row: GenerationJob) -> str:
    """Why a finished job has fewer images than were asked for; "" where it has them all."""
    if row.mode != row.Mode.RLHF or row.state != row.State.SUCCEEDED:
        return ""
    ledger = ledger_of(row)
    return ledger.explain_empty() if ledger.empty_places else ""


@staff_only
@require_safe
def job_progress(request: HttpRequest, pk: int) -> JsonResponse:
    response = JsonResponse(get_object_or_404(GenerationJob, pk=pk).as_progress())
    patch_cache_control(response, no_store=True)
    return response


@staff_only
@require_POST
def job_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(GenerationJob, pk=pk)
    if row.is_finished:
        messages.warning(request, f"The job had ended already ({row.get_state_display().lower()}).")
    else:
        row.request_cancel()
        messages.success(request, "The job ends now. Images it has made so far stay.")
    return redirect(row)


@staff_only
@require_POST
def job_retry(request: HttpRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(GenerationJob, pk=pk)
    try:
        retry_generation(job=row)
    except ParameterError as error:
        messages.error(request, error.message)
    return redirect(row)


@staff_only
@require_safe
def job_archive(request: HttpRequest, pk: int) -> HttpResponse:
    """ZIP of what the job serves: its accepted images, in baseline all. ``?format=dicom`` for DICOM files."""
    image_format = request.GET.get("format", "png")
    if image_format not in FORMATS:
        raise Http404(f"There is no image format {image_format!r}. Known: {', '.join(FORMATS)}.")
    row = get_object_or_404(GenerationJob, pk=pk)
    images = list(row.images.served().select_related("prompt").order_by("position"))
    if not images:
        raise Http404("This job has no image to hand on.")
    try:
        archive = build_archive(images, image_format)
        return FileResponse(archive, as_attachment=True, filename=f"generation_{row.pk}.zip")
    except FileNotFoundError:
        raise Http404(_FILE_GONE) from None


# --- images ---


@staff_only
@require_safe
def images(request: HttpRequest) -> HttpResponse:
    form = ImageFilter(request.GET)
    found = form.apply(GeneratedImage.objects.select_related("prompt", "release"))
    page = Paginator(found, IMAGES_PER_PAGE).get_page(request.GET.get("page"))
    has_phantoms = any(image.is_phantom for image in page)
    return render(request, "generation/images.html", {"form": form, "page": page, "has_phantoms": has_phantoms})


@owners_too
@require_safe
def image(request: HttpRequest, public_id: UUID) -> HttpResponse:
    row = _image_or_404(public_id)
    context = {
        "image": row,
        "attempts": _attempts(row),
        "ratings": _rating_counts(row, request.user),
        "neighbours": _neighbours(row),
        "batch_size": len(row.parameters.get("batch_seeds", [])),
        "guidance_part": _guidance_part(row),
        "gold_grades": [(value, f"{value} · {label}") for value, label in _GRADES.items()],
    }
    return render(request, "generation/image.html", context)


def _guidance_part(row: GeneratedImage) -> list[float] | None:
    """Start and end of the guided part of the run; None where all of it was."""
    interval = row.parameters.get("guidance_interval", [0, 1])
    return None if interval == [0, 1] else interval


def _attempts(row: GeneratedImage) -> list[GeneratedImage]:
    """Every candidate drawn for the same place of the job."""
    if row.job is None or row.job.mode != GenerationJob.Mode.RLHF:
        return []
    per_place = row.job.parameters["max_attempts"] * row.job.parameters["num_candidates"]
    first = row.position // per_place * per_place
    return list(row.job.images.filter(position__range=(first, first + per_place - 1)).order_by("position"))


def _rating_counts(row: GeneratedImage, user) -> dict[str, int]:
    """Ratings by grade, as far as readers have given any that leave the person blind. The relation is the ratings
    app's, by its name."""
    given = row.assignments.told_to(user).filter(rating__state="submitted")
    counts = dict(given.values_list("rating__value").annotate(Count("pk")).order_by("rating__value"))
    return {label: counts.get(value, 0) for value, label in _GRADES.items()} if counts else {}


def _neighbours(row: GeneratedImage) -> dict[str, GeneratedImage | None]:
    """The images before and after this one in its job, of those that are served."""
    if row.job is None:
        return {}
    served = row.job.images.served()
    return {
        "previous": served.filter(position__lt=row.position).order_by("-position").first(),
        "next": served.filter(position__gt=row.position).order_by("position").first(),
    }


def _image_etag(request: HttpRequest, public_id: UUID) -> str | None:
    sha256 = GeneratedImage.objects.filter(public_id=public_id).values_list("sha256", flat=True).first()
    return f'"{sha256}"' if sha256 else None


@owners_too
@require_safe
@condition(etag_func=_image_etag)
def image_file(request: HttpRequest, public_id: UUID) -> HttpResponse:
    """The PNG itself; with ?download under a name that says what it is."""
    row = _image_or_404(public_id)
    download = "download" in request.GET
    name = file_name(row, row.position) if download else ""
    response = _file(row.path, content_type="image/png", as_attachment=download, filename=name)
    patch_cache_control(response, private=True, max_age=IMAGE_CACHE_SECONDS)
    return response


@owners_too
@require_safe
def image_sidecar(request: HttpRequest, public_id: UUID) -> HttpResponse:
    row = _image_or_404(public_id)
    name = file_name(row, row.position).removesuffix(".png") + ".json"
    path = row.path.with_suffix(".json")
    return _file(path, content_type="application/json", as_attachment=True, filename=name)


def _file(path, **options: Any) -> FileResponse:
    try:
        return FileResponse(path.open("rb"), **options)
    except FileNotFoundError:
        raise Http404(_FILE_GONE) from None


# --- releases ---


@staff_only
@require_safe
def releases(request: HttpRequest) -> HttpResponse:
    rows = list(
        Release.objects.annotate(
            num_accepted=Count("images", filter=Q(images__verdict=GeneratedImage.Verdict.ACCEPTED)),
            num_judged=Count("images", filter=~Q(images__verdict=GeneratedImage.Verdict.UNFILTERED)),
        ).order_by("-created_at")
    )
    active = next((row for row in rows if row.is_active), None)
    context = {"releases": rows, "active": active, "comparison": comparison(rows)}
    return render(request, "generation/releases.html", context)


@staff_only
@require_POST
def release_activate(request: HttpRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(Release, pk=pk)
    try:
        activate_release(release=row)
    except ReleaseError as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"{row} is active: the next jobs draw and filter with it.")
    return redirect("generation:releases")
