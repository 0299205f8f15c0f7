"""From arguments to a session: rows, model, checkpoint, cache, optimizer."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from torch import nn

import generation.diffusion
from generation.diffusion.loading import DEFAULT_MODEL_DIR, ModelSource, load_generator
from generation.diffusion.text_to_image import TextToImage
from generation.memorisation import MemoryIndex
from medsyn.artifacts import digest_of, file_sha256
from training.finetuning import checkpointing
from training.finetuning.arguments import DEFAULT_MODEL, Arguments
from training.finetuning.batches import CachedExamples, DataOrder, rows_sha256
from training.finetuning.dataset import DatasetError, Row, hold_out, load_dataset
from training.finetuning.latent_cache import LatentCache
from training.finetuning.loop import restore_state
from training.finetuning.memory_index import index_in
from training.finetuning.noise import NoiseSource
from training.finetuning.optimization import make_optimizer
from training.finetuning.session import Denoiser, Session, TrainingError
from training.finetuning.trackers import check_tracker
from training.finetuning.trained_parts import CheckpointError, TrainedParts
from training.finetuning.vae_arguments import VaeArguments
from training.finetuning.validation import Validation
from training.run_directory import RunDirectory

logger = logging.getLogger(__name__)

# On a CPU the plain product trains small latents about 1.7 times as fast as torch's fused attention; its memory grows
# with the fourth power of the side.
_PLAIN_ATTENTION_SIDE = 32  # latent positions
_EMA_DECAY = 0.9999  # approached slowly: step n decays by (1 + n) / (10 + n) until then


@dataclass(frozen=True)
class Plan:
    """What becomes of the arguments that were left open, once rows, model and processes are known."""

    rows: list[Row]  # that are trained on
    held_out: list[Row]  # of other patients, kept from training
    resolution: int  # pixels
    steps_per_epoch: int
    total_steps: int


def prepare(arguments: Arguments, accelerator: Accelerator) -> Session:
    """Check the data, load the model, go to the checkpoint, fill the cache. The run directory must be locked.

    Raises DatasetError, CheckpointError, TrainingError, and what the model's loading raises.
    """
    check_tracker(arguments.report_to)
    directory = RunDirectory(arguments.output_dir)
    all_rows = on_main_process(accelerator, lambda: load_rows(arguments))
    pipeline, provenance, memory = _load_pipeline(arguments, accelerator.device)
    plan = _plan(arguments, accelerator, pipeline, all_rows)
    config = _config(arguments, accelerator, plan, provenance)
    checkpoint = on_main_process(accelerator, lambda: _begin(directory, arguments, config))
    parts = _trained_parts(arguments, pipeline, provenance)
    manifest = checkpoint and checkpointing.restore_weights(checkpoint, pipeline, parts)
    _apply_prediction_type(arguments, pipeline)
    session = _session(arguments, accelerator, pipeline, parts, plan, provenance, memory)
    _fill_cache(session, plan.rows)
    if checkpoint is not None:
        _resume(session, checkpoint, manifest)
    if accelerator.is_main_process:
        session.directory.write_config(config)
        session.directory.rewind(session.step)
        logger.info("%d rows; %d steps in all, from step %d", len(plan.rows), session.total_steps, session.step)
    return session


def on_main_process(accelerator: Accelerator, work: Callable[[], Any]) -> Any:
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


def load_rows(arguments: Arguments | VaeArguments) -> list[Row]:
    """The usable rows; those that were left out are named in the log. Raises DatasetError."""
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


# --- the model ---


def _load_pipeline(
    arguments: Arguments, device: torch.device
) -> tuple[TextToImage, dict[str, Any], MemoryIndex | None]:
    """The model to start from, in float32 with nothing to learn yet, what a manifest says of the run, and the images
    that the model was trained on before."""
    name = arguments.pretrained_model_name_or_path
    folder = str(DEFAULT_MODEL_DIR) if name == DEFAULT_MODEL else name
    loaded = load_generator(ModelSource(pretrained_model=folder, model_used=None), device="cpu", precision="float32")
    pipeline = loaded.pipeline.to(device)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    _set_resolution(arguments, pipeline)
    _choose_attention(arguments, pipeline, device)
    if arguments.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    provenance = {
        "base_weights_sha256": loaded.weights_sha256,
        "dataset_sha256": file_sha256(arguments.train_data_dir),
        "code_sha256": code_sha256(),
        "phase_start": 0,  # step of another run's checkpoint that this run begins with
    }
    return pipeline, provenance, index_in(loaded.folder)


def _set_resolution(arguments: Arguments, pipeline: TextToImage) -> None:
    """The size that is trained at becomes the model's own: what it draws where no size is named."""
    resolution = arguments.resolution or pipeline.image_size
    if resolution % pipeline.size_multiple:
        raise TrainingError(
            f"--resolution {resolution} does not fit this model: use a multiple of {pipeline.size_multiple}."
        )
    pipeline.unet.register_to_config(sample_size=resolution // pipeline.vae_scale_factor)


def _choose_attention(arguments: Arguments, pipeline: TextToImage, device: torch.device) -> None:
    if arguments.enable_xformers_memory_efficient_attention:
        _enable_xformers(pipeline)
    elif device.type == "cpu" and pipeline.unet.config.sample_size <= _PLAIN_ATTENTION_SIDE:
        pipeline.unet.set_attn_processor(AttnProcessor())


def _enable_xformers(pipeline: TextToImage) -> None:
    try:
        pipeline.unet.enable_xformers_memory_efficient_attention()
    except (ImportError, ValueError) as error:
        raise TrainingError(
            f"--enable_xformers_memory_efficient_attention cannot be used here: {error} Leave the flag out: torch's "
            "own attention saves memory too."
        ) from None


def code_sha256() -> str:
    """The version of the code that shapes the weights: its source files."""
    packages = (Path(__file__).parent, Path(generation.diffusion.__file__).parent)
    files = [path for folder in packages for path in folder.glob("*.py")]
    return digest_of({f"{path.parent.name}/{path.name}": file_sha256(path) for path in files})


def _trained_parts(arguments: Arguments, pipeline: TextToImage, provenance: dict[str, Any]) -> TrainedParts:
    return TrainedParts.of(
        pipeline,
        with_text_encoder=arguments.train_text_encoder,
        rank=arguments.rank if arguments.use_lora else 0,
        seed=arguments.seed,
        base_weights_sha256=provenance["base_weights_sha256"],
    )


def _apply_prediction_type(arguments: Arguments, pipeline: TextToImage) -> None:
    """What the UNet is taught to predict goes into the scheduler, which is saved with it.

    The noise schedule stays as it is: the UNet knows its noise levels. Noise cannot be predicted where that schedule
    ends in zero signal, as all information about the image is then in the target alone and sampling divides by zero.
    """
    wanted, config = arguments.prediction_type, pipeline.scheduler.config
    if wanted is None or wanted == config.prediction_type:
        return
    if wanted == "epsilon" and config.get("rescale_betas_zero_snr"):
        raise TrainingError(
            "--prediction_type epsilon cannot be trained on this model: its noise schedule ends in zero signal "
            "(rescale_betas_zero_snr), where only v_prediction is defined. Leave the flag out."
        )
    pipeline.scheduler = type(pipeline.scheduler).from_config(config, prediction_type=wanted)


# --- the session ---


def _plan(arguments: Arguments, accelerator: Accelerator, pipeline: TextToImage, all_rows: list[Row]) -> Plan:
    try:
        rows, held_out = hold_out(all_rows, arguments.held_out_share, arguments.seed)
    except ValueError as error:
        raise TrainingError(f"--held_out_share: {error}") from error
    steps_per_epoch = max(1, round(len(rows) / (arguments.images_per_step_and_device * accelerator.num_processes)))
    total_steps = arguments.max_train_steps or arguments.num_train_epochs * steps_per_epoch
    return Plan(rows, held_out, pipeline.image_size, steps_per_epoch, total_steps)


def _config(arguments: Arguments, accelerator: Accelerator, plan: Plan, provenance: dict[str, Any]) -> dict[str, Any]:
    """What config.json holds: the flags, and what became of those that were left open."""
    return arguments.as_json() | provenance | {
        "resolution": plan.resolution,
        "max_train_steps": plan.total_steps,
        "mixed_precision": accelerator.mixed_precision,
        "num_processes": accelerator.num_processes,
        "num_rows": len(plan.rows),
        "rows_sha256": rows_sha256(plan.rows),
    }  # fmt: skip


def _begin(directory: RunDirectory, arguments: Arguments, config: dict[str, Any]) -> Path | None:
    checkpointing.remove_leftovers(directory)
    return checkpointing.find_checkpoint(directory, arguments.resume_from_checkpoint, config)


def _session(
    arguments: Arguments,
    accelerator: Accelerator,
    pipeline: TextToImage,
    parts: TrainedParts,
    plan: Plan,
    provenance: dict[str, Any],
    memory: MemoryIndex | None,
) -> Session:
    model, optimizer = accelerator.prepare(Denoiser(pipeline, parts), make_optimizer(arguments, parts.parameters))
    noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    return Session(
        arguments=arguments,
        accelerator=accelerator,
        directory=RunDirectory(arguments.output_dir),
        pipeline=pipeline,
        parts=parts,
        model=model,
        optimizer=optimizer,
        noise_scheduler=noise_scheduler,
        ema=EMAModel(parts.parameters, decay=_EMA_DECAY) if arguments.use_ema else None,
        examples=_examples(arguments, pipeline, plan, noise_scheduler.config.num_train_timesteps),
        validation=_validation(arguments, plan),
        provenance=provenance,
        num_rows=len(plan.rows),
        real_rows=plan.rows,
        held_out=plan.held_out,
        memory=memory,
        total_steps=plan.total_steps,
    )


def _examples(arguments: Arguments, pipeline: TextToImage, plan: Plan, num_timesteps: int) -> CachedExamples:
    may_flip = tuple(arguments.random_flip and row.may_flip for row in plan.rows)
    modalities = {row.prompt.modality for row in plan.rows}
    fit = "crop" if arguments.center_crop else "pad"
    return CachedExamples(
        plan.rows,
        DataOrder(may_flip, arguments.seed, arguments.caption_dropout),
        NoiseSource(arguments.seed, num_timesteps, arguments.noise_offset, arguments.input_perturbation > 0),
        LatentCache.for_pipeline(arguments.cache_folder, pipeline, resolution=plan.resolution, fit=fit),
        {name: pipeline.modality_id(name) for name in modalities},
        with_text_features=not arguments.train_text_encoder,
        sample_posterior=arguments.latent_sample,
    )


def _validation(arguments: Arguments, plan: Plan) -> Validation:
    return Validation(
        prompts=arguments.validation_prompts,
        images_per_prompt=arguments.num_validation_images,
        every=arguments.validation_steps or arguments.validation_epochs * plan.steps_per_epoch,
        last_step=plan.total_steps,
        resolution=plan.resolution,
        seed=arguments.seed,
        scheduler=arguments.validation_scheduler,
        folder=arguments.output_dir / "validation",
    )


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


def _resume(session: Session, folder: Path, manifest: dict[str, Any]) -> None:
    """Step, optimizer and averages of a checkpoint whose weights are in place, of this run or of another."""
    step, is_own = int(manifest["step"]), folder.parent == session.directory.path
    if step > session.total_steps or (step == session.total_steps and not is_own):
        raise TrainingError(f"{folder} stands at step {step} already. Give a larger --max_train_steps.")
    session.step = step
    session.phase_start = manifest.get("phase_start", 0) if is_own else step
    session.provenance["phase_start"] = session.phase_start
    restore_state(session, folder)
