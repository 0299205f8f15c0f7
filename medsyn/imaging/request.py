"""What is asked of a reader: which file, shown through which window, which frame or slice of it.

Mistakes of the caller (an unknown preset, two slice rules at once) are ValueErrors raised here, before the file is
opened; what is wrong with a file is an ImageReadError raised by its reader.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from medsyn.imaging.image import ImageReadError
from medsyn.imaging.windowing import preset_name
from medsyn.modalities import Kind

SLICE_AXES = ("sagittal", "coronal", "axial")  # by number of the patient axis they are perpendicular to: R, A, S

# Limits for untrusted files, checked against headers before anything is decoded.
MAX_FILE_BYTES = 2 << 30  # of the file as it lies on disk
MAX_PIXELS = 64_000_000  # of one picture; the largest mammograms have about 25 million
MAX_VOLUME_BYTES = 2 << 30  # of a decompressed NIfTI file up to the end of the volume asked for


@dataclass(frozen=True)
class ReadRequest:
    """The arguments of ``medsyn.imaging.load``, checked."""

    path: Path
    kind: Kind | None = None  # what the picture shows; None: only what the file itself says
    window: str | tuple[float, float] | None = None  # preset name, (centre, width) or None: the rule
    frame: int | None = None  # DICOM frame or 4-D NIfTI volume, from 0
    slice_axis: str | None = None  # one of SLICE_AXES
    slice_index: int | None = None  # along the axis, 0 at the patient's left, back or feet (RAS+)
    slice_fraction: float | None = None  # 0 first slice, 1 last slice

    def __post_init__(self) -> None:
        if isinstance(self.window, str):
            preset_name(self.window)
        elif self.window is not None:
            _check_window(self.window)
        if self.slice_axis not in (None, *SLICE_AXES):
            raise ValueError(f"slice_axis={self.slice_axis!r} is unknown. Use one of: {', '.join(SLICE_AXES)}.")
        if self.slice_index is not None and self.slice_fraction is not None:
            raise ValueError("slice_index and slice_fraction both name a slice. Give one of them.")
        if self.slice_fraction is not None and not 0 <= self.slice_fraction <= 1:
            raise ValueError(f"slice_fraction={self.slice_fraction!r} must lie between 0 and 1.")

    def refuse(self, reason: str) -> ImageReadError:
        return ImageReadError(self.path, reason)

    def check_size(self, height: int, width: int) -> None:
        """Refuse a picture too large or without pixels, before memory is taken for it."""
        if height < 1 or width < 1:
            raise self.refuse(f"it says that it is {width} x {height} pixels large")
        if height * width > MAX_PIXELS:
            raise self.refuse(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS:,}")

    def pick(self, count: int, wanted: int | None, name: str) -> int:
        """``wanted``, checked against the ``count`` that the file has, or the middle one."""
        if wanted is None:
            return count // 2
        if not 0 <= wanted < count:
            raise self.refuse(f"{name} {wanted} was asked for, but the file has {count}, numbered from 0")
        return wanted


def _check_window(window: tuple[float, float]) -> None:
    centre, width = window
    if not (math.isfinite(centre) and math.isfinite(width) and width > 0):
        raise ValueError(f"window={window!r} must be a finite (centre, width) with a width above 0.")
