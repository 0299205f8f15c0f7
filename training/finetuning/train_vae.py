"""Train a model's autoencoder on a dataset CSV: ``accelerate launch -m training.finetuning.train_vae``.

The loss is L1 of pixels, edges and 4x4 means, without a perceptual network, plus a weak pull of the latents towards a
standard normal. Afterwards the latents' mean and deviation per channel are measured and put into the autoencoder's
config, so that a UNet sees latents of unit variance. The result is a whole pipeline with the new autoencoder in it,
or a bare autoencoder where a bare one was given. A UNet trained on the old latents does not fit the new ones: train
the autoencoder first, or only its decoder (``--decoder_only``).

The same command given again in the same ``--output_dir`` goes on from the newest complete checkpoint and ends in the
same weights, bit for bit on a CPU, as a run that was never stopped.
"""

import contextlib
import json
import logging
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from generation.diffusion.loading import ModelMismatch, ModelNotFound
from generation.diffusion.text_to_image import to_pil
from medsyn.artifacts import ArtifactError, atomic_folder, atomic_path, write_json
from training.finetuning import checkpointing, loop
from training.finetuning.dataset import DatasetError, Row
from training.finetuning.loop import Work
from training.finetuning.reconstruction import as_images, psnr, reconstruction_loss, set_latent_statistics, ssim
from training.finetuning.session import TrainingError
from training.finetuning.stopping import EXIT_CODE, StopRequest
from training.finetuning.trackers import TrackerUnavailable
from training.finetuning.trained_parts import CheckpointError
from training.finetuning.vae_arguments import VaeArguments, parse_arguments
from training.finetuning.vae_session import VaeRun, prepare
from training.finetuning.validation import grid
from training.finetuning.windows import Batch
from training.run_directory import RunDirectory, RunDirectoryBusy

logger = logging.getLogger(__name__)

PIPELINE_NAME, VAE_NAME = "pipeline", "vae"
REPORT_NAME = "report.json"
_INDEX_NAME = "model_index.json"
_STATISTICS_IMAGES = 2048  # their mean is known to a fortieth of an image's own deviation
_AT_ONCE = 8  # images encoded or decoded together where nothing is learnt
_EXPECTED = (
    ArtifactError, CheckpointError, DatasetError, ModelMismatch, ModelNotFound, RunDirectoryBusy, TrackerUnavailable,
    TrainingError,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 finished, 1 impossible (the log says why), 143 stopped after saving a checkpoint."""
    arguments = parse_arguments(argv)
    return loop.run_program(lambda stop: _run(arguments, stop), _EXPECTED)


def _run(arguments: VaeArguments, stop: StopRequest) -> int:
    accelerator = loop.make_accelerator(arguments.mixed_precision)
    is_main = accelerator.is_main_process
    with RunDirectory(arguments.output_dir).lock() if is_main else contextlib.nullcontext():
        run = prepare(arguments, accelerator)
        stop.defer()
        with loop.curves(run):
            if is_main and not any("psnr" in line for line in run.directory.metrics()):
                measure(run)  # what training is to be compared with
            finished = loop.train(run, _work(run), stop)
        if not finished:
            return EXIT_CODE
        if is_main:
            finish(run)
        accelerator.wait_for_everyone()
    return 0


def _work(run: VaeRun) -> Work:
    every = run.arguments.validation_steps

    def is_due(step: int) -> bool:
        return bool(run.held_out) and step > 0 and (step % every == 0 or step == run.total_steps)

    return Work(
        title="Training the autoencoder",
        loss=loss,
        save=save,
        validate=validate,
        is_due=is_due,
        is_missing=lambda step: is_due(step) and not _picture_path(run, step).exists(),
    )


# --- what a step learns, and what is kept of it ---


def loss(run: VaeRun, batch: Batch) -> Tensor:
    """Of one micro-batch; what is random in it came with the batch."""
    batch = batch.to(run.accelerator.device)
    decoded, divergence = run.model(batch.images, batch.noise)
    return reconstruction_loss(decoded, batch.images) + run.arguments.kl_weight * divergence


def save(run: VaeRun) -> None:
    """checkpoint-N; raises CheckpointError where it cannot be written, the earlier ones then untouched."""
    checkpointing.write_checkpoint(
        run.directory,
        run.step,
        run.parts,
        companions={},
        state=loop.state_of(run),
        ema=run.ema,
        provenance=run.provenance,
        limit=run.arguments.checkpoints_total_limit,
    )


# --- held-out images ---


def validate(run: VaeRun) -> None:
    """Figures of the held-out images, and a few of them beside their reconstructions."""
    picture = measure(run)
    with atomic_path(_picture_path(run, run.step)) as temporary:
        picture.save(temporary, format="PNG")


def _picture_path(run: VaeRun, step: int) -> Path:
    return run.directory.path / "validation" / f"step_{step}.png"


@torch.no_grad()
def measure(run: VaeRun) -> Image.Image | None:
    """Log PSNR and SSIM of the held-out images with the weights that would be served; a picture of the first few.

    Each row of the picture is an image, its reconstruction, and the difference of the two four times as strong.
    """
    if not run.held_out:
        return None
    shown: list[list[Image.Image]] = []
    figures: dict[str, list[float]] = {"psnr": [], "ssim": []}
    with run.parts.averaged(run.ema):
        for images in _images(run, run.held_out):
            decoded = _reconstructed(run, images)
            figures["psnr"] += psnr(decoded, images).tolist()
            figures["ssim"] += ssim(decoded, images).tolist()
            missing = run.arguments.num_validation_images - len(shown)
            triples = (images, decoded, (4 * (decoded - images)).abs().clamp(max=1))
            shown += [list(row) for row in zip(*(to_pil(item[:missing]) for item in triples), strict=True)]
    means = {name: statistics.fmean(values) for name, values in figures.items()}
    run.directory.log(step=run.step, **means)
    logger.info("step %d: PSNR %.2f dB, SSIM %.4f on held-out images", run.step, means["psnr"], means["ssim"])
    picture = grid(shown)
    if run.tracker is not None:
        run.tracker.scalars(means, run.step)
        run.tracker.picture(picture, run.step)
    return picture


def _reconstructed(run: VaeRun, images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> the same through the posterior's mode."""
    latents = run.vae.encode(images * 2 - 1).latent_dist.mode()
    return (run.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)


def _images(run: VaeRun, rows: Sequence[Row]) -> Iterator[Tensor]:
    for start in range(0, len(rows), _AT_ONCE):
        pixels = np.stack([run.cache.pixels(row) for row in rows[start : start + _AT_ONCE]])
        yield as_images(pixels).to(run.accelerator.device)


# --- the end ---


def finish(run: VaeRun) -> None:
    """The autoencoder as it would be served, in its pipeline where it came from one, and the report of the run."""
    whole = (run.source / _INDEX_NAME).is_file()
    folder = run.directory.path / (PIPELINE_NAME if whole else VAE_NAME)
    with (
        run.parts.averaged(run.ema),
        atomic_folder(folder, trained_steps=run.step, **run.provenance) as temporary,
    ):
        if not run.arguments.decoder_only:
            _measure_latents(run)
        if whole:
            _copy_other_parts(run.source, temporary)
        if run.arguments.save_precision == "float16":
            run.vae.half()  # the run is over: the average's weights are not needed in float32 again
        run.vae.save_pretrained(temporary / "vae" if whole else temporary)
    write_json(run.directory.path / REPORT_NAME, _report(run))
    logger.info("The trained autoencoder is in %s", folder)
    if whole and not run.arguments.decoder_only:
        logger.warning("Its latents have changed: a UNet that was trained before must now be trained on.")


@torch.no_grad()
def _measure_latents(run: VaeRun) -> None:
    """Mean and deviation per channel over the training images, or a draw of them, go into the config."""
    chosen = np.random.default_rng(run.arguments.seed).permutation(len(run.rows))[:_STATISTICS_IMAGES]
    rows = [run.rows[index] for index in sorted(chosen)]
    latents = [run.vae.encode(images * 2 - 1).latent_dist.mode().cpu() for images in _images(run, rows)]
    set_latent_statistics(run.vae, torch.cat(latents))


def _copy_other_parts(source: Path, target: Path) -> None:
    """A pipeline's index and the folders it names, without its autoencoder."""
    shutil.copy(source / _INDEX_NAME, target)
    index = json.loads((source / _INDEX_NAME).read_text())
    for name, value in index.items():
        if isinstance(value, list) and name != "vae" and (source / name).is_dir():
            shutil.copytree(source / name, target / name)


def _report(run: VaeRun) -> dict[str, Any]:
    """Figures of the whole run, those of held-out images before the first step and after the last."""
    measured = [line for line in run.directory.metrics() if "psnr" in line]
    held_out = {
        f"{name}_{when}": line[name]
        for when, line in zip(("before", "after"), measured[:1] + measured[-1:], strict=False)
        for name in ("psnr", "ssim")
    }
    return {
        **loop.figures(run),
        "num_held_out": len(run.held_out),
        **held_out,
        "latents_mean": run.vae.config.latents_mean,
        "latents_std": run.vae.config.latents_std,
    }


if __name__ == "__main__":
    sys.exit(main())
