"""Medical image quality as numbers: signal over noise, contrast, traces of artefacts.

They inform the selector beside the pixels and never reject an image by themselves: mean over deviation falls
below 1 for every real brain MRI with a dark background. Ratios are taken in logarithms, with floors, so each
number is finite for any image, constant and black ones included.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

QUALITY_METRICS = (
    "log_snr",  # ln of the foreground's mean over the noise's deviation
    "contrast",  # 98th minus 2nd percentile of grey, [0, 1]
    "rms_contrast",  # standard deviation of grey, [0, 0.5]
    "mean_grey",  # [0, 1]
    "log_sharpness",  # ln of the Laplacian's mean square
    "local_flatness",  # share of 8x8 tiles without texture, [0, 1]
    "impulse_share",  # pixels far from the median of their neighbours, [0, 1]
    "saturated_share",  # pixels at white, [0, 1]
    "stripe_excess",  # ln of the largest spectral peak off the centre over its neighbourhood
    "blockiness",  # ln of gradients on the 8-pixel grid over those off it
    "row_jumps",  # ln of the largest step between neighbouring rows' (columns') means over the usual step
    "colour",  # mean spread between the channels, [0, 1]
)
ARTEFACT_METRICS = ("impulse_share", "saturated_share", "stripe_excess", "blockiness", "row_jumps")
_FLOOR = 1e-3  # about a quarter of a grey level of 255: what lies below is as good as nothing
_WHITE = 0.996  # 254 of 255
_IMPULSE_STEP = 0.2  # grey; anatomy's edges rarely stand this far out from all their neighbours
_FLAT_DEVIATION = 0.01  # grey, within a tile
_TILE = 8  # pixels; the block of JPEG


def measure(images: Tensor) -> Tensor:
    """Quality metrics (B, M) float32, in the order of QUALITY_METRICS, finite for any image.

    ``images``: (B, 3, H, W) or grey (B, 1, H, W) in [0, 1], sides of at least 16 pixels. Values that are not
    finite are read as black.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or min(images.shape[2:]) < 2 * _TILE:
        raise ValueError(f"Images must be (B, 1|3, H, W) with sides of at least 16; got {tuple(images.shape)}.")
    images = torch.nan_to_num(images.float(), nan=0.0, posinf=1.0, neginf=0.0).clamp(0, 1)
    grey = images.mean(1)
    low, high = _percentiles(grey)
    laplacian = _laplacian(grey)
    columns = {
        "log_snr": _log_snr(grey, laplacian),
        "contrast": high - low,
        "rms_contrast": grey.flatten(1).std(1, correction=0),
        "mean_grey": grey.mean((1, 2)),
        "log_sharpness": torch.log(laplacian.square().mean((1, 2)) + _FLOOR**2),
        "local_flatness": _flatness(grey),
        "impulse_share": _impulse_share(grey),
        "saturated_share": (grey >= _WHITE).float().mean((1, 2)),
        "stripe_excess": _stripe_excess(grey),
        "blockiness": _blockiness(grey),
        "row_jumps": torch.maximum(_jumps(grey.mean(2)), _jumps(grey.mean(1))),
        "colour": (images.amax(1) - images.amin(1)).mean((1, 2)),
    }
    return torch.stack([columns[name] for name in QUALITY_METRICS], dim=1)


def _percentiles(grey: Tensor) -> tuple[Tensor, Tensor]:
    ordered = grey.flatten(1).sort(1).values
    last = ordered.shape[1] - 1
    return ordered[:, round(0.02 * last)], ordered[:, round(0.98 * last)]


def _laplacian(grey: Tensor) -> Tensor:
    """The difference of two Laplacians: blind to planes and edges' slopes, so what answers is mostly noise."""
    kernel = grey.new_tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])
    return F.conv2d(grey[:, None], kernel[None, None])[:, 0]


def _log_snr(grey: Tensor, laplacian: Tensor) -> Tensor:
    """Foreground mean over noise deviation, after Immerkaer (1996), with a median instead of his mean.

    For white noise of deviation s the Laplacian above has deviation 6 s, and the median of its absolute value
    is 0.6745 times that.
    """
    noise = laplacian.abs().flatten(1).median(1).values / (0.6745 * 6)
    foreground = grey > grey.mean((1, 2), keepdim=True)
    signal = (grey * foreground).sum((1, 2)) / foreground.sum((1, 2)).clamp(min=1)
    return torch.log(signal + _FLOOR) - torch.log(noise + _FLOOR)


def _flatness(grey: Tensor) -> Tensor:
    mean = F.avg_pool2d(grey[:, None], _TILE)
    variance = F.avg_pool2d(grey[:, None].square(), _TILE) - mean.square()
    return (variance < _FLAT_DEVIATION**2).float().mean((1, 2, 3))


def _impulse_share(grey: Tensor) -> Tensor:
    neighbours = F.unfold(F.pad(grey[:, None], (1, 1, 1, 1), mode="reflect"), 3)
    median = neighbours.median(1).values.view_as(grey)
    return ((grey - median).abs() > _IMPULSE_STEP).float().mean((1, 2))


def _stripe_excess(grey: Tensor) -> Tensor:
    """Stripes and spikes in k-space stand out of a smooth spectrum: the largest peak over its neighbourhood."""
    spectrum = torch.fft.rfft2(grey - grey.mean((1, 2), keepdim=True), norm="ortho").abs()
    height, width = spectrum.shape[1:]
    rows = torch.fft.fftfreq(height, device=grey.device)[:, None].abs()
    columns = torch.arange(width, device=grey.device)[None, :] / (2 * (width - 1))
    level = torch.log(spectrum + 10 * _FLOOR)
    around = F.avg_pool2d(F.pad(level[:, None], (3, 3, 3, 3), mode="reflect"), 7, stride=1)[:, 0]
    away_from_centre = (rows**2 + columns**2).sqrt() > 0.08  # cycles per pixel; anatomy lives below
    return torch.where(away_from_centre, level - around, level.new_zeros(())).amax((1, 2))


def _blockiness(grey: Tensor) -> Tensor:
    return torch.maximum(_grid_ratio(grey), _grid_ratio(grey.transpose(1, 2)))


def _grid_ratio(grey: Tensor) -> Tensor:
    step = (grey[:, :, 1:] - grey[:, :, :-1]).abs().mean(1)
    on_grid = torch.arange(step.shape[1], device=grey.device) % _TILE == _TILE - 1
    return torch.log(step[:, on_grid].mean(1) + _FLOOR) - torch.log(step[:, ~on_grid].mean(1) + _FLOOR)


def _jumps(profile: Tensor) -> Tensor:
    """``profile`` (B, n): the largest second difference over the median one, as a logarithm."""
    bend = (profile[:, 2:] - 2 * profile[:, 1:-1] + profile[:, :-2]).abs()
    return torch.log(bend.amax(1) + _FLOOR) - torch.log(bend.median(1).values + _FLOOR)
