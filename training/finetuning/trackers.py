"""Where curves and validation images go beside metrics.jsonl: TensorBoard files, or Weights & Biases."""

import importlib.util
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from medsyn.artifacts import digest_of

logger = logging.getLogger(__name__)

_PROJECT = "medsyn"


class TrackerUnavailable(RuntimeError):
    """What --report_to names cannot be had on this machine."""


class Tracker(Protocol):
    """Takes figures and pictures by step."""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...

    def picture(self, picture: Image.Image, step: int) -> None: ...

    def close(self) -> None: ...


def check_tracker(name: str) -> None:
    """Raises TrackerUnavailable where the tracker's package is missing; better before training than after an hour."""
    if name == "wandb" and not _wandb_is_disabled() and importlib.util.find_spec("wandb") is None:
        raise TrackerUnavailable(
            "--report_to wandb needs the package wandb: pip install wandb. Or take tensorboard, or set "
            "WANDB_DISABLED=1 to report nowhere."
        )


def open_tracker(name: str, folder: Path, *, step: int, config: Mapping[str, Any]) -> Tracker | None:
    """The tracker called ``name`` for the run in ``folder`` standing at ``step``; None for "none"."""
    if name == "tensorboard":
        return TensorBoard(folder / "tensorboard", step)
    if name == "wandb" and not _wandb_is_disabled():
        return WeightsAndBiases(folder, config)
    if name == "wandb":
        logger.warning("WANDB_DISABLED is set: nothing is reported to Weights & Biases.")
    return None


def _wandb_is_disabled() -> bool:
    return os.environ.get("WANDB_DISABLED", "").strip().lower() in ("1", "true", "yes", "on")


class TensorBoard:
    """Event files; what a killed run had written beyond ``step`` is hidden."""

    def __init__(self, folder: Path, step: int) -> None:
        self._writer = SummaryWriter(folder, purge_step=step + 1)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, picture: Image.Image, step: int) -> None:
        self._writer.add_image("validation", np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project "medsyn", found again by its folder when training is resumed."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb  # optional, and slow to import

        self._wandb = wandb
        self._run = wandb.init(
            project=_PROJECT,
            name=folder.name,
            id=digest_of(str(folder.resolve()))[:16],
            resume="allow",
            dir=str(folder),
            config=dict(config),
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, picture: Image.Image, step: int) -> None:
        self._run.log({"validation": self._wandb.Image(picture)}, step=step)

    def close(self) -> None:
        self._run.finish()
