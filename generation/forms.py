"""Forms of the generation pages."""

from collections.abc import Mapping
from typing import Any

from django import forms

from generation.comparisons import STANDARD_NUM_IMAGES, STANDARD_PROMPTS, STANDARD_SEED
from generation.models import KIND_CHOICES, GeneratedImage, GenerationJob, Release
from generation.parameters import RANGES, SCHEDULERS, ParameterError, Parameters
from generation.services import MAX_IMAGES_PER_PROMPT, MAX_SEED, active_release, recommended_sampling
from medsyn.modalities import KINDS

# What medsyn-tiny has learnt, one line for each kind of image and then some.
EXAMPLES = (
    (
        "Chest X-ray",
        ("normal lung fields without infiltrates", "left pleural effusion, frontal view", "cardiomegaly"),
    ),
    ("Chest CT", ("clear lungs, axial slice", "nodule in the right lung", "left pleural effusion")),
    ("Brain MRI", ("axial T1 weighted image, normal findings", "left mass, T2 weighted axial slice")),
    ("Breast MRI", ("normal findings, axial image after contrast", "mass in the left breast")),
    ("Fundus", ("no abnormality, right eye", "hard exudates, left eye", "glaucoma with a large cup, right eye")),
    ("OCT", ("no abnormality, macular scan", "drusen under the retina", "full thickness macular hole")),
)
_DEFAULTS = Parameters()


def examples() -> list[tuple[str, list[tuple[str, str]]]]:
    """Example prompts and their descriptions by kind, in the vocabulary's order."""
    by_kind = dict(EXAMPLES)
    return [(kind.prefix, [(f"{kind.prefix}: {text}", text) for text in by_kind[kind.prefix]]) for kind in KINDS]


def _number(key: str, label: str, help_text: str = "", *, whole: bool = True, required: bool = True) -> forms.Field:
    smallest, largest = RANGES[key]
    kind = forms.IntegerField if whole else forms.FloatField
    widget = forms.NumberInput(attrs={"step": 1 if whole else "any"})
    return kind(
        label=label,
        help_text=help_text,
        min_value=smallest,
        max_value=largest,
        required=required,
        initial=getattr(_DEFAULTS, key),
        widget=widget,
    )


def _share(label: str, end: int, help_text: str) -> forms.Field:
    """One end of the guidance interval."""
    initial = _DEFAULTS.guidance_interval[end]
    widget = forms.NumberInput(attrs={"step": "any"})
    return forms.FloatField(
        label=label, help_text=help_text, min_value=0, max_value=1, initial=initial, required=False, widget=widget
    )


def guidance_interval(values: Mapping[str, Any]) -> tuple[float, float]:
    """Both ends as a form has them; one that is left empty is that of the whole run."""
    given = values["guidance_start"], values["guidance_end"]
    ends = zip(given, _DEFAULTS.guidance_interval, strict=True)
    return tuple(default if value is None else value for value, default in ends)


class GenerateForm(forms.Form):
    prompts = forms.CharField(
        label="Prompt",
        help_text="Kind of image, a colon, what it shows. Several prompts: one per line.",
        widget=forms.Textarea(attrs={"rows": 3, "spellcheck": "false", "autofocus": True}),
        max_length=50_000,
    )
    mode = forms.ChoiceField(
        choices=[("baseline", "Keep every image"), ("rlhf", "Keep only what selector and policy accept")],
        initial=GenerationJob.Mode.BASELINE,
        widget=forms.RadioSelect,
    )
    certified = forms.BooleanField(
        label="Under a certificate",
        required=False,
        help_text="Threshold and sampling are the certificate's; what is set below for them does not count.",
    )
    num_images = forms.IntegerField(
        label="Images of each prompt", min_value=1, max_value=MAX_IMAGES_PER_PROMPT, initial=3
    )
    quality_threshold = forms.FloatField(
        label="Quality threshold",
        min_value=0,
        max_value=1,
        initial=_DEFAULTS.quality_threshold,
        help_text="Both scores must reach it. Higher: fewer images pass, and each takes more attempts.",
        widget=forms.NumberInput(attrs={"type": "range", "step": "0.01"}),
    )
    seed = forms.IntegerField(
        min_value=0,
        max_value=MAX_SEED,
        required=False,
        help_text="Image i uses seed + i. Empty: a random one, recorded.",
    )
    num_inference_steps = _number(
        "num_inference_steps", "Steps", "medsyn-tiny needs about 12, Stable Diffusion 25 to 50."
    )
    guidance_scale = _number("guidance_scale", "Guidance scale", "How closely to follow the prompt.", whole=False)
    guidance_start = _share("Guidance from", 0, "Share of the steps: 0 is pure noise, 1 the finished image.")
    guidance_end = _share("Guidance until", 1, "From 0.2 until 0.8 saves a fifth of the work.")
    scheduler = forms.ChoiceField(choices=[(name, name) for name in SCHEDULERS], initial=_DEFAULTS.scheduler)
    batch_size = _number("batch_size", "Batch size", "Images denoised together.")
    height = _number("height", "Height", "Pixels. Empty: the model's own.", required=False)
    width = _number("width", "Width", "Pixels. Empty: the model's own.", required=False)
    negative_prompt = forms.CharField(required=False, max_length=2000, help_text="What the image should not show.")
    pretrained_model = forms.CharField(
        label="Model",
        required=False,
        max_length=500,
        help_text="Folder on the server or hub id. Empty: the active release, else medsyn-tiny.",
    )
    max_attempts = _number("max_attempts", "Attempts per image", "After these an image is given up.")
    num_candidates = _number("num_candidates", "Candidates per attempt")
    use_gates = forms.BooleanField(
        label="Stop hopeless candidates early",
        required=False,
        initial=_DEFAULTS.use_gates,
        help_text="Where the release has gates.",
    )

    sampling_fields = (
        "num_inference_steps",
        "guidance_scale",
        "guidance_start",
        "guidance_end",
        "scheduler",
        "batch_size",
        "height",
        "width",
    )
    filter_fields = ("max_attempts", "num_candidates", "use_gates")

    def bound(self, names) -> list:
        return [self[name] for name in names]

    @property
    def sampling(self) -> list:
        return self.bound(self.sampling_fields)

    @property
    def filtering(self) -> list:
        return self.bound(self.filter_fields)

    @property
    def advanced_has_errors(self) -> bool:
        advanced = (*self.sampling_fields, *self.filter_fields, "negative_prompt", "pretrained_model")
        return any(name in self.errors for name in advanced)

    def service_arguments(self) -> dict[str, Any]:
        """Cleaned values as `services.start_generation` takes them; raises ParameterError."""
        values = self.cleaned_data
        names = [name for name in Parameters.__dataclass_fields__ if name in values]
        return {
            "prompts": [line for line in values["prompts"].splitlines() if line.strip()],
            "mode": values["mode"],
            "num_images": values["num_images"],
            "seed": values["seed"],
            "pretrained_model": values["pretrained_model"],
            "certified": values["certified"] and values["mode"] == GenerationJob.Mode.RLHF,
            "parameters": Parameters.from_mapping(
                {name: values[name] for name in names} | {"guidance_interval": guidance_interval(values)}
            ),
        }

    def take_error(self, error: ParameterError) -> None:
        """Show a service's refusal at the field it is about."""
        key = "guidance_end" if error.key == "guidance_interval" else error.key
        self.add_error(key if key in self.fields else None, error.message)


def as_fields(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by the form's fields: the guidance interval has one for each end."""
    fields = dict(parameters)
    if "guidance_interval" in fields:
        fields["guidance_start"], fields["guidance_end"] = fields.pop("guidance_interval")
    return fields


def initial_from_job(job: GenerationJob) -> dict[str, Any]:
    """The form filled in as a job was called."""
    known = {name: job.parameters[name] for name in Parameters.__dataclass_fields__ if name in job.parameters}
    return as_fields({"guidance_interval": _DEFAULTS.guidance_interval} | known) | {
        "prompts": "\n".join(one.prompt.text for one in job.job_prompts.select_related("prompt")),
        "mode": job.mode,
        "num_images": job.num_images,
        "seed": job.seed,
        "pretrained_model": job.pretrained_model,
    }


def initial_from_image(image: GeneratedImage) -> dict[str, Any]:
    """The form filled in with what made one image."""
    values = initial_from_job(image.job) if image.job else {}
    return values | {"prompts": image.prompt.text, "num_images": 1, "seed": image.seed}


class ImageFilter(forms.Form):
    """What the list of images shows; every value is optional, and what makes no sense is left out."""

    SORTS = {
        "created": "created_at",
        "selector": "selector_score",
        "policy": "policy_score",
        "prompt": "prompt__text",
    }

    q = forms.CharField(label="Prompt contains", required=False, max_length=200)
    kind = forms.ChoiceField(choices=[("", "Every kind"), *KIND_CHOICES], required=False)
    verdict = forms.ChoiceField(choices=[("", "Every verdict"), *GeneratedImage.Verdict.choices], required=False)
    release = forms.ModelChoiceField(Release.objects.all(), required=False, empty_label="Every release")
    job = forms.IntegerField(required=False, min_value=1, widget=forms.HiddenInput)
    sort = forms.ChoiceField(
        label="Order",
        choices=[
            ("", "Newest first"),
            ("created", "Oldest first"),
            ("-selector", "Best selector score"),
            ("-policy", "Best policy score"),
            ("prompt", "Prompt"),
        ],
        required=False,
    )

    def apply(self, images):
        """The images wanted, in the order wanted."""
        self.is_valid()
        values = self.cleaned_data
        if values.get("q"):
            images = images.filter(prompt__text__icontains=values["q"])
        if values.get("kind"):
            images = images.filter(prompt__kind=values["kind"])
        for name in ("verdict", "release", "job"):
            if values.get(name):
                images = images.filter(**{name: values[name]})
        sort = values.get("sort") or "-created"
        order = ("-" if sort.startswith("-") else "") + self.SORTS[sort.lstrip("-")]
        return images.order_by(order, "-pk")

    @property
    def is_narrowed(self) -> bool:
        return any(self.cleaned_data.get(name) for name in ("q", "kind", "verdict", "release", "job"))


class ComparisonForm(forms.Form):
    """Two releases, and what both are to draw."""

    left = forms.ModelChoiceField(
        Release.objects.all(), required=False, empty_label="medsyn-tiny, the embedded model", label="Left"
    )
    right = forms.ModelChoiceField(
        Release.objects.all(), required=False, empty_label="medsyn-tiny, the embedded model", label="Right"
    )
    prompts = forms.CharField(
        label="Prompts",
        help_text="One per line. The standard set: three of each kind, the same ones every time.",
        initial="\n".join(STANDARD_PROMPTS),
        widget=forms.Textarea(attrs={"rows": 8, "spellcheck": "false"}),
        max_length=50_000,
    )
    num_images = forms.IntegerField(label="Images of each prompt", min_value=1, max_value=100)
    seed = forms.IntegerField(min_value=0, max_value=MAX_SEED, help_text="Image k of both sides uses seed + k.")
    num_inference_steps = _number("num_inference_steps", "Steps", "The same for both.")
    guidance_scale = _number("guidance_scale", "Guidance scale", "The same for both.", whole=False)
    guidance_start = _share("Guidance from", 0, "Share of the steps.")
    guidance_end = _share("Guidance until", 1, "Share of the steps.")

    sampling_fields = ("num_inference_steps", "guidance_scale", "guidance_start", "guidance_end")

    @property
    def sampling(self) -> list:
        return [self[name] for name in self.sampling_fields]

    @property
    def settings_have_errors(self) -> bool:
        return any(name in self.errors for name in (*self.sampling_fields, "num_images", "seed", "prompts"))

    @classmethod
    def first_choice(cls, query: Mapping[str, str]) -> dict[str, Any]:
        """What the query names (?left=, ?right=), else the active release against the newest other one."""
        active = active_release()
        other = Release.objects.filter(is_active=False).first()
        chosen = {"left": active.pk if active else None, "right": other.pk if other else None}
        chosen |= {name: query[name] for name in chosen if name in query}
        standard = {"num_images": STANDARD_NUM_IMAGES, "seed": STANDARD_SEED}
        return chosen | standard | as_fields(recommended_sampling(active))

    def service_arguments(self) -> dict[str, Any]:
        """Cleaned values as `comparisons.start_comparison` takes them; raises ParameterError."""
        values = self.cleaned_data
        given = {name: values[name] for name in ("num_inference_steps", "guidance_scale")}
        return {
            "left": values["left"],
            "right": values["right"],
            "prompts": [line for line in values["prompts"].splitlines() if line.strip()],
            "num_images": values["num_images"],
            "seed": values["seed"],
            "parameters": Parameters.from_mapping(given | {"guidance_interval": guidance_interval(values)}),
        }

    def take_error(self, error: ParameterError) -> None:
        """Show a service's refusal at the field it is about."""
        key = "guidance_end" if error.key == "guidance_interval" else error.key
        self.add_error(key if key in self.fields else None, error.message)
