"""The vision transformer under selector and policy, and the weights it may start from.

Its stem is convolutional by default (Xiao et al. 2021): noise, stripes and grids are finer than a patch, and one
linear map of 16 x 16 pixels learns to see them late or not at all.
"""

from pathlib import Path

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from generation.scoring.architecture import ENCODER_NAME, VisionArchitecture
from generation.scoring.network_file import NetworkFileError, read_network

ENCODER_FILE = Path(__file__).resolve().parent.parent / "weights" / ENCODER_NAME / "encoder.safetensors"
_POSITIONS = "pos_embed"
_FEWEST_CHANNELS = 8  # of the stem's first convolution


class ConvolutionalStem(nn.Module):
    """Convolutions of stride 2 down to one token per patch: (B, 3, S, S) -> (B, N, D). Called by timm."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, **_unused):
        super().__init__()
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        layers, width = [], in_chans
        for left in reversed(range(patch_size.bit_length() - 1)):  # halvings that are still to come
            channels = max(_FEWEST_CHANNELS, embed_dim // 2**left)
            layers += [nn.Conv2d(width, channels, 3, stride=2, padding=1), nn.GroupNorm(1, channels), nn.GELU()]
            width = channels
        self.layers = nn.Sequential(*layers)
        self.proj = nn.Conv2d(width, embed_dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(self.layers(images)).flatten(2).transpose(1, 2)


def build_encoder(architecture: VisionArchitecture, image_size: int) -> VisionTransformer:
    """A ViT without a classifier: (B, 3, image_size, image_size) -> tokens (B, N, D)."""
    if image_size % architecture.patch_size:
        raise ValueError(
            f"patch_size {architecture.patch_size} does not divide the image's side of {image_size} pixels."
        )
    stem = {}
    if architecture.stem == "convolutions":
        if architecture.patch_size & (architecture.patch_size - 1):
            raise ValueError(f'patch_size {architecture.patch_size} is no power of 2: use the stem "patch".')
        stem = {"embed_layer": ConvolutionalStem}
    return VisionTransformer(
        **stem,
        img_size=image_size,
        patch_size=architecture.patch_size,
        embed_dim=architecture.embed_dim,
        depth=architecture.num_layers,
        num_heads=architecture.num_heads,
        mlp_ratio=architecture.mlp_dim / architecture.embed_dim,
        proj_drop_rate=architecture.dropout,
        num_classes=0,
        global_pool="avg",
        class_token=False,
        fc_norm=False,
    )


def prepare(images: Tensor, image_size: int) -> Tensor:
    """Bring images to the encoder's size: RGB or grey (B, 1|3, H, W) in [0, 1] -> (B, 3, S, S) in [0, 1]."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"Images must be (B, 1|3, H, W) in [0, 1]; got {tuple(images.shape)}.")
    images = images.float().expand(-1, 3, -1, -1)
    if images.shape[-2:] != (image_size, image_size):
        images = F.interpolate(images, (image_size, image_size), mode="bilinear", antialias=True)
    return images.clamp(0, 1)


def encode(encoder: VisionTransformer, images: Tensor) -> Tensor:
    """Tokens (B, N, D) of prepared images."""
    return encoder.forward_features(images * 2 - 1)


def summarise(tokens: Tensor) -> Tensor:
    """Mean, deviation and maximum over the tokens: (B, N, D) -> (B, 3 D). A fault may fill the image or one patch."""
    return torch.cat([tokens.mean(1), tokens.std(1, correction=0), tokens.amax(1)], dim=1)


def encoder_file(name: str) -> Path:
    """Where the weights called ``name`` lie: the repository's own, or a path."""
    return ENCODER_FILE if name == ENCODER_NAME else Path(name)


def load_pretrained(encoder: VisionTransformer, name: str) -> None:
    """Fill ``encoder`` from the repository's encoder or from a file; positions are resampled to its size."""
    path = encoder_file(name)
    _, state = read_network(path, role="encoder")
    own = encoder.state_dict()
    positions = state[_POSITIONS].float()
    if positions.shape[-1] == own[_POSITIONS].shape[-1] and positions.shape != own[_POSITIONS].shape:
        side = encoder.patch_embed.grid_size
        state[_POSITIONS] = resample_abs_pos_embed(positions, new_size=list(side), num_prefix_tokens=0)
    misfits = [key for key in own if key not in state or state[key].shape != own[key].shape]
    if misfits or state.keys() - own.keys():
        raise NetworkFileError(
            f"{path} does not fit the architecture asked for (first misfit: {(misfits or ['depth'])[0]}). "
            "Set the architecture's keys to the encoder's, or its pretrained key to null."
        )
    with torch.no_grad():
        encoder.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()})
