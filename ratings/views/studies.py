"""Studies: the list, a new one, its readers, images and state."""

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views import View

from medsyn.roles import StaffMixin
from ratings import services
from ratings.dashboard import figures_of
from ratings.forms import ImageChoiceForm, NewStudyForm, ReaderForm, StudyFilter
from ratings.models import Study
from ratings.views.paging import ordering, paged

_NOTHING_YET = {"done": 0, "total": 0, "mean_active_ms": None}


class StudyList(View):
    """A reader's studies with their progress; for administrators all studies."""

    SORT_KEYS = {"name": "name", "created": "created_at", "state": "is_open"}

    def get(self, request: HttpRequest) -> HttpResponse:
        own = list(Study.objects.read_by(request.user).filter(is_open=True))
        progress = services.progress_of(own, request.user)
        context = {"own": [self._card(study, progress.get(study.pk, _NOTHING_YET)) for study in own]}
        if not request.user.is_staff:
            return render(request, "ratings/studies.html", context)
        form = StudyFilter(request.GET)
        studies = form.apply(Study.objects.all()) if form.is_valid() else Study.objects.none()
        page = paged(studies.order_by(*ordering(request, self.SORT_KEYS, "-created")), request)
        progress = services.progress_of(page.object_list)
        rows = [(study, progress.get(study.pk, _NOTHING_YET)) for study in page]
        return render(
            request,
            "ratings/studies.html",
            {**context, "form": form, "page": page, "rows": rows, "any_study": Study.objects.exists()},
        )

    @staticmethod
    def _card(study: Study, progress: dict) -> dict:
        left = progress["total"] - progress["done"]
        seconds = (progress["mean_active_ms"] or 0) / 1000 * left
        return {"study": study, **progress, "left": left, "minutes_left": round(seconds / 60) or None}


class StudyCreate(StaffMixin, View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return render(request, "ratings/study_new.html", {"form": NewStudyForm()})

    def post(self, request: HttpRequest) -> HttpResponse:
        form = NewStudyForm(request.POST)
        if not form.is_valid():
            return render(request, "ratings/study_new.html", {"form": form}, status=422)
        study = services.create_study(
            name=form.cleaned_data["name"],
            description=form.cleaned_data["description"],
            images=form.images(),
            readers=form.readers(),
            created_by=request.user,
        )
        messages.success(request, f"{study.name} is made: {study.study_images.count()} images.")
        return redirect(study)


class StudyDetail(View):
    """An administrator's view of a study; its readers are sent on to the rating page."""

    SORT_KEYS = ("reader", "expert_level", "done", "seconds_left", "seconds_per_image", "last_at")

    def get(self, request: HttpRequest, study_id) -> HttpResponse:
        if not request.user.is_staff:
            study = get_object_or_404(Study.objects.read_by(request.user), public_id=study_id)
            return redirect("ratings:rate", study.public_id)
        study = get_object_or_404(Study, public_id=study_id)
        return self.show(request, study, ReaderForm(study=study))

    @classmethod
    def show(cls, request: HttpRequest, study: Study, form: ReaderForm, status: int = 200) -> HttpResponse:
        figures = figures_of(study)
        key = request.GET.get("sort", "")
        readers = list(figures.readers)
        if key.lstrip("-") in cls.SORT_KEYS:
            name = key.lstrip("-")
            known = [row for row in readers if getattr(row, name) is not None]
            known.sort(key=lambda row: getattr(row, name), reverse=key.startswith("-"))
            readers = known + [row for row in readers if getattr(row, name) is None]
        context = {
            "study": study,
            "figures": figures,
            "page": paged(readers, request),
            "form": form,
            "reads_it": study.memberships.filter(reader=request.user).exists(),
            "exports": study.exports.all()[:3],
        }
        return render(request, "ratings/study.html", context, status=status)


class StudyReaders(StaffMixin, View):
    """Adds a reader."""

    def post(self, request: HttpRequest, study_id) -> HttpResponse:
        study = get_object_or_404(Study, public_id=study_id)
        form = ReaderForm(request.POST, study=study)
        if not form.is_valid():
            return StudyDetail.show(request, study, form, status=422)
        reader = form.cleaned_data["reader"]
        places = services.enrol_reader(study=study, **form.cleaned_data)
        messages.success(request, f"{reader.get_username()} reads {study.name}: {len(places)} images.")
        return redirect(study)


class StudyImages(StaffMixin, View):
    """Adds images."""

    def get(self, request: HttpRequest, study_id) -> HttpResponse:
        study = get_object_or_404(Study, public_id=study_id)
        return render(request, "ratings/study_images.html", {"study": study, "form": ImageChoiceForm()})

    def post(self, request: HttpRequest, study_id) -> HttpResponse:
        study = get_object_or_404(Study, public_id=study_id)
        form = ImageChoiceForm(request.POST)
        if not form.is_valid():
            return render(request, "ratings/study_images.html", {"study": study, "form": form}, status=422)
        added = services.add_images(study=study, images=form.images())
        if added:
            messages.success(request, f"{added} images added behind every reader's list.")
        else:
            messages.info(request, "The study has all of these images already: nothing was added.")
        return redirect(study)


class StudyState(StaffMixin, View):
    """Opens or closes a study."""

    def post(self, request: HttpRequest, study_id) -> HttpResponse:
        study = get_object_or_404(Study, public_id=study_id)
        study.is_open = request.POST.get("open") == "1"
        study.save(update_fields=["is_open"])
        messages.success(request, f"{study.name} is {'open: readers can rate' if study.is_open else 'closed'}.")
        return redirect(study)
