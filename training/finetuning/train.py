"""Fine-tune a MedSyn or Stable Diffusion pipeline: ``accelerate launch -m training.finetuning.train``.

UNet and conditioner learn; the text encoder stays as it is unless ``--train_text_encoder``. The same command given
again in the same ``--output_dir`` goes on from the newest complete checkpoint, and ends in the same weights, bit for
bit on a CPU, as a run that was never stopped: what a step does depends on the weights, the optimizer, the seed and
the positions of its images in the data order, and on nothing else.
"""

import contextlib
import logging
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import diffusers
import torch
import transformers
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from generation.diffusion.loading import ModelMismatch, ModelNotFound
from medsyn.artifacts import ArtifactError, atomic_folder, atomic_path, write_json
from training import lifeline
from training.finetuning import checkpointing
from training.finetuning.arguments import Arguments, parse_arguments
from training.finetuning.batches import Batch
from training.finetuning.dataset import DatasetError
from training.finetuning.losses import diffusion_loss
from training.finetuning.optimization import OptimizerUnavailable
from training.finetuning.preparation import prepare
from training.finetuning.session import Session, TrainingError
from training.finetuning.stopping import EXIT_CODE, StopRequest
from training.finetuning.trackers import TrackerUnavailable, open_tracker
from training.finetuning.trained_parts import CheckpointError
from training.run_directory import RunDirectory, RunDirectoryBusy

logger = logging.getLogger(__name__)

PIPELINE_NAME = "pipeline"
REPORT_NAME = "report.json"
_EXPECTED = (
    ArtifactError, CheckpointError, DatasetError, ModelMismatch, ModelNotFound, OptimizerUnavailable,
    RunDirectoryBusy, TrackerUnavailable, TrainingError,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 finished, 1 impossible (the log says why), 143 stopped after saving a checkpoint."""
    arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    _quieten_libraries()
    lifeline.follow_parent()
    try:
        with StopRequest() as stop:
            return _run(arguments, stop)
    except _EXPECTED as error:
        logger.error("%s", error)
        return 1


def _quieten_libraries() -> None:
    """Their bars for every folder they touch would bury ours."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


def _run(arguments: Arguments, stop: StopRequest) -> int:
    accelerator = _accelerator(arguments)
    is_main = accelerator.is_main_process
    with RunDirectory(arguments.output_dir).lock() if is_main else contextlib.nullcontext():
        session = prepare(arguments, accelerator)
        stop.defer()
        with _curves(session):
            finished = train(session, stop)
        if not finished:
            return EXIT_CODE
        if is_main:
            finish(session)
        accelerator.wait_for_everyone()
    return 0


def _accelerator(arguments: Arguments) -> Accelerator:
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision)
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise TrainingError("--mixed_precision fp16 needs a GPU: on a CPU, gradients vanish. Take bf16 or no.")
    if arguments.allow_tf32:
        torch.set_float32_matmul_precision("high")  # convolutions are rounded so anyway
    return accelerator


@contextlib.contextmanager
def _curves(session: Session) -> Iterator[None]:
    """The tracker open for the main process."""
    if session.accelerator.is_main_process:
        directory = session.directory
        session.tracker = open_tracker(
            session.arguments.report_to, directory.path, step=session.step, config=directory.read_config()
        )
    try:
        yield
    finally:
        if session.tracker is not None:
            session.tracker.close()


# --- the loop ---


def train(session: Session, stop: StopRequest) -> bool:
    """Step by step to the last one; False where it was asked to stop and has saved."""
    batches, schedule = session.batches(), session.schedule()
    if session.accelerator.is_main_process and session.validation.is_missing(session.step):
        validate(session)  # the process died between this step and its images
    with _progress_bar(session) as bar:
        for step in range(session.step + 1, session.total_steps + 1):
            session.step = step
            started = time.monotonic()
            learning_rate = schedule.get_last_lr()[0]
            loss, gradient_norm = train_step(session, batches)
            schedule.step()
            seconds = time.monotonic() - started
            _log(session, bar, {
                "loss": loss,
                "learning_rate": learning_rate,
                "grad_norm": gradient_norm,
                "images_per_second": round(session.images_per_step / seconds, 2),
            })  # fmt: skip
            stopping = _any_process(session.accelerator, stop.is_requested)
            _after_step(session, stopping)
            if stopping and session.step < session.total_steps:
                logger.warning("Stopped after step %d. The same command goes on from there.", session.step)
                return False
    return True


def _progress_bar(session: Session) -> tqdm:
    return tqdm(
        total=session.total_steps,
        initial=session.step,
        desc="Fine-tuning",
        unit="step",
        disable=not session.accelerator.is_main_process,
    )


def train_step(session: Session, batches: Iterator[Batch]) -> tuple[float, float]:
    """One optimiser step over the accumulated micro-batches; returns the mean loss and the gradient's norm."""
    arguments, accelerator = session.arguments, session.accelerator
    accumulation = arguments.gradient_accumulation_steps
    total = torch.zeros((), device=accelerator.device)
    for index in range(accumulation):
        is_last = index + 1 == accumulation
        with contextlib.nullcontext() if is_last else accelerator.no_sync(session.model):
            loss = _loss(session, next(batches)) / accumulation
            accelerator.backward(loss)
        total += loss.detach()
    mean_loss = accelerator.reduce(total, "mean").item()
    if not torch.isfinite(torch.tensor(mean_loss)):
        raise TrainingError(
            f"The loss is {mean_loss} at step {session.step}. Earlier checkpoints are untouched; take a lower "
            "--learning_rate, or --mixed_precision no, and go on with --resume_from_checkpoint latest."
        )
    gradient_norm = accelerator.clip_grad_norm_(session.model.parameters(), arguments.max_grad_norm)
    session.optimizer.step()
    session.optimizer.zero_grad()
    if session.ema is not None:
        session.ema.step(session.parts.parameters)
    return mean_loss, float(gradient_norm)


def _loss(session: Session, batch: Batch) -> Tensor:
    """The loss of one micro-batch under the noise and timesteps that came with it."""
    batch = batch.to(session.accelerator.device)
    seen_noise = batch.noise
    if batch.perturbation is not None:  # Ning et al. 2023: the UNet sees more noise than it is to predict
        seen_noise = batch.noise + session.arguments.input_perturbation * batch.perturbation
    noisy = session.noise_scheduler.add_noise(batch.latents, seen_noise, batch.timesteps)
    output = session.model(noisy, batch.timesteps, batch)
    return diffusion_loss(
        output,
        batch.latents,
        batch.noise,
        batch.timesteps,
        session.noise_scheduler,
        snr_gamma=session.arguments.snr_gamma,
    )


def _any_process(accelerator: Accelerator, value: bool) -> bool:
    """True in every process as soon as it is in one, so that all save together."""
    if accelerator.num_processes == 1:
        return value
    return bool(accelerator.reduce(torch.tensor(float(value), device=accelerator.device), "sum").item())


def _log(session: Session, bar: tqdm, values: dict[str, float]) -> None:
    """A step's figures for people (the bar, with the time left), for programs and for the tracker."""
    if not session.accelerator.is_main_process:
        return
    bar.update()
    bar.set_postfix_str(f"{values['images_per_second']:.1f} images/s, loss {values['loss']:.4f}", refresh=False)
    left = session.total_steps - session.step
    seconds_per_step = bar.format_dict["elapsed"] / (session.step - bar.initial)
    session.directory.log(
        step=session.step,
        epoch=round(session.step * session.images_per_step / session.num_rows, 3),
        **values,
        progress={
            "done": session.step,
            "total": session.total_steps,
            "unit": "steps",
            "eta_seconds": round(left * seconds_per_step),
        },
    )
    if session.tracker is not None:
        session.tracker.scalars(values, session.step)


def _after_step(session: Session, stopping: bool) -> None:
    """Checkpoint first, then images: those are drawn again where the process dies between the two."""
    if not session.accelerator.is_main_process:
        return
    is_last = session.step == session.total_steps
    if stopping or is_last or session.step % session.arguments.checkpointing_steps == 0:
        save(session)
    if session.validation.is_due(session.step) and (is_last or not stopping):
        validate(session)


def save(session: Session) -> None:
    scaler = session.accelerator.scaler
    checkpointing.save_checkpoint(
        session.directory,
        session.step,
        session.pipeline,
        session.parts,
        state={
            "optimizer": session.optimizer.state_dict(),
            "optimizer_kind": checkpointing.optimizer_kind(session.optimizer, session.parts),
            "scaler": scaler and scaler.state_dict(),
        },
        ema=session.ema,
        provenance=session.provenance,
        limit=session.arguments.checkpoints_total_limit,
    )


def validate(session: Session) -> None:
    """Draw the validation prompts with the weights that would be served: the average, where one is kept."""
    with session.parts.averaged(session.ema):
        picture = session.validation.draw(session.pipeline)
    with atomic_path(session.validation.path(session.step)) as temporary:
        picture.save(temporary, format="PNG")
    if session.tracker is not None:
        session.tracker.picture(picture, session.step)


# --- the end ---


def finish(session: Session) -> None:
    """The pipeline as it would be served, whole in one folder, and the report of the run."""
    pipeline, folder = session.pipeline, session.directory.path / PIPELINE_NAME
    checkpointing.forget_last_call(pipeline.tokenizer)
    with session.parts.averaged(session.ema):
        session.parts.merge_adapters()
        if session.arguments.save_precision == "float16":
            pipeline.to(dtype=torch.float16)
        with atomic_folder(folder, trained_steps=session.step, **session.provenance) as temporary:
            pipeline.save_pretrained(temporary)
    write_json(session.directory.path / REPORT_NAME, _report(session))
    logger.info("The fine-tuned pipeline is in %s", folder)


def _report(session: Session) -> dict[str, Any]:
    """Figures of the whole run, from its metrics; the losses are means over a tenth of the steps."""
    lines = [line for line in session.directory.metrics() if "loss" in line]
    tenth = max(1, len(lines) // 10)
    return {
        "steps": session.step,
        "num_rows": session.num_rows,
        "first_loss": statistics.fmean(line["loss"] for line in lines[:tenth]),
        "last_loss": statistics.fmean(line["loss"] for line in lines[-tenth:]),
        "images_per_second": statistics.median(line["images_per_second"] for line in lines),
    }


if __name__ == "__main__":
    sys.exit(main())
