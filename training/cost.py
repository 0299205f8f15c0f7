"""What a run will cost before it is started: time and disk, from earlier runs here, else from a stated default.

Selector and policy, n rated images over e epochs:    t = n (f + e r)
    r  seconds per image-epoch: those of both stages over n e of the earlier run
    f  seconds per image outside the epochs: reading, features, scoring, report, over n
Fine-tuning, s steps of b images of n rows:           t = n f + s b r
    r  the inverse of the earlier run's median images per second
    f  seconds per row that go into the cache of latents: the default's

r and f are medians over the newest comparable runs that succeeded on the device of the newest of them; comparable are
runs of the same networks at the same image size. Early stopping and a busier machine make the truth another one.
Disk: bytes of such a run's newest checkpoint times the checkpoints that will be kept, and the final weights.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from training.devices import short_name
from training.finetuning.arguments import Arguments
from training.models import TrainingRun
from training.rlhf.config import RLHFConfig
from training.run_directory import RunDirectory

MOST_RUNS = 5  # newest comparable ones
_LOOKED_AT = 60  # newest finished runs among which comparable ones are sought


@dataclass(frozen=True)
class Rates:
    """What earlier runs took, or a default."""

    per_unit: float  # seconds per image-epoch, or per image of a step
    per_image: float  # seconds per image outside of these
    checkpoint_bytes: int
    final_bytes: int  # of what stays beside the checkpoints


# Measured on one busy core of a server, 128 pixels: config.yaml's networks; and medsyn-tiny in float32, of which
# 3000 rows were encoded in 85 s and learnt from at 23 images/s.
DEFAULT_RLHF = Rates(per_unit=0.0075, per_image=0.15, checkpoint_bytes=9_500_000, final_bytes=8_000_000)
DEFAULT_FINETUNING = Rates(per_unit=0.044, per_image=0.03, checkpoint_bytes=104_000_000, final_bytes=40_000_000)


@dataclass(frozen=True)
class Estimate:
    seconds: float
    bytes: int
    basis: str  # where the figures come from, as a sentence

    def as_json(self) -> dict[str, Any]:
        return {"seconds": round(self.seconds, 1), "bytes": self.bytes, "basis": self.basis}


def rlhf_cost(config: RLHFConfig, num_images: int) -> Estimate:
    """Of training selector and policy on ``num_images`` distinct rated images."""
    wanted = _networks(config.to_dict())
    runs = _comparable(TrainingRun.Purpose.RLHF, lambda run: _networks(run.config) == wanted)
    rates, basis = _rates(runs, _rlhf_rates, DEFAULT_RLHF)
    training = config.training
    seconds = num_images * (rates.per_image + training.max_epochs * rates.per_unit)
    kept = math.ceil(training.max_epochs / training.checkpoints.save_frequency)
    return Estimate(seconds, kept * rates.checkpoint_bytes + rates.final_bytes, basis)


def finetuning_cost(arguments: Arguments, num_rows: int) -> Estimate:
    """Of fine-tuning a generator on a dataset of ``num_rows`` usable rows."""
    wanted = _size(arguments.as_json())
    runs = _comparable(TrainingRun.Purpose.FINETUNE, lambda run: _size(run.config) == wanted)
    rates, basis = _rates(runs, _finetuning_rates, DEFAULT_FINETUNING)
    images_per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps
    rows = min(num_rows, arguments.max_train_samples or num_rows)
    steps = arguments.max_train_steps or arguments.num_train_epochs * math.ceil(rows / images_per_step)
    kept = max(math.ceil(steps / arguments.checkpointing_steps), 1)
    kept = min(kept, arguments.checkpoints_total_limit or kept)
    seconds = rows * rates.per_image + steps * images_per_step * rates.per_unit
    return Estimate(seconds, kept * rates.checkpoint_bytes + rates.final_bytes, basis)


# --- earlier runs ---


def _comparable(purpose: str, is_alike: Callable[[TrainingRun], bool]) -> list[TrainingRun]:
    """The newest runs of the purpose that are alike and ran on the device of the newest of them."""
    finished = TrainingRun.objects.filter(purpose=purpose, state=TrainingRun.State.SUCCEEDED)
    alike = [run for run in finished.order_by("-finished_at", "-pk")[:_LOOKED_AT] if is_alike(run)]
    return [run for run in alike if run.device == alike[0].device][:MOST_RUNS]


def _rates(
    runs: Sequence[TrainingRun], measure: Callable[[TrainingRun], Rates | None], default: Rates
) -> tuple[Rates, str]:
    """Medians over the runs that tell their times, and the sentence about them."""
    measured = [rates for run in runs if (rates := measure(run)) is not None]
    if not measured:
        return default, "No comparable run has finished here yet: figures of one busy core of a server."
    names = ("per_unit", "per_image", "checkpoint_bytes", "final_bytes")
    middle = {name: median(getattr(rates, name) for rates in measured) for name in names}
    rates = Rates(middle["per_unit"], middle["per_image"], *(int(middle[name]) for name in names[2:]))
    where = f" on {short_name(runs[0].device)}" if runs[0].device else ""
    many = "the newest comparable run" if len(measured) == 1 else f"the {len(measured)} newest comparable runs"
    return rates, f"From {many}{where}."


def _networks(config: dict[str, Any]) -> list[Any]:
    """What the time of a step depends on."""
    parts = [config.get(name, {}).get("architecture") for name in ("selector", "policy_model")]
    return [*parts, list(config.get("synthetic_system", {}).get("image_size", ()))]


def _rlhf_rates(run: TrainingRun) -> Rates | None:
    figures = run.figures
    images, epochs = figures.get("counts", {}).get("items"), _epochs_done(run)
    if not images or not epochs or not figures.get("seconds"):
        return None
    timing = figures.get("timing") or {}
    in_epochs = sum(timing.get(name, 0.0) for name in ("stage1", "stage2")) or figures["seconds"]
    rest = max(figures["seconds"] - in_epochs, 0.0)
    return Rates(in_epochs / (images * epochs), rest / images, *_bytes(run, DEFAULT_RLHF, "best"))


def _epochs_done(run: TrainingRun) -> int | None:
    """How many it trained, which early stopping may have made fewer than it was to."""
    name = (run.figures.get("last") or {}).get("checkpoint", "").removeprefix("epoch_")
    return int(name) if name.isdecimal() else run.config.get("training", {}).get("max_epochs")


def _size(config: dict[str, Any]) -> list[Any]:
    names = ("pretrained_model_name_or_path", "resolution", "use_lora", "train_text_encoder", "mixed_precision")
    return [config.get(name) for name in names]


def _finetuning_rates(run: TrainingRun) -> Rates | None:
    speed = run.figures.get("images_per_second")
    if not speed:
        return None
    return Rates(1 / speed, DEFAULT_FINETUNING.per_image, *_bytes(run, DEFAULT_FINETUNING, "pipeline"))


def _bytes(run: TrainingRun, default: Rates, final: str) -> tuple[int, int]:
    """Of its newest checkpoint and of its final weights, as they lie on disk; the default where they are gone."""
    latest = RunDirectory(run.path).latest()
    return (
        (latest and _size_of(latest)) or default.checkpoint_bytes,
        _size_of(run.path / final) or default.final_bytes,
    )


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
