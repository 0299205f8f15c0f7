"""A new study, and its readers."""

from collections import Counter
from dataclasses import dataclass

from django import forms
from django.contrib.auth import get_user_model
from django.db.models import OuterRef, QuerySet, Subquery
from django.forms.boundfield import BoundField

from generation.models import GeneratedImage
from ratings.forms.images import ImageChoiceForm
from ratings.forms.protocol import TRAINING_IMAGES, ProtocolForm
from ratings.models import Expertise, GoldGrade, Study
from ratings.study_plan import StudyPlan, mixed_in

User = get_user_model()
LEVEL_CHOICES = [(1, "1 · trainee"), (2, "2 · specialist"), (3, "3 · senior expert")]
_DEFAULT_LEVEL = 2  # of people whose level nobody verified
_GOLD_PERCENT = 5  # where there is a gold pool


def people() -> QuerySet:
    """Accounts of people who can sign in, and so can read; with ``verified_level``, None where nobody vouched."""
    newest = Expertise.objects.filter(person=OuterRef("pk")).order_by("-pk")
    can_read = User.objects.filter(is_active=True).exclude(memberships__is_simulated=True)
    return can_read.annotate(verified_level=Subquery(newest.values("expert_level")[:1])).order_by("username")


def level_of(person) -> int:
    """Level, 1 to 3, at which one of ``people`` reads where nothing else is said."""
    return person.verified_level or _DEFAULT_LEVEL


@dataclass(frozen=True)
class ReaderFields:
    """A person in the form of a new study."""

    name: str
    verified_level: int | None  # 1 to 3
    reads: BoundField
    level: BoundField


class NewStudyForm(ImageChoiceForm, ProtocolForm):
    """A study: its name, its images, its readers with their levels, and how it is read."""

    name = forms.CharField(max_length=200, help_text="Readers see it: say nothing of where the images come from.")
    description = forms.CharField(
        label="Note to the readers", required=False, widget=forms.Textarea(attrs={"rows": 2})
    )
    order_seed = forms.IntegerField(
        label="Order seed",
        min_value=0,
        max_value=2**62,
        required=False,
        help_text="Fixes every reader's order, the repeats and what is mixed in. Empty: drawn, and recorded.",
    )

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        gold = GoldGrade.objects.count()
        self.fields["gold_percent"].initial = _GOLD_PERCENT if gold else 0
        self.fields["num_training_images"].initial = TRAINING_IMAGES if gold >= TRAINING_IMAGES else 0
        self.fields["num_training_images"].help_text += f" There are {gold or 'no'} gold images."
        self._people = list(people())
        for person in self._people:
            name = person.get_full_name() or person.get_username()
            self.fields[f"reads_{person.pk}"] = forms.BooleanField(label=name, required=False)
            self.fields[f"level_{person.pk}"] = forms.TypedChoiceField(
                label=f"Level of {name}",
                choices=LEVEL_CHOICES,
                coerce=int,
                empty_value=None,
                required=False,
                initial=level_of(person),
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

    def reader_fields(self) -> list[ReaderFields]:
        return [
            ReaderFields(
                person.get_full_name() or person.get_username(),
                person.verified_level,
                self[f"reads_{person.pk}"],
                self[f"level_{person.pk}"],
            )
            for person in self._people
        ]

    def images(self) -> list[GeneratedImage]:
        """The chosen images without the anchors: who has an image before them as an example judges it no more."""
        anchors = set(self.anchors().values())
        return [image for image in super().images() if image not in anchors]

    def readers(self) -> list[tuple]:
        """(person, level) of those who are to read; call after cleaning."""
        given = self.cleaned_data
        chosen = [person for person in self._people if given.get(f"reads_{person.pk}")]
        return [(person, given.get(f"level_{person.pk}") or _DEFAULT_LEVEL) for person in chosen]

    def plan(self) -> StudyPlan:
        """What the study comes to as far as the form is filled in; call after cleaning, faults elsewhere or not."""
        given = self.cleaned_data
        share = {name: (given.get(f"{name}_percent") or 0) / 100 for name in self.SHARES}
        rows = self.chosen().values_list("is_real", "gold")
        kinds = Counter((is_real, is_real or gold is None) for is_real, gold in rows)
        num_gold, num_real = mixed_in(kinds[False, True], share["gold"], share["real"])
        return StudyPlan(
            num_main=kinds[False, True],
            num_gold=max(num_gold, kinds[False, False]),
            num_real=max(num_real, kinds[True, True]),
            num_readers=len(self.readers()),
            overlap_target=given.get("overlap_target") if given.get("overlap") == "some" else None,
            repeat_share=share["repeat"],
            num_training=given.get("num_training_images") or 0,
        )


class ReaderForm(forms.Form):
    """One more reader for a study."""

    reader = forms.ModelChoiceField(User.objects.none(), empty_label="Choose a person")
    expert_level = forms.TypedChoiceField(
        label="Level",
        choices=[("", "as verified"), *LEVEL_CHOICES],
        coerce=int,
        empty_value=None,
        required=False,
        help_text="Whose level nobody verified reads as a specialist.",
    )

    def __init__(self, *args, study: Study, **kwargs):
        super().__init__(*args, **kwargs)
        self.fields["reader"].queryset = people().exclude(memberships__study=study)

    def clean(self) -> dict:
        given = super().clean()
        if given.get("reader") and not given.get("expert_level"):
            given["expert_level"] = level_of(given["reader"])
        return given


class PlacesForm(forms.Form):
    """Whose unanswered places go back to the pool."""

    reader = forms.ModelChoiceField(User.objects.none())

    def __init__(self, *args, study: Study, **kwargs):
        super().__init__(*args, **kwargs)
        self.fields["reader"].queryset = User.objects.filter(memberships__study=study)
