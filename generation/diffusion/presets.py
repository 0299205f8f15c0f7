"""The sizes of the models built here, and how to build one whose weights are random.

``medsyn-tiny`` is the embedded model, 128 pixels on two CPU cores. ``medsyn-small`` is for a dataset of one's own on
one GPU of 12 GB: 256 pixels, a UNet of 135 M parameters (weights, gradients and AdamW in float32 take 2.2 GB) and,
unless an encoder is named, a BERT of its own: it reads the prompt grammar, a few hundred words in short sentences,
which a vocabulary learnt from the dataset's captions covers whole, and it asks for no download. BiomedBERT takes its
place where captions are the free text of reports. ``medsyn-base`` is the full size: BiomedBERT and a UNet as large as
Stable Diffusion's. ``test`` draws noise in milliseconds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from generation.diffusion.conditioning import ConditionProjection
from generation.diffusion.pipeline import MedSynPipeline
from generation.diffusion.text_to_image import scale_factor_of
from generation.diffusion.vocabulary import build_tokenizer


@dataclass(frozen=True)
class OwnText:
    """A small BERT with a WordPiece vocabulary learnt from captions."""

    vocabulary_size: int  # word pieces, at most
    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class TextParts:
    """A text encoder that was trained elsewhere, with the tokenizer it was trained with."""

    encoder: BertModel
    tokenizer: PreTrainedTokenizerFast


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
    own_text: OwnText | None  # None: BiomedBERT, which has to be handed in
    max_tokens: int  # longest text, [CLS] and [SEP] counted
    condition_width: int  # of the tokens that the UNet attends to
    pooled_text: bool = True  # whether the UNet's time embedding takes the pooled conditioning too
    prediction_type: str = "v_prediction"  # what the UNet predicts: epsilon | v_prediction
    recommended_steps: int | None = None  # sampler steps beyond which quality was not seen to rise
    recommended_guidance: float | None = None  # guidance scale measured best
    recommended_guidance_interval: tuple[float, float] | None = None  # part of the run to guide, from noise
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
    own_text=OwnText(vocabulary_size=2000, width=128, layers=2, heads=4),
    max_tokens=64,
    condition_width=128,
    recommended_steps=12,
    recommended_guidance=3.0,
    recommended_guidance_interval=(0.35, 1.0),  # guided from the first step on, colours lose their variety
    draws_phantoms=True,
)

MEDSYN_SMALL = ModelPreset(
    image_size=256,
    vae_channels=(64, 128, 256),
    vae_layers=2,
    latent_channels=4,
    unet_channels=(128, 256, 384, 512),
    unet_attends=(
        False,
        True,
        True,
        True,
    ),  # from 32 x 32 positions down: attention at 64 x 64 would cost most of a step
    unet_layers=2,
    attention_heads=8,
    norm_groups=32,
    vae_norm_groups=16,
    own_text=OwnText(vocabulary_size=8000, width=256, layers=4, heads=4),
    max_tokens=256,
    condition_width=256,
)

# The UNet is Stable Diffusion 1.5's but for the width of the text it attends to, and predicts noise as that one does.
MEDSYN_BASE = ModelPreset(
    image_size=256,
    vae_channels=(128, 256, 512),
    vae_layers=2,
    latent_channels=4,
    unet_channels=(320, 640, 1280, 1280),
    unet_attends=(True, True, True, False),
    unet_layers=2,
    attention_heads=8,
    norm_groups=32,
    vae_norm_groups=32,
    own_text=None,
    max_tokens=256,
    condition_width=256,
    pooled_text=False,
    prediction_type="epsilon",
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
    own_text=OwnText(vocabulary_size=400, width=16, layers=1, heads=2),
    max_tokens=32,
    condition_width=8,
)

PRESETS = {"medsyn-tiny": MEDSYN_TINY, "medsyn-small": MEDSYN_SMALL, "medsyn-base": MEDSYN_BASE, "test": TEST}


def build_pipeline(
    preset: ModelPreset,
    *,
    captions_for_vocabulary: Iterable[str] = (),
    seed: int,
    text: TextParts | None = None,
    vae: AutoencoderKL | None = None,
) -> MedSynPipeline:
    """A pipeline of the preset's shape, its random weights drawn from ``seed``; the global generator is untouched.

    ``text`` and ``vae`` take the place of the preset's own: widths, latent channels and scale factor follow theirs.
    Raises ValueError where a preset without a text encoder is given none, or the image does not fit the VAE.
    """
    tokenizer = text.tokenizer if text else _build_tokenizer(preset, captions_for_vocabulary)
    interval = preset.recommended_guidance_interval
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = vae or build_vae(preset)
        encoder = text.encoder if text else _build_text_encoder(preset, len(tokenizer))
        pipeline = MedSynPipeline(
            vae=vae,
            text_encoder=encoder,
            tokenizer=tokenizer,
            conditioner=ConditionProjection(encoder.config.hidden_size, preset.condition_width),
            unet=build_unet(preset, vae=vae, pooled_text=preset.pooled_text),
            scheduler=build_scheduler(preset.prediction_type),
            recommended_steps=preset.recommended_steps,
            recommended_guidance=preset.recommended_guidance,
            recommended_guidance_interval=interval and list(interval),
            draws_phantoms=preset.draws_phantoms,
        )
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.conditioner, pipeline.unet):
        part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _build_tokenizer(preset: ModelPreset, captions: Iterable[str]) -> PreTrainedTokenizerFast:
    if preset.own_text is None:
        raise ValueError("This preset has no text encoder of its own: give the one to build with.")
    return build_tokenizer(captions, size=preset.own_text.vocabulary_size, max_tokens=preset.max_tokens)


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
    own = preset.own_text
    config = BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=own.width,
        num_hidden_layers=own.layers,
        num_attention_heads=own.heads,
        intermediate_size=2 * own.width,
        max_position_embeddings=preset.max_tokens,
        # Captions are dropped whole for guidance; dropout inside the encoder would only slow a small model down.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertModel(config, add_pooling_layer=False)


def build_unet(
    preset: ModelPreset, *, vae: AutoencoderKL | None = None, pooled_text: bool = True
) -> UNet2DConditionModel:
    """A random UNet for the latents of ``vae``, by default of the preset's own.

    With ``pooled_text`` its time embedding takes the pooled conditioning (B, D) as well. Raises ValueError where the
    latent cannot be halved as often as the UNet does.
    """
    attends = preset.unet_attends
    latent_channels = vae.config.latent_channels if vae else preset.latent_channels
    return UNet2DConditionModel(
        sample_size=_latent_side(preset, vae.config.block_out_channels if vae else preset.vae_channels),
        in_channels=latent_channels,
        out_channels=latent_channels,
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


def _latent_side(preset: ModelPreset, vae_channels: Sequence[int]) -> int:
    factor, halved = scale_factor_of(vae_channels), scale_factor_of(preset.unet_channels)
    if preset.image_size % (factor * halved):
        raise ValueError(
            f"A VAE that makes pictures {factor} times smaller does not fit images of {preset.image_size} pixels and "
            f"a UNet that halves {len(preset.unet_channels) - 1} times: {preset.image_size} is no multiple of "
            f"{factor * halved}."
        )
    return preset.image_size // factor
