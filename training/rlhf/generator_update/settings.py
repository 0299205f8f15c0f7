"""What a generator update is asked to do: config.json of its run directory, and flags of its command. No torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from generation.parameters import PRECISIONS

REWARD_WEIGHTED, KTO = "reward_weighted", "kto"
MAX_STEPS = 2000  # METHOD.md section 6: beyond that the generator forgets more than it learns


class UpdateError(ValueError):
    """An update cannot be done as asked; the message says what to change."""


@dataclass(frozen=True)
class UpdateSettings:
    """One update. A release's own files settle the first three."""

    generator: str  # pipeline folder
    selector_file: str
    policy_file: str
    real_data: str = ""  # dataset CSV that the generator was trained on; "": phantoms without defects, drawn here
    panel_ratings: str = ""  # ratings CSV of the two samples' images; "": poor is what the selector says
    num_real: int = 400  # real images that are replayed, at most
    num_reference: int = 300  # real images that are held out: for coverage and for the null of copies
    num_synthetic: int = 400  # images drawn to choose from
    share: float = 0.3  # of each prompt group's images that are learnt from
    objective: str = REWARD_WEIGHTED  # or kto: the worst share of each group is learnt from too, as unwanted
    kto_beta: float = 2000.0  # kto: an image counts until its diffusion loss has moved by about 1 / kto_beta
    num_inference_steps: int | None = None  # of the sampler; None: what the generator's maker recommends
    guidance_scale: float | None = None  # None: what the generator's maker recommends
    drawing_batch: int = 16  # images denoised together
    max_steps: int = 300  # optimiser steps
    train_batch_size: int = 16  # images per step, half of them real
    learning_rate: float = 5e-5  # of AdamW; 1e-5 to 1e-4 is usual
    rank: int = 8  # of the low-rank adapters
    checkpointing_steps: int = 50  # optimiser steps between checkpoints
    sample_size: int = 400  # images drawn from either generator for the decision
    poor_threshold: float = 0.5  # an image is poor by the selector where min(selector, policy) lies below
    quality_threshold: float = 0.6  # of a release made from the run
    precision: str = "float32"  # that images are drawn in; auto: half precision where the device has it
    mixed_precision: str = "auto"  # of learning: auto, no, bf16 or fp16
    seed: int = 0  # of everything random

    @property
    def generator_folder(self) -> Path:
        return Path(self.generator)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Raises UpdateError that names every key that is unknown, missing or out of range."""
        fields = {item.name: item for item in dataclasses.fields(cls)}
        faults = [f"{key} is no setting of a generator update" for key in values if key not in fields]
        missing = [
            name for name, item in fields.items() if item.default is dataclasses.MISSING and not values.get(name)
        ]
        faults += [f"{name} is missing" for name in missing]
        faults += [fault for name, value in values.items() if name in fields and (fault := _fault(name, value))]
        if not faults and values.get("objective") == KTO and values.get("share", cls.share) > _LARGEST_KTO_SHARE:
            faults = [f"share is {values['share']}: with kto the best and the worst must not meet, so at most 0.5"]
        if faults:
            raise UpdateError("The settings of the update are wrong: " + "; ".join(faults) + ".")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


# name: smallest and largest value, both allowed
_RANGES = {
    "num_real": (20, 1_000_000), "num_reference": (20, 1_000_000), "num_synthetic": (20, 100_000),
    "share": (0.01, 1.0), "kto_beta": (1.0, 1e6), "num_inference_steps": (1, 1000), "guidance_scale": (0.0, 50.0),
    "drawing_batch": (1, 256),
    "max_steps": (1, MAX_STEPS), "train_batch_size": (2, 4096), "learning_rate": (1e-8, 1.0), "rank": (1, 512),
    "checkpointing_steps": (1, MAX_STEPS), "sample_size": (20, 100_000), "poor_threshold": (0.0, 1.0),
    "quality_threshold": (0.0, 1.0), "seed": (0, 1999),
}  # fmt: skip
_LARGEST_KTO_SHARE = 0.5
_OPTIONAL = ("num_inference_steps", "guidance_scale")
_FRACTIONS = ("share", "kto_beta", "guidance_scale", "learning_rate", "poor_threshold", "quality_threshold")
_CHOICES = {
    "objective": (REWARD_WEIGHTED, KTO), "precision": PRECISIONS, "mixed_precision": ("auto", "no", "bf16", "fp16"),
}  # fmt: skip


def _fault(name: str, value: Any) -> str:
    """What is wrong with a value; empty where nothing is."""
    if name not in _RANGES:
        if name in _CHOICES and value not in _CHOICES[name]:
            return f"{name} is {value!r}: one of {', '.join(_CHOICES[name])}"
        return "" if isinstance(value, str) else f"{name} is {value!r}: give a text"
    if value is None and name in _OPTIONAL:
        return ""
    types = (int, float) if name in _FRACTIONS else (int,)
    low, high = _RANGES[name]
    if isinstance(value, bool) or not isinstance(value, types) or not low <= value <= high:
        return f"{name} is {value!r}: it must lie between {low:g} and {high:g}"
    if name == "train_batch_size" and value % 2:
        return f"train_batch_size is {value}: half of a batch is real, so it must be even"
    return ""
