"""Generic degradations of images, each with a strength: what the encoder learns to see without any rating.

The usual distortions of no-reference quality assessment (Liu et al. 2017, RankIQA) and the acquisition artefacts of
medical augmentation (Perez-Garcia et al. 2021, TorchIO: noise, blur, anisotropy, bias field, spike, ghosting, motion,
elastic deformation, swap). Written for this purpose: nothing is shared with the defects that benchmarks plant, though
several are of the same kind, as any list of image faults must be (docs/learning.md says which).

Every degradation takes images (B, 3, S, S) in [0, 1], strengths (B,) in (0, 1] and a generator.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

NUM_DEGRADATIONS_CHANCES = (0.25, 0.4, 0.25, 0.1)  # of 0, 1, 2, 3 degradations in one image
_LARGEST_NOISE = 0.25  # standard deviation, grey
_LARGEST_BLUR = 0.04  # of the side, standard deviation
_COARSEST = 6.0  # times fewer pixels along an axis
_LARGEST_SPIKE = 0.3  # amplitude, grey
_LARGEST_SHIFT = 0.06  # of the side, elastic deformation
_JPEG_BLOCK = 8  # pixels
_SWAPS = 3  # patches swapped at most

Degradation = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _noise(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """White noise, the same in the three channels or of its own in each."""
    grey = torch.randn((len(images), 1, *images.shape[2:]), generator=generator).expand_as(images)
    coloured = torch.randn(images.shape, generator=generator)
    is_coloured = torch.rand(len(images), generator=generator) < 0.3
    return images + _column(_LARGEST_NOISE * strength) * torch.where(_column(is_coloured), coloured, grey)


def _blur(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian, as a product with its transfer function."""
    side = images.shape[2]
    rows, columns = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]
    sigma = _column(_LARGEST_BLUR * side * strength)
    transfer = torch.exp(-2 * (math.pi * sigma) ** 2 * (rows**2 + columns**2))
    return torch.fft.irfft2(torch.fft.rfft2(images) * transfer, s=images.shape[2:])


def _resampling(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Fewer pixels along one axis or both, brought back by the nearest one."""
    side, count = images.shape[2], len(images)
    along = torch.rand(count, 2, generator=generator) < 0.6
    along[:, 0] |= ~along.any(1)
    step = torch.where(along, 1 + (_COARSEST - 1) * strength[:, None], 1.0)
    place = (torch.arange(side) + 0.5)[None, None]
    kept = ((place / step[..., None]).floor() + 0.5) * step[..., None]
    grid = (2 * kept / side - 1).clamp(-1, 1)
    shape = (count, side, side)
    lattice = torch.stack([grid[:, 1, None, :].expand(shape), grid[:, 0, :, None].expand(shape)], dim=3)
    return F.grid_sample(images, lattice, padding_mode="border", align_corners=False)


def _compression(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Cosine coefficients of 8 x 8 blocks rounded to coarse steps, as in JPEG."""
    count, _, side, _ = images.shape
    if side % _JPEG_BLOCK:
        return images
    order = torch.arange(_JPEG_BLOCK)
    basis = torch.cos(math.pi * (order[None] + 0.5) * order[:, None] / _JPEG_BLOCK) * (2 / _JPEG_BLOCK) ** 0.5
    basis[0] /= 2**0.5
    blocks = images.unfold(2, _JPEG_BLOCK, _JPEG_BLOCK).unfold(3, _JPEG_BLOCK, _JPEG_BLOCK)
    waves = basis @ blocks @ basis.T
    step = 0.02 + strength[:, None, None, None, None, None] * 0.12 * (1 + order[:, None] + order)
    restored = basis.T @ ((waves / step).round() * step) @ basis
    return restored.permute(0, 1, 2, 4, 3, 5).reshape(count, 3, side, side)


def _window(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """A narrower window of grey values: what lies outside clips."""
    centre = _uniform(len(images), 0.3, 0.6, generator)
    gain = 1 + 6 * strength**1.5 * _uniform(len(images), 0.5, 1.0, generator)
    return (images - _column(centre)) * _column(gain) + _column(centre)


def _gamma(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    sign = torch.where(torch.rand(len(images), generator=generator) < 0.5, -1.0, 1.0)
    return images.clamp(1e-4, 1) ** _column(torch.exp(sign * 1.1 * strength))


def _smooth_field(count: int, channels: int, side: int, cells: int, generator: torch.Generator) -> Tensor:
    coarse = torch.randn(count, channels, cells, cells, generator=generator)
    return F.interpolate(coarse, (side, side), mode="bicubic", align_corners=True)


def _bias_field(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness that drifts over the image."""
    field = _smooth_field(len(images), 1, images.shape[2], 3, generator)
    return images * torch.exp(_column(0.8 * strength) * field)


def _spike(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """One or two points of k-space too bright: waves of any frequency and direction over the image."""
    count, side = len(images), images.shape[2]
    place = torch.arange(side).float()
    wave = torch.zeros(count, side, side)
    for number in range(2):
        frequency = 0.5 * torch.rand(count, 2, generator=generator) ** 1.5
        axis = torch.rand(count, generator=generator)
        frequency[axis < 0.3, 0] = 0
        frequency[axis > 0.7, 1] = 0
        phase = 2 * math.pi * torch.rand(count, generator=generator)
        along = frequency[:, 0, None, None] * place[:, None] + frequency[:, 1, None, None] * place[None]
        share = 1.0 if number == 0 else (torch.rand(count, generator=generator) < 0.3).float()[:, None, None]
        wave = wave + share * torch.sin(2 * math.pi * along + phase[:, None, None])
    return images + _column(_LARGEST_SPIKE * strength) * wave[:, None]


def _ghosting(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Every n-th line of k-space weaker than its neighbours: faint copies along one axis."""
    count, side = len(images), images.shape[2]
    every = torch.randint(2, 9, (count,), generator=generator)
    line = torch.fft.fftfreq(side, 1 / side).long()
    weak = (line[None] % every[:, None] == 0) & (line[None].abs() > 0)
    gain = 1 - 0.9 * strength[:, None] * weak
    axis = torch.rand(count, generator=generator) < 0.5
    gain = torch.where(_column(axis), gain[:, None, :, None], gain[:, None, None, :])
    return torch.fft.ifft2(torch.fft.fft2(images) * gain).real


def _motion(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """The image mixed with a moved and turned copy of itself."""
    count = len(images)
    angle = torch.deg2rad(_uniform(count, -12, 12, generator))
    matrix = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(count, 2, 2)
    shift = _uniform(count * 2, -0.45, 0.45, generator).view(count, 2, 1)
    grid = F.affine_grid(torch.cat([matrix, shift], 2), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return images + _column(0.5 * strength) * (moved - images)


def _elastic(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Displaced along a smooth random field."""
    count, side = len(images), images.shape[2]
    cells = int(torch.randint(4, 9, (), generator=generator))
    field = 2 * _LARGEST_SHIFT * strength[:, None, None, None] * _smooth_field(count, 2, side, cells, generator)
    identity = torch.eye(2, 3).expand(count, 2, 3)
    grid = F.affine_grid(identity, list(images.shape), align_corners=False) + field.permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _rectangles(count: int, side: int, area: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 1, S, S) bool: a rectangle of about that share of the image, anywhere."""
    aspect = torch.exp(_uniform(count, -0.7, 0.7, generator))
    height, width = (area * aspect).sqrt() * side, (area / aspect).sqrt() * side
    centre = torch.rand(2, count, generator=generator) * side
    place = torch.arange(side).float()
    rows = (place[None] - centre[0][:, None]).abs() < height[:, None] / 2
    columns = (place[None] - centre[1][:, None]).abs() < width[:, None] / 2
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _cutout(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Rectangles of one grey value (DeVries and Taylor 2017)."""
    for _ in range(_SWAPS):
        hole = _rectangles(len(images), images.shape[2], 0.1 * strength, generator)
        images = torch.where(hole, _column(torch.rand(len(images), generator=generator)), images)
    return images


def _swap(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """A patch taken from another place of the image, or from another image (Yun et al. 2019, CutMix)."""
    count, side = len(images), images.shape[2]
    patch = _rectangles(count, side, 0.35 * strength, generator)
    rows, columns = (int(torch.randint(side // 8, side // 2, (), generator=generator)) for _ in range(2))
    elsewhere = images.roll((rows, columns), dims=(2, 3))
    is_foreign = torch.rand(count, generator=generator) < 0.3
    elsewhere = torch.where(_column(is_foreign), images.roll(1, dims=0), elsewhere)
    return torch.where(patch, elsewhere, images)


_DEGRADATIONS: dict[str, Degradation] = {
    "elastic": _elastic,
    "swap": _swap,
    "motion": _motion,
    "ghosting": _ghosting,
    "bias_field": _bias_field,
    "gamma": _gamma,
    "window": _window,
    "blur": _blur,
    "resampling": _resampling,
    "noise": _noise,
    "spike": _spike,
    "cutout": _cutout,
    "compression": _compression,
}
DEGRADATIONS: tuple[str, ...] = tuple(_DEGRADATIONS)  # in the order in which they are applied: anatomy first


def degrade(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Degraded images (B, 3, S, S) in [0, 1] and the strengths (B, len(DEGRADATIONS)), 0 where not applied."""
    count = len(images)
    chances = torch.tensor(NUM_DEGRADATIONS_CHANCES)
    number = torch.multinomial(chances, count, replacement=True, generator=generator)
    rank = torch.rand(count, len(DEGRADATIONS), generator=generator).argsort(1).argsort(1)
    strengths = torch.rand(count, len(DEGRADATIONS), generator=generator) * (rank < number[:, None])
    degraded = images.clone()
    for column, function in enumerate(_DEGRADATIONS.values()):
        chosen = strengths[:, column].nonzero()[:, 0]
        if len(chosen):
            degraded[chosen] = function(degraded[chosen], strengths[chosen, column], generator).clamp(0, 1)
    return degraded, strengths
