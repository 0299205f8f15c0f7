"""The loop of a training under accelerate: steps, curves, checkpoints, validation, stopping.

What is learnt, saved and shown is the business of the run and of its ``Work``. A step depends on the weights, the
optimizer, the seed and the step's number alone, so a run that was stopped ends where an unstopped one does.
"""

import contextlib
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import diffusers
import torch
import transformers
from accelerate import Accelerator, PartialState
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

from generation.diffusion.precision import fastest_precision
from training import lifeline
from training.finetuning import checkpointing
from training.finetuning.session import TrainingError
from training.finetuning.stopping import StopRequest
from training.finetuning.trackers import Tracker, open_tracker
from training.finetuning.trained_parts import TrainedParts
from training.run_directory import RunDirectory

logger = logging.getLogger(__name__)


class Run(Protocol):
    """A run between two steps: what the loop needs of it."""

    arguments: Any  # gradient_accumulation_steps, max_grad_norm, checkpointing_steps, report_to
    accelerator: Accelerator
    directory: RunDirectory
    parts: TrainedParts  # those that learn, unwrapped
    model: nn.Module  # as accelerate wraps it
    optimizer: Any
    ema: EMAModel | None
    num_rows: int
    total_steps: int
    step: int  # optimiser steps done
    tracker: Tracker | None  # open while the loop runs

    @property
    def images_per_step(self) -> int: ...

    def batches(self) -> Iterator[Any]: ...

    def schedule(self) -> torch.optim.lr_scheduler.LambdaLR: ...


@dataclass(frozen=True)
class Work:
    """What one kind of training does in the loop's places."""

    title: str  # of the progress bar
    loss: Callable[[Any, Any], Tensor]  # of a run and a micro-batch
    save: Callable[[Any], None]  # checkpoint-N
    validate: Callable[[Any], None]
    is_due: Callable[[int], bool]  # whether to validate after a step
    is_missing: Callable[[int], bool]  # whether that was due and left undone
    figures: Callable[[], dict[str, float]] = dict  # of the step just done, for its line in the metrics


# --- before the first step ---


def make_accelerator(mixed_precision: str) -> Accelerator:
    """For "auto", the half precision that ``accelerate launch`` was given, else bf16 where the device computes in it.

    accelerate hands "no" on whether it was asked for or not. Raises TrainingError for fp16 on a CPU.
    """
    if mixed_precision == "auto":
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        is_fast = fastest_precision(PartialState().device) == torch.bfloat16
        mixed_precision = launched if launched != "no" else ("bf16" if is_fast else "no")
    accelerator = Accelerator(mixed_precision=mixed_precision)
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise TrainingError("--mixed_precision fp16 needs a GPU: on a CPU, gradients vanish. Take bf16 or no.")
    return accelerator


def run_program(work: Callable[[StopRequest], int], expected: tuple[type[Exception], ...]) -> int:
    """The exit code of a training program: that of ``work``, or 1 where one of ``expected`` is raised (and logged).

    The program ends with its parent, and ``work`` learns from its StopRequest that it is asked to stop.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    _quieten_libraries()
    lifeline.follow_parent()
    try:
        with StopRequest() as stop:
            return work(stop)
    except expected as error:
        logger.error("%s", error)
        return 1


def _quieten_libraries() -> None:
    """Their bars for every folder they touch would bury ours."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


@contextlib.contextmanager
def curves(run: Run) -> Iterator[None]:
    """The tracker open for the main process."""
    if run.accelerator.is_main_process:
        directory = run.directory
        run.tracker = open_tracker(
            run.arguments.report_to, directory.path, step=run.step, config=directory.read_config()
        )
    try:
        yield
    finally:
        if run.tracker is not None:
            run.tracker.close()


# --- the loop ---


def train(run: Run, work: Work, stop: StopRequest) -> bool:
    """Step by step to the last one; False where it was asked to stop and has saved."""
    batches, schedule = run.batches(), run.schedule()
    if run.accelerator.is_main_process and work.is_missing(run.step):
        work.validate(run)  # the process died between this step and its images
    with _progress_bar(run, work.title) as bar:
        for step in range(run.step + 1, run.total_steps + 1):
            run.step = step
            started = time.monotonic()
            learning_rate = schedule.get_last_lr()[0]
            loss, gradient_norm = train_step(run, batches, work)
            schedule.step()
            seconds = time.monotonic() - started
            _log(run, bar, {
                "loss": loss,
                **work.figures(),
                "learning_rate": learning_rate,
                "grad_norm": gradient_norm,
                "images_per_second": round(run.images_per_step / seconds, 2),
            })  # fmt: skip
            stopping = _any_process(run.accelerator, stop.is_requested)
            _after_step(run, work, stopping)
            if stopping and run.step < run.total_steps:
                logger.warning("Stopped after step %d. The same command goes on from there.", run.step)
                return False
    return True


def _progress_bar(run: Run, title: str) -> tqdm:
    return tqdm(
        total=run.total_steps,
        initial=run.step,
        desc=title,
        unit="step",
        disable=not run.accelerator.is_main_process,
    )


def train_step(run: Run, batches: Iterator[Any], work: Work) -> tuple[float, float]:
    """One optimiser step over the accumulated micro-batches; returns the mean loss and the gradient's norm."""
    arguments, accelerator = run.arguments, run.accelerator
    accumulation = arguments.gradient_accumulation_steps
    total = torch.zeros((), device=accelerator.device)
    for index in range(accumulation):
        is_last = index + 1 == accumulation
        with contextlib.nullcontext() if is_last else accelerator.no_sync(run.model):
            loss = work.loss(run, next(batches)) / accumulation
            accelerator.backward(loss)
        total += loss.detach()
    mean_loss = accelerator.reduce(total, "mean").item()
    if not torch.isfinite(torch.tensor(mean_loss)):
        raise TrainingError(
            f"The loss is {mean_loss} at step {run.step}. Earlier checkpoints are untouched; take a lower "
            "--learning_rate, or --mixed_precision no, and go on with --resume_from_checkpoint latest."
        )
    gradient_norm = accelerator.clip_grad_norm_(run.model.parameters(), arguments.max_grad_norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    if run.ema is not None:
        run.ema.step(run.parts.parameters)
    return mean_loss, float(gradient_norm)


def _any_process(accelerator: Accelerator, value: bool) -> bool:
    """True in every process as soon as it is in one, so that all save together."""
    if accelerator.num_processes == 1:
        return value
    return bool(accelerator.reduce(torch.tensor(float(value), device=accelerator.device), "sum").item())


def _log(run: Run, bar: tqdm, values: Mapping[str, float]) -> None:
    """A step's figures for people (the bar, with the time left), for programs and for the tracker."""
    if not run.accelerator.is_main_process:
        return
    bar.update()
    bar.set_postfix_str(f"{values['images_per_second']:.1f} images/s, loss {values['loss']:.4f}", refresh=False)
    left = run.total_steps - run.step
    seconds_per_step = bar.format_dict["elapsed"] / (run.step - bar.initial)
    run.directory.log(
        step=run.step,
        epoch=round(run.step * run.images_per_step / run.num_rows, 3),
        **values,
        progress={
            "done": run.step,
            "total": run.total_steps,
            "unit": "steps",
            "eta_seconds": round(left * seconds_per_step),
        },
    )
    if run.tracker is not None:
        run.tracker.scalars(values, run.step)


def _after_step(run: Run, work: Work, stopping: bool) -> None:
    """Checkpoint first, then images: those are drawn again where the process dies between the two."""
    if not run.accelerator.is_main_process:
        return
    is_last = run.step == run.total_steps
    if stopping or is_last or run.step % run.arguments.checkpointing_steps == 0:
        work.save(run)
    if work.is_due(run.step) and (is_last or not stopping):
        work.validate(run)


# --- what a run is taken up with, and what it comes to ---


def state_of(run: Run) -> dict[str, Any]:
    """What a checkpoint holds beside weights: optimizer, and scaler under fp16."""
    scaler = run.accelerator.scaler
    return {
        "optimizer": run.optimizer.state_dict(),
        "optimizer_kind": checkpointing.optimizer_kind(run.optimizer, run.parts),
        "scaler": scaler and scaler.state_dict(),
    }


def restore_state(run: Run, folder: Path) -> None:
    """Optimizer, scaler and averages of a checkpoint whose weights are in place and whose step the run stands at."""
    state = checkpointing.read_state(folder)
    if state["optimizer_kind"] == checkpointing.optimizer_kind(run.optimizer, run.parts):
        run.optimizer.load_state_dict(state["optimizer"])
    else:
        logger.warning("The optimizer begins anew: %s holds the state of %s.", folder, state["optimizer_kind"])
    if run.accelerator.scaler is not None and state["scaler"] is not None:
        run.accelerator.scaler.load_state_dict(state["scaler"])
    if run.ema is not None:
        checkpointing.restore_average(folder, run.parts, run.ema, run.step)


def figures(run: Run) -> dict[str, Any]:
    """Of the whole run, from its metrics; the losses are means over a tenth of the steps."""
    lines = [line for line in run.directory.metrics() if "loss" in line]
    tenth = max(1, len(lines) // 10)
    return {
        "steps": run.step,
        "num_rows": run.num_rows,
        "first_loss": statistics.fmean(line["loss"] for line in lines[:tenth]),
        "last_loss": statistics.fmean(line["loss"] for line in lines[-tenth:]),
        "images_per_second": statistics.median(line["images_per_second"] for line in lines),
    }
