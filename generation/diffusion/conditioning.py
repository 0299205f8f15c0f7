"""What a prompt becomes before it reaches the UNet: text features, then conditioning tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from medsyn.modalities import MODALITIES

NULL_MODALITY = 0  # row of the modality embedding that stands for "none named"; modality i of the config is row i + 1


@dataclass(frozen=True)
class TextFeatures:
    """The text encoder's output: fixed as long as the text encoder is frozen, so it can be cached."""

    tokens: Tensor  # (B, L, D_text), last hidden state
    mask: Tensor  # (B, L) bool, True for tokens of the text, False for padding

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All parts along the batch axis, padded to the longest."""
        length = max(part.tokens.shape[1] for part in parts)
        tokens = torch.cat([_pad_tokens(part.tokens, length) for part in parts])
        return cls(tokens, torch.cat([_pad_mask(part.mask, length) for part in parts]))


@dataclass(frozen=True)
class Conditioning:
    """What the UNet sees of a prompt."""

    tokens: Tensor  # (B, L, D), for cross-attention
    mask: Tensor | None  # (B, L) bool, True where a token may be attended to; None: every token may be
    pooled: Tensor | None  # (B, D), added to the time embedding; None for a UNet without class embedding

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All parts along the batch axis, (B_i, L_i, D) -> (sum of B_i, max of L_i, D), padded to the longest."""
        length = max(part.tokens.shape[1] for part in parts)
        short = [part for part in parts if part.mask is None and part.tokens.shape[1] < length]
        if short:
            raise ValueError(f"{short[0].tokens.shape[1]} tokens without a mask cannot be padded to {length}.")
        tokens = torch.cat([_pad_tokens(part.tokens, length) for part in parts])
        first = parts[0]
        mask = None if first.mask is None else torch.cat([_pad_mask(part.mask, length) for part in parts])
        pooled = None if first.pooled is None else torch.cat([part.pooled for part in parts])
        return cls(tokens, mask, pooled)

    def padded(self, length: int) -> Self:
        """With room for ``length`` tokens, (B, length, D); raises ValueError where there is more, or no mask."""
        present = self.tokens.shape[1]
        if present > length or (present < length and self.mask is None):
            raise ValueError(f"{present} tokens cannot be padded to {length}.")
        mask = None if self.mask is None else _pad_mask(self.mask, length)
        return type(self)(_pad_tokens(self.tokens, length), mask, self.pooled)

    def followed_by(self, other: Self) -> Self:
        """Both along the batch axis, (B1, L1, D) and (B2, L2, D) -> (B1 + B2, L, D); the shorter is padded."""
        return self.joined([self, other])


def _pad_tokens(tokens: Tensor, length: int) -> Tensor:
    missing = length - tokens.shape[1]
    return nn.functional.pad(tokens, (0, 0, 0, missing)) if missing else tokens


def _pad_mask(mask: Tensor, length: int) -> Tensor:
    missing = length - mask.shape[1]
    return nn.functional.pad(mask, (0, missing)) if missing else mask


class ConditionProjection(ModelMixin, ConfigMixin):
    """Text features to the UNet's width: linear projection, LayerNorm, plus a learned embedding of the modality.

    The modality is added to every token, and through their mean to the pooled vector as well. Row 0 of the
    embedding is the null modality of the unconditional branch. The names stand in the config, so that a model
    keeps its numbering when the vocabulary grows.
    """

    @register_to_config
    def __init__(self, text_width: int, condition_width: int, modalities: tuple[str, ...] = MODALITIES):
        super().__init__()
        self.projection = nn.Linear(text_width, condition_width)
        self.norm = nn.LayerNorm(condition_width)
        self.modality_embedding = nn.Embedding(1 + len(modalities), condition_width)
        nn.init.normal_(self.modality_embedding.weight, std=0.1)

    def modality_id(self, modality: str) -> int:
        """Row of a canonical modality; raises ValueError for one that the model was not built for."""
        names = list(self.config.modalities)
        if modality not in names:
            raise ValueError(f"This model knows no modality {modality!r}. It was built for: {', '.join(names)}.")
        return 1 + names.index(modality)

    def forward(self, text: TextFeatures, modality_ids: Tensor) -> Conditioning:
        """(B, L, D_text), (B, L), (B,) -> tokens (B, L, D), mask (B, L), pooled (B, D)."""
        if text.tokens.shape[:2] != text.mask.shape or modality_ids.shape != text.mask.shape[:1]:
            shapes = [tuple(part.shape) for part in (text.tokens, text.mask, modality_ids)]
            raise ValueError(f"Expected tokens (B, L, D), mask (B, L) and modality ids (B,); got {shapes}.")
        tokens = self.norm(self.projection(text.tokens.to(self.projection.weight.dtype)))
        tokens = tokens + self.modality_embedding(modality_ids)[:, None]
        weight = text.mask[..., None].to(tokens.dtype)
        pooled = (tokens * weight).sum(1) / weight.sum(1)  # the mask always holds [CLS], so this never divides by 0
        return Conditioning(tokens, text.mask, pooled)
