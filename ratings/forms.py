"""Forms of studies, readers, exports, and the filters above lists."""

from django import forms
from django.contrib.auth import get_user_model
from django.db.models import QuerySet

from generation.models import KIND_CHOICES, GeneratedImage, GenerationJob
from medsyn.modalities import ALL_KINDS, MODALITIES
from ratings.models import Grade, Rating, Study

User = get_user_model()
LEVEL_CHOICES = [(1, "1 · trainee"), (2, "2 · specialist"), (3, "3 · senior expert")]
_MODALITY_CHOICES = [(name, name) for name in MODALITIES]
_ALL = ("", "All")


def people() -> QuerySet:
    """Accounts of people who can sign in, and so can read."""
    return User.objects.filter(is_active=True).exclude(memberships__is_simulated=True).order_by("username")


class RatingFilter(forms.Form):
    """What to show of the ratings; empty fields do not restrict."""

    study = forms.ModelChoiceField(
        Study.objects.order_by("name"), required=False, to_field_name="public_id", empty_label="All"
    )
    reader = forms.ModelChoiceField(
        User.objects.filter(memberships__isnull=False).distinct().order_by("username"),
        required=False,
        to_field_name="username",
        empty_label="All",
    )
    modality = forms.ChoiceField(choices=[_ALL, *_MODALITY_CHOICES], required=False)
    value = forms.TypedChoiceField(
        label="Rating",
        choices=[_ALL, *((grade.value, f"{grade.value} · {grade.label}") for grade in Grade)],
        coerce=int,
        empty_value=None,
        required=False,
    )
    state = forms.ChoiceField(choices=[_ALL, *Rating.State.choices], required=False)
    simulated = forms.ChoiceField(
        label="Given by", choices=[_ALL, ("no", "People"), ("yes", "Simulated experts")], required=False
    )

    def apply(self, ratings: QuerySet) -> QuerySet:
        """``ratings`` restricted; call after is_valid()."""
        chosen = self.cleaned_data
        filters = {
            "assignment__study": chosen["study"],
            "assignment__reader": chosen["reader"],
            "value": chosen["value"],
            "state": chosen["state"] or None,
        }
        if chosen["modality"]:
            filters["assignment__image__prompt__kind__in"] = [
                kind.slug for kind in ALL_KINDS if kind.modality == chosen["modality"]
            ]
        if chosen["simulated"]:
            filters["is_simulated"] = chosen["simulated"] == "yes"
        return ratings.filter(**{name: value for name, value in filters.items() if value is not None})


class StudyFilter(forms.Form):
    """What to show of the studies."""

    q = forms.CharField(label="Name", required=False)
    state = forms.ChoiceField(choices=[_ALL, ("open", "Open"), ("closed", "Closed")], required=False)

    def apply(self, studies: QuerySet) -> QuerySet:
        chosen = self.cleaned_data
        if chosen["q"]:
            studies = studies.filter(name__icontains=chosen["q"])
        return studies.filter(is_open=chosen["state"] == "open") if chosen["state"] else studies


class ExportFilter(forms.Form):
    """What to show of the exports."""

    study = forms.ModelChoiceField(
        Study.objects.order_by("name"), required=False, to_field_name="public_id", empty_label="All"
    )
    simulated = forms.ChoiceField(
        label="Simulated ratings", choices=[_ALL, ("no", "Without"), ("yes", "With")], required=False
    )

    def apply(self, exports: QuerySet) -> QuerySet:
        chosen = self.cleaned_data
        if chosen["study"]:
            exports = exports.filter(study=chosen["study"])
        return exports.filter(has_simulated=chosen["simulated"] == "yes") if chosen["simulated"] else exports


class ImageChoiceForm(forms.Form):
    """Images by what they show or where they come from."""

    kinds = forms.MultipleChoiceField(
        label="Kinds of image",
        choices=KIND_CHOICES,
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text="None marked: all kinds.",
    )
    job = forms.ModelChoiceField(
        GenerationJob.objects.order_by("-pk"), label="Generation job", required=False, empty_label="Any job"
    )
    max_images = forms.IntegerField(
        label="At most",
        min_value=1,
        max_value=10_000,
        required=False,
        help_text="The newest ones are taken. Empty: all that fit.",
    )
    only_unrated = forms.BooleanField(label="Only images that nobody has rated yet", required=False, initial=True)
    with_rejected = forms.BooleanField(
        label="Also candidates that selector or policy rejected",
        required=False,
        help_text="The selector learns most from poor images: mark this for images that are to train it.",
    )

    def images(self) -> list[GeneratedImage]:
        """The chosen images, newest first; call after is_valid()."""
        chosen = self.cleaned_data
        images = GeneratedImage.objects.order_by("-pk")
        if not chosen["with_rejected"]:
            images = images.served()
        if chosen["kinds"]:
            images = images.filter(prompt__kind__in=chosen["kinds"])
        if chosen["job"]:
            images = images.filter(job=chosen["job"])
        if chosen["only_unrated"]:
            rated = Rating.objects.submitted().values("assignment__image_id")
            images = images.exclude(pk__in=rated)
        return list(images[: chosen["max_images"]])

    def clean(self) -> dict:
        chosen = super().clean()
        if not self.errors and not self.images():
            raise forms.ValidationError("No image fits this choice. Widen it, or generate images first.")
        return chosen


class NewStudyForm(ImageChoiceForm):
    """A study: its name, its images, its readers with their levels."""

    name = forms.CharField(max_length=200, help_text="Readers see it: say nothing of where the images come from.")
    description = forms.CharField(
        label="Note to the readers", required=False, widget=forms.Textarea(attrs={"rows": 2})
    )
    field_order = ["name", "description", "kinds", "job", "max_images", "only_unrated", "with_rejected"]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._people = list(people())
        for person in self._people:
            self.fields[f"level_{person.pk}"] = forms.TypedChoiceField(
                label=person.get_full_name() or person.get_username(),
                choices=[("", "does not read"), *LEVEL_CHOICES],
                coerce=int,
                empty_value=None,
                required=False,
            )

    def clean_name(self) -> str:
        name = self.cleaned_data["name"].strip()
        if Study.objects.filter(name=name).exists():
            raise forms.ValidationError("There is a study of this name already. Choose another.")
        return name

    def about_fields(self) -> list:
        return [self["name"], self["description"]]

    def image_fields(self) -> list:
        return [self[name] for name in ImageChoiceForm.base_fields]

    def reader_fields(self) -> list:
        return [self[f"level_{person.pk}"] for person in self._people]

    def readers(self) -> list[tuple]:
        """(person, level) of those who are to read; call after is_valid()."""
        levels = [(person, self.cleaned_data[f"level_{person.pk}"]) for person in self._people]
        return [(person, level) for person, level in levels if level]


class ReaderForm(forms.Form):
    """One more reader for a study."""

    reader = forms.ModelChoiceField(User.objects.none(), empty_label="Choose a person")
    expert_level = forms.TypedChoiceField(label="Level", choices=LEVEL_CHOICES, coerce=int, initial=2)

    def __init__(self, *args, study: Study, **kwargs):
        super().__init__(*args, **kwargs)
        self.fields["reader"].queryset = people().exclude(memberships__study=study)


class ExportForm(forms.Form):
    """Which ratings to write to a CSV."""

    study = forms.ModelChoiceField(
        Study.objects.order_by("name"), required=False, to_field_name="public_id", empty_label="All studies"
    )
    modality = forms.ChoiceField(choices=[("", "All"), *_MODALITY_CHOICES], required=False)
    include_simulated = forms.TypedChoiceField(
        label="Simulated experts",
        choices=[("", "Only of a simulated study"), ("1", "Include"), ("0", "Leave out")],
        coerce=lambda value: value == "1",
        empty_value=None,
        required=False,
        help_text="Their ratings demonstrate the loop; they are no clinical evidence.",
    )
