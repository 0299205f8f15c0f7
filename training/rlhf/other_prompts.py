"""Prompts that an image was not made for, for the policy's contrast and its test."""

import torch
from torch import Tensor

from training.rlhf.dataset import RatedImages


class OtherPrompts:
    """Draws a prompt of the image's own kind and one of another kind, where there are any."""

    def __init__(self, rated: RatedImages):
        self._own = rated.prompt_index
        kind_of_prompt = torch.zeros(len(rated.prompts), dtype=torch.int64)
        kind_of_prompt[rated.prompt_index] = rated.kinds
        same_kind = kind_of_prompt[:, None] == kind_of_prompt[None, :]
        other = ~torch.eye(len(rated.prompts), dtype=torch.bool)
        tables = (same_kind & other, ~same_kind)
        # (P, P) weights for drawing; a prompt without a candidate falls back to any other prompt.
        self._tables = [
            torch.where(table.any(1, keepdim=True), table, other).float() for table in tables if other.any()
        ]

    def draw(self, items: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Positions of other prompts, each (B,); the empty list where the set has a single prompt."""
        own = self._own[items]
        return [torch.multinomial(table[own], 1, generator=generator)[:, 0] for table in self._tables]
