"""Images, chosen by what they show or where they come from; and which of them have a known grade."""

from django import forms
from django.db.models import Q, QuerySet

from generation.models import KIND_CHOICES, GeneratedImage, GenerationJob
from ratings.models import Grade, Rating

GRADE_CHOICES = [(grade.value, f"{grade.value} · {grade.label}") for grade in Grade]
MAX_RATIONALE = 500  # characters
_ORIGINS = {
    "generated": ("Generated here", Q(source=GeneratedImage.Source.GENERATED, is_real=False, gold=None)),
    "imported": ("Imported synthetic ones", Q(source=GeneratedImage.Source.IMPORTED, is_real=False, gold=None)),
    "real": ("Real ones", Q(is_real=True)),
    "gold": ("Gold: their grade is known", Q(gold__isnull=False)),
}


class ImageChoiceForm(forms.Form):
    """Images by what they show or where they come from."""

    origins = forms.MultipleChoiceField(
        label="Where they come from",
        choices=[(code, label) for code, (label, _) in _ORIGINS.items()],
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text="None marked: generated and imported ones whose grade is not known.",
    )
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

    def chosen(self) -> QuerySet:
        """The chosen images, newest first; call after cleaning."""
        given = self.cleaned_data
        images = (
            GeneratedImage.objects.unblocked().filter(calibration=None).order_by("-pk")
        )  # drawn: in no other study
        if not given.get("with_rejected"):
            images = images.served()
        come_from = Q()
        for origin in given.get("origins") or ("generated", "imported"):
            come_from |= _ORIGINS[origin][1]
        images = images.filter(come_from)
        if given.get("kinds"):
            images = images.filter(prompt__kind__in=given["kinds"])
        if given.get("job"):
            images = images.filter(job=given["job"])
        if given.get("only_unrated"):
            rated = Rating.objects.submitted().values("assignment__image_id")
            images = images.exclude(pk__in=rated)
        return images[: given.get("max_images")]

    def images(self) -> list[GeneratedImage]:
        """The chosen images, newest first; call after is_valid()."""
        return list(self.chosen())

    def clean(self) -> dict:
        given = super().clean()
        if not self.errors and not self.chosen().exists():
            raise forms.ValidationError("No image fits this choice. Widen it, or generate images first.")
        return given


class GoldForm(forms.Form):
    """The grade that an image is known to have."""

    grade = forms.TypedChoiceField(label="Known grade", choices=[("", "Choose"), *GRADE_CHOICES], coerce=int)
    rationale = forms.CharField(
        label="Why",
        max_length=MAX_RATIONALE,
        required=False,
        widget=forms.Textarea(attrs={"rows": 2}),
        help_text="Readers see it in a training round, after their answer.",
    )


class GoldImagesForm(GoldForm):
    """The grade that several images are known to have."""

    images = forms.ModelMultipleChoiceField(GeneratedImage.objects.none(), to_field_name="public_id")

    def __init__(self, *args, images: QuerySet, **kwargs):
        super().__init__(*args, **kwargs)
        self.fields["images"].queryset = images
        self.fields["images"].error_messages["required"] = "Mark at least one image."
