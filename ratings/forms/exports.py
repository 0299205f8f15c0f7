"""Which ratings to write to files."""

from django import forms

from ratings.forms.filters import MODALITY_CHOICES
from ratings.models import Study


class ExportForm(forms.Form):
    """Which ratings to write to a CSV."""

    study = forms.ModelChoiceField(
        Study.objects.order_by("name"), required=False, to_field_name="public_id", empty_label="All studies"
    )
    modality = forms.ChoiceField(choices=[("", "All"), *MODALITY_CHOICES], required=False)
    include_simulated = forms.TypedChoiceField(
        label="Simulated experts",
        choices=[("", "Only of a simulated study"), ("1", "Include"), ("0", "Leave out")],
        coerce=lambda value: value == "1",
        empty_value=None,
        required=False,
        help_text="Their ratings demonstrate the loop; they are no clinical evidence.",
    )
