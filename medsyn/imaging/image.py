"""What a medical picture is once it has been read: upright, windowed grey levels or colours in [0, 1].

Shapes: H rows, W columns; row 0 is the top, column 0 the left of the picture as a clinician sees it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


class ImageReadError(ValueError):
    """A file that cannot be read as a medical image: names the file and the reason."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)
        self.reason = reason

    def __reduce__(self) -> tuple:
        # Data loaders carry errors between processes; the default would call __init__ with the message alone.
        return type(self), (self.path, self.reason)


@dataclass(frozen=True, eq=False)
class MedicalImage:
    """One picture, ready to be shown or learned from."""

    pixels: np.ndarray  # float32 (H, W) grey or (H, W, 3) RGB, in [0, 1], square pixels
    source: Path  # the file it was read from
    format: str  # "png", "jpeg", "dicom" or "nifti"
    bits: int  # significant bits of a stored sample in the file
    window: tuple[float, float] | None = None  # (centre, width) applied, in the file's rescaled units (HU for CT)

    def to_rgb(self, size: int | tuple[int, int] | None = None, fit: str = "pad") -> np.ndarray:
        """uint8 (S, S, 3), or (height, width, 3) for a pair, or the picture's own size for None.

        The aspect ratio is kept: ``fit="pad"`` shows all of the picture between black margins, ``fit="crop"``
        fills the frame with its centre. Grey pictures get three equal channels.
        """
        fitted = _fit(self.pixels, size, fit)
        return _to_bytes(fitted if fitted.ndim == 3 else np.repeat(fitted[..., None], 3, axis=2))

    def to_grey(self, size: int | tuple[int, int] | None = None, fit: str = "pad") -> np.ndarray:
        """uint8 (S, S) and so on as in to_rgb; colours become BT.601 luma."""
        grey = self.pixels if self.pixels.ndim == 2 else self.pixels @ _LUMA
        return _to_bytes(_fit(grey, size, fit))


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def _fit(pixels: np.ndarray, size: int | tuple[int, int] | None, fit: str) -> np.ndarray:
    """Scale (H, W) or (H, W, 3) into a frame without changing its proportions."""
    if fit not in ("pad", "crop"):
        raise ValueError(f"fit={fit!r} is unknown. Use 'pad' or 'crop'.")
    if size is None:
        return pixels
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size={size!r} must be at least one pixel each way.")
    if fit == "crop":
        return resample(_centre_crop(pixels, height, width), height, width)
    scale = min(height / pixels.shape[0], width / pixels.shape[1])
    inner = [max(1, round(length * scale)) for length in pixels.shape[:2]]
    frame = np.zeros((height, width, *pixels.shape[2:]), dtype=np.float32)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    frame[top : top + inner[0], left : left + inner[1]] = resample(pixels, *inner)
    return frame


def _centre_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The largest centred part of ``pixels`` with the proportions height : width."""
    scale = min(pixels.shape[0] / height, pixels.shape[1] / width)
    inner = [max(1, round(length * scale)) for length in (height, width)]
    top, left = ((whole - part) // 2 for whole, part in zip(pixels.shape[:2], inner, strict=True))
    return pixels[top : top + inner[0], left : left + inner[1]]


def resample(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) or (H, W, 3) float32 to another size: bilinear, with the support widened when shrinking (no aliases)."""
    if pixels.shape[:2] == (height, width):
        return pixels
    if pixels.ndim == 3:
        return np.stack([resample(pixels[..., c], height, width) for c in range(pixels.shape[2])], axis=-1)
    plane = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
    return np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR))
