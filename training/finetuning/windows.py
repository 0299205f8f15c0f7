"""Which parts of which images an autoencoder sees when: a pure function of the seed and the position.

Training walks along one endless line of positions; epoch e is the stretch [e n, (e + 1) n) in an order of its own.
At a position stands a whole image, or crops of half its side: group norms must see both, and crops show more of
different images. Which of the two is decided for a whole micro-batch, whose images must be of one size. Nothing
depends on what was drawn before, nor on how many processes share a micro-batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from training.finetuning.dataset import Row
from training.finetuning.pixel_cache import PixelCache
from training.finetuning.reconstruction import as_images

# Streams of random numbers that must not be one another's.
_ORDER, _SHAPE, _PLACE = 11, 12, 13
CROPS_PER_IMAGE = 4  # of half the side: as many pixels as the whole image


@dataclass(frozen=True)
class Window:
    """A square part of one image."""

    row: int  # index into the rows
    top: int  # pixels
    left: int
    side: int
    flipped: bool
    noise_seed: int  # of the draw from the posterior


@dataclass(frozen=True)
class Batch:
    """What the autoencoder sees at once."""

    images: Tensor  # (B, 3, H, W) in [0, 1]
    noise: Tensor  # (B, C, h, w), standard normal

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.images.to(device), self.noise.to(device))


@dataclass(frozen=True)
class WindowOrder:
    """The endless line."""

    may_flip: tuple[bool, ...]  # for every row: whether it may be mirrored
    resolution: int  # side of a whole image, pixels
    crop_side: int  # pixels
    crops: float  # share of micro-batches on crops, 0 to 1
    seed: int

    def is_cropped(self, micro_batch: int) -> bool:
        return bool(np.random.default_rng([self.seed, _SHAPE, micro_batch]).random() < self.crops)

    def at(self, position: int, *, cropped: bool) -> list[Window]:
        """The windows of one position: the whole image whose turn it is, or crops of any images."""
        rng = np.random.default_rng([self.seed, _PLACE, position])
        num_rows = len(self.may_flip)
        if not cropped:
            epoch, offset = divmod(position, num_rows)
            return [self._window(rng, int(_permutation(num_rows, self.seed, epoch)[offset]), self.resolution)]
        rows = rng.integers(num_rows, size=CROPS_PER_IMAGE)
        return [self._window(rng, int(row), self.crop_side) for row in rows]

    def _window(self, rng: np.random.Generator, row: int, side: int) -> Window:
        top, left = rng.integers(self.resolution - side + 1, size=2)
        flipped = bool(rng.random() < 0.5) and self.may_flip[row]
        return Window(row, int(top), int(left), side, flipped, int(rng.integers(2**62)))


@lru_cache(maxsize=2)
def _permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(num_rows)


def batches(
    order: WindowOrder,
    rows: Sequence[Row],
    cache: PixelCache,
    micro_batches: range,
    *,
    batch_size: int,
    latent_channels: int,
    scale_factor: int,
    rank: int = 0,
    num_processes: int = 1,
) -> Iterator[Batch]:
    """The micro-batches of one process, counted from the start of training; together the processes leave no gap."""
    for micro_batch in micro_batches:
        start = (micro_batch * num_processes + rank) * batch_size
        cropped = order.is_cropped(micro_batch)
        windows = [
            window for position in range(start, start + batch_size) for window in order.at(position, cropped=cropped)
        ]
        pixels = np.stack([_cut(cache.pixels(rows[window.row]), window) for window in windows])
        yield Batch(as_images(pixels), _noise(windows, latent_channels, scale_factor))


def _cut(pixels: np.ndarray, window: Window) -> np.ndarray:
    part = pixels[window.top : window.top + window.side, window.left : window.left + window.side]
    return part[:, ::-1] if window.flipped else part


def _noise(windows: Sequence[Window], latent_channels: int, scale_factor: int) -> Tensor:
    """(B, C, h, w), every window's from its own seed: the same whatever stands beside it."""
    side = windows[0].side // scale_factor
    shape = (latent_channels, side, side)
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(window.noise_seed)) for window in windows]
    )
