"""What every text-to-image model here can do, whatever its parts: text, latents, sampling, images.

A mixin for subclasses of diffusers' ``DiffusionPipeline`` with ``vae``, ``text_encoder``, ``tokenizer``, ``unet`` and
``scheduler``. Sampling, fine-tuning, caching and evaluation speak to this interface alone, so a Stable Diffusion
folder goes every way that a MedSyn model goes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch import Tensor, nn

from generation.diffusion.conditioning import NULL_MODALITY, Conditioning, TextFeatures
from generation.diffusion.prompt_memory import PromptMemory
from generation.diffusion.sampling import (
    WHOLE_RUN,
    StepCallback,
    image_generators,
    initial_latents,
    make_scheduler,
    sample,
)
from generation.parameters import recommended_in
from medsyn.modalities import parse_prompt

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawing:
    """A batch of images with what drawing them took."""

    images: Tensor  # (B, 3, H, W), float32 in [0, 1], on the CPU
    unet_evaluations: int  # for each image; a guided step counts twice
    cuts: tuple[str, ...]  # of each prompt the end that the text encoder has no room for; "" where all of it fits


def scale_factor_of(block_out_channels: Sequence[int]) -> int:
    """How many times a side shrinks in a network whose levels have these channels: all but the last one halve it."""
    return 2 ** (len(block_out_channels) - 1)


class TextToImage:
    """The interface; a subclass says how its text becomes conditioning and what its UNet is told."""

    vae_scale_factor: int  # pixels per latent position along one side; read from the VAE
    vae: Any
    text_encoder: Any
    tokenizer: Any
    unet: Any
    scheduler: Any

    # --- what a subclass supplies ---

    @property
    def max_tokens(self) -> int:
        """Longest text the encoder takes, in tokens, special ones counted."""
        raise NotImplementedError

    @property
    def trainable_parts(self) -> dict[str, nn.Module]:
        """The modules that fine-tuning trains by default, by the name of their folder."""
        raise NotImplementedError

    def encode_text(self, prompts: Sequence[str]) -> TextFeatures:
        """Raw features of the text encoder, (B, L, D_text) and (B, L). Gradients flow where they are enabled."""
        raise NotImplementedError

    def modality_id(self, modality: str) -> int:
        """Row of the modality embedding for a canonical modality; raises ValueError for an unknown one."""
        raise NotImplementedError

    def condition(self, text: TextFeatures, modality_ids: Tensor) -> Conditioning:
        """What the UNet sees of text features: the part between text encoder and UNet."""
        raise NotImplementedError

    # --- sizes and recommendations ---

    @property
    def image_size(self) -> int:
        """Side of the square images that the model was trained on, in pixels."""
        return self.unet.config.sample_size * self.vae_scale_factor

    @property
    def recommended_sampling(self) -> dict[str, Any]:
        """Parameters of `draw` that the model's maker measured to be best, by name; empty where none are named."""
        return recommended_in(self.config)

    @property
    def size_multiple(self) -> int:
        """What height and width must be multiples of, in pixels.

        Each level of the UNet halves the latent; a side that does not divide would not meet its skip connection.
        """
        return self.vae_scale_factor * scale_factor_of(self.unet.config.block_out_channels)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(C, h, w) of an image of that many pixels, by default the model's own; ValueError where it cannot be."""
        height, width = height or self.image_size, width or self.image_size
        step = self.size_multiple
        if height <= 0 or width <= 0 or height % step or width % step:
            raise ValueError(f"Image size {height}x{width} does not fit this model: use multiples of {step} pixels.")
        return self.vae.config.latent_channels, height // self.vae_scale_factor, width // self.vae_scale_factor

    # --- text ---

    def cut_off(self, text: str) -> str:
        """The end of ``text`` that the encoder has no room for; "" where all of it fits."""
        encoding = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
        room = self.max_tokens - self.tokenizer.num_special_tokens_to_add()
        return text[encoding["offset_mapping"][room][0] :] if len(encoding["input_ids"]) > room else ""

    def _warn_if_cut(self, text: str) -> None:
        cut = self.cut_off(text)
        if cut:
            logger.warning("The prompt is longer than %d tokens; this was cut off: %r", self.max_tokens, cut)

    def modality_ids(self, prompts: Sequence[str]) -> Tensor:
        """Rows (B,) of the modality embedding; raises PromptError for a prompt without a known prefix."""
        ids = [self.modality_id(parse_prompt(prompt).modality) for prompt in prompts]
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of prompts in the grammar ``{kind}: {description}``; raises PromptError."""
        texts = [parse_prompt(prompt).text for prompt in prompts]
        return self.condition(self.encode_text(texts), self.modality_ids(texts))

    def unconditional(self, batch: int, negative_prompt: str = "") -> Conditioning:
        """The other branch of guidance, (B, L, D): no caption and no modality, or a text to move away from."""
        nothing = torch.full((batch,), NULL_MODALITY, dtype=torch.long, device=self.device)
        return self.condition(self.encode_text([negative_prompt] * batch), nothing)

    # --- images and latents ---

    def _latent_statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel, (C, 1, 1), or one scalar where the config has no others."""
        config = self.vae.config
        mean = config.get("latents_mean") or [config.get("shift_factor") or 0.0]
        std = config.get("latents_std") or [1 / config.scaling_factor]
        return tuple(
            torch.tensor(values, dtype=latents.dtype, device=latents.device).view(-1, 1, 1) for values in (mean, std)
        )

    def encode_images(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to latents (B, C, h, w) of about zero mean and unit variance per channel.

        Takes the mode of the VAE's posterior, or a draw from it where a ``generator`` is given.
        """
        posterior = self._posterior(images)
        latents = (posterior.mode() if generator is None else posterior.sample(generator)).float()
        mean, std = self._latent_statistics(latents)
        return (latents - mean) / std

    def latent_posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, C, h, w) of the latents that `encode_images` draws from, in the same units."""
        posterior = self._posterior(images)
        mean, std = self._latent_statistics(posterior.mean.float())
        return (posterior.mean.float() - mean) / std, posterior.logvar.float() - 2 * std.log()

    def _posterior(self, images: Tensor) -> DiagonalGaussianDistribution:
        if images.ndim != 4 or images.shape[1] != self.vae.config.in_channels:
            raise ValueError(f"Expected images (B, {self.vae.config.in_channels}, H, W), got {tuple(images.shape)}.")
        return self.vae.encode(images.to(self.vae.device, self.vae.dtype) * 2 - 1).latent_dist

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, h, w) to images (B, 3, H, W), float32 in [0, 1]."""
        mean, std = self._latent_statistics(latents.float())
        raw = latents.float() * std + mean
        images = self.vae.decode(raw.to(self.vae.dtype)).sample.float()
        return (images / 2 + 0.5).clamp(0, 1)

    # --- denoising ---

    def denoise(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output (B, C, h, w) in the dtype of ``latents``: what the scheduler's prediction type names."""
        dtype, pooled = self.unet.dtype, conditioning.pooled
        output = self.unet(
            latents.to(dtype),
            timestep,
            encoder_hidden_states=conditioning.tokens.to(dtype),
            encoder_attention_mask=conditioning.mask,
            class_labels=None if pooled is None else pooled.to(dtype),
        )
        return output.sample.to(latents.dtype)

    @torch.inference_mode()
    def draw(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        guidance_interval: tuple[float, float] = WHOLE_RUN,
        negative_prompt: str = "",
        scheduler: str = "dpm",
        height: int | None = None,
        width: int | None = None,
        memory: PromptMemory | None = None,
        on_step: StepCallback | None = None,
    ) -> Drawing:
        """One image for each prompt and seed, in one batch.

        ``guidance_interval`` is the part of the run that is guided (see `guided_steps`). ``memory`` keeps encoded
        prompts from call to call; without one each distinct prompt is encoded once in this call.
        ``on_step(done, total)`` may raise to cancel. Raises PromptError, and ValueError for sizes and names that
        do not fit.
        """
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: every image needs one of each.")
        generators = image_generators(seeds)
        latents = initial_latents(generators, self.latent_shape(height, width)).to(self.device)
        memory = memory or PromptMemory(self)
        sampled = sample(
            self.denoise,
            make_scheduler(scheduler, self.scheduler.config),
            latents,
            memory.conditioning(prompts),
            memory.unconditional(len(prompts), negative_prompt) if guidance_scale > 1 else None,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            num_inference_steps=num_inference_steps,
            generators=generators,
            on_step=on_step,
        )
        cuts = tuple(self.cut_off(parse_prompt(prompt).text) for prompt in prompts)
        return Drawing(self.decode_latents(sampled.latents).cpu(), sampled.unet_evaluations, cuts)

    def __call__(
        self, prompt: str | Sequence[str], *, seeds: Sequence[int], output_type: str = "pil", **parameters: Any
    ) -> list[Image.Image] | Tensor:
        """The images of `draw`, whose ``parameters`` it takes; a single prompt serves all seeds.

        Returns PIL images, or with ``output_type="pt"`` a float32 tensor (B, 3, H, W) in [0, 1] on the CPU.
        """
        if output_type not in ("pil", "pt"):
            raise ValueError(f"Unknown output_type {output_type!r}. Known: pil, pt.")
        prompts = [prompt] * len(seeds) if isinstance(prompt, str) else list(prompt)
        images = self.draw(prompts, seeds=seeds, **parameters).images
        return images if output_type == "pt" else to_pil(images)


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [0, 1] to 8-bit RGB pictures."""
    pixels = (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]
