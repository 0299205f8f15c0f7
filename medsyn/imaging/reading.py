"""What a reader of one file format hands over, and how it becomes a picture."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medsyn.imaging.image import MedicalImage
from medsyn.imaging.windowing import Window, apply_window


@dataclass(frozen=True, eq=False)
class Reading:
    """One picture of a file before it is windowed, turned upright and stretched to square pixels."""

    # Float (H, W) in the file's rescaled units (HU for CT); without a window fractions of white, (H, W) or (H, W, 3).
    values: np.ndarray
    window: Window | None  # what shows the values at first; None: they are fractions, shown as they are
    source: Path
    format: str  # "png", "jpeg", "dicom" or "nifti"
    bits: int  # significant bits of a stored sample
    lay_out: Callable[[np.ndarray], np.ndarray] = np.ascontiguousarray  # turns upright, makes the pixels square
    is_hounsfield: bool = False
    is_inverted: bool = False  # low values are bright (MONOCHROME1)
    padding: np.ndarray | None = None  # bool (H, W): pixels outside the picture, always black

    def picture(self) -> MedicalImage:
        shown = self.values if self.window is None else apply_window(self.values, self.window)
        if self.is_inverted:
            shown = 1 - shown
        if self.padding is not None:
            shown = np.where(self.padding, np.float32(0), shown)
        window = self.window.pair if self.window else None
        return MedicalImage(self.lay_out(shown), self.source, self.format, self.bits, window)
