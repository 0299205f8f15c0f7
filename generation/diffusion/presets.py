"""The sizes of the models built here from nothing, and how to build one with random weights."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import BertConfig, BertModel

from generation.diffusion.conditioning import ConditionProjection
from generation.diffusion.pipeline import MedSynPipeline
from generation.diffusion.vocabulary import build_tokenizer


@dataclass(frozen=True)
class ModelPreset:
    """Everything that shapes a model; lists go from the finest resolution to the coarsest."""

    image_size: int  # pixels, side of the square
    vae_channels: tuple[int, ...]  # per level; n levels make a downsampling of 2 ** (n - 1)
    vae_layers: int  # residual blocks per level
    latent_channels: int
    unet_channels: tuple[int, ...]  # per level
    unet_attends: tuple[bool, ...]  # per level: self- and cross-attention there
    unet_layers: int  # residual blocks per level
    attention_heads: int  # of the UNet, the same at every level
    norm_groups: int  # of the UNet's group norms; divides its channel numbers
    vae_norm_groups: int  # of the VAE's; fewer than its channels, or each channel would lose its own brightness
    vocabulary_size: int  # word pieces, at most
    max_tokens: int  # longest text, [CLS] and [SEP] counted
    text_width: int
    text_layers: int
    text_heads: int
    condition_width: int  # of the tokens that the UNet attends to
    prediction_type: str = "v_prediction"  # what the UNet predicts: epsilon | v_prediction
    recommended_steps: int | None = None  # sampler steps beyond which quality was not seen to rise
    recommended_guidance: float | None = None  # guidance scale measured best
    draws_phantoms: bool = False  # trained on procedural phantoms


MEDSYN_TINY = ModelPreset(
    image_size=128,
    vae_channels=(32, 64, 64),
    vae_layers=1,
    latent_channels=4,
    unet_channels=(64, 128, 128, 128),
    unet_attends=(False, False, True, True),
    unet_layers=1,
    attention_heads=4,
    norm_groups=16,
    vae_norm_groups=8,
    vocabulary_size=2000,
    max_tokens=64,
    text_width=128,
    text_layers=2,
    text_heads=4,
    condition_width=128,
    recommended_steps=12,
    recommended_guidance=3.0,
    draws_phantoms=True,
)

TEST = ModelPreset(
    image_size=32,
    vae_channels=(4, 8, 8),
    vae_layers=1,
    latent_channels=4,
    unet_channels=(8, 8),
    unet_attends=(False, True),
    unet_layers=1,
    attention_heads=2,
    norm_groups=4,
    vae_norm_groups=2,
    vocabulary_size=400,
    max_tokens=32,
    text_width=16,
    text_layers=1,
    text_heads=2,
    condition_width=8,
)

PRESETS = {"medsyn-tiny": MEDSYN_TINY, "test": TEST}


def build_pipeline(preset: ModelPreset, *, captions_for_vocabulary: Iterable[str], seed: int) -> MedSynPipeline:
    """A pipeline of the preset's shape, its random weights drawn from ``seed``; the global generator is untouched."""
    tokenizer = build_tokenizer(captions_for_vocabulary, size=preset.vocabulary_size, max_tokens=preset.max_tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = MedSynPipeline(
            vae=build_vae(preset),
            text_encoder=_build_text_encoder(preset, len(tokenizer)),
            tokenizer=tokenizer,
            conditioner=ConditionProjection(preset.text_width, preset.condition_width),
            unet=build_unet(preset),
            scheduler=build_scheduler(preset.prediction_type),
            recommended_steps=preset.recommended_steps,
            recommended_guidance=preset.recommended_guidance,
            draws_phantoms=preset.draws_phantoms,
        )
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.conditioner, pipeline.unet):
        part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_scheduler(prediction_type: str) -> DDPMScheduler:
    """The noise schedule of training: scaled-linear betas, with zero terminal SNR where v is predicted.

    Zero terminal SNR (Lin et al. 2024) makes the last timestep pure noise, so that sampling starts where training
    did; noise prediction is undefined there, hence only with v-prediction.
    """
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        rescale_betas_zero_snr=prediction_type == "v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )


def build_vae(preset: ModelPreset) -> AutoencoderKL:
    """A random autoencoder without latent statistics: training measures them."""
    levels = len(preset.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=preset.vae_channels,
        layers_per_block=preset.vae_layers,
        latent_channels=preset.latent_channels,
        norm_num_groups=preset.vae_norm_groups,
        sample_size=preset.image_size,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def _build_text_encoder(preset: ModelPreset, vocabulary_size: int) -> BertModel:
    config = BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=preset.text_width,
        num_hidden_layers=preset.text_layers,
        num_attention_heads=preset.text_heads,
        intermediate_size=2 * preset.text_width,
        max_position_embeddings=preset.max_tokens,
        # Captions are dropped whole for guidance; dropout inside the encoder would only slow a small model down.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertModel(config, add_pooling_layer=False)


def build_unet(preset: ModelPreset, *, pooled_text: bool = True) -> UNet2DConditionModel:
    """A random UNet; with ``pooled_text`` its time embedding takes the pooled conditioning (B, D) as well."""
    attends = preset.unet_attends
    return UNet2DConditionModel(
        sample_size=preset.image_size // 2 ** (len(preset.vae_channels) - 1),
        in_channels=preset.latent_channels,
        out_channels=preset.latent_channels,
        layers_per_block=preset.unet_layers,
        block_out_channels=preset.unet_channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if level else "DownBlock2D" for level in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if level else "UpBlock2D" for level in reversed(attends)),
        cross_attention_dim=preset.condition_width,
        attention_head_dim=preset.attention_heads,  # diffusers' name; it is the number of heads
        norm_num_groups=preset.norm_groups,
        class_embed_type="projection" if pooled_text else None,
        projection_class_embeddings_input_dim=preset.condition_width if pooled_text else None,
    )
