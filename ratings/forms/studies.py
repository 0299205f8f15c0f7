"""A new study, and its readers."""

from django import forms
from django.contrib.auth import get_user_model
from django.db.models import QuerySet

from ratings.forms.images import ImageChoiceForm
from ratings.models import Study

User = get_user_model()
LEVEL_CHOICES = [(1, "1 · trainee"), (2, "2 · specialist"), (3, "3 · senior expert")]


def people() -> QuerySet:
    """Accounts of people who can sign in, and so can read."""
    return User.objects.filter(is_active=True).exclude(memberships__is_simulated=True).order_by("username")


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
