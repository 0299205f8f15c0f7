"""checkpoint-N: what was trained, what it needs to generate, and what it needs to go on. Also the resumption.

    unet/ conditioner/ text_encoder/                float32 safetensors, as the pipeline's own folders
    lora/                                           with --use_lora, in place of unet/ and text_encoder/
    unet_ema/ conditioner_ema/ lora_ema/ ...        moving averages, with --use_ema
    tokenizer/ scheduler/                           the words, and what the UNet predicts
    training_state.pt                               optimizer, and scaler under fp16
    manifest.json                                   step, parents, sha256 of every file

Data order, noise and learning rate are functions of seed and step, so the step is all the state they have.
"""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerFast

from generation.diffusion.text_to_image import TextToImage
from medsyn.artifacts import ArtifactError, verify_folder
from training.finetuning.arguments import LATEST
from training.finetuning.trained_parts import AVERAGE, CheckpointError, TrainedParts, load_part
from training.run_directory import CONFIG_NAME, RunDirectory

logger = logging.getLogger(__name__)

STATE_NAME = "training_state.pt"
# What may differ between a run and its continuation: it leaves the weights as they are, or is another version of the
# code, which every checkpoint's manifest names.
_FREE_TO_CHANGE = {
    "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "latent_cache_dir", "output_dir",
    "validation_prompts", "validation_epochs", "validation_steps", "num_validation_images", "validation_scheduler",
    "dataloader_num_workers", "skip_bad_rows", "save_precision", "report_to", "code_sha256", "recipe",
}  # fmt: skip


def checkpoint_name(step: int) -> str:
    return f"checkpoint-{step}"


def save_checkpoint(
    directory: RunDirectory,
    step: int,
    pipeline: TextToImage,
    parts: TrainedParts,
    **kept: Any,
) -> Path:
    """checkpoint-N with what goes along with the trained parts; see ``write_checkpoint``."""
    forget_last_call(pipeline.tokenizer)
    companions = {name: getattr(pipeline, name) for name in _companions(parts)}
    return write_checkpoint(directory, step, parts, companions=companions, **kept)


def write_checkpoint(
    directory: RunDirectory,
    step: int,
    parts: TrainedParts,
    *,
    companions: Mapping[str, Any],
    state: dict[str, Any],
    ema: EMAModel | None,
    provenance: dict[str, Any],
    limit: int | None,
) -> Path:
    """Write checkpoint-N and, only once it is whole, drop the oldest beyond ``limit``.

    Raises CheckpointError where it cannot be written (a full disk); the earlier checkpoints are then untouched.
    """
    try:
        with directory.checkpoint(checkpoint_name(step), step=step, **provenance) as folder:
            parts.save(folder)
            for name, part in companions.items():
                part.save_pretrained(folder / name)
            if ema is not None:
                with parts.averaged(ema):
                    parts.save(folder, AVERAGE)
            torch.save(state, folder / STATE_NAME)
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save reports a full disk as a RuntimeError, safetensors as its own.
        raise CheckpointError(
            f"Checkpoint {checkpoint_name(step)} could not be written to {directory.path}: {error}. "
            "Earlier checkpoints are untouched. Free some space and start the same command again."
        ) from error
    _prune(directory, limit)
    return directory.path / checkpoint_name(step)


def _companions(parts: TrainedParts) -> list[str]:
    """What goes with the trained parts. Adapters need their base model anyhow, and find its text encoder there."""
    names = ["tokenizer", "scheduler"]
    return names if parts.adapted or "text_encoder" in parts.whole else [*names, "text_encoder"]


def forget_last_call(tokenizer: PreTrainedTokenizerFast) -> None:
    """A tokenizer keeps the padding and truncation of its last call, and would save them as its own."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()


def _prune(directory: RunDirectory, limit: int | None) -> None:
    if limit is not None:
        for folder in directory.checkpoints()[:-limit]:
            shutil.rmtree(folder)


def remove_leftovers(directory: RunDirectory) -> None:
    """Temporary folders of a process that was killed while it saved. Call it with the directory locked."""
    for pattern in (".checkpoint-*", ".pipeline.*"):
        for folder in directory.path.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


def find_checkpoint(directory: RunDirectory, wanted: str | None, config: Mapping[str, Any]) -> Path | None:
    """Where to go on from; None to start at the beginning.

    The run's own newest checkpoint comes first, whatever else is asked for: a command given twice finishes what it
    began. Its settings must then be the same, unless ``latest`` says that the change is meant.
    """
    own = directory.latest()
    if own is None:
        return Path(wanted) if wanted not in (None, LATEST) else None
    earlier = [folder.resolve() for folder in directory.checkpoints()[:-1]]
    if wanted not in (None, LATEST) and Path(wanted).resolve() in earlier:
        raise CheckpointError(f"{wanted} is not the newest of its run. To go back to it, delete those after it.")
    changes = _changes(directory, config)
    if changes and wanted != LATEST:
        raise CheckpointError(
            f"{directory.path} holds a run with other settings:\n  " + "\n  ".join(changes) + "\nTake another "
            "--output_dir, or go on under the new settings with --resume_from_checkpoint latest."
        )
    for change in changes:
        logger.warning("Resuming under another setting: %s", change)
    return own


def _changes(directory: RunDirectory, config: Mapping[str, Any]) -> list[str]:
    if not (directory.path / CONFIG_NAME).exists():
        return []
    before = directory.read_config()
    names = sorted((before.keys() | config.keys()) - _FREE_TO_CHANGE)
    return [
        f"{name}: {before.get(name)!r} before, {config.get(name)!r} now"
        for name in names
        if before.get(name) != config.get(name)
    ]


def restore_weights(folder: Path, pipeline: TextToImage, parts: TrainedParts) -> dict[str, Any]:
    """A verified checkpoint's weights and noise schedule into the pipeline; returns its manifest.

    The text encoder comes along where it is not trained any more: what it learnt earlier stays with its UNet.
    """
    try:
        manifest = verify_folder(folder)
    except ArtifactError as error:
        raise CheckpointError(f"{error} Or delete the folder to go on from an earlier checkpoint.") from None
    parts.restore(folder)
    if "text_encoder" not in parts.modules and (folder / "text_encoder").is_dir():
        load_part(folder / "text_encoder", pipeline.text_encoder)
    if (folder / "scheduler").is_dir():
        pipeline.scheduler = type(pipeline.scheduler).from_pretrained(folder / "scheduler")
    return manifest


def restore_average(folder: Path, parts: TrainedParts, ema: EMAModel, step: int) -> None:
    """Put the stored moving averages into ``ema``; the modules keep the weights they have.

    A checkpoint without averages, of a run that kept none, begins them with its weights.
    """
    parameters = parts.parameters
    if not parts.has_average(folder):
        ema.shadow_params = [parameter.detach().clone() for parameter in parameters]
        return
    ema.store(parameters)
    parts.restore(folder, AVERAGE)
    ema.shadow_params = [parameter.detach().clone() for parameter in parameters]
    ema.optimization_step = step
    ema.restore(parameters)


def optimizer_kind(optimizer: Any, parts: TrainedParts) -> str:
    """What an optimizer's state is of; one of another kind cannot take it over."""
    plain = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    return f"{type(plain).__name__} of {', '.join(parts.modules)}" + (f" at rank {parts.rank}" if parts.rank else "")


def read_state(folder: Path) -> dict[str, Any]:
    # Tensors, numbers and containers only: weights_only refuses everything that could run code.
    return torch.load(folder / STATE_NAME, map_location="cpu", weights_only=True)  # noqa: TID251
