"""checkpoint-N: what was trained, what it needs to generate, and what it needs to go on. Also the resumption.

    unet/ conditioner/ text_encoder/ tokenizer/     float32 safetensors, as the pipeline's own folders
    unet_ema/ conditioner_ema/ (text_encoder_ema/)  moving averages, with --use_ema
    training_state.pt                               optimizer, and scaler under fp16
    manifest.json                                   step, parents, sha256 of every file

Data order, noise and learning rate are functions of seed and step, so the step is all the state they have.
"""

import contextlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerFast

from generation.diffusion.pipeline import MedSynPipeline
from medsyn.artifacts import ArtifactError, verify_folder
from training.finetuning.arguments import LATEST
from training.run_directory import CONFIG_NAME, RunDirectory

logger = logging.getLogger(__name__)

STATE_NAME = "training_state.pt"
_EMA_SUFFIX = "_ema"
# What may differ between a run and its continuation: it leaves the weights as they are, or is another version of the
# code, which every checkpoint's manifest names.
_FREE_TO_CHANGE = {
    "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "latent_cache_dir", "output_dir",
    "validation_prompts", "validation_epochs", "validation_steps", "num_validation_images",
    "dataloader_num_workers", "skip_bad_rows", "save_precision", "report_to", "code_sha256",
}  # fmt: skip


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or does not belong to this run or model."""


def checkpoint_name(step: int) -> str:
    return f"checkpoint-{step}"


def trained_parts(pipeline: MedSynPipeline, *, with_text_encoder: bool) -> dict[str, nn.Module]:
    """The modules that learn, by their folder's name."""
    parts = {"unet": pipeline.unet, "conditioner": pipeline.conditioner}
    return parts | ({"text_encoder": pipeline.text_encoder} if with_text_encoder else {})


def parameters_of(parts: Mapping[str, nn.Module]) -> list[nn.Parameter]:
    return [parameter for part in parts.values() for parameter in part.parameters()]


def save_checkpoint(
    directory: RunDirectory,
    step: int,
    pipeline: MedSynPipeline,
    parts: Mapping[str, nn.Module],
    *,
    state: dict[str, Any],
    ema: EMAModel | None,
    provenance: dict[str, Any],
    limit: int | None,
) -> Path:
    """Write checkpoint-N and, only once it is whole, drop the oldest beyond ``limit``.

    Raises CheckpointError where it cannot be written (a full disk); the earlier checkpoints are then untouched.
    """
    forget_last_call(pipeline.tokenizer)
    try:
        with directory.checkpoint(checkpoint_name(step), step=step, **provenance) as folder:
            _save_parts(folder, {**parts, "text_encoder": pipeline.text_encoder, "tokenizer": pipeline.tokenizer})
            if ema is not None:
                _save_average(folder, parts, ema)
            torch.save(state, folder / STATE_NAME)
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save reports a full disk as a RuntimeError, safetensors as its own.
        raise CheckpointError(
            f"Checkpoint {checkpoint_name(step)} could not be written to {directory.path}: {error}. "
            "Earlier checkpoints are untouched. Free some space and start the same command again."
        ) from error
    _prune(directory, limit)
    return directory.path / checkpoint_name(step)


def forget_last_call(tokenizer: PreTrainedTokenizerFast) -> None:
    """A tokenizer keeps the padding and truncation of its last call, and would save them as its own."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()


def _save_parts(folder: Path, parts: Mapping[str, Any]) -> None:
    for name, part in parts.items():
        part.save_pretrained(folder / name)


def _save_average(folder: Path, parts: Mapping[str, nn.Module], ema: EMAModel) -> None:
    with averaged(parts, ema):
        _save_parts(folder, {f"{name}{_EMA_SUFFIX}": part for name, part in parts.items()})


@contextlib.contextmanager
def averaged(parts: Mapping[str, nn.Module], ema: EMAModel | None) -> Iterator[None]:
    """The modules hold the average, where there is one, and their own weights again afterwards."""
    if ema is None:
        yield
        return
    parameters = parameters_of(parts)
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)


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


def restore_weights(folder: Path, parts: Mapping[str, nn.Module], *, average: bool = False) -> int:
    """Load a verified checkpoint's weights, or its moving averages, into the modules; returns its step."""
    try:
        manifest = verify_folder(folder)
    except ArtifactError as error:
        raise CheckpointError(f"{error} Or delete the folder to go on from an earlier checkpoint.") from None
    for name, part in parts.items():
        _load_part(folder / f"{name}{_EMA_SUFFIX if average else ''}", part)
    return int(manifest["step"])


def _load_part(folder: Path, part: nn.Module) -> None:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing: the checkpoint was written with other flags.")
    stored = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]  # large parts are split over files
    try:
        part.load_state_dict({name: tensor for tensors in stored for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{folder} is of another architecture than the model. {error}") from None


def restore_average(folder: Path, parts: Mapping[str, nn.Module], ema: EMAModel, step: int) -> None:
    """Put the stored moving averages into ``ema``; the modules keep the weights they have."""
    parameters = parameters_of(parts)
    ema.store(parameters)
    restore_weights(folder, parts, average=True)
    ema.shadow_params = [parameter.detach().clone() for parameter in parameters]
    ema.optimization_step = step
    ema.restore(parameters)


def read_state(folder: Path) -> dict[str, Any]:
    # Tensors, numbers and containers only: weights_only refuses everything that could run code.
    return torch.load(folder / STATE_NAME, map_location="cpu", weights_only=True)  # noqa: TID251
