"""Rows of training runs for tests, with run directories behind them."""

import itertools
import json
from pathlib import Path

from training.models import Checkpoint, TrainingRun
from training.rlhf.config import RLHFConfig
from training.run_directory import RunDirectory
from training.runner import book_results

Purpose, State = TrainingRun.Purpose, TrainingRun.State
CONFIG = json.loads(json.dumps(RLHFConfig().to_dict()))
_numbers = itertools.count()


def make_run(purpose=Purpose.RLHF, **values) -> TrainingRun:
    """A run with its directory below the artifact root, queued unless ``state`` says otherwise."""
    number = next(_numbers)
    values = {"name": f"Run {number}", "generator": "medsyn-tiny", "config": CONFIG, **values}
    run = TrainingRun.objects.create(purpose=purpose, run_directory=f"runs/{number}", **values)
    run.path.mkdir(parents=True)
    return run


def make_checkpoint(run: TrainingRun, step: int) -> Checkpoint:
    """Files that release looks for, in a complete folder, and the row."""
    with RunDirectory(run.path).checkpoint(f"epoch_{step}", step=step) as folder:
        for name in ("selector", "policy"):
            (folder / f"{name}_checkpoint.safetensors").write_text(f"{name} {run.pk} {step}")
    book_results(run)
    return run.checkpoints.get(step=step)


def make_pipeline(folder: Path) -> Path:
    """A folder that passes for a pipeline where nobody loads it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "weights.safetensors").write_text("w")
    return folder
