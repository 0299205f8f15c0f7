"""Images made worse by known steps, and whether a figure notices in the right order."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import kendalltau
from torch import Tensor
from torch.nn import functional as F


def blur(images: Tensor, strength: float, _generator: torch.Generator) -> Tensor:
    """Gaussian blur of ``strength`` pixels' deviation at 128 pixels, more in proportion in larger images."""
    sigma = strength * images.shape[-1] / 128
    radius = max(1, round(3 * sigma))
    steps = torch.arange(-radius, radius + 1, dtype=images.dtype)
    kernel = torch.exp(-(steps**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).repeat(3, 1)
    # Wide images of small size: reflection needs more pixels than the radius.
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel[:, None, :, None], groups=3)
    return F.conv2d(rows, kernel[:, None, None, :], groups=3)


def add_noise(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise of deviation ``strength``, equal in the three channels as in a grey image."""
    noise = torch.randn((len(images), 1, *images.shape[2:]), generator=generator)
    return (images + strength * noise).clamp(0, 1)


def lose_contrast(images: Tensor, strength: float, _generator: torch.Generator) -> Tensor:
    """Every pixel moved towards its image's mean by the share ``strength``."""
    return images + strength * (images.mean((1, 2, 3), keepdim=True) - images)


@dataclass(frozen=True)
class Degradation:
    name: str
    apply: Callable[[Tensor, float, torch.Generator], Tensor]  # images (B, 3, H, W) in [0, 1]
    strengths: tuple[float, ...]  # rising; the unit is that of ``apply``


DEGRADATIONS = (
    Degradation("blur", blur, (1.0, 2.0, 3.0, 4.0)),
    Degradation("noise", add_noise, (0.08, 0.16, 0.24, 0.32)),
    Degradation("contrast loss", lose_contrast, (0.2, 0.4, 0.6, 0.8)),
)


def degrade(pixels: Tensor, degradation: Degradation, strength: float, *, seed: int, batch_size: int = 64) -> Tensor:
    """uint8 images (N, 3, H, W), degraded; the same noise pattern at every strength."""
    generator = torch.Generator().manual_seed(seed)
    parts = [degradation.apply(part.float() / 255, strength, generator) for part in pixels.split(batch_size)]
    return torch.cat([(part.clamp(0, 1) * 255).round().to(torch.uint8) for part in parts])


@dataclass(frozen=True)
class Ladder:
    """A figure on ever worse real images. Rung 0 is the undegraded half: the floor."""

    degradation: str
    strengths: tuple[float, ...]  # 0 first
    values: tuple[float, ...]  # the figure on each rung
    lower_is_better: bool
    floor_end: float  # the floor's 97.5 % quantile over the splits, its 2.5 % one where higher is better

    @property
    def kendall_tau(self) -> float:
        """Rank correlation of strength and badness: 1 in order, 0 where the figure does not move."""
        badness = self.values if self.lower_is_better else [-value for value in self.values]
        tau = float(kendalltau(self.strengths, badness).statistic)
        return 0.0 if tau != tau else tau

    @property
    def in_order(self) -> bool:
        """Whether every rung is worse than the one before, and the last outside what equal sets give.

        Rungs inside the floor's range are ties: there the figure cannot tell the images from undegraded ones. A
        figure that has reached 0 (nothing is covered any more) may stay there.
        """
        worse = max if self.lower_is_better else min
        seen = [worse(value, self.floor_end) for value in self.values]
        sign = 1 if self.lower_is_better else -1
        steps = [
            (after - before) * sign > 0 or after == before == self.floor_end or after == before == 0
            for before, after in zip(seen, seen[1:], strict=False)
        ]
        return all(steps) and seen[-1] != self.floor_end

    @property
    def noticed_from(self) -> float | None:
        """The weakest strength from which on the figure lies outside what equal sets give; None: it never does."""
        sign = 1 if self.lower_is_better else -1
        outside = [(value - self.floor_end) * sign > 0 for value in self.values]
        first = next((i for i in range(1, len(outside)) if all(outside[i:])), None)
        return None if first is None else self.strengths[first]

    def to_dict(self) -> dict:
        return {
            "degradation": self.degradation,
            "strengths": list(self.strengths),
            "values": list(self.values),
            "kendall_tau": self.kendall_tau,
            "in_order": self.in_order,
            "noticed_from_strength": self.noticed_from,
        }
