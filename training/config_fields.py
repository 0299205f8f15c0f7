"""Form fields for every key of config.yaml: kind and range from RLHFConfig, help text from the file's comments."""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from django import forms

from training.rlhf.config import RLHFConfig

# Settled by the run itself: which ratings, which generator, where the run directory lies.
SETTLED = ("model_paths.stable_diffusion", "data.ratings_file", "training.checkpoints.save_dir")
# What people change from run to run; the rest is folded away.
IMPORTANT = (
    "training.stage",
    "training.max_epochs",
    "training.batch_size",
    "training.stage1.learning_rate",
    "training.stage2.learning_rate",
    "training.stage2.selector_threshold",
    "generation.quality_threshold",
    "training.checkpoints.save_frequency",
    "training.seed",
)


@dataclass(frozen=True)
class Setting:
    """One key of the configuration."""

    key: str  # dotted: "training.stage1.learning_rate"
    kind: Any  # its type in RLHFConfig
    limits: Mapping[str, Any]  # low, high, choices

    @property
    def section(self) -> str:
        return self.key.rpartition(".")[0]

    @property
    def value_kind(self) -> Any:
        """The type, without the None of an optional one."""
        if isinstance(self.kind, types.UnionType):
            return next(choice for choice in typing.get_args(self.kind) if choice is not type(None))
        return self.kind

    @property
    def is_optional(self) -> bool:
        return self.value_kind is not self.kind

    def value_in(self, config: RLHFConfig) -> Any:
        value = config
        for name in self.key.split("."):
            value = getattr(value, name)
        return value


def settings_of(section: type = RLHFConfig, prefix: str = "") -> Iterator[Setting]:
    """Every key that a form may set, in the order of the configuration."""
    hints = typing.get_type_hints(section)
    for item in dataclasses.fields(section):
        key = f"{prefix}{item.name}"
        if dataclasses.is_dataclass(hints[item.name]):
            yield from settings_of(hints[item.name], f"{key}.")
        elif key not in SETTLED:
            yield Setting(key, hints[item.name], item.metadata)


def form_field(setting: Setting, config: RLHFConfig, comments: Mapping[str, str]) -> forms.Field:
    """A field that shows the configuration's value and takes any text: RLHFConfig itself judges what was typed."""
    name = setting.key.rpartition(".")[2]
    value = setting.value_in(config)
    options = {
        "label": _words(setting.key) if setting.key in IMPORTANT else name,
        "help_text": comments.get(setting.key) or comments.get(f"policy_model.architecture.{name}", ""),
        "required": False,
    }
    if setting.value_kind is bool:
        return forms.BooleanField(initial=value, **options)
    options["required"] = not setting.is_optional
    choices = setting.limits["choices"]
    if choices is not None:
        return forms.ChoiceField(choices=[(each, each) for each in choices], initial=value, **options)
    return forms.CharField(initial=_shown(value), widget=_widget(setting), **options)


def _words(key: str) -> str:
    """training.stage1.learning_rate -> "Stage 1 learning rate"."""
    parts = [part for part in key.split(".") if part not in ("training", "checkpoints", "generation")]
    words = " ".join(parts).replace("_", " ").replace("stage1", "stage 1").replace("stage2", "stage 2")
    return words.capitalize()


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _widget(setting: Setting) -> forms.Widget:
    if setting.value_kind not in (int, float):
        return forms.TextInput
    low, high = setting.limits["low"], setting.limits["high"]
    step = "1" if setting.value_kind is int else "any"
    return forms.NumberInput(attrs={"step": step, "min": f"{low:.15g}", "max": f"{high:.15g}"})


def typed_value(setting: Setting, text: Any) -> Any:
    """What was typed as the value it stands for; text that is none is handed on, for RLHFConfig to refuse."""
    kind = setting.value_kind
    if kind is bool:
        return bool(text)
    if text == "" and setting.is_optional:
        return None
    if typing.get_origin(kind) is tuple:
        each = typing.get_args(kind)[0]
        return [_number(part.strip(), each) for part in text.strip("[]() ").split(",")]
    return _number(text.strip(), kind)


def _number(text: str, kind: type) -> Any:
    try:
        return int(text) if kind is int else text  # floats may stay text: RLHFConfig reads 1e-4
    except ValueError:
        return text


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} as {"a": {"b": 1}}."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[name] = value
    return tree


def comments_of(path: Path) -> dict[str, str]:
    """The comments of a YAML file by dotted key: behind the value, else on the lines right above the key."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    found: dict[str, str] = {}

    def visit(node: yaml.Node, prefix: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        for name, value in node.value:
            key = f"{prefix}{name.value}"
            if isinstance(value, yaml.MappingNode):
                visit(value, f"{key}.")
            else:
                behind = lines[value.end_mark.line][value.end_mark.column :].partition("#")[2].strip()
                found[key] = behind or _above(lines, name.start_mark.line)

    visit(yaml.compose(text), "")
    return found


def _above(lines: list[str], line: int) -> str:
    comment: list[str] = []
    while line and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        comment.insert(0, lines[line].lstrip("# ").strip())
    return " ".join(comment)
