"""Pages of images: the list, one image with where it comes from, its files."""

from functools import partial
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.paginator import Paginator
from django.db.models import Count, QuerySet
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.cache import patch_cache_control
from django.views.decorators.http import condition, require_POST, require_safe

from generation.archive import file_name
from generation.certification import Standing, standing_of_job
from generation.forms import ImageFilter
from generation.models import GeneratedImage, GenerationJob, Redrawing
from generation.redrawings import outcome, redraw_image
from generation.training_images import TrainingImageGone, is_there, training_picture
from generation.views.access import owners_too, staff_only
from generation.views.running import do_or_say_why, progress_reply

IMAGES_PER_PAGE = 48
IMAGE_CACHE_SECONDS = 24 * 3600
_GRADES = {1: "Poor", 2: "Acceptable", 3: "Excellent"}  # as the ratings app names them
FILE_GONE = "The row is there, but its file is not: restore the artifact folder from a backup."


def image_or_404(public_id: str | UUID, user) -> GeneratedImage:
    """The image; copies of training images exist for administrators only."""
    try:
        public_id = UUID(str(public_id))
    except ValueError:
        raise Http404(f"{public_id!r} is no image's id.") from None
    return get_object_or_404(_seen_by(user).select_related("prompt", "release", "job__release"), public_id=public_id)


def _seen_by(user) -> QuerySet[GeneratedImage]:
    return GeneratedImage.objects.all() if user.is_staff else GeneratedImage.objects.unblocked()


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
    row = image_or_404(public_id, request.user)
    redrawing = row.redrawings.select_related("image").first() if request.user.is_staff else None
    context = {
        "image": row,
        "redrawing": redrawing,
        "outcome": outcome(redrawing) if redrawing else "",
        "standing": _standing(row, request.user),
        "attempts": _attempts(row, request.user),
        "ratings": _rating_counts(row, request.user),
        "neighbours": _neighbours(row),
        "batch_size": len(row.parameters.get("batch_seeds", [])),
        "guidance_part": _guidance_part(row),
        "shows_resembled": request.user.is_staff and row.resembles is not None and is_there(row),
        "gold_grades": [(value, f"{value} · {label}") for value, label in _GRADES.items()],
    }
    return render(request, "generation/image.html", context)


def _standing(row: GeneratedImage, user) -> Standing | None:
    """Whether an accepted image is served under a certificate; certificates are for administrators to see."""
    if not user.is_staff or row.job is None or row.verdict != GeneratedImage.Verdict.ACCEPTED:
        return None
    return standing_of_job(row.job)


def _guidance_part(row: GeneratedImage) -> list[str] | None:
    """Start and end of the guided part of the run; None where all of it was."""
    interval = row.parameters.get("guidance_interval", [0, 1])
    return None if interval == [0, 1] else [f"{share:g}" for share in interval]


def _attempts(row: GeneratedImage, user) -> list[GeneratedImage]:
    """The candidates drawn for the same place of the job, as far as they exist for the person."""
    if row.job is None or row.job.mode != GenerationJob.Mode.RLHF:
        return []
    per_place = row.job.parameters["max_attempts"] * row.job.parameters["num_candidates"]
    first = row.position // per_place * per_place
    of_place = _seen_by(user).filter(job=row.job, position__range=(first, first + per_place - 1))
    return list(of_place.order_by("position"))


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
    row = image_or_404(public_id, request.user)
    download = "download" in request.GET
    name = file_name(row, row.position) if download else ""
    response = _file(row.path, content_type="image/png", as_attachment=download, filename=name)
    patch_cache_control(response, private=True, max_age=IMAGE_CACHE_SECONDS)
    return response


@owners_too
@require_safe
def image_sidecar(request: HttpRequest, public_id: UUID) -> HttpResponse:
    row = image_or_404(public_id, request.user)
    name = file_name(row, row.position).removesuffix(".png") + ".json"
    path = row.path.with_suffix(".json")
    return _file(path, content_type="application/json", as_attachment=True, filename=name)


def _file(path, **options: Any) -> FileResponse:
    try:
        return FileResponse(path.open("rb"), **options)
    except FileNotFoundError:
        raise Http404(FILE_GONE) from None


@staff_only
@require_safe
def resembled_image(request: HttpRequest, public_id: UUID) -> HttpResponse:
    """The training image that an image resembles most, as PNG, while its file is still what was trained on."""
    row = image_or_404(public_id, request.user)
    if row.resembles is None:
        raise Http404("Nothing is known about training images that this one resembles.")
    try:
        picture = training_picture(row)
    except TrainingImageGone as error:
        raise Http404(str(error)) from None
    response = HttpResponse(picture, content_type="image/png")
    patch_cache_control(response, private=True, no_store=True)
    return response


# --- the same image again ---


@staff_only
@require_POST
def image_redraw(request: HttpRequest, public_id: UUID) -> HttpResponse:
    row = image_or_404(public_id, request.user)
    do_or_say_why(request, partial(redraw_image, image=row, user=request.user))
    return redirect(f"{row.get_absolute_url()}#again")


def _redrawing_or_404(public_id: UUID, pk: int) -> Redrawing:
    return get_object_or_404(Redrawing, pk=pk, image__public_id=public_id)


@staff_only
@require_safe
def redrawing_progress(request: HttpRequest, public_id: UUID, pk: int) -> JsonResponse:
    return progress_reply(_redrawing_or_404(public_id, pk))


@staff_only
@require_safe
def image_redrawn(request: HttpRequest, public_id: UUID, pk: int) -> FileResponse:
    """The new picture of a redrawing that came out otherwise."""
    row = _redrawing_or_404(public_id, pk)
    if not row.file:
        raise Http404("This redrawing gave the same pixels: its picture is the image itself.")
    response = _file(settings.ARTIFACT_ROOT / row.file, content_type="image/png")
    patch_cache_control(response, private=True, max_age=IMAGE_CACHE_SECONDS)
    return response
