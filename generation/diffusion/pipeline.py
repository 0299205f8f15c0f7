"""MedSynPipeline: prompt -> BERT -> projection -> UNet -> VAE -> image, with everything it needs in one folder."""

import logging
from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import BertModel, PreTrainedTokenizerFast

from generation.diffusion.conditioning import NULL_MODALITY, Conditioning, ConditionProjection, TextFeatures
from generation.diffusion.sampling import (
    StepCallback,
    image_generators,
    initial_latents,
    make_scheduler,
    sample,
)
from medsyn.modalities import parse_prompt

logger = logging.getLogger(__name__)


class MedSynPipeline(DiffusionPipeline):
    """Text-to-image latent diffusion for medical images of several modalities.

    The parts decide every size: image size, downsampling of the VAE, tokens, widths and prediction type are read
    from their configs, so medsyn-tiny and the full model are the same class. ``recommended_steps`` and
    ``recommended_guidance`` are what the model's maker measured to be enough; nothing applies them by itself.
    ``draws_phantoms`` says that the model learnt to draw on procedural phantoms; fine-tuning keeps the mark.
    """

    model_cpu_offload_seq = "text_encoder->conditioner->unet->vae"

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: BertModel,
        tokenizer: PreTrainedTokenizerFast,
        conditioner: ConditionProjection,
        unet: UNet2DConditionModel,
        scheduler: DDPMScheduler,
        recommended_steps: int | None = None,
        recommended_guidance: float | None = None,
        draws_phantoms: bool = False,
    ):
        super().__init__()
        self._check_widths(text_encoder, conditioner, unet, vae)
        # Only the token features are used. Loaders invent a random pooler where the file has none, and a model must
        # not change by being saved and loaded.
        text_encoder.pooler = None
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            conditioner=conditioner,
            unet=unet,
            scheduler=scheduler,
        )
        self.register_to_config(
            recommended_steps=recommended_steps,
            recommended_guidance=recommended_guidance,
            draws_phantoms=draws_phantoms,
        )

    @staticmethod
    def _check_widths(
        text_encoder: BertModel, conditioner: ConditionProjection, unet: UNet2DConditionModel, vae: AutoencoderKL
    ) -> None:
        """Parts of different models do not fit together: say which before the first matrix product does."""
        pairs = {
            "text_encoder.hidden_size and conditioner.text_width": (
                text_encoder.config.hidden_size,
                conditioner.config.text_width,
            ),
            "conditioner.condition_width and unet.cross_attention_dim": (
                conditioner.config.condition_width,
                unet.config.cross_attention_dim,
            ),
            "vae.latent_channels and unet.in_channels": (vae.config.latent_channels, unet.config.in_channels),
        }
        for names, (first, second) in pairs.items():
            if first != second:
                raise ValueError(f"The parts of the pipeline do not fit together: {names} are {first} and {second}.")

    # --- sizes ---

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent position along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def image_size(self) -> int:
        """Side of the square images that the model was trained on, in pixels."""
        return self.unet.config.sample_size * self.vae_scale_factor

    @property
    def max_tokens(self) -> int:
        """Longest text the encoder takes, in tokens, [CLS] and [SEP] counted."""
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    def _latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        height, width = height or self.image_size, width or self.image_size
        # Each level of the UNet halves the latent; a side that does not divide would not meet its skip connection.
        step = self.vae_scale_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if height <= 0 or width <= 0 or height % step or width % step:
            raise ValueError(f"Image size {height}x{width} does not fit this model: use multiples of {step} pixels.")
        return self.vae.config.latent_channels, height // self.vae_scale_factor, width // self.vae_scale_factor

    # --- text ---

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) and mask (B, L) bool, padded to the longest; cuts texts that are too long, and says so."""
        for text in texts:
            self._warn_if_cut(text)
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return batch["input_ids"], batch["attention_mask"].bool()

    def _warn_if_cut(self, text: str) -> None:
        encoding = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
        room = self.max_tokens - self.tokenizer.num_special_tokens_to_add()
        if len(encoding["input_ids"]) > room:
            cut = text[encoding["offset_mapping"][room][0] :]
            logger.warning("The prompt is longer than %d tokens; this was cut off: %r", self.max_tokens, cut)

    def encode_text(self, prompts: Sequence[str]) -> TextFeatures:
        """Raw features of the text encoder, (B, L, D_text) and (B, L). Gradients flow where they are enabled."""
        ids, mask = self.tokenize(prompts)
        ids, mask = ids.to(self.device), mask.to(self.device)
        hidden = self.text_encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return TextFeatures(hidden, mask)

    def modality_ids(self, prompts: Sequence[str]) -> Tensor:
        """Rows (B,) of the modality embedding; raises PromptError for a prompt without a known prefix."""
        ids = [self.conditioner.modality_id(parse_prompt(prompt).modality) for prompt in prompts]
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def condition(self, text: TextFeatures, modality_ids: Tensor) -> Conditioning:
        """The trainable part: tokens (B, L, D), mask (B, L), and pooled (B, D) if the UNet has a class embedding."""
        conditioning = self.conditioner(text, modality_ids)
        if self.unet.config.class_embed_type is None:
            return Conditioning(conditioning.tokens, conditioning.mask, None)
        return conditioning

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
        mean = config.latents_mean or [config.shift_factor or 0.0]
        std = config.latents_std or [1 / config.scaling_factor]
        return tuple(
            torch.tensor(values, dtype=latents.dtype, device=latents.device).view(-1, 1, 1) for values in (mean, std)
        )

    def encode_images(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to latents (B, C, h, w) of about zero mean and unit variance per channel.

        Takes the mode of the VAE's posterior, or a draw from it where a ``generator`` is given.
        """
        if images.ndim != 4 or images.shape[1] != self.vae.config.in_channels:
            raise ValueError(f"Expected images (B, {self.vae.config.in_channels}, H, W), got {tuple(images.shape)}.")
        posterior = self.vae.encode(images.to(self.vae.device, self.vae.dtype) * 2 - 1).latent_dist
        latents = (posterior.mode() if generator is None else posterior.sample(generator)).float()
        mean, std = self._latent_statistics(latents)
        return (latents - mean) / std

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, h, w) to images (B, 3, H, W), float32 in [0, 1]."""
        mean, std = self._latent_statistics(latents.float())
        raw = latents.float() * std + mean
        images = self.vae.decode(raw.to(self.vae.dtype)).sample.float()
        return (images / 2 + 0.5).clamp(0, 1)

    # --- denoising ---

    def denoise(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output (B, C, h, w) in the dtype of ``latents``: what the scheduler's prediction type names."""
        dtype = self.unet.dtype
        output = self.unet(
            latents.to(dtype),
            timestep,
            encoder_hidden_states=conditioning.tokens.to(dtype),
            encoder_attention_mask=conditioning.mask,
            class_labels=conditioning.pooled,
        )
        return output.sample.to(latents.dtype)

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        seeds: Sequence[int],
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str = "",
        scheduler: str = "dpm",
        height: int | None = None,
        width: int | None = None,
        on_step: StepCallback | None = None,
        output_type: str = "pil",
    ) -> list[Image.Image] | Tensor:
        """One image for each seed; a single prompt serves all seeds, otherwise there is one prompt for each.

        Returns PIL images, or with ``output_type="pt"`` a float32 tensor (B, 3, H, W) in [0, 1] on the CPU.
        ``on_step(done, total)`` may raise to cancel. Raises PromptError, and ValueError for sizes and names that
        do not fit.
        """
        prompts = [prompt] * len(seeds) if isinstance(prompt, str) else list(prompt)
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: every image needs one of each.")
        if output_type not in ("pil", "pt"):
            raise ValueError(f"Unknown output_type {output_type!r}. Known: pil, pt.")
        generators = image_generators(seeds)
        conditioning = self.encode_prompts(prompts)
        latents = initial_latents(generators, self._latent_shape(height, width)).to(self.device)
        clean = sample(
            self.denoise,
            make_scheduler(scheduler, self.scheduler.config),
            latents,
            conditioning,
            self.unconditional(len(prompts), negative_prompt),
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            generators=generators,
            on_step=on_step,
        )
        images = self.decode_latents(clean).cpu()
        return images if output_type == "pt" else to_pil(images)


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [0, 1] to 8-bit RGB pictures."""
    pixels = (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]
