"""What is asked for when images are to be chosen for a study."""

from django import forms
from django.db.models import Count

from generation.models import GenerationJob, Release
from generation.services import active_release
from ratings.models import Study
from training.reading.services import DEFAULT_RANDOM_SHARE, LARGEST_POOL, candidates

_MOST_JOBS = 200  # on the form, the newest


class _JobsField(forms.ModelMultipleChoiceField):
    """Jobs with the number of their images that nobody was to rate yet."""

    counts: dict[int, int]

    def label_from_instance(self, job: GenerationJob) -> str:
        name = job.release.name if job.release else job.pretrained_model or "medsyn-tiny"
        return f"Generation {job.pk}, {name}: {self.counts[job.pk]} free images"


class ReadingBatchForm(forms.Form):
    """The next images of a study."""

    jobs = _JobsField(
        GenerationJob.objects.none(),
        label="Images of",
        widget=forms.CheckboxSelectMultiple,
        help_text="Counted are images in no study, whose grade is not known. Where some of a job's images were "
        "chosen, the rest is no random draw any more: generate separately for certificates.",
    )
    num_images = forms.IntegerField(label="How many", min_value=1, max_value=LARGEST_POOL, initial=40)
    random_share = forms.FloatField(
        label="Share chosen at random",
        min_value=0,
        max_value=1,
        initial=DEFAULT_RANDOM_SHARE,
        help_text="1: all of them. 0.4: the selector chooses the others, most of them images on which its heads "
        "disagree. In simulation that took no fewer ratings than a random draw. What the protocol keeps for "
        "calibration is drawn from the random ones alone.",
    )
    release = forms.ModelChoiceField(
        Release.objects.all(),
        label="Whose selector chooses",
        required=False,
        help_text="Of the images that are not drawn at random.",
    )
    with_rejected = forms.BooleanField(
        label="Also candidates that selector or policy rejected",
        required=False,
        initial=True,
        help_text="A selector learns most from poor images.",
    )
    seed = forms.IntegerField(
        min_value=0, max_value=2**31, required=False, help_text="Fixes the draw. Empty: a random one, recorded."
    )

    def __init__(self, *args, study: Study, **kwargs):
        super().__init__(*args, **kwargs)
        free = candidates(study=study, jobs=GenerationJob.objects.all())
        counts = dict(free.order_by().values_list("job").annotate(Count("pk")))
        newest = sorted(counts, reverse=True)[:_MOST_JOBS]
        field = self.fields["jobs"]
        field.counts = counts
        field.queryset = GenerationJob.objects.filter(pk__in=newest).select_related("release").order_by("-pk")
        active = active_release()
        self.fields["release"].empty_label = f"The active one: {active}" if active else "The active one (none is)"

    @property
    def has_pool(self) -> bool:
        return bool(self.fields["jobs"].counts)

    def service_arguments(self) -> dict:
        """Cleaned values as plan_batch takes them."""
        return self.cleaned_data | {"jobs": list(self.cleaned_data["jobs"])}
