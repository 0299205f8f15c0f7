"""The parameters of a generation call, with their ranges. Pure: page, API, command and worker share them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

SCHEDULERS = ("dpm", "euler_a", "euler", "pndm", "ddim")
AUTO = "auto"
PRECISIONS = ("float32", "float16", "bfloat16", AUTO)
MODES = ("baseline", "rlhf")
# The parameters that a pipeline is called with, which decide how each image is drawn.
SAMPLING = (
    "num_inference_steps",
    "guidance_scale",
    "guidance_interval",
    "negative_prompt",
    "scheduler",
    "height",
    "width",
)

# name: (smallest, largest), both allowed
RANGES: dict[str, tuple[float, float]] = {
    "num_inference_steps": (1, 1000),
    "guidance_scale": (0, 50),
    "height": (16, 2048),
    "width": (16, 2048),
    "batch_size": (1, 256),
    "quality_threshold": (0, 1),
    "max_attempts": (1, 1000),
    "num_candidates": (1, 100),
}
_WHOLE = ("num_inference_steps", "height", "width", "batch_size", "max_attempts", "num_candidates")
_LONGEST_NEGATIVE_PROMPT = 2000


# What a model's maker may recommend: parameter, and the key in the pipeline's config (model_index.json).
_RECOMMENDATIONS = {
    "num_inference_steps": "recommended_steps",
    "guidance_scale": "recommended_guidance",
    "guidance_interval": "recommended_guidance_interval",
}


def recommended_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling parameters that a pipeline's config recommends, by name; what it leaves open is left out."""
    found = {name: config.get(key) for name, key in _RECOMMENDATIONS.items()}
    return {name: value for name, value in found.items() if value is not None}


class ParameterError(ValueError):
    """A parameter is unknown, of the wrong type or out of range; ``key`` names it."""

    def __init__(self, key: str, message: str):
        super().__init__(f"{key}: {message}")
        self.key = key
        self.message = message


@dataclass(frozen=True)
class Parameters:
    num_inference_steps: int = 50  # denoiser steps per image
    guidance_scale: float = 7.5  # classifier-free guidance; 1 and below: none
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # guided part of the run: shares of its steps, from noise
    negative_prompt: str = ""  # what the unconditional branch is told
    scheduler: str = "dpm"  # one of SCHEDULERS
    height: int | None = None  # pixels, a multiple of 8; None: the model's own
    width: int | None = None  # pixels, a multiple of 8; None: the model's own
    batch_size: int = 4  # images denoised together
    precision: str = "float32"  # one of PRECISIONS; auto: the half precision that the device computes in, if any
    quality_threshold: float = 0.6  # rlhf: both scores must reach it
    max_attempts: int = 10  # rlhf: attempts per image
    num_candidates: int = 3  # rlhf: candidates per attempt
    use_gates: bool = True  # rlhf: let the release's gates, where it has some, stop hopeless candidates early

    def __post_init__(self):
        for key, (smallest, largest) in RANGES.items():
            _check_number(key, getattr(self, key), smallest, largest)
        for key, choices in (("scheduler", SCHEDULERS), ("precision", PRECISIONS)):
            if getattr(self, key) not in choices:
                raise ParameterError(key, f"{getattr(self, key)!r} is not one of {', '.join(choices)}.")
        for key in ("height", "width"):
            if (getattr(self, key) or 0) % 8:
                raise ParameterError(key, f"{getattr(self, key)} is not a multiple of 8 pixels.")
        # JSON and command lines bring lists; a frozen, hashable value keeps a tuple.
        object.__setattr__(self, "guidance_interval", _as_interval("guidance_interval", self.guidance_interval))
        if not isinstance(self.use_gates, bool):
            raise ParameterError("use_gates", f"{self.use_gates!r} is neither true nor false.")
        if not isinstance(self.negative_prompt, str) or len(self.negative_prompt) > _LONGEST_NEGATIVE_PROMPT:
            raise ParameterError("negative_prompt", f"must be text of at most {_LONGEST_NEGATIVE_PROMPT} characters.")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Parameters from loose values, defaults for the rest; raises ParameterError that names the key."""
        known = {field.name for field in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                raise ParameterError(key, f"no such parameter. Known: {', '.join(sorted(known))}.")
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, order=True)
class Arithmetic:
    """What images were computed in: as loaded, not as asked for. ``auto`` is another precision on each device, and
    float16 on a processor is float32."""

    precision: str  # one of PRECISIONS, never auto
    device: str  # kind of device: cpu or cuda

    def __str__(self) -> str:
        return f"{self.precision} on {self.device}"

    def as_dict(self) -> dict[str, str]:
        return dataclasses.asdict(self)


def _as_interval(key: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ParameterError(key, f"{value!r} is not a pair of numbers, start and end.")
    for share in value:
        _check_number(key, share, 0, 1)
    start, end = value
    if start >= end:
        raise ParameterError(key, f"starts at {start:g} and ends at {end:g}: it must end after it starts.")
    return float(start), float(end)


def _check_number(key: str, value: Any, smallest: float, largest: float) -> None:
    if value is None and key in ("height", "width"):
        return
    wanted = "a whole number" if key in _WHOLE else "a number"
    types = int if key in _WHOLE else (int, float)
    # bool is an int to Python; NaN fails the comparison.
    if isinstance(value, bool) or not isinstance(value, types) or not smallest <= value <= largest:
        raise ParameterError(key, f"{value!r} is out of range: {wanted} from {smallest:g} to {largest:g}.")
