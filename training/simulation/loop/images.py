"""Images of a simulated loop, and what a frozen encoder makes of them, computed once. Pure.

Shapes: N images of S pixels, T tokens of width D, M quality metrics, L words of width D_text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from generation.embedded_model import EMBEDDED_MODEL_DIR
from generation.scoring.encoder import encode, prepare
from generation.scoring.policy import Policy
from generation.scoring.quality_metrics import measure
from generation.scoring.selector import Selector, kind_indices
from medsyn.modalities import parse_prompt
from training.rlhf.text_features import encode_prompts

SIDE = 128  # pixels that selector and policy read
_BATCH = 64


@dataclass(frozen=True, eq=False)
class LoopImages:
    """Candidates of a generator with their gold quality, which no learner sees."""

    names: tuple[str, ...]  # (N,) unique in the seed: the stream and the position in it
    pixels: np.ndarray  # (N, S, S, 3) uint8
    prompts: tuple[str, ...]  # (N,)
    quality: np.ndarray  # (N,) gold
    unet_evaluations: int | None = None  # that drawing one took; None: no network drew them

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def kind_slugs(self) -> tuple[str, ...]:
        return tuple(parse_prompt(prompt).kind.slug for prompt in self.prompts)

    @property
    def tensor(self) -> Tensor:
        """(N, 3, S, S) uint8"""
        return torch.from_numpy(self.pixels).permute(0, 3, 1, 2)

    def subset(self, index: np.ndarray) -> "LoopImages":
        names, prompts = (tuple(values[i] for i in index) for values in (self.names, self.prompts))
        return LoopImages(names, self.pixels[index], prompts, self.quality[index], self.unet_evaluations)


def joined(parts: Sequence[LoopImages]) -> LoopImages:
    """All of them, one after the other."""
    return LoopImages(
        sum((part.names for part in parts), ()),
        np.concatenate([part.pixels for part in parts]),
        sum((part.prompts for part in parts), ()),
        np.concatenate([part.quality for part in parts]),
        parts[0].unet_evaluations,
    )


@dataclass(eq=False)
class Encoded:
    """Images as scorers see them. Tokens are kept for each encoder that asked: all but unfrozen ones are the same."""

    images: LoopImages
    text_encoder: Path = EMBEDDED_MODEL_DIR  # pipeline folder
    _tokens: list[tuple[torch.nn.Module, Tensor]] = field(default_factory=list)
    _metrics: Tensor | None = None
    _text: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def kinds(self) -> Tensor:
        return kind_indices(self.images.kind_slugs)

    def _prepared(self) -> list[Tensor]:
        return [prepare(part.float() / 255, SIDE) for part in self.images.tensor.split(_BATCH)]

    @torch.no_grad()
    def metrics(self) -> Tensor:
        """(N, M)"""
        if self._metrics is None:
            self._metrics = torch.cat([measure(part) for part in self._prepared()])
        return self._metrics

    @torch.no_grad()
    def tokens(self, encoder: torch.nn.Module) -> Tensor:
        """(N, T, D)"""
        for known, values in self._tokens:
            if _are_equal(known, encoder):
                return values
        values = torch.cat([encode(encoder.eval(), part) for part in self._prepared()])
        self._tokens.append((encoder, values))
        return values

    def text(self) -> tuple[Tensor, Tensor]:
        """Words (N, L, D_text) of each image's prompt, and which of them there are (N, L)."""
        if self._text is None:
            texts = tuple(dict.fromkeys(self.images.prompts))
            place = {text: number for number, text in enumerate(texts)}
            features = encode_prompts(self.text_encoder, texts)
            self._text = features[torch.tensor([place[text] for text in self.images.prompts])]
        return self._text

    @torch.no_grad()
    def heads(self, selector: Selector) -> Tensor:
        """P(r > 1) by each head, (N, K)."""
        kinds = self.kinds
        percepts = selector.eval().perception(self.tokens(selector.encoder))
        logits = selector.heads(selector.features(percepts, self.metrics(), kinds))
        return selector.probabilities(logits, kinds)

    @torch.no_grad()
    def alignment(self, policy: Policy) -> np.ndarray:
        """The policy's scores (N,)."""
        policy.eval()
        words, mask = self.text()
        tokens, scores = self.tokens(policy.encoder), []
        for items in torch.arange(len(self)).split(_BATCH):
            seen = policy.image_projection(tokens[items])
            scores.append(policy.alignment(policy.fuse(seen, words[items], mask[items])))
        return torch.cat(scores).numpy().astype(float)


def _are_equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    """Whether two networks are the same function."""
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(
        one[name].shape == other[name].shape and torch.equal(one[name], other[name]) for name in one
    )
