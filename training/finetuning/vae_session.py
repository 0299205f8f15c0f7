"""From arguments to everything the training of an autoencoder works with: rows, model, cache, checkpoint."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from generation.diffusion.loading import DEFAULT_MODEL_DIR
from generation.diffusion.pretrained_parts import autoencoder_folder, load_autoencoder
from generation.diffusion.text_to_image import scale_factor_of
from medsyn.artifacts import ArtifactError, digest_of, file_sha256, verify_folder
from training.finetuning import checkpointing
from training.finetuning.arguments import DEFAULT_MODEL
from training.finetuning.dataset import Row, hold_out
from training.finetuning.loop import restore_state
from training.finetuning.optimization import make_schedule
from training.finetuning.pixel_cache import PixelCache
from training.finetuning.preparation import code_sha256, load_rows, on_main_process
from training.finetuning.session import TrainingError
from training.finetuning.trackers import Tracker, check_tracker
from training.finetuning.trained_parts import CheckpointError, TrainedParts
from training.finetuning.vae_arguments import VaeArguments
from training.finetuning.windows import Batch, WindowOrder, batches
from training.run_directory import RunDirectory

logger = logging.getLogger(__name__)

_EMA_DECAY = 0.999  # approached slowly: step n decays by (1 + n) / (10 + n) until then
_WEIGHT_DECAY = 1e-3
_MEASURED_AT_MOST = 256  # held-out images; their mean PSNR is then sure to a few hundredths of its spread


class Autoencoder(nn.Module):
    """Images through the posterior and back, as one module: what accelerate wraps."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [0, 1] and (B, C, h, w) -> reconstructions, and the mean divergence per latent value."""
        posterior = self.vae.encode(images * 2 - 1).latent_dist
        latents = posterior.mean + posterior.std * noise
        decoded = self.vae.decode(latents).sample.float() / 2 + 0.5
        return decoded, posterior.kl().float().mean() / noise[0].numel()


@dataclass
class VaeRun:
    """A run between two steps."""

    arguments: VaeArguments
    accelerator: Accelerator
    directory: RunDirectory
    parts: TrainedParts  # the autoencoder, unwrapped
    model: nn.Module  # the Autoencoder, as accelerate wraps it
    optimizer: Any
    ema: EMAModel | None
    provenance: dict[str, Any]  # for manifests
    num_rows: int
    total_steps: int
    vae: AutoencoderKL
    source: Path  # the folder that the model came from
    order: WindowOrder
    cache: PixelCache
    rows: list[Row]  # trained on
    held_out: list[Row]  # measured on
    step: int = 0  # optimiser steps done
    tracker: Tracker | None = None  # open while the loop runs

    @property
    def images_per_step(self) -> int:
        return self.arguments.images_per_step_and_device * self.accelerator.num_processes

    def schedule(self) -> torch.optim.lr_scheduler.LambdaLR:
        return make_schedule(
            self.arguments,
            self.optimizer,
            peak=self.arguments.learning_rate,
            steps_done=self.step,
            total_steps=self.total_steps,
        )

    @property
    def scale_factor(self) -> int:
        return scale_factor_of(self.vae.config.block_out_channels)

    def batches(self) -> Iterator[Batch]:
        """The micro-batches that are left, of this process."""
        accumulation = self.arguments.gradient_accumulation_steps
        return batches(
            self.order,
            self.rows,
            self.cache,
            range(self.step * accumulation, self.total_steps * accumulation),
            batch_size=self.arguments.train_batch_size,
            latent_channels=self.vae.config.latent_channels,
            scale_factor=self.scale_factor,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )


def prepare(arguments: VaeArguments, accelerator: Accelerator) -> VaeRun:
    """Check the data, load the model, decode the images, go to the checkpoint. The run directory must be locked.

    Raises DatasetError, CheckpointError, TrainingError, and what the model's loading raises.
    """
    check_tracker(arguments.report_to)
    rows = on_main_process(accelerator, lambda: load_rows(arguments))
    run = _new_run(arguments, accelerator, rows)
    config = _config(run)
    checkpoint = on_main_process(accelerator, lambda: _begin(run, config))
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    run.cache.fill(rows[share], quiet=not accelerator.is_main_process)
    accelerator.wait_for_everyone()
    if checkpoint is not None:
        _resume(run, checkpoint)
    if accelerator.is_main_process:
        run.directory.write_config(config)
        run.directory.rewind(run.step)
        logger.info(
            "%d images to train on, %d held out; %d steps in all, from step %d",
            len(run.rows), len(run.held_out), run.total_steps, run.step,
        )  # fmt: skip
    return run


def _new_run(arguments: VaeArguments, accelerator: Accelerator, rows: list[Row]) -> VaeRun:
    name = arguments.pretrained_model_name_or_path
    source = DEFAULT_MODEL_DIR if name == DEFAULT_MODEL else Path(name)
    weights_sha256 = _weights_sha256(autoencoder_folder(source))
    vae = _trainable(load_autoencoder(source), arguments).to(accelerator.device)
    parts = TrainedParts({"vae": vae}, {}, 0, weights_sha256)
    optimizer = torch.optim.AdamW(
        parts.parameters, lr=arguments.learning_rate, weight_decay=_WEIGHT_DECAY, fused=True
    )
    model, optimizer = accelerator.prepare(Autoencoder(vae), optimizer)
    order, trained, held_out = _split(arguments, vae, source, rows)
    return VaeRun(
        arguments=arguments,
        accelerator=accelerator,
        directory=RunDirectory(arguments.output_dir),
        parts=parts,
        model=model,
        optimizer=optimizer,
        ema=EMAModel(parts.parameters, decay=_EMA_DECAY) if arguments.use_ema else None,
        provenance={
            "base_weights_sha256": weights_sha256,
            "dataset_sha256": file_sha256(arguments.train_data_dir),
            "code_sha256": code_sha256(),
        },
        num_rows=len(trained),
        total_steps=arguments.max_train_steps,
        vae=vae,
        source=source,
        order=order,
        cache=PixelCache(arguments.cache_folder, order.resolution, "crop" if arguments.center_crop else "pad"),
        rows=trained,
        held_out=held_out,
    )


def _trainable(vae: AutoencoderKL, arguments: VaeArguments) -> AutoencoderKL:
    vae.requires_grad_(True)
    if arguments.decoder_only:
        for part in (vae.encoder, vae.quant_conv):
            if part is not None:  # some autoencoders have no quant_conv
                part.requires_grad_(False)
    if arguments.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    return vae


def _split(
    arguments: VaeArguments, vae: AutoencoderKL, source: Path, rows: list[Row]
) -> tuple[WindowOrder, list[Row], list[Row]]:
    """The order of training, the rows to train on and those to measure on."""
    factor = scale_factor_of(vae.config.block_out_channels)
    resolution = arguments.resolution or _own_size(source, vae, factor)
    if resolution % factor:
        raise TrainingError(f"--resolution {resolution} does not fit this autoencoder: use a multiple of {factor}.")
    try:
        trained, held_out = hold_out(rows, arguments.holdout, arguments.seed)
    except ValueError as error:
        raise TrainingError(str(error)) from None
    order = WindowOrder(
        may_flip=tuple(arguments.random_flip and row.may_flip for row in trained),
        resolution=resolution,
        crop_side=max(factor, resolution // 2 // factor * factor),
        crops=arguments.crops,
        seed=arguments.seed,
    )
    return order, trained, measured_rows(held_out)


def measured_rows(held_out: Sequence[Row]) -> list[Row]:
    """At most _MEASURED_AT_MOST of the rows, evenly over the file: it may be sorted by kind."""
    count = min(len(held_out), _MEASURED_AT_MOST)
    return [held_out[position * len(held_out) // count] for position in range(count)]


def _own_size(source: Path, vae: AutoencoderKL, factor: int) -> int:
    """Side of the images that a pipeline draws; for a bare autoencoder what its config says."""
    unet = source / "unet" / "config.json"
    return json.loads(unet.read_text())["sample_size"] * factor if unet.is_file() else vae.config.sample_size


def _weights_sha256(folder: Path) -> str:
    return digest_of({path.name: file_sha256(path) for path in sorted(folder.glob("*.safetensors"))})


def _config(run: VaeRun) -> dict[str, Any]:
    """What config.json holds: the flags, and what became of those that were left open."""
    return run.arguments.as_json() | run.provenance | {
        "resolution": run.order.resolution,
        "mixed_precision": run.accelerator.mixed_precision,
        "num_processes": run.accelerator.num_processes,
        "num_rows": run.num_rows,
        "rows_sha256": digest_of([row.image_sha256 for row in run.rows]),
    }  # fmt: skip


def _begin(run: VaeRun, config: dict[str, Any]) -> Path | None:
    checkpointing.remove_leftovers(run.directory)
    return checkpointing.find_checkpoint(run.directory, run.arguments.resume_from_checkpoint, config)


def _resume(run: VaeRun, folder: Path) -> None:
    """Weights, averages and optimizer of a checkpoint, of this run or of another."""
    try:
        step = int(verify_folder(folder)["step"])
    except ArtifactError as error:
        raise CheckpointError(f"{error} Or delete the folder to go on from an earlier checkpoint.") from None
    if step > run.total_steps or (step == run.total_steps and folder.parent != run.directory.path):
        raise TrainingError(f"{folder} stands at step {step} already. Give a larger --max_train_steps.")
    run.parts.restore(folder)
    run.step = step
    restore_state(run, folder)
