"""Random models with Stable Diffusion's parts, for measuring: one as small as medsyn-tiny, and the full-size UNet."""

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from tests.tiny_models import build_tiny_stable_diffusion

TINY_SIZE = 128  # pixels


def tiny_stable_diffusion(seed: int = 0) -> StableDiffusionPipeline:
    """128 px, VAE f=4, a UNet of 11 M parameters, a four-layer CLIP text encoder of 77 tokens."""
    tokenizer = build_tiny_stable_diffusion().tokenizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return StableDiffusionPipeline(
            vae=vae((32, 64, 64), layers=1, size=TINY_SIZE),
            text_encoder=_clip(len(tokenizer)),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(
                sample_size=TINY_SIZE // 4,
                layers_per_block=1,
                block_out_channels=(32, 64, 128, 192),
                down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
                cross_attention_dim=256,
                attention_head_dim=4,
            ),
            scheduler=PNDMScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def _clip(vocabulary_size: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=vocabulary_size,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModel(config).eval()


def vae(channels: tuple[int, ...], *, layers: int, size: int) -> AutoencoderKL:
    """A random autoencoder that halves the picture once for each level but the last."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=layers,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=size,
    ).eval()


def full_unet(latent_side: int) -> UNet2DConditionModel:
    """Stable Diffusion 1.5's UNet, about 860 M parameters, random."""
    return UNet2DConditionModel(sample_size=latent_side, cross_attention_dim=768).eval()
