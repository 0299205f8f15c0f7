"""Images of a study, and images whose grade is known."""

from collections import defaultdict
from uuid import UUID

from django.contrib import messages
from django.core.paginator import Page, Paginator
from django.db import transaction
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.http import url_has_allowed_host_and_scheme
from django.views import View

from generation.models import GeneratedImage
from medsyn.roles import OwnerMixin
from ratings import services
from ratings.forms import GoldForm, GoldImagesForm, ImageChoiceForm, StudyImageFilter
from ratings.hidden_grades import is_hidden
from ratings.models import Anchor, GoldGrade, Rating, Study
from ratings.views.access import managed_study

IMAGES_PER_PAGE = 48


def _grades_of(study: Study, images: list[GeneratedImage]) -> dict[int, tuple[int, int, int]]:
    """By image key how often each grade was given in the study, poor first; the training round is none of it."""
    rows = (
        Rating.objects.submitted()
        .filter(assignment__study=study, assignment__image__in=images)
        .without_training_round()
        .order_by()
        .values_list("assignment__image", "value")
        .annotate(count=Count("pk"))
    )
    counts = defaultdict(lambda: [0, 0, 0])
    for image, value, count in rows:
        counts[image][value - 1] = count
    return {image: tuple(count) for image, count in counts.items()}


def _without_anchors(study: Study, images: list[GeneratedImage]) -> list[GeneratedImage]:
    """The form chooses by what images show; an anchor, which nobody is to rate, is not meant by that."""
    anchors = set(Anchor.objects.filter(protocol__study=study).values_list("image_id", flat=True))
    return [image for image in images if image.pk not in anchors]


class StudyImages(OwnerMixin, View):
    """The images of a study with their roles and grades. Who still has some of them to rate is asked before seeing
    how others rated."""

    def get(self, request: HttpRequest, study_id) -> HttpResponse:
        study = managed_study(request, study_id)
        return self._show(request, study, GoldImagesForm(images=study.images.all()))

    def post(self, request: HttpRequest, study_id) -> HttpResponse:
        """Marks images of the study as gold."""
        study = managed_study(request, study_id)
        form = GoldImagesForm(request.POST, images=study.images.all())
        if not form.is_valid():
            return self._show(request, study, form, status=422)
        images = form.cleaned_data.pop("images")
        try:
            with transaction.atomic():  # all of them or none
                for image in images:
                    services.set_gold(image=image, set_by=request.user, **form.cleaned_data)
        except services.StudyError as error:
            form.add_error("images", str(error))
            return self._show(request, study, form, status=422)
        messages.success(request, f"{len(images)} image{'s are' if len(images) > 1 else ' is'} gold now.")
        return redirect(request.get_full_path())

    @classmethod
    def _show(cls, request: HttpRequest, study: Study, form: GoldImagesForm, status: int = 200) -> HttpResponse:
        chosen = StudyImageFilter(request.GET, auto_id="filter_%s")
        entries = study.study_images.select_related("image__prompt", "image__gold").order_by("block", "pk")
        entries = chosen.apply(entries) if chosen.is_valid() else entries.none()
        page = Paginator(entries, IMAGES_PER_PAGE).get_page(request.GET.get("page"))
        is_blind = is_hidden(request, study)
        context = {
            "study": study,
            "form": form,
            "filter": chosen,
            "page": page,
            "rows": cls._rows(study, page, is_blind=is_blind),
            "is_blind": is_blind,
            "marked": form.data.getlist("images") if form.is_bound else [],
            "any_image": study.study_images.exists(),
        }
        return render(request, "ratings/study_images.html", context, status=status)

    @staticmethod
    def _rows(study: Study, page: Page, *, is_blind: bool) -> list[tuple]:
        """(StudyImage, GoldGrade or None, counts by grade or None) of a page."""
        grades = {} if is_blind else _grades_of(study, [entry.image for entry in page])
        return [(entry, getattr(entry.image, "gold", None), grades.get(entry.image_id)) for entry in page]


class StudyImagesAdd(OwnerMixin, View):
    """Adds images."""

    def get(self, request: HttpRequest, study_id) -> HttpResponse:
        return self._show(request, managed_study(request, study_id), ImageChoiceForm())

    def post(self, request: HttpRequest, study_id) -> HttpResponse:
        study = managed_study(request, study_id)
        form = ImageChoiceForm(request.POST)
        if not form.is_valid():
            return self._show(request, study, form, status=422)
        try:
            added = services.add_images(study=study, images=_without_anchors(study, form.images()))
        except services.StudyError as error:
            form.add_error(None, str(error))
            return self._show(request, study, form, status=422)
        if added:
            messages.success(request, f"{added} images added behind every reader's list.")
        else:
            messages.info(request, "The study has all of these images already: nothing was added.")
        return redirect("ratings:study-images", study.public_id)

    @staticmethod
    def _show(request: HttpRequest, study: Study, form: ImageChoiceForm, status: int = 200) -> HttpResponse:
        context = {"study": study, "form": form}
        return render(request, "ratings/study_images_add.html", context, status=status)


class GoldList(OwnerMixin, View):
    """Images whose grade is known."""

    def get(self, request: HttpRequest) -> HttpResponse:
        page = Paginator(self._gold(), IMAGES_PER_PAGE).get_page(request.GET.get("page"))
        counts = dict(GoldGrade.objects.order_by().values_list("grade").annotate(Count("pk")))
        context = {"page": page, "counts": [counts.get(grade, 0) for grade in (1, 2, 3)]}
        return render(request, "ratings/gold.html", context)

    @staticmethod
    def _gold() -> QuerySet:
        gold = GoldGrade.objects.select_related("image__prompt", "set_by").order_by("-pk")
        return gold.annotate(num_studies=Count("image__study_images__study", distinct=True))


class ImageGold(OwnerMixin, View):
    """Sets the known grade of one image, or takes it away: ``clear`` in the form."""

    def post(self, request: HttpRequest, public_id: UUID) -> HttpResponse:
        image = get_object_or_404(GeneratedImage, public_id=public_id)
        try:
            messages.success(request, self._change(request, image))
        except services.StudyError as error:
            messages.error(request, str(error))
        back = request.POST.get("next", "")
        is_here = url_has_allowed_host_and_scheme(back, allowed_hosts=None)
        return redirect(back if is_here else image.get_absolute_url())

    @staticmethod
    def _change(request: HttpRequest, image: GeneratedImage) -> str:
        """What was done, in words. Raises StudyError."""
        if "clear" in request.POST:
            services.clear_gold(image=image)
            return "The image is gold no more."
        form = GoldForm(request.POST)
        if not form.is_valid():
            raise services.StudyError("Choose the known grade: poor, acceptable or excellent.")
        services.set_gold(image=image, set_by=request.user, **form.cleaned_data)
        return "The image is gold now: its grade is known, and it can be mixed into studies."
