"""From arguments to everything the training loop works with: rows, model, cache, optimizer, checkpoint."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

import generation.diffusion
from generation.diffusion.loading import DEFAULT_MODEL_DIR, ModelSource, load_generator
from generation.diffusion.pipeline import MedSynPipeline
from medsyn.artifacts import digest_of, file_sha256
from training.finetuning import checkpointing
from training.finetuning.arguments import DEFAULT_MODEL, Arguments
from training.finetuning.batches import Batch, CachedExamples, DataOrder, batches
from training.finetuning.checkpointing import CheckpointError
from training.finetuning.dataset import DatasetError, Row, load_dataset
from training.finetuning.latent_cache import LatentCache
from training.finetuning.validation import Validation
from training.run_directory import RunDirectory

logger = logging.getLogger(__name__)

_WEIGHT_DECAY = 1e-2
# On a CPU the plain product trains small latents about 1.7 times as fast as torch's fused attention; its memory grows
# with the fourth power of the side.
_PLAIN_ATTENTION_SIDE = 32  # latent positions
_EMA_DECAY = 0.9999  # approached slowly: step n decays by (1 + n) / (10 + n) until then


class TrainingError(RuntimeError):
    """Training cannot begin or go on; the message says what to change."""


class Denoiser(nn.Module):
    """The parts that learn, as one module: what accelerate wraps."""

    def __init__(self, pipeline: MedSynPipeline, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self._pipeline = pipeline

    def forward(self, latents: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        """(B, C, h, w) noisy latents, (B,) -> the UNet's output (B, C, h, w)."""
        text = batch.text or self._pipeline.encode_text(batch.captions)
        return self._pipeline.denoise(latents, timesteps, self._pipeline.condition(text, batch.modality_ids))


@dataclass
class Session:
    """A run between two steps."""

    arguments: Arguments
    accelerator: Accelerator
    directory: RunDirectory
    pipeline: MedSynPipeline
    parts: dict[str, nn.Module]  # those that learn, unwrapped
    model: nn.Module  # the Denoiser, as accelerate wraps it
    optimizer: Any
    noise_scheduler: DDPMScheduler
    ema: EMAModel | None
    examples: CachedExamples
    validation: Validation
    provenance: dict[str, Any]  # for manifests
    num_rows: int
    total_steps: int
    step: int = 0  # optimiser steps done
    writer: SummaryWriter | None = None  # TensorBoard, open while the loop runs

    @property
    def images_per_step(self) -> int:
        return self.arguments.images_per_step_and_device * self.accelerator.num_processes

    def batches(self) -> Iterator[Batch]:
        """The micro-batches that are left, of this process."""
        accumulation = self.arguments.gradient_accumulation_steps
        return batches(
            self.examples,
            range(self.step * accumulation, self.total_steps * accumulation),
            batch_size=self.arguments.train_batch_size,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            num_workers=self.arguments.dataloader_num_workers,
        )

    def schedule(self) -> torch.optim.lr_scheduler.LambdaLR:
        """The course of the learning rate, standing at this step; nothing of it needs to be stored."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] = self.arguments.learning_rate
        return get_scheduler(
            self.arguments.lr_scheduler,
            self.optimizer,
            num_warmup_steps=self.arguments.lr_warmup_steps,
            num_training_steps=self.total_steps,
            last_epoch=self.step - 1,  # the scheduler takes one step when it is made
        )

    def train_mode(self, training: bool) -> None:
        for part in self.parts.values():
            part.train(training)


def prepare(arguments: Arguments, accelerator: Accelerator) -> Session:
    """Check the data, load the model, fill the cache, go to the checkpoint. The run directory must be locked.

    Raises DatasetError, CheckpointError, TrainingError, and what the model's loading raises.
    """
    rows = _on_main_process(accelerator, lambda: _load_rows(arguments))
    pipeline, base_sha256 = _load_pipeline(arguments, accelerator.device)
    provenance = {
        "base_weights_sha256": base_sha256,
        "dataset_sha256": file_sha256(arguments.train_data_dir),
        "code_sha256": _code_sha256(),
    }
    session = _session(arguments, accelerator, pipeline, rows, provenance)
    config = _config(session)
    checkpoint = _on_main_process(accelerator, lambda: _begin(session, config))
    _fill_cache(session, rows)
    if checkpoint is not None:
        _resume(session, checkpoint)
    if accelerator.is_main_process:
        session.directory.write_config(config)
        session.directory.rewind(session.step)
        logger.info("%d rows; %d steps in all, from step %d", len(rows), session.total_steps, session.step)
    return session


def _on_main_process(accelerator: Accelerator, work: Callable[[], Any]) -> Any:
    """The result of ``work``, done once; what it raises is raised in every process."""
    outcome: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [work()]
        except (DatasetError, CheckpointError) as error:
            outcome = [error]
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _load_rows(arguments: Arguments) -> list[Row]:
    rows, bad = load_dataset(
        arguments.train_data_dir,
        image_column=arguments.image_column,
        caption_column=arguments.caption_column,
        skip_bad_rows=arguments.skip_bad_rows,
        max_rows=arguments.max_train_samples,
        seed=arguments.seed,
    )
    if bad:
        logger.warning("Going on without %d bad rows:\n  %s", len(bad), "\n  ".join(map(str, bad)))
    return rows


def _load_pipeline(arguments: Arguments, device: torch.device) -> tuple[MedSynPipeline, str]:
    """The model to start from, in float32, and the sha256 of its weights."""
    name = arguments.pretrained_model_name_or_path
    folder = str(DEFAULT_MODEL_DIR) if name == DEFAULT_MODEL else name
    loaded = load_generator(ModelSource(pretrained_model=folder, model_used=None), device="cpu", precision="float32")
    pipeline = loaded.pipeline
    if not isinstance(pipeline, MedSynPipeline):
        raise TrainingError(f"{name} is a {type(pipeline).__name__}. Fine-tuning takes MedSynPipeline folders only.")
    pipeline.to(device)
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet, pipeline.conditioner):
        part.requires_grad_(False).eval()
    if arguments.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    if arguments.enable_xformers_memory_efficient_attention:
        _enable_xformers(pipeline)
    elif device.type == "cpu" and pipeline.unet.config.sample_size <= _PLAIN_ATTENTION_SIDE:
        pipeline.unet.set_attn_processor(AttnProcessor())
    return pipeline, loaded.weights_sha256


def _enable_xformers(pipeline: MedSynPipeline) -> None:
    try:
        pipeline.unet.enable_xformers_memory_efficient_attention()
    except (ImportError, ValueError) as error:
        raise TrainingError(
            f"--enable_xformers_memory_efficient_attention cannot be used here: {error} Leave the flag out: torch's "
            "own attention saves memory too."
        ) from None


def _code_sha256() -> str:
    """The version of the code that shapes the weights: its source files."""
    packages = (Path(__file__).parent, Path(generation.diffusion.__file__).parent)
    files = [path for folder in packages for path in folder.glob("*.py")]
    return digest_of({f"{path.parent.name}/{path.name}": file_sha256(path) for path in files})


def _session(
    arguments: Arguments,
    accelerator: Accelerator,
    pipeline: MedSynPipeline,
    rows: list[Row],
    provenance: dict[str, Any],
) -> Session:
    parts = checkpointing.trained_parts(pipeline, with_text_encoder=arguments.train_text_encoder)
    for part in parts.values():
        part.requires_grad_(True)
    model = Denoiser(pipeline, parts)
    model, optimizer = accelerator.prepare(model, _optimizer(arguments, model))
    steps_per_epoch = max(1, round(len(rows) / (arguments.images_per_step_and_device * accelerator.num_processes)))
    total_steps = arguments.max_train_steps or arguments.num_train_epochs * steps_per_epoch
    resolution = _resolution(arguments, pipeline)
    return Session(
        arguments=arguments,
        accelerator=accelerator,
        directory=RunDirectory(arguments.output_dir),
        pipeline=pipeline,
        parts=parts,
        model=model,
        optimizer=optimizer,
        noise_scheduler=DDPMScheduler.from_config(pipeline.scheduler.config),
        ema=EMAModel(checkpointing.parameters_of(parts), decay=_EMA_DECAY) if arguments.use_ema else None,
        examples=_examples(arguments, pipeline, rows, resolution),
        validation=_validation(arguments, steps_per_epoch, total_steps, resolution),
        provenance=provenance,
        num_rows=len(rows),
        total_steps=total_steps,
    )


def _optimizer(arguments: Arguments, model: nn.Module) -> torch.optim.Optimizer:
    options = {"lr": arguments.learning_rate, "weight_decay": _WEIGHT_DECAY}
    if arguments.use_8bit_adam:
        return _adam_8bit()(model.parameters(), **options)
    return torch.optim.AdamW(model.parameters(), fused=True, **options)


def _adam_8bit() -> type[torch.optim.Optimizer]:
    if not torch.cuda.is_available():
        raise TrainingError("--use_8bit_adam needs a CUDA GPU, and torch sees none. Leave the flag out.")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise TrainingError(f"--use_8bit_adam needs bitsandbytes: pip install bitsandbytes ({error})") from None
    return AdamW8bit


def _resolution(arguments: Arguments, pipeline: MedSynPipeline) -> int:
    resolution = arguments.resolution or pipeline.image_size
    multiple = pipeline.vae_scale_factor * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
    if resolution % multiple:
        raise TrainingError(f"--resolution {resolution} does not fit this model: use a multiple of {multiple}.")
    return resolution


def _examples(arguments: Arguments, pipeline: MedSynPipeline, rows: list[Row], resolution: int) -> CachedExamples:
    may_flip = tuple(arguments.random_flip and row.may_flip for row in rows)
    modalities = {row.prompt.modality for row in rows}
    fit = "crop" if arguments.center_crop else "pad"
    return CachedExamples(
        rows,
        DataOrder(may_flip, arguments.seed, arguments.caption_dropout),
        LatentCache.for_pipeline(arguments.cache_folder, pipeline, resolution=resolution, fit=fit),
        {name: pipeline.conditioner.modality_id(name) for name in modalities},
        with_text_features=not arguments.train_text_encoder,
    )


def _validation(arguments: Arguments, steps_per_epoch: int, total_steps: int, resolution: int) -> Validation:
    return Validation(
        prompts=arguments.validation_prompts,
        images_per_prompt=arguments.num_validation_images,
        every=arguments.validation_steps or arguments.validation_epochs * steps_per_epoch,
        last_step=total_steps,
        resolution=resolution,
        seed=arguments.seed,
        folder=arguments.output_dir / "validation",
    )


def _config(session: Session) -> dict[str, Any]:
    """What config.json holds: the flags, and what became of those that were left open."""
    return session.arguments.as_json() | session.provenance | {
        "resolution": session.validation.resolution,
        "max_train_steps": session.total_steps,
        "mixed_precision": session.accelerator.mixed_precision,
        "num_processes": session.accelerator.num_processes,
        "num_rows": session.num_rows,
        "rows_sha256": session.examples.rows_sha256,
    }  # fmt: skip


def _begin(session: Session, config: dict[str, Any]) -> Path | None:
    checkpointing.remove_leftovers(session.directory)
    return checkpointing.find_checkpoint(session.directory, session.arguments.resume_from_checkpoint, config)


def _fill_cache(session: Session, rows: list[Row]) -> None:
    """Every process encodes its share, then all wait."""
    arguments, accelerator, cache = session.arguments, session.accelerator, session.examples.cache
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    quiet = not accelerator.is_main_process
    cache.fill_latents(session.pipeline, rows[share], flips=arguments.random_flip, quiet=quiet)
    if not arguments.train_text_encoder:
        texts = sorted({"", *(row.text for row in rows)})  # "" stands for a dropped caption
        cache.fill_text_features(session.pipeline, texts[share], quiet=quiet)
    accelerator.wait_for_everyone()


def _resume(session: Session, folder: Path) -> None:
    """Weights, averages and optimizer of a checkpoint, of this run or of another."""
    step = checkpointing.restore_weights(folder, session.parts)
    if step > session.total_steps or (step == session.total_steps and folder.parent != session.directory.path):
        raise TrainingError(f"{folder} stands at step {step} already. Give a larger --max_train_steps.")
    state = checkpointing.read_state(folder)
    try:
        session.optimizer.load_state_dict(state["optimizer"])
    except ValueError as error:
        raise CheckpointError(f"{folder} was written with other flags: its optimizer does not fit. {error}") from None
    if session.accelerator.scaler is not None and state["scaler"] is not None:
        session.accelerator.scaler.load_state_dict(state["scaler"])
    if session.ema is not None:
        checkpointing.restore_average(folder, session.parts, session.ema, step)
    session.step = step
