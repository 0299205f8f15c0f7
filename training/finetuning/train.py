"""Fine-tune a MedSyn or Stable Diffusion pipeline: ``accelerate launch -m training.finetuning.train``.

UNet and conditioner learn; the text encoder stays as it is unless ``--train_text_encoder``. The same command given
again in the same ``--output_dir`` goes on from the newest complete checkpoint, and ends in the same weights, bit for
bit on a CPU, as a run that was never stopped: what a step does depends on the weights, the optimizer, the seed and
the positions of its images in the data order, and on nothing else.
"""

import contextlib
import logging
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from generation.diffusion.loading import ModelMismatch, ModelNotFound
from generation.diffusion.pipeline import MedSynPipeline
from generation.memorisation import FILE_NAME
from medsyn.artifacts import ArtifactError, atomic_folder, atomic_path, write_json
from training.finetuning import checkpointing, loop
from training.finetuning.arguments import Arguments, parse_arguments
from training.finetuning.batches import Batch
from training.finetuning.dataset import DatasetError, are_phantoms
from training.finetuning.loop import Work
from training.finetuning.losses import image_losses
from training.finetuning.memory_index import index_after
from training.finetuning.optimization import OptimizerUnavailable
from training.finetuning.preparation import prepare
from training.finetuning.session import Session, TrainingError
from training.finetuning.stopping import EXIT_CODE, StopRequest
from training.finetuning.trackers import TrackerUnavailable
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
    return loop.run_program(lambda stop: _run(arguments, stop), _EXPECTED)


def _run(arguments: Arguments, stop: StopRequest) -> int:
    accelerator = loop.make_accelerator(arguments.mixed_precision)
    if arguments.allow_tf32:
        torch.set_float32_matmul_precision("high")  # convolutions are rounded so anyway
    is_main = accelerator.is_main_process
    with RunDirectory(arguments.output_dir).lock() if is_main else contextlib.nullcontext():
        session = prepare(arguments, accelerator)
        stop.defer()
        with loop.curves(session):
            finished = loop.train(session, work_of(session), stop)
        if not finished:
            return EXIT_CODE
        if is_main:
            finish(session)
        accelerator.wait_for_everyone()
    return 0


def work_of(session: Session) -> Work:
    return Work(
        title="Fine-tuning",
        loss=loss,
        save=save,
        validate=validate,
        is_due=session.validation.is_due,
        is_missing=session.validation.is_missing,
    )


# --- what a step learns, and what is kept of it ---


def loss(session: Session, batch: Batch) -> Tensor:
    """The mean loss of one micro-batch under the noise and timesteps that came with it."""
    return losses_of(session, batch).mean()


def losses_of(session: Session, batch: Batch) -> Tensor:
    """The loss (B,) of each image of a micro-batch, not yet weighted by its weight."""
    batch = batch.to(session.accelerator.device)
    seen_noise = batch.noise
    if batch.perturbation is not None:  # Ning et al. 2023: the UNet sees more noise than it is to predict
        seen_noise = batch.noise + session.arguments.input_perturbation * batch.perturbation
    noisy = session.noise_scheduler.add_noise(batch.latents, seen_noise, batch.timesteps)
    output = session.model(noisy, batch.timesteps, batch)
    return image_losses(
        output,
        batch.latents,
        batch.noise,
        batch.timesteps,
        session.noise_scheduler,
        snr_gamma=session.arguments.snr_gamma,
    )


def save(session: Session) -> None:
    """checkpoint-N; raises CheckpointError where it cannot be written, the earlier ones then untouched."""
    checkpointing.save_checkpoint(
        session.directory,
        session.step,
        session.pipeline,
        session.parts,
        state=loop.state_of(session),
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
        if isinstance(pipeline, MedSynPipeline) and not are_phantoms(session.real_rows):
            pipeline.register_to_config(draws_phantoms=False)  # from here on it may draw a patient
        with atomic_folder(folder, trained_steps=session.step, **session.provenance) as temporary:
            pipeline.save_pretrained(temporary)
            memory = index_after(session.memory, session.real_rows, session.held_out)
            if memory is not None:
                memory.save(temporary / FILE_NAME)
    write_json(session.directory.path / REPORT_NAME, loop.figures(session))
    logger.info("The fine-tuned pipeline is in %s", folder)


if __name__ == "__main__":
    sys.exit(main())
