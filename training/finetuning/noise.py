"""Everything random about one training image, as a function of the seed and the image's position in the data order.

Philox is a counter-based generator (Salmon et al. 2011): the position is its counter, so any position's numbers can
be had without those before it, and how a step's images are spread over micro-batches and processes cannot matter.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Streams of random numbers that must not be one another's.
AUGMENTATION, NOISE, POSTERIOR = 2, 3, 4


def generator_at(seed: int, stream: int, position: int) -> np.random.Generator:
    """The random numbers of one position in one stream; ``seed`` and ``position`` are below 2**64."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, position]))


@dataclass(frozen=True)
class NoiseDraw:
    """What is done to one image's latent."""

    timestep: int
    noise: Tensor  # (C, h, w): what the target is made of
    perturbation: Tensor | None  # (C, h, w), unit variance: added to what the UNet sees only; None without it


@dataclass(frozen=True)
class NoiseSource:
    """How noise and timesteps are drawn."""

    seed: int
    num_timesteps: int
    offset: float = 0.0  # standard deviation of a constant per channel, added to the noise (Guttenberg 2023)
    with_perturbation: bool = False

    def draw(self, position: int, shape: tuple[int, ...]) -> NoiseDraw:
        """For the latent (C, h, w) at ``position``."""
        rng = generator_at(self.seed, NOISE, position)
        timestep = int(rng.integers(self.num_timesteps))
        noise = rng.standard_normal(shape, dtype=np.float32)
        if self.offset:
            noise += self.offset * rng.standard_normal((shape[0], 1, 1), dtype=np.float32)
        perturbation = None
        if self.with_perturbation:
            perturbation = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
        return NoiseDraw(timestep, torch.from_numpy(noise), perturbation)


def posterior_sample(mean: Tensor, std: Tensor, seed: int, position: int) -> Tensor:
    """A draw (C, h, w) from the normal distribution of an image's latent."""
    noise = generator_at(seed, POSTERIOR, position).standard_normal(tuple(mean.shape), dtype=np.float32)
    return mean + std * torch.from_numpy(noise)
