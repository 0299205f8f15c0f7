"""Studies: the list, a new one, its page, its readers and its state."""

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.cache import patch_cache_control
from django.views import View

from medsyn.roles import OwnerMixin, is_study_owner
from ratings import services
from ratings.dashboard import figures_of
from ratings.forms import DEFECT_KEYS, NewStudyForm, PlacesForm, ReaderForm, StudyFilter
from ratings.hidden_grades import is_hidden
from ratings.models import NO_PROGRESS, Membership, Study
from ratings.study_plan import plan_in_words
from ratings.views.access import managed_study
from ratings.views.paging import ordering, paged


class StudyList(View):
    """A reader's studies with their progress; for those who run studies, these too."""

    SORT_KEYS = {"name": "name", "created": "created_at", "state": "is_open"}

    def get(self, request: HttpRequest) -> HttpResponse:
        own = list(Study.objects.read_by(request.user).filter(is_open=True).with_phantoms())
        progress = services.progress_of(own, request.user)
        context = {"own": [self._card(study, progress.get(study.pk, NO_PROGRESS)) for study in own]}
        if not is_study_owner(request.user):
            return render(request, "ratings/studies.html", context)
        form = StudyFilter(request.GET)
        managed = Study.objects.managed_by(request.user)
        studies = form.apply(managed) if form.is_valid() else managed.none()
        page = paged(studies.order_by(*ordering(request, self.SORT_KEYS, "-created")), request)
        progress = services.progress_of(page.object_list)
        rows = [(study, progress.get(study.pk, NO_PROGRESS)) for study in page]
        context |= {"form": form, "page": page, "rows": rows, "any_study": managed.exists()}
        return render(request, "ratings/studies.html", context)

    @staticmethod
    def _card(study: Study, progress: dict) -> dict:
        left = progress["total"] - progress["done"]
        seconds = (progress["mean_active_ms"] or 0) / 1000 * left
        return {
            "study": study,
            **progress,
            "left": left,
            "training_left": progress["training_total"] - progress["training_done"],
            "minutes_left": round(seconds / 60) or None,
        }


class StudyCreate(OwnerMixin, View):
    """The form of a new study."""

    def get(self, request: HttpRequest) -> HttpResponse:
        return self._show(request, NewStudyForm())

    def post(self, request: HttpRequest) -> HttpResponse:
        form = NewStudyForm(request.POST)
        if not form.is_valid():
            return self._show(request, form, status=422)
        try:
            study = self._made(request, form)
        except services.StudyError as error:
            form.add_error(None, str(error))
            return self._show(request, form, status=422)
        messages.success(request, f"{study.name} is made: {study.study_images.count()} images.")
        return redirect(study)

    @staticmethod
    def _made(request: HttpRequest, form: NewStudyForm) -> Study:
        given = form.cleaned_data
        return services.create_study(
            name=given["name"],
            description=given["description"],
            images=form.images(),
            readers=form.readers(),
            order_seed=given["order_seed"],
            protocol=form.protocol(),
            anchors=form.anchors(),
            created_by=request.user,
        )

    @staticmethod
    def _show(request: HttpRequest, form: NewStudyForm, status: int = 200) -> HttpResponse:
        context = {"form": form, "keys": DEFECT_KEYS}
        return render(request, "ratings/study_new.html", context, status=status)


class StudyPlanned(OwnerMixin, View):
    """What a half-filled form of a new study comes to, for the line below it."""

    def get(self, request: HttpRequest) -> JsonResponse:
        form = NewStudyForm(request.GET)
        form.full_clean()
        response = JsonResponse({"lines": plan_in_words(form.plan())})
        patch_cache_control(response, no_store=True)
        return response


class StudyDetail(View):
    """The page of those who run a study; its readers are sent on to the rating page."""

    SORT_KEYS = ("reader", "expert_level", "done", "seconds_left", "seconds_per_image", "last_at")

    def get(self, request: HttpRequest, study_id) -> HttpResponse:
        study = Study.objects.managed_by(request.user).filter(public_id=study_id).first()
        if study is None:
            study = get_object_or_404(Study.objects.read_by(request.user), public_id=study_id)
            return redirect("ratings:rate", study.public_id)
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
            "is_blind": is_hidden(request, study),
            "page": paged(readers, request),
            "form": form,
            "reads_it": study.memberships.filter(reader=request.user).exists(),
            "exports": study.exports.all()[:3],
            "open_places": _open_places(study),
        }
        return render(request, "ratings/study.html", context, status=status)


def _open_places(study: Study) -> list[dict]:
    """In an open pool: its readers with places that they have not answered (reader, name, left); [] elsewhere."""
    if study.protocol.overlap_target is None:
        return []
    rows = study.assignments.open().progress_by("reader_id", "reader__username").filter(total__gt=0)
    return [{"reader": row["reader_id"], "name": row["reader__username"], "left": row["total"]} for row in rows]


class StudyReaders(OwnerMixin, View):
    """Adds a reader."""

    def post(self, request: HttpRequest, study_id) -> HttpResponse:
        study = managed_study(request, study_id)
        form = ReaderForm(request.POST, study=study)
        if not form.is_valid():
            return StudyDetail.show(request, study, form, status=422)
        reader = form.cleaned_data["reader"]
        try:
            places = services.enrol_reader(study=study, **form.cleaned_data)
        except services.StudyError as error:
            form.add_error(None, str(error))
            return StudyDetail.show(request, study, form, status=422)
        given = "images come from the open pool" if study.protocol.overlap_target else f"{len(places)} images"
        messages.success(request, f"{reader.get_username()} reads {study.name}: {given}.")
        return redirect(study)


class StudyPlaces(OwnerMixin, View):
    """Gives a reader's unanswered places back to the pool."""

    def post(self, request: HttpRequest, study_id) -> HttpResponse:
        study = managed_study(request, study_id)
        form = PlacesForm(request.POST, study=study)
        if not form.is_valid():
            messages.error(request, "This person does not read the study. Choose one of its readers.")
            return redirect(study)
        reader = form.cleaned_data["reader"]
        try:
            released = services.release_places(study=study, reader=reader)
        except (services.StudyError, Membership.DoesNotExist) as error:
            messages.error(request, str(error))
        else:
            text = f"{released} places of {reader.get_username()} are back in the pool: other readers get them."
            messages.success(request, text)
        return redirect(study)


class StudyState(OwnerMixin, View):
    """Opens or closes a study."""

    def post(self, request: HttpRequest, study_id) -> HttpResponse:
        study = managed_study(request, study_id)
        services.describe_study(study=study, is_open=request.POST.get("open") == "1")
        messages.success(request, f"{study.name} is {'open: readers can rate' if study.is_open else 'closed'}.")
        return redirect(study)
