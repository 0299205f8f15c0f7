"""What stands above lists: which rows to show."""

from django import forms
from django.contrib.auth import get_user_model
from django.db.models import Exists, OuterRef, QuerySet

from medsyn.modalities import ALL_KINDS, MODALITIES
from ratings.models import Grade, Rating, Study, StudyImage

User = get_user_model()
MODALITY_CHOICES = [(name, name) for name in MODALITIES]
_ALL = ("", "All")


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
    modality = forms.ChoiceField(choices=[_ALL, *MODALITY_CHOICES], required=False)
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

    def __init__(self, *args, studies: QuerySet | None = None, **kwargs):
        """``studies``: those that can be chosen; None: all."""
        super().__init__(*args, **kwargs)
        if studies is not None:
            self.fields["study"].queryset = studies.order_by("name")
            readers = self.fields["reader"].queryset
            self.fields["reader"].queryset = readers.filter(memberships__study__in=studies)

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


class StudyImageFilter(forms.Form):
    """What to show of a study's images."""

    role = forms.ChoiceField(choices=[_ALL, *StudyImage.Role.choices], required=False)
    rated = forms.ChoiceField(
        label="Ratings", choices=[_ALL, ("no", "None yet"), ("yes", "At least one")], required=False
    )

    def apply(self, entries: QuerySet) -> QuerySet:
        """StudyImage rows restricted; call after is_valid()."""
        chosen = self.cleaned_data
        if chosen["role"]:
            entries = entries.filter(role=chosen["role"])
        if not chosen["rated"]:
            return entries
        given = Rating.objects.submitted().filter(
            assignment__study=OuterRef("study"), assignment__image=OuterRef("image")
        )
        return entries.filter(Exists(given) if chosen["rated"] == "yes" else ~Exists(given))


class ExportFilter(forms.Form):
    """What to show of the exports."""

    study = forms.ModelChoiceField(
        Study.objects.order_by("name"), required=False, to_field_name="public_id", empty_label="All"
    )
    simulated = forms.ChoiceField(
        label="Simulated ratings", choices=[_ALL, ("no", "Without"), ("yes", "With")], required=False
    )

    def __init__(self, *args, studies: QuerySet | None = None, **kwargs):
        """``studies``: those that can be chosen; None: all."""
        super().__init__(*args, **kwargs)
        if studies is not None:
            self.fields["study"].queryset = studies.order_by("name")

    def apply(self, exports: QuerySet) -> QuerySet:
        chosen = self.cleaned_data
        if chosen["study"]:
            exports = exports.filter(study=chosen["study"])
        return exports.filter(has_simulated=chosen["simulated"] == "yes") if chosen["simulated"] else exports
