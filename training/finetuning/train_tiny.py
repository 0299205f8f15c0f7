"""Train medsyn-tiny from nothing: ``python -m training.finetuning.train_tiny --output_dir DIR``.

Stages, each kept in the work folder and taken up again where it was left: draw the phantoms, train the autoencoder,
encode the phantoms, train the UNet with text encoder and conditioner, train the decoder on. What a step does depends
on the weights, the optimizer, the seed and the step's number alone, so a run that was stopped ends where an unstopped
one does. The result is one pipeline folder of fp16 weights with a sheet of samples.
"""

import argparse
import json
import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from generation.diffusion.conditioning import NULL_MODALITY
from generation.diffusion.phantoms import FINDINGS, NORMAL, PhantomClass, all_captions, caption, draw
from generation.diffusion.pipeline import MedSynPipeline
from generation.diffusion.presets import PRESETS, build_pipeline
from medsyn.artifacts import atomic_folder, atomic_path, digest_of
from medsyn.modalities import FUNDUS
from training.finetuning.losses import image_losses
from training.finetuning.reconstruction import as_images, psnr, reconstruction_loss, set_latent_statistics
from training.run_directory import CONFIG_NAME, RunDirectory

logger = logging.getLogger("train_tiny")

# Streams of random numbers, so that one stage's draws are not another's.
_AUTOENCODER, _DENOISER, _DECODER = 1, 2, 3
_ADAM = {"betas": (0.9, 0.99), "weight_decay": 1e-3, "fused": True}


@dataclass(frozen=True)
class Recipe:
    """Everything the resulting weights depend on."""

    preset: str = "medsyn-tiny"
    seed: int = 0
    images_per_class: int = 200
    fundus_share: int = 3  # a fundus class has so many times the images of another: its findings are many and small
    fundus_steps: int = 5000  # of the denoiser; afterwards every class is drawn equally often
    vae_steps: int = 3000
    vae_batch_size: int = 4  # whole images; every other step takes four times as many quarter-size crops
    vae_learning_rate: float = 1.5e-3  # peak
    vae_divergence_weight: float = 1e-3  # of the divergence per latent value from a standard normal
    vae_ema_decay: float = 0.99
    decoder_steps: int = 600  # of the decoder alone, on fixed latents
    decoder_latent_noise: float = 0.05  # standard deviations: latents drawn by a UNet are not exact either
    cycles: tuple[int, ...] = (4000, 5000)  # steps; in each the learning rate rises, stays and falls
    batch_size: int = 16
    learning_rate: float = 1e-3  # peak
    warmup_steps: int = 150  # of every cycle
    constant_share: float = 0.6  # of a cycle, at the peak; then linearly down to final_share of it
    final_share: float = 0.03
    ema_decay: float = 0.999  # ceiling; the average follows faster at first
    caption_dropout: float = 0.1  # share of captions left out together with their modality
    bfloat16: bool = True  # forward passes under autocast


@dataclass
class Training:
    """One stage's modules with what its steps carry along."""

    modules: nn.ModuleDict
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor]  # exponential moving average of the weights, by parameter name
    step: int = 0
    losses: list[float] = field(default_factory=list)  # since the last log line


# --- phantoms ---


def render_phantoms(recipe: Recipe, size: int, path: Path, workers: int) -> np.ndarray:
    """Draw the phantoms of ``class_round`` over and over, ``images_per_class`` times: uint8 (N, H, W, 3)."""
    if not path.exists():
        classes = class_round(recipe) * recipe.images_per_class
        jobs = [(index, phantom_class, size, recipe.seed) for index, phantom_class in enumerate(classes)]
        with ProcessPoolExecutor(workers) as pool, atomic_path(path) as temporary:
            pixels = np.stack(list(pool.map(_render, jobs, chunksize=64)))
            with temporary.open("wb") as file:
                np.savez(file, pixels=pixels)
    return np.load(path)["pixels"]


def class_round(recipe: Recipe) -> tuple[PhantomClass, ...]:
    """Every class once, those of the fundus ``fundus_share`` times; image i shows class i mod the round's length."""
    return FINDINGS + tuple(found for found in FINDINGS if found.kind == FUNDUS) * (recipe.fundus_share - 1)


def _render(job: tuple[int, PhantomClass, int, int]) -> np.ndarray:
    index, phantom_class, size, seed = job
    return draw(phantom_class, seed=seed * 1_000_000 + index, size=size).pixels


# --- what both stages share ---


def learning_rate(recipe: Recipe, peak: float, step: int, steps: int) -> float:
    """Warm-up, a constant stretch, a linear decay; ``step`` counts from 0."""
    decay_start = recipe.constant_share * steps
    progress = max(0.0, (step - decay_start) / max(1.0, steps - decay_start))
    return peak * min(1.0, (step + 1) / recipe.warmup_steps, max(recipe.final_share, 1 - progress))


def new_training(modules: dict[str, nn.Module], peak_learning_rate: float) -> Training:
    group = nn.ModuleDict(modules).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(group.parameters(), peak_learning_rate, **_ADAM)
    return Training(group, optimizer, {name: p.detach().clone() for name, p in group.named_parameters()})


def descend(training: Training, loss: Tensor, rate: float, ema_decay: float) -> None:
    """One optimizer step on ``loss``, and the average follows."""
    for group in training.optimizer.param_groups:
        group["lr"] = rate
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = dict(training.modules.named_parameters())
    nn.utils.clip_grad_norm_(parameters.values(), 1.0, foreach=True)
    training.optimizer.step()
    training.step += 1
    decay = min(ema_decay, (1 + training.step) / (10 + training.step))
    with torch.no_grad():
        torch._foreach_lerp_(list(training.average.values()), list(parameters.values()), 1 - decay)
    training.losses.append(loss.item())


def save(directory: RunDirectory, training: Training) -> None:
    """Write a checkpoint, then drop the older ones."""
    older = directory.checkpoints()
    with directory.checkpoint(f"checkpoint-{training.step}", step=training.step) as folder:
        save_file(training.modules.state_dict(), folder / "weights.safetensors")
        save_file(training.average, folder / "average.safetensors")
        torch.save(training.optimizer.state_dict(), folder / "optimizer.pt")
    for folder in older:
        shutil.rmtree(folder)


def resume(directory: RunDirectory, training: Training) -> None:
    """Take up the newest checkpoint, if there is one."""
    directory.path.mkdir(parents=True, exist_ok=True)
    folder = directory.latest()
    if folder is None:
        return
    training.modules.load_state_dict(load_file(folder / "weights.safetensors"))
    stored = load_file(folder / "average.safetensors")
    training.average = {name: stored[name] for name in training.average}  # the parameters' order, not the file's
    state = torch.load(folder / "optimizer.pt", weights_only=True)  # noqa: TID251 - optimizer state, no code in it
    training.optimizer.load_state_dict(state)
    training.step = int(folder.name.rpartition("-")[2])
    directory.rewind(training.step)
    logger.info("%s: going on from step %d", directory.path.name, training.step)


def use_average(training: Training) -> None:
    """Give the modules their averaged weights, for good."""
    training.modules.load_state_dict({**training.modules.state_dict(), **training.average})
    training.modules.eval().requires_grad_(False)


def autocast(recipe: Recipe) -> AbstractContextManager:
    return torch.autocast("cpu", torch.bfloat16) if recipe.bfloat16 else nullcontext()


# --- autoencoder ---


def train_autoencoder(
    recipe: Recipe, pipeline: MedSynPipeline, pixels: np.ndarray, directory: RunDirectory, checkpointing_steps: int
) -> None:
    """Train ``pipeline.vae`` on the phantoms and leave its averaged weights in it."""
    training = new_training({"vae": pipeline.vae}, recipe.vae_learning_rate)
    resume(directory, training)
    started = monotonic()
    while training.step < recipe.vae_steps:
        rng = np.random.default_rng([recipe.seed, _AUTOENCODER, training.step])
        images = _autoencoder_batch(recipe, pixels, rng)
        noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
        with autocast(recipe):
            posterior = pipeline.vae.encode(images * 2 - 1).latent_dist
            decoded = pipeline.vae.decode(posterior.sample(noise)).sample.float() / 2 + 0.5
        # The divergence per latent value, so weighted, bounds the latents without blurring what they hold.
        divergence = posterior.kl().float().mean() / posterior.mean[0].numel()
        loss = reconstruction_loss(decoded, images) + recipe.vae_divergence_weight * divergence
        rate = learning_rate(recipe, recipe.vae_learning_rate, training.step, recipe.vae_steps)
        descend(training, loss, rate, recipe.vae_ema_decay)
        _report(directory, training, recipe.vae_steps, checkpointing_steps, started)
    use_average(training)


def _autoencoder_batch(recipe: Recipe, pixels: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Whole images or crops: group norms must see both, and crops show more of different images."""
    if rng.random() < 0.5:
        return as_images(pixels[rng.integers(len(pixels), size=recipe.vae_batch_size)])
    side = pixels.shape[1] // 2
    indices = rng.integers(len(pixels), size=4 * recipe.vae_batch_size)
    corners = rng.integers(side + 1, size=(len(indices), 2))
    crops = [pixels[i, y : y + side, x : x + side] for i, (y, x) in zip(indices, corners, strict=True)]
    return as_images(np.stack(crops))


@torch.no_grad()
def reconstruction_psnr(pipeline: MedSynPipeline, images: Tensor) -> float:
    """Mean peak signal-to-noise ratio of the autoencoder over images (B, 3, H, W) in [0, 1], in dB."""
    decoded = torch.cat([pipeline.decode_latents(pipeline.encode_images(part)) for part in images.split(16)])
    return float(psnr(decoded, images).mean())


# --- latents ---


@torch.no_grad()
def encode_phantoms(recipe: Recipe, pipeline: MedSynPipeline, pixels: np.ndarray, path: Path) -> Tensor:
    """Normalised latents (N, C, h, w) of the phantoms; their mean and deviation go into the VAE's config."""
    if not path.exists():
        with autocast(recipe):
            parts = [
                pipeline.vae.encode(as_images(pixels[i : i + 32]) * 2 - 1).latent_dist.mode().float()
                for i in range(0, len(pixels), 32)
            ]
        with atomic_path(path) as temporary:
            save_file({"latents": torch.cat(parts).contiguous()}, temporary)
    latents = load_file(path)["latents"]
    mean, deviation = set_latent_statistics(pipeline.vae, latents)
    return (latents - mean) / deviation


def train_decoder(
    recipe: Recipe,
    pipeline: MedSynPipeline,
    pixels: np.ndarray,
    latents: Tensor,
    directory: RunDirectory,
    checkpointing_steps: int,
) -> None:
    """Sharpen the decoder while the encoder, and with it the latents (N, C, h, w), stays as it is."""
    vae = pipeline.vae
    training = new_training(
        {"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}, recipe.vae_learning_rate
    )
    resume(directory, training)
    mean, deviation = (torch.tensor(vae.config[key]).view(-1, 1, 1) for key in ("latents_mean", "latents_std"))
    started = monotonic()
    while training.step < recipe.decoder_steps:
        rng = np.random.default_rng([recipe.seed, _DECODER, training.step])
        indices = rng.integers(len(pixels), size=recipe.vae_batch_size)
        clean = latents[torch.from_numpy(indices)]
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**62))))
        with autocast(recipe):
            raw = (clean + recipe.decoder_latent_noise * noise) * deviation + mean
            decoded = vae.decode(raw).sample.float() / 2 + 0.5
        rate = learning_rate(recipe, recipe.vae_learning_rate, training.step, recipe.decoder_steps)
        loss = reconstruction_loss(decoded, as_images(pixels[indices]))
        descend(training, loss, rate, recipe.vae_ema_decay)
        _report(directory, training, recipe.decoder_steps, checkpointing_steps, started)
    use_average(training)


# --- UNet, text encoder, conditioner ---


def denoiser_parts(pipeline: MedSynPipeline) -> dict[str, nn.Module]:
    return {name: pipeline.components[name] for name in ("unet", "text_encoder", "conditioner")}


def train_denoiser(
    recipe: Recipe, pipeline: MedSynPipeline, latents: Tensor, directory: RunDirectory, checkpointing_steps: int
) -> None:
    """Train what turns text into latents, and leave the averaged weights in the pipeline."""
    # On a CPU the plain product is about 1.7 times as fast in training as the fused attention.
    pipeline.unet.set_attn_processor(AttnProcessor())
    training = new_training(denoiser_parts(pipeline), recipe.learning_rate)
    resume(directory, training)
    started, steps = monotonic(), sum(recipe.cycles)
    while training.step < steps:
        rng = np.random.default_rng([recipe.seed, _DENOISER, training.step])
        rate = learning_rate(recipe, recipe.learning_rate, *place_in_cycle(recipe.cycles, training.step))
        descend(training, denoising_loss(recipe, pipeline, latents, training.step, rng), rate, recipe.ema_decay)
        _report(directory, training, steps, checkpointing_steps, started)
    use_average(training)
    pipeline.unet.set_default_attn_processor()


def place_in_cycle(cycles: Sequence[int], step: int) -> tuple[int, int]:
    """The step within its cycle, from 0, and the cycle's number of steps."""
    for length in cycles:
        if step < length:
            return step, length
        step -= length
    raise ValueError(f"Step {step} lies behind the last of the cycles {tuple(cycles)}.")


def drawn_images(recipe: Recipe, num_images: int, step: int, rng: np.random.Generator) -> np.ndarray:
    """The images of a batch, (B,): any; from step ``fundus_steps`` on those that show every class equally often."""
    if step < recipe.fundus_steps:
        return rng.integers(num_images, size=recipe.batch_size)
    length = len(class_round(recipe))
    rounds = rng.integers(num_images // length, size=recipe.batch_size)
    return rounds * length + rng.integers(len(FINDINGS), size=recipe.batch_size)


def denoising_loss(
    recipe: Recipe, pipeline: MedSynPipeline, latents: Tensor, step: int, rng: np.random.Generator
) -> Tensor:
    """The diffusion loss of one random batch; every image gets one of its class's wordings, or none."""
    indices = drawn_images(recipe, len(latents), step, rng)
    classes = class_round(recipe)
    texts = [caption(classes[i % len(classes)], seed=int(rng.integers(2**31))) for i in indices]
    dropped = rng.random(recipe.batch_size) < recipe.caption_dropout
    modalities = pipeline.modality_ids(texts).masked_fill(torch.from_numpy(dropped), NULL_MODALITY)
    texts = ["" if drop else text for text, drop in zip(texts, dropped, strict=True)]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    clean = latents[torch.from_numpy(indices)]
    noise = torch.randn(clean.shape, generator=generator)
    timesteps = torch.randint(pipeline.scheduler.config.num_train_timesteps, (len(clean),), generator=generator)
    noisy = pipeline.scheduler.add_noise(clean, noise, timesteps)
    with autocast(recipe):
        conditioning = pipeline.condition(pipeline.encode_text(texts), modalities)
        output = pipeline.denoise(noisy, timesteps, conditioning)
    return image_losses(output, clean, noise, timesteps, pipeline.scheduler).mean()


def _report(
    directory: RunDirectory, training: Training, steps: int, checkpointing_steps: int, started: float
) -> None:
    """A line of metrics every 50 steps, a checkpoint every ``checkpointing_steps`` and at the end."""
    if training.step % 50 == 0 or training.step == steps:
        loss, training.losses = float(np.mean(training.losses)), []
        minutes = (monotonic() - started) / 60
        directory.log(step=training.step, steps=steps, loss=round(loss, 5), minutes=round(minutes, 2))
        logger.info("%s step %d/%d loss %.4f %.1f min", directory.path.name, training.step, steps, loss, minutes)
    if training.step % checkpointing_steps == 0 or training.step == steps:
        save(directory, training)


# --- the result ---


SHEET_COLUMNS = 8


def class_prompts() -> list[str]:
    """A prompt of every class, in the order of FINDINGS."""
    return [caption(phantom_class, seed=0) for phantom_class in FINDINGS]


def variety_prompts() -> list[str]:
    """One prompt of each kind of image, as often as a sheet has columns."""
    first_of_kind = {found.kind: found for found in reversed(FINDINGS) if found.finding == NORMAL}
    return [caption(found, seed=1) for found in reversed(first_of_kind.values()) for _ in range(SHEET_COLUMNS)]


def sheet_of(pipeline: MedSynPipeline, prompts: Sequence[str]) -> Image.Image:
    """Image i of seed i, unselected, row by row, with the recommended steps and guidance."""
    images: list[Image.Image] = []
    for start in range(0, len(prompts), SHEET_COLUMNS):
        part = prompts[start : start + SHEET_COLUMNS]
        images += pipeline(
            part,
            seeds=range(start, start + len(part)),
            **{"num_inference_steps": 12, "guidance_scale": 2.0} | pipeline.recommended_sampling,
        )
    size = pipeline.image_size
    sheet = Image.new("RGB", (SHEET_COLUMNS * size, -(-len(images) // SHEET_COLUMNS) * size))
    for index, image in enumerate(images):
        sheet.paste(image, (index % SHEET_COLUMNS * size, index // SHEET_COLUMNS * size))
    return sheet


def write_pipeline(pipeline: MedSynPipeline, target: Path, recipe: Recipe) -> None:
    """The pipeline as fp16 safetensors with two sheets of samples; appears whole or not at all."""
    sheets = {
        "samples.png": sheet_of(pipeline, class_prompts()),
        "variety.png": sheet_of(pipeline, variety_prompts()),
    }
    networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    with atomic_folder(target, recipe=vars(recipe)) as folder:
        for network in networks:
            network.half()
        pipeline.save_pretrained(folder)
        for network in networks:
            network.float()
        for name, sheet in sheets.items():
            sheet.save(folder / name)


def keep_recipe(recipe: Recipe, work_dir: Path) -> None:
    """Note the recipe in the work folder; end the program where another one is noted there.

    A run may be given further cycles: they do not touch the earlier ones.
    """
    directory = RunDirectory(work_dir)
    wanted = {**vars(recipe), "cycles": list(recipe.cycles), "captions": digest_of(all_captions())}
    if (work_dir / CONFIG_NAME).exists():
        noted = directory.read_config()
        first_cycles = wanted["cycles"][: len(noted["cycles"])]
        different = [key for key in wanted if {**wanted, "cycles": first_cycles}[key] != noted.get(key)]
        if different:
            raise SystemExit(f"{work_dir} holds a run with other {', '.join(different)}. Choose another --work_dir.")
    directory.write_config(wanted)


def train(recipe: Recipe, output_dir: Path, work_dir: Path, *, workers: int, checkpointing_steps: int) -> None:
    """All stages; ``work_dir`` keeps what a second call need not do again."""
    keep_recipe(recipe, work_dir)
    preset = PRESETS[recipe.preset]
    pipeline = build_pipeline(preset, captions_for_vocabulary=all_captions(), seed=recipe.seed)
    pixels = render_phantoms(recipe, preset.image_size, work_dir / "phantoms.npz", workers)
    logger.info("%d phantoms of %d pixels", len(pixels), preset.image_size)
    train_autoencoder(recipe, pipeline, pixels, RunDirectory(work_dir / "autoencoder"), checkpointing_steps)
    latents = encode_phantoms(recipe, pipeline, pixels, work_dir / "latents.safetensors")
    train_denoiser(recipe, pipeline, latents, RunDirectory(work_dir / "denoiser"), checkpointing_steps)
    train_decoder(recipe, pipeline, pixels, latents, RunDirectory(work_dir / "decoder"), checkpointing_steps)
    logger.info("autoencoder: %.1f dB", reconstruction_psnr(pipeline, as_images(pixels[: 2 * len(FINDINGS)])))
    write_pipeline(pipeline, output_dir, recipe)
    logger.info("written to %s", output_dir)


def export_average(recipe: Recipe, output_dir: Path, work_dir: Path) -> None:
    """Write the averages as they stand in the newest checkpoints: a look at a run that is still going on."""
    pipeline = build_pipeline(PRESETS[recipe.preset], captions_for_vocabulary=all_captions(), seed=recipe.seed)
    vae = pipeline.vae
    stages = {
        "autoencoder": {"vae": vae},
        "decoder": {"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv},
        "denoiser": denoiser_parts(pipeline),
    }
    for name, modules in stages.items():
        training = new_training(modules, recipe.learning_rate)
        folder = RunDirectory(work_dir / name).latest()
        if folder is None and name != "decoder":
            raise SystemExit(f"{work_dir / name} holds no checkpoint yet.")
        if folder is not None:
            training.average = load_file(folder / "average.safetensors")
        use_average(training)
    set_latent_statistics(pipeline.vae, load_file(work_dir / "latents.safetensors")["latents"])
    write_pipeline(pipeline, output_dir, recipe)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    defaults = Recipe()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="pipeline folder to write; replaced if there")
    parser.add_argument("--work_dir", type=Path, help="phantoms, latents, checkpoints (default: OUTPUT_DIR.work)")
    parser.add_argument("--preset", choices=sorted(PRESETS), default=defaults.preset)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--images_per_class", type=int, default=defaults.images_per_class)
    parser.add_argument("--vae_steps", type=int, default=defaults.vae_steps)
    parser.add_argument("--decoder_steps", type=int, default=defaults.decoder_steps)
    parser.add_argument(
        "--cycles", type=int, nargs="+", default=defaults.cycles, help="steps of UNet, text encoder and conditioner"
    )
    parser.add_argument("--checkpointing_steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1, help="of torch; on a busy machine one is fastest")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that draw phantoms")
    parser.add_argument("--export_only", action="store_true", help="write the newest average and train nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    recipe = Recipe(
        preset=options.preset,
        seed=options.seed,
        images_per_class=options.images_per_class,
        vae_steps=options.vae_steps,
        decoder_steps=options.decoder_steps,
        cycles=tuple(options.cycles),
    )
    work_dir = options.work_dir or options.output_dir.with_name(options.output_dir.name + ".work")
    if options.export_only:
        export_average(recipe, options.output_dir, work_dir)
        return
    with RunDirectory(work_dir).lock():
        logger.info("recipe %s", json.dumps(vars(recipe)))
        train(recipe, options.output_dir, work_dir, workers=options.workers,
              checkpointing_steps=options.checkpointing_steps)  # fmt: skip


if __name__ == "__main__":
    main()
