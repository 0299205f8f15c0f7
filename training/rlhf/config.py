"""The configuration of selector and policy training: config.yaml in, frozen dataclasses out. Imports no torch.

Every fault of a file is reported at once, each with its key; an unknown key is answered with the nearest known one.
Floats may be written 1e-4: PyYAML, after YAML 1.1, would hand that over as text.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from generation.scoring.architecture import (
    PolicyArchitecture,
    QualityMetricsSettings,
    SelectorArchitecture,
    setting,
)

EMBEDDED_GENERATOR = "medsyn-tiny"
PRECISIONS = ("float32", "float16", "bfloat16")


class ConfigError(ValueError):
    """The configuration breaks a rule; ``faults`` has one sentence per key."""

    def __init__(self, source: str, faults: list[str]):
        self.faults = faults
        super().__init__(f"{source}:\n  " + "\n  ".join(faults))


@dataclass(frozen=True)
class ModelPaths:
    stable_diffusion: str = setting(EMBEDDED_GENERATOR)  # generator whose text encoder the policy reads: name, folder
    med_text_encoder: str | None = setting(None)  # another BERT (folder or hub id); null: the generator's own


@dataclass(frozen=True)
class DeviceSettings:
    use_cuda: bool = setting(True)  # use a GPU where there is one
    precision: str = setting("float32", choices=PRECISIONS)  # of the forward pass; weights stay float32


@dataclass(frozen=True)
class Stage1:
    learning_rate: float = setting(1e-4, low=1e-8, high=1.0)  # of the encoders; new layers learn faster
    train_selector: bool = setting(True)  # false: only the policy learns


@dataclass(frozen=True)
class Stage2:
    learning_rate: float = setting(1e-4, low=1e-8, high=1.0)  # as in stage 1
    selector_threshold: float = setting(0.2, low=0.0, high=1.0)  # images scored lower leave the policy's training


@dataclass(frozen=True)
class Checkpoints:
    save_dir: str = setting("checkpoints")  # folder of the run directories
    save_frequency: int = setting(10, low=1, high=100_000)  # epochs between checkpoints


@dataclass(frozen=True)
class TrainingSettings:
    stage: int = setting(2, choices=(1, 2))  # the last stage to run; 2 runs stage 1 first unless given a selector
    max_epochs: int = setting(100, low=1, high=100_000)  # of the whole run; two stages share them in halves
    batch_size: int = setting(32, low=2, high=4096)  # images per step
    seed: int = setting(0, low=0, high=2**31 - 1)  # of everything random
    # Ratings from which on stage 2 trains pretrained encoders too; with fewer they stay as they are, and are fast.
    unfreeze_from: int = setting(3000, low=0, high=2**31 - 1)
    # Epochs of the last stage without a better network after which training ends; 0: it never ends early.
    early_stopping_patience: int = setting(20, low=0, high=100_000)
    stage1: Stage1 = field(default_factory=Stage1)
    stage2: Stage2 = field(default_factory=Stage2)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)


@dataclass(frozen=True)
class Augmentation:
    rotation_range: float = setting(10.0, low=0.0, high=180.0)  # degrees to either side
    zoom_range: float = setting(0.1, low=0.0, high=0.9)  # share by which an image grows or shrinks
    contrast_range: tuple[float, float] = setting((0.8, 1.2), low=0.0, high=10.0)  # factor about the mean grey


@dataclass(frozen=True)
class DataSettings:
    ratings_file: str = setting("ratings.csv")  # relative to where the training starts, or absolute
    num_workers: int = setting(2, low=0, high=256)  # threads that read the images; 0: none beside the main one
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class RaterSettings:
    expert_weights: bool = setting(True)  # trust by expertise level, learnt from agreement; false: all alike
    image_prior: bool = setting(True)  # labels heed what other images' ratings foretell; false: own ratings only
    min_expert_level: int = setting(1, low=1, high=3)  # ratings of lower levels are left out
    max_expert_level: int = setting(3, low=1, high=3)  # ratings of higher levels are left out


@dataclass(frozen=True)
class SyntheticSystem:
    enable_training: bool = setting(False)  # afterwards, update the generator on accepted images
    num_inference_steps: int = setting(50, low=1, high=1000)  # of the sampler, when serving
    guidance_scale: float = setting(7.5, low=1.0, high=30.0)  # classifier-free guidance, when serving
    image_size: tuple[int, int] = setting((256, 256), low=16, high=2048)  # pixels; the scorers read no larger ones
    max_attempts: int = setting(10, low=1, high=1000)  # images tried per accepted one before serving gives up


@dataclass(frozen=True)
class PolicyModel:
    architecture: PolicyArchitecture = field(default_factory=PolicyArchitecture)


@dataclass(frozen=True)
class SelectorSettings:
    architecture: SelectorArchitecture = field(default_factory=SelectorArchitecture)
    quality_metrics: QualityMetricsSettings = field(default_factory=QualityMetricsSettings)


@dataclass(frozen=True)
class GenerationSettings:
    num_candidates: int = setting(3, low=1, high=64)  # images generated at a time when serving
    quality_threshold: float = setting(0.6, low=0.0, high=1.0)  # score an image needs to be served


@dataclass(frozen=True)
class RLHFConfig:
    model_paths: ModelPaths = field(default_factory=ModelPaths)
    device: DeviceSettings = field(default_factory=DeviceSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    data: DataSettings = field(default_factory=DataSettings)
    raters: RaterSettings = field(default_factory=RaterSettings)
    synthetic_system: SyntheticSystem = field(default_factory=SyntheticSystem)
    policy_model: PolicyModel = field(default_factory=PolicyModel)
    selector: SelectorSettings = field(default_factory=SelectorSettings)
    generation: GenerationSettings = field(default_factory=GenerationSettings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``from_dict`` reads them back to an equal configuration."""
        return dataclasses.asdict(self)


def load_config(path: Path) -> RLHFConfig:
    """The configuration of a YAML file; raises FileNotFoundError or ConfigError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(str(path), [f"not valid YAML: {' '.join(str(error).split())}"]) from None
    return from_dict(values if values is not None else {}, source=str(path))


def from_dict(values: Any, *, source: str) -> RLHFConfig:
    """The configuration of nested mappings; keys left out keep their defaults. Raises ConfigError."""
    faults: list[str] = []
    config = _section(RLHFConfig, values, "", faults)
    if not faults:
        faults += _cross_checks(config)
    if faults:
        raise ConfigError(source, faults)
    return config


def known_keys(section: type = RLHFConfig, prefix: str = "") -> Iterator[str]:
    """Every key in dotted form: "training.stage1.learning_rate"."""
    hints = typing.get_type_hints(section)
    for item in dataclasses.fields(section):
        key = f"{prefix}{item.name}"
        if dataclasses.is_dataclass(hints[item.name]):
            yield from known_keys(hints[item.name], f"{key}.")
        else:
            yield key


def _section(section: type, values: Any, prefix: str, faults: list[str]) -> Any:
    if not isinstance(values, dict):
        faults.append(f"{prefix.rstrip('.') or 'the file'} must hold keys, not {values!r}")
        return section()
    hints = typing.get_type_hints(section)
    settings = {item.name: item for item in dataclasses.fields(section)}
    read: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in settings:
            faults.append(_unknown(key, section, prefix))
        elif dataclasses.is_dataclass(hints[name]):
            read[name] = _section(hints[name], {} if value is None else value, f"{key}.", faults)
        else:
            try:
                read[name] = _value(value, hints[name], settings[name].metadata)
            except ValueError as error:
                faults.append(f"{key} is {value!r}: {error}")
    return section(**read)


def _unknown(key: str, section: type, prefix: str) -> str:
    """The nearest known key: one of the same name elsewhere, else one beside it, else any."""
    known = list(known_keys())
    name = key.removeprefix(prefix)
    beside = [f"{prefix}{item.name}" for item in dataclasses.fields(section)]
    nearest = [
        *(each for each in known if each.endswith(f".{name}")),
        *difflib.get_close_matches(key, beside, n=1, cutoff=0.6),
        *difflib.get_close_matches(key, known, n=1, cutoff=0.0),
    ]
    return f"{key} is not a key. Did you mean {nearest[0]}?"


def _value(value: Any, kind: Any, limits: typing.Mapping[str, Any]) -> Any:
    """``value`` as ``kind`` within its limits; raises ValueError that says what is allowed."""
    if isinstance(kind, types.UnionType):  # "str | None"
        if value is None:
            return None
        kind = next(choice for choice in typing.get_args(kind) if choice is not type(None))
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        if not isinstance(value, list | tuple) or len(value) != len(kinds):
            raise ValueError(f"give a list of {len(kinds)} numbers")
        return tuple(_value(item, each, limits) for item, each in zip(value, kinds, strict=True))
    value = _scalar(value, kind)
    choices, low, high = limits["choices"], limits["low"], limits["high"]
    if choices is not None and value not in choices:
        raise ValueError(f"must be one of {', '.join(map(str, choices))}")
    if low is not None and not low <= value <= high:
        raise ValueError(f"must lie between {low:g} and {high:g}")
    return value


def _scalar(value: Any, kind: type) -> Any:
    if kind is float:
        return _float(value)
    if kind is str and isinstance(value, str) and value.strip():
        return value
    if kind in (bool, int) and type(value) is kind:
        return value
    names = {bool: "true or false", int: "a whole number", str: "a text that is not empty"}
    raise ValueError(f"must be {names[kind]}")


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("must be a number")
    try:
        number = float(value)
    except ValueError:
        raise ValueError("must be a number") from None
    if not math.isfinite(number):
        raise ValueError("must be a finite number")
    return number


def _cross_checks(config: RLHFConfig) -> list[str]:
    """What single keys cannot say."""
    faults = []
    if config.raters.min_expert_level > config.raters.max_expert_level:
        faults.append("raters.min_expert_level is greater than raters.max_expert_level: no rating would remain")
    low, high = config.data.augmentation.contrast_range
    if low > high:
        faults.append(f"data.augmentation.contrast_range is [{low}, {high}]: the smaller factor comes first")
    height, width = config.synthetic_system.image_size
    if height != width:
        faults.append(f"synthetic_system.image_size is [{height}, {width}]: the scorers read square images")
    for key, network in _architectures(config).items():
        if network.embed_dim % network.num_heads:
            faults.append(f"{key}.num_heads {network.num_heads} does not divide embed_dim {network.embed_dim}")
        if height % network.patch_size:
            faults.append(f"{key}.patch_size {network.patch_size} does not divide image_size {height}")
        elif network.stem == "convolutions" and network.patch_size & (network.patch_size - 1):
            faults.append(f'{key}.patch_size {network.patch_size} is no power of 2: set {key}.stem to "patch"')
    policy = config.policy_model.architecture
    if policy.fusion_dim % policy.num_heads:
        faults.append(
            f"policy_model.architecture.num_heads {policy.num_heads} does not divide fusion_dim {policy.fusion_dim}"
        )
    return faults


def _architectures(config: RLHFConfig) -> dict[str, Any]:
    return {
        "selector.architecture": config.selector.architecture,
        "policy_model.architecture": config.policy_model.architecture,
    }
