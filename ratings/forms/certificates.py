"""What is settled before a calibration set is rated, and before served images are watched."""

import re

from django import forms
from django.contrib.auth import get_user_model

from generation.models import GenerationJob, Release
from ratings.forms.studies import level_of, people
from ratings.models import Study


class _DrawForm(forms.Form):
    """Name, number and readers of a study whose images are a random draw."""

    name = forms.CharField(
        label="Name of the study",
        max_length=200,
        help_text="Readers see it: say nothing of where the images come from.",
    )
    num_images = forms.IntegerField(label="Images to rate, of each kind", min_value=1, max_value=20_000)
    readers = forms.ModelMultipleChoiceField(
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

    release = forms.ModelChoiceField(Release.objects.all())
    jobs = forms.CharField(
        help_text="Numbers of finished rlhf jobs of the release at threshold 0, all with the same parameters: 12, 13."
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
        help_text="The first test then spends 61 % of the risk, later ones the rest. Otherwise one test spends all.",
    )

    field_order = ("name", "release", "jobs", "num_images", "alpha", "delta", "seed", "is_reusable", "readers")

    def clean_jobs(self) -> list[GenerationJob]:
        numbers = re.split(r"[\s,;]+", self.cleaned_data["jobs"].strip(" ,;"))
        wrong = next((text for text in numbers if not text.isdecimal()), None)
        if wrong is not None:
            raise forms.ValidationError(f"{wrong!r} is not the number of a job. Separate numbers by commas.")
        keys = list(dict.fromkeys(int(text) for text in numbers))
        found = GenerationJob.objects.in_bulk(keys)
        missing = next((key for key in keys if key not in found), None)
        if missing is not None:
            raise forms.ValidationError(f"There is no job {missing}. The list of jobs is on the page Generate.")
        return [found[key] for key in keys]


class MonitoringForm(_DrawForm):
    """A study of images that were served under a certificate."""

    field_order = ("name", "num_images", "seed", "readers")


class RevocationForm(forms.Form):
    """Why a certificate ends."""

    reason = forms.CharField(max_length=500, widget=forms.Textarea(attrs={"rows": 2}))
