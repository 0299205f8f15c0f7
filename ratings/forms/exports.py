"""Which ratings to write to files."""

from django import forms

from medsyn.roles import is_admin
from ratings import services
from ratings.forms.filters import MODALITY_CHOICES
from ratings.models import Export, Study


class ExportForm(forms.Form):
    """Which ratings to write to a CSV; for study owners those of their own studies, one at a time."""

    content = forms.ChoiceField(
        label="What",
        choices=[("ratings", "Ratings, one row each"), ("images", "Images, what the readers say together")],
        required=False,
    )
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

    def __init__(self, *args, user, **kwargs):
        super().__init__(*args, **kwargs)
        self._user = user
        study = self.fields["study"]
        study.queryset = Study.objects.managed_by(user).order_by("name")
        if not is_admin(user):
            study.required, study.empty_label = True, "Choose a study"

    def clean(self) -> dict:
        chosen = super().clean()
        if chosen.get("content") == Export.Content.IMAGES and not self.errors:
            if chosen["study"] is None:
                self.add_error("study", "Choose the study whose images are to be exported.")
            if chosen["modality"] or chosen["include_simulated"] is not None:
                raise forms.ValidationError("An export of images is of the whole study: leave the other fields.")
        return chosen

    def save(self) -> Export:
        """Write the files; call after is_valid(). Raises StudyError."""
        chosen = dict(self.cleaned_data)
        if chosen.pop("content") == Export.Content.IMAGES:
            return services.freeze_images(study=chosen["study"], created_by=self._user)
        return services.freeze_export(**chosen, created_by=self._user)
