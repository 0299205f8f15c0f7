"""Forms of training: the filter above the runs, new runs of either purpose, and the release of a finished one.

What may be typed is decided by the code that trains (RLHFConfig, finetuning.Arguments); the forms carry the values
there and bring each fault back to the field that it is about.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from django import forms
from django.conf import settings
from django.db.models import QuerySet

from generation import embedded_model
from generation.services import active_release
from ratings.models import Export, Rating, Study
from training import config_fields, services
from training.cost import Estimate
from training.finetuning.arguments import Arguments
from training.models import Checkpoint, TrainingRun
from training.rlhf.config import ConfigError, RLHFConfig, from_dict, load_config

_ALL = ("", "All")


class RunFilter(forms.Form):
    """What to show of the runs; empty fields do not restrict."""

    q = forms.CharField(label="Name", required=False)
    purpose = forms.ChoiceField(choices=[_ALL, *TrainingRun.Purpose.choices], required=False)
    state = forms.ChoiceField(choices=[_ALL, *TrainingRun.State.choices], required=False)

    def apply(self, runs: QuerySet) -> QuerySet:
        chosen = self.cleaned_data
        if chosen["q"]:
            runs = runs.filter(name__icontains=chosen["q"])
        exact = {name: chosen[name] for name in ("purpose", "state") if chosen[name]}
        return runs.filter(**exact)


def generator_choices() -> list[tuple[str, str]]:
    """Generators that lie on this server: folder and what people call it."""
    choices = [("", _default_generator())]
    if active_release():
        choices.append((str(embedded_model.EMBEDDED_MODEL_DIR), "medsyn-tiny"))
    return choices + [(str(folder), f"{run} (run {run.pk})") for run, folder in finetuned_pipelines()]


def _default_generator() -> str:
    release = active_release()
    return f"Active release: {release.name}" if release else "medsyn-tiny"


def finetuned_pipelines() -> list[tuple[TrainingRun, Path]]:
    """Finished runs that have written a pipeline, newest first; a refused update has written none."""
    purposes = (TrainingRun.Purpose.FINETUNE, TrainingRun.Purpose.UPDATE)
    runs = TrainingRun.objects.filter(purpose__in=purposes, state=TrainingRun.State.SUCCEEDED)
    pipelines = [(run, run.path / services.PIPELINE_NAME) for run in runs]
    return [(run, folder) for run, folder in pipelines if (folder / "model_index.json").is_file()]


@functools.cache
def _configuration(path: Path, modified_ns: int) -> tuple[RLHFConfig, dict[str, str]]:
    """The values and the comments of config.yaml; ``modified_ns`` is when it was, so that a change is read anew."""
    return load_config(path), config_fields.comments_of(path)


def _export_label(export: Export) -> str:
    source = export.study.name if export.study else "all studies"
    return f"{export}, {source}, {export.created_at:%Y-%m-%d %H:%M}"


class RLHFRunForm(forms.Form):
    """Selector and policy: which ratings, which generator, and every key of config.yaml."""

    name = forms.CharField(max_length=100, required=False, help_text="Empty: named after the ratings.")
    study = forms.ModelChoiceField(
        Study.objects.none(),
        required=False,
        to_field_name="public_id",
        empty_label="No study: train on an export",
        help_text="Its ratings as they stand now are frozen into an export, and the run learns from that.",
    )
    export = forms.ModelChoiceField(
        Export.objects.select_related("study"),
        required=False,
        empty_label="No export: freeze the study's ratings now",
    )
    generator = forms.ChoiceField(
        required=False, help_text="Made the rated images; the policy reads its text encoder, the release contains it."
    )

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        path = settings.BASE_DIR / "config.yaml"
        defaults, comments = _configuration(path, path.stat().st_mtime_ns)
        self._settings = list(config_fields.settings_of())
        for setting in self._settings:
            self.fields[setting.key] = config_fields.form_field(setting, defaults, comments)
        rated = Rating.objects.submitted().values("assignment__study_id")
        self.fields["study"].queryset = Study.objects.filter(pk__in=rated).order_by("name")
        self.fields["generator"].choices = generator_choices()
        self.fields["export"].label_from_instance = _export_label

    def source_fields(self) -> list:
        return [self[name] for name in self.base_fields]

    def important_fields(self) -> list:
        return [self[key] for key in config_fields.IMPORTANT]

    def other_sections(self) -> list[tuple[str, list]]:
        """The keys that are folded away, by section."""
        others = [setting for setting in self._settings if setting.key not in config_fields.IMPORTANT]
        grouped = groupby(others, key=lambda setting: setting.section)
        return [(section, [self[setting.key] for setting in members]) for section, members in grouped]

    def has_hidden_errors(self) -> bool:
        """Whether the folded part must be open, because something in it is wrong."""
        return any(field.errors for _, members in self.other_sections() for field in members)

    def clean(self) -> dict:
        chosen = super().clean()
        if bool(chosen.get("study")) == bool(chosen.get("export")) and not {"study", "export"} & self.errors.keys():
            self.add_error("study", "Choose either a study or an export: the run learns from one set of ratings.")
        values = {
            setting.key: config_fields.typed_value(setting, chosen[setting.key])
            for setting in self._settings
            if setting.key in chosen
        }
        try:
            chosen["config"] = from_dict(config_fields.nested(values), source="form")
        except ConfigError as error:
            for fault in error.faults:
                self.add_error(self._field_of(fault), fault)
        return chosen

    def _field_of(self, fault: str) -> str | None:
        """The key that a fault's sentence begins with."""
        keys = [setting.key for setting in self._settings if fault.startswith(setting.key)]
        return max(keys, key=len, default=None)

    def service_arguments(self) -> dict[str, Any]:
        """For services.train_on_ratings; call after is_valid()."""
        return {name: self.cleaned_data[name] for name in ("name", "study", "export", "generator", "config")}

    def cost(self) -> Estimate:
        """Call after is_valid(); raises RatingsCSVError or OSError where the export's file is lost or broken."""
        chosen = {name: self.cleaned_data[name] for name in ("study", "export", "config")}
        return services.estimate_rlhf(**chosen)


_FINETUNE_IMPORTANT = (
    "max_train_steps",
    "num_train_epochs",
    "resolution",
    "train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler",
    "lr_warmup_steps",
    "checkpointing_steps",
    "random_flip",
    "validation_prompts",
)
# Settled by where the run lies, or typed in fields of their own.
_FINETUNE_SETTLED = ("train_data_dir", "output_dir", "pretrained_model_name_or_path", "latent_cache_dir")


class FinetuneForm(forms.Form):
    """Fine-tuning of the generator: a dataset on the server, a base model, and the flags of the training script."""

    name = forms.CharField(max_length=100, required=False, help_text="Empty: named after the dataset's folder.")
    train_data_dir = forms.CharField(
        label="Dataset CSV",
        help_text="Path on the server; columns path,Text,modality. Rows are checked now, images by the run.",
    )
    pretrained_model_name_or_path = forms.CharField(
        label="Base model",
        initial="medsyn-tiny",
        widget=forms.TextInput(attrs={"list": "known-models", "autocomplete": "off"}),
        help_text="medsyn-tiny, or a pipeline folder on the server.",
    )
    unknown: Sequence[str] = ()  # flags that were given and do not exist

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._flags = [item for item in fields(Arguments) if item.name not in _FINETUNE_SETTLED]
        for item in self._flags:
            self.fields[item.name] = _flag_field(item)

    @classmethod
    def of_flags(cls, flags: Mapping[str, Any]) -> Self:
        """The form as if somebody had typed these values and left the others as they are."""
        untouched = {name: field.initial for name, field in cls().fields.items() if field.initial is not None}
        given = {
            name: "\n".join(map(str, value)) if isinstance(value, list) else value for name, value in flags.items()
        }
        form = cls({**untouched, **given})
        form.unknown = sorted(flags.keys() - form.fields.keys())
        return form

    def source_fields(self) -> list:
        return [self[name] for name in self.base_fields]

    def important_fields(self) -> list:
        return [self[name] for name in _FINETUNE_IMPORTANT]

    def other_fields(self) -> list:
        return [self[item.name] for item in self._flags if item.name not in _FINETUNE_IMPORTANT]

    def has_hidden_errors(self) -> bool:
        return any(field.errors for field in self.other_fields())

    def known_models(self) -> list[tuple[str, str]]:
        """Base models that lie on this server."""
        release = active_release()
        models = [("medsyn-tiny", "the embedded model")]
        if release:
            models.append((str(release.folder / "pipeline"), f"active release: {release.name}"))
        return models + [(str(folder), str(run)) for run, folder in finetuned_pipelines()]

    def clean(self) -> dict:
        chosen = super().clean()
        for name in self.unknown:
            self.add_error(None, f"{name} is no flag of training.finetuning.train.")
        if self.errors:
            return chosen
        values = {item.name: _flag_value(item, chosen[item.name]) for item in self._flags}
        try:
            chosen["arguments"] = services.checked_arguments(
                train_data_dir=chosen["train_data_dir"],
                pretrained_model_name_or_path=chosen["pretrained_model_name_or_path"],
                **values,
            )
        except services.ArgumentFaults as error:
            for key, text in error.faults:
                self.add_error(key if key in self.fields else None, text)
        return chosen

    def cost(self) -> Estimate:
        """Call after is_valid()."""
        return services.estimate_finetuning(arguments=self.cleaned_data["arguments"])


def _flag_field(item) -> forms.Field:
    """A form field for one flag: its kind from its type, its default and help text from the flag itself."""
    default, kind = item.default, item.type
    options = {
        "label": item.name.replace("_", " ").capitalize() if item.name in _FINETUNE_IMPORTANT else item.name,
        "help_text": item.metadata["help"],
        "required": default is not None and default != () and not isinstance(default, bool),
        "initial": default,
    }
    if kind is bool:
        return forms.BooleanField(**options)
    if "choices" in item.metadata:
        choices = item.metadata["choices"]
        empty = [("", "default")] if default is None else []
        return forms.ChoiceField(choices=[*empty, *((each, each) for each in choices)], **options)
    if kind is int:
        return forms.IntegerField(**options)
    if kind is float:
        options["initial"] = None if default is None else f"{default:g}"
        return forms.FloatField(widget=forms.NumberInput(attrs={"step": "any"}), **options)
    if kind in (str, Path):
        return forms.CharField(**options)
    options |= {"initial": "", "help_text": f"{item.metadata['help']}, one a line"}
    return forms.CharField(widget=forms.Textarea(attrs={"rows": 3}), **options)


def _flag_value(item, value: Any) -> Any:
    """The cleaned value as Arguments holds it."""
    if item.default == ():
        return tuple(line.strip() for line in value.splitlines() if line.strip())
    if value == "":
        return None
    return Path(value) if item.type is Path else value


class ReleaseForm(forms.Form):
    """Which checkpoint to release, and how."""

    checkpoint = forms.ModelChoiceField(Checkpoint.objects.none(), required=False)
    quality_threshold = forms.FloatField(
        min_value=0,
        max_value=1,
        widget=forms.NumberInput(attrs={"step": "0.01"}),
        help_text="Score that an image needs from selector and policy to be served.",
    )
    name = forms.CharField(max_length=100)
    activate = forms.BooleanField(
        label="Serve it from now on", required=False, help_text="Replaces the active release; it can be rolled back."
    )

    def __init__(self, *args, run: TrainingRun, **kwargs):
        super().__init__(*args, **kwargs)
        chosen = run.figures.get("checkpoint")
        checkpoint = self.fields["checkpoint"]
        checkpoint.queryset = run.checkpoints.order_by("-step")
        checkpoint.empty_label = f"{chosen}: what the report measured" if chosen else "the newest"
        checkpoint.label_from_instance = lambda row: f"{row.name} (step {row.step})"
        serving = run.config if run.purpose == run.Purpose.UPDATE else run.config["generation"]
        self.fields["quality_threshold"].initial = serving["quality_threshold"]
        self.fields["name"].initial = str(run)
        if run.purpose == run.Purpose.UPDATE:
            del self.fields["checkpoint"]  # it has one result
