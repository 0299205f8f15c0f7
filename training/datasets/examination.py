"""One image of a dataset, opened and measured."""

from dataclasses import dataclass

import numpy as np

from medsyn.imaging import MedicalImage
from medsyn.imaging.image import resample
from training.finetuning.dataset import BadRow, Row, open_row

THUMBNAIL_SIZE = 32  # pixels each way, the proportions given up: what near-duplicates are told by
_VISIBLE = 12  # of 255 grey levels: what differs less from the background is not counted
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


@dataclass(frozen=True, eq=False)
class Examination:
    """What an opened image is."""

    row: Row
    format: str  # "png", "jpeg", "dicom" or "nifti"
    width: int  # pixels
    height: int  # pixels
    drawn_share: float  # of the pixels that differ visibly from the most usual grey level, 0..1
    is_constant: bool  # every pixel is the same
    thumbnail: np.ndarray  # uint8 (32, 32) grey


def examine(row: Row) -> Examination | BadRow:
    """Open a row's image, hash and measure it; a BadRow says why it cannot be used."""
    opened = open_row(row)
    return opened if isinstance(opened, BadRow) else measure(*opened)


def measure(row: Row, image: MedicalImage) -> Examination:
    grey = image.pixels if image.pixels.ndim == 2 else image.pixels @ _LUMA
    small = resample(np.ascontiguousarray(grey, dtype=np.float32), THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    return Examination(
        row=row,
        format=image.format,
        width=grey.shape[1],
        height=grey.shape[0],
        drawn_share=_drawn_share(grey),
        is_constant=bool((image.pixels == image.pixels[0, 0]).all()),
        thumbnail=np.rint(np.clip(small, 0, 1) * 255).astype(np.uint8),
    )


def _drawn_share(grey: np.ndarray) -> float:
    levels = np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)
    counts = np.bincount(levels.ravel(), minlength=256)
    background = int(counts.argmax())
    return 1 - float(counts[max(0, background - _VISIBLE) : background + _VISIBLE + 1].sum()) / levels.size
