"""The sizes of the scoring networks, as config.yaml names them. Standard library only: web forms read it too."""

from dataclasses import dataclass, field
from typing import Any

ENCODER_NAME = "medsyn-encoder"  # the vision encoder that comes with the repository


def setting(
    default: Any, *, low: float | None = None, high: float | None = None, choices: tuple | None = None
) -> Any:
    """A dataclass field that carries the range its value must lie in (both ends included)."""
    return field(default=default, metadata={"low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class VisionArchitecture:
    """A vision transformer (timm), small enough for a laptop's processor."""

    patch_size: int = setting(16, low=2, high=64)  # pixels; must divide the image's side
    # How patches become tokens: "convolutions" (patch_size a power of 2; sees fine artefacts) or one linear "patch".
    stem: str = setting("convolutions", choices=("convolutions", "patch"))
    embed_dim: int = setting(128, low=8, high=1536)  # width of a token
    num_layers: int = setting(4, low=1, high=48)  # transformer blocks
    num_heads: int = setting(4, low=1, high=32)  # attention heads; must divide embed_dim
    mlp_dim: int = setting(512, low=8, high=8192)  # hidden width inside a block
    dropout: float = setting(0.1, low=0.0, high=0.9)  # share of activations dropped while training
    # Weights to start from: "medsyn-encoder" (in the repository), a safetensors file, or null for random.
    pretrained: str | None = setting(ENCODER_NAME)


@dataclass(frozen=True)
class SelectorArchitecture(VisionArchitecture):
    perception_dim: int = setting(64, low=1, high=4096)  # width of the summary of all tokens that the heads read
    head_dim: int = setting(64, low=1, high=4096)  # hidden width of each head
    ensemble_heads: int = setting(5, low=2, high=32)  # heads whose spread is the score's uncertainty


@dataclass(frozen=True)
class PolicyArchitecture(VisionArchitecture):
    fusion_dim: int = setting(128, low=8, high=4096)  # width in which image and text meet; num_heads divides it


@dataclass(frozen=True)
class QualityMetricsSettings:
    """Where a metric begins to count as low. A shortfall is an input of the selector, never a gate."""

    snr_threshold: float = setting(1.0, low=0.0, high=1000.0)  # signal over noise; a ratio
    contrast_threshold: float = setting(0.3, low=0.0, high=1.0)  # spread of grey values, share of the full range
    artifact_detection: bool = setting(True)  # whether the artefact metrics are inputs of the selector
