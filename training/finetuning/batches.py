"""Which image comes when, with which mirroring and which caption left out: a pure function of seed and position.

Training walks along one endless line of positions: epoch e is the stretch [e n, (e + 1) n) in an order of its own.
Nothing depends on what was drawn before, so a run that starts again at step s sees what it would have seen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from generation.diffusion.conditioning import NULL_MODALITY, TextFeatures
from medsyn.artifacts import digest_of
from training.finetuning.dataset import Row
from training.finetuning.latent_cache import LatentCache
from training.finetuning.noise import AUGMENTATION, NoiseSource, generator_at, posterior_sample

_ORDER = 1  # the stream of random numbers that permutes an epoch


@dataclass(frozen=True)
class Draw:
    """What stands at one position."""

    row: int  # index into the rows
    flipped: bool
    dropped: bool  # the caption and the modality are left out


@dataclass(frozen=True)
class DataOrder:
    """The endless line of draws."""

    may_flip: tuple[bool, ...]  # for every row: whether it may be mirrored
    seed: int
    caption_dropout: float  # share of draws, 0 to 1

    def draw(self, position: int) -> Draw:
        epoch, offset = divmod(position, len(self.may_flip))
        row = int(_permutation(len(self.may_flip), self.seed, epoch)[offset])
        flip, drop = generator_at(self.seed, AUGMENTATION, position).random(2)
        return Draw(row, self.may_flip[row] and bool(flip < 0.5), bool(drop < self.caption_dropout))


@lru_cache(maxsize=2)
def _permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(num_rows)


@dataclass(frozen=True)
class Example:
    """One image with what is said of it and what is done to it."""

    latent: Tensor  # (C, h, w)
    timestep: int
    noise: Tensor  # (C, h, w)
    perturbation: Tensor | None  # (C, h, w); None without input perturbation
    caption: str  # empty where the caption is dropped
    modality_id: int
    tokens: Tensor | None  # (L, D_text); None where the text encoder is trained
    weight: float = 1.0  # how much the image counts (training.finetuning.reward_weighted)


@dataclass(frozen=True)
class Batch:
    """Examples side by side."""

    latents: Tensor  # (B, C, h, w)
    timesteps: Tensor  # (B,)
    noise: Tensor  # (B, C, h, w)
    perturbation: Tensor | None  # (B, C, h, w)
    captions: list[str]
    modality_ids: Tensor  # (B,)
    text: TextFeatures | None  # (B, L, D_text), padded; None where the text encoder is trained
    weights: Tensor  # (B,) how much each image counts; 1 in plain fine-tuning

    def to(self, device: torch.device) -> "Batch":
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        moved = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        text = self.text and TextFeatures(self.text.tokens.to(device), self.text.mask.to(device))
        return replace(self, text=text, **moved)

    def take(self, rows: slice) -> "Batch":
        """Some of the examples, by position."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        parts = {name: value[rows] for name, value in values.items() if isinstance(value, (Tensor, list))}
        text = self.text and TextFeatures(self.text.tokens[rows], self.text.mask[rows])
        return replace(self, text=text, **parts)


def rows_sha256(rows: Sequence[Row]) -> str:
    """Of what is trained on: images, captions and their order."""
    return digest_of([[row.image_sha256, row.text] for row in rows])


class CachedExamples(Dataset):
    """The examples of a data order by position, read from the cache."""

    def __init__(
        self,
        rows: Sequence[Row],
        order: DataOrder,
        noise: NoiseSource,
        cache: LatentCache,
        modality_ids: dict[str, int],
        *,
        with_text_features: bool,
        sample_posterior: bool = False,
    ) -> None:
        self.rows = rows
        self.order = order
        self.noise = noise
        self.cache = cache
        self.weights: Sequence[float] | None = None  # by row; None: every image counts 1
        self._modality_ids = modality_ids
        self._with_text_features = with_text_features
        self._sample_posterior = sample_posterior

    def __getitem__(self, position: int) -> Example:
        draw = self.order.draw(position)
        row = self.rows[draw.row]
        caption = "" if draw.dropped else row.text
        latent, std = self.cache.latent(row, draw.flipped)
        if self._sample_posterior:
            latent = posterior_sample(latent, std, self.order.seed, position)
        noise = self.noise.draw(position, tuple(latent.shape))
        return Example(
            latent=latent,
            timestep=noise.timestep,
            noise=noise.noise,
            perturbation=noise.perturbation,
            caption=caption,
            modality_id=NULL_MODALITY if draw.dropped else self._modality_ids[row.prompt.modality],
            tokens=self.cache.text_features(caption) if self._with_text_features else None,
            weight=1.0 if self.weights is None else self.weights[draw.row],
        )


def collate(examples: Sequence[Example]) -> Batch:
    perturbations = [example.perturbation for example in examples if example.perturbation is not None]
    return Batch(
        latents=torch.stack([example.latent for example in examples]),
        timesteps=torch.tensor([example.timestep for example in examples]),
        noise=torch.stack([example.noise for example in examples]),
        perturbation=torch.stack(perturbations) if perturbations else None,
        captions=[example.caption for example in examples],
        modality_ids=torch.tensor([example.modality_id for example in examples]),
        text=_padded([example.tokens for example in examples]),
        weights=torch.tensor([example.weight for example in examples]),
    )


def _padded(tokens: Sequence[Tensor | None]) -> TextFeatures | None:
    if tokens[0] is None:
        return None
    lengths = torch.tensor([len(each) for each in tokens])
    together = nn.utils.rnn.pad_sequence(list(tokens), batch_first=True)
    return TextFeatures(together, torch.arange(together.shape[1]) < lengths[:, None])


def positions(micro_batches: range, batch_size: int, rank: int, num_processes: int) -> Iterator[list[int]]:
    """The positions of each micro-batch of one process; together the processes leave no gap."""
    for index in micro_batches:
        start = (index * num_processes + rank) * batch_size
        yield list(range(start, start + batch_size))


def batches(
    examples: CachedExamples,
    micro_batches: range,
    *,
    batch_size: int,
    rank: int = 0,
    num_processes: int = 1,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """The micro-batches of one process, counted from the start of training."""
    order = list(positions(micro_batches, batch_size, rank, num_processes))
    return iter(DataLoader(examples, batch_sampler=order, collate_fn=collate, num_workers=num_workers))
