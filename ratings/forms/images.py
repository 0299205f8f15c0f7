"""Images, chosen by what they show or where they come from."""

from django import forms

from generation.models import KIND_CHOICES, GeneratedImage, GenerationJob
from ratings.models import Rating


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
