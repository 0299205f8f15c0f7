"""What is settled before a calibration set is rated, and before served images are watched."""

from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter

from django import forms
from django.contrib.auth import get_user_model
from django.db.models import Count
from django.forms.models import ModelChoiceIterator
from django.template.loader import render_to_string
from django.utils.safestring import SafeString
from django.utils.timezone import localtime

from generation.models import GenerationJob, Release
from generation.services import active_release
from medsyn.percent import percent
from ratings.forms.studies import level_of, people
from ratings.models import Study

_MOST_JOBS = 200  # on the form, the newest


class _PeopleField(forms.ModelMultipleChoiceField):
    """People by the name they are known by."""

    def label_from_instance(self, person) -> str:
        return person.get_full_name() or person.get_username()


class _JobsByRelease(ModelChoiceIterator):
    """(release, its jobs) for all jobs; they come in the order of their releases."""

    def __iter__(self) -> Iterator[tuple[Release, list]]:
        for release, jobs in groupby(self.queryset, key=attrgetter("release")):
            yield release, [self.choice(job) for job in jobs]


class _JobBoxes(forms.CheckboxSelectMultiple):
    """Boxes to tick, in a group for each release: js/plan-form.js shows that of the release chosen."""

    def render(self, name, value, attrs=None, renderer=None) -> SafeString:
        return render_to_string("ratings/_job_boxes.html", self.get_context(name, value, attrs))


class _JobsField(forms.ModelMultipleChoiceField):
    """Jobs with what tells them apart; ``num_drawn`` is annotated."""

    iterator = _JobsByRelease
    widget = _JobBoxes

    def label_from_instance(self, job: GenerationJob) -> str:
        made = localtime(job.created_at).strftime("%d %b %Y, %H:%M")
        return f"Job {job.pk}: {job.num_drawn} images, {made}"


class _DrawForm(forms.Form):
    """Name, number and readers of a study whose images are a random draw."""

    name = forms.CharField(
        label="Name of the study",
        max_length=200,
        help_text="Readers see it: say nothing of where the images come from.",
    )
    num_images = forms.IntegerField(label="Images to rate, of each kind", min_value=1, max_value=20_000)
    readers = _PeopleField(
        get_user_model().objects.none(),
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text="Each rates every image, with the verified level, else as a specialist. More can join later.",
    )
    seed = forms.IntegerField(
        min_value=0, max_value=2**31, required=False, help_text="Fixes the draw. Empty: a random one, recorded."
    )

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fields["readers"].queryset = people()

    def clean_name(self) -> str:
        name = self.cleaned_data["name"].strip()
        if Study.objects.filter(name=name).exists():
            raise forms.ValidationError("There is a study of this name already. Choose another.")
        return name

    def service_arguments(self) -> dict:
        """Cleaned values as the services take them."""
        given = self.cleaned_data
        readers = [(person, level_of(person)) for person in given["readers"]]
        return given | {"readers": readers}


class CalibrationForm(_DrawForm):
    """A calibration set: from which jobs, and what is to be promised."""

    release = forms.ModelChoiceField(Release.objects.all(), empty_label="Choose a release")
    jobs = _JobsField(
        GenerationJob.objects.none(),
        error_messages={
            "invalid_pk_value": "%(pk)s is not the number of a job.",
            "invalid_choice": "There is no job %(value)s that finished, filtered, at threshold 0.",
        },
    )
    alpha = forms.FloatField(
        label="Poor images allowed", min_value=0.001, max_value=0.5, initial=0.10, help_text="Share of those served."
    )
    delta = forms.FloatField(
        label="Risk of a broken promise",
        min_value=0.001,
        max_value=0.5,
        initial=0.10,
        help_text="Of all kinds together.",
    )
    is_reusable = forms.BooleanField(
        label="May be tested several times",
        required=False,
        help_text=f"The first test then spends {percent(0.61)} of the risk, later ones the rest. Otherwise one test "
        "spends all.",
    )

    field_order = ("name", "release", "jobs", "num_images", "alpha", "delta", "seed", "is_reusable", "readers")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        finished = GenerationJob.objects.filter(mode=GenerationJob.Mode.RLHF, state=GenerationJob.State.SUCCEEDED)
        fitting = finished.filter(release__isnull=False, parameters__quality_threshold=0).order_by("-pk")
        newest = list(fitting.values_list("pk", flat=True)[:_MOST_JOBS])
        field = self.fields["jobs"]
        listed = fitting.filter(pk__in=newest).select_related("release").annotate(num_drawn=Count("images"))
        field.queryset = listed.order_by("-release_id", "-pk")
        field.help_text = (
            "Of the release, and all with the same parameters. Listed are jobs that filtered at threshold 0."
            if newest
            else "No job fits yet: generate images with the release, filtered at threshold 0."
        )
        self.fields["release"].initial = active_release()

    def clean_jobs(self) -> list[GenerationJob]:
        return list(self.cleaned_data["jobs"].order_by("pk"))


class MonitoringForm(_DrawForm):
    """A study of images that were served under a certificate."""

    field_order = ("name", "num_images", "seed", "readers")


class RevocationForm(forms.Form):
    """Why a certificate ends."""

    reason = forms.CharField(max_length=500, widget=forms.Textarea(attrs={"rows": 2}))
