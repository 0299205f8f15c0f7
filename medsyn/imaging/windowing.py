"""From stored values to grey levels: the three window functions of DICOM, lookup tables, and the rule by modality.

The rule where a file brings no window of its own:

- values in Hounsfield units (HU): chest CT is shown through the *lung* window, any other CT through *soft tissue*;
- everything else (MRI, X-ray, and CT whose values are not HU): from the 0.5th to the 99.5th percentile of the
  picture, pixel padding left out.
"""

from dataclasses import dataclass

import numpy as np

from medsyn.modalities import Kind

# (centre, width) in Hounsfield units, the customary settings of chest reading; the rating page offers the same
# (static/js/rating/window.js).
PRESETS = {
    "lung": (-600.0, 1500.0),
    "soft tissue": (40.0, 400.0),
    "bone": (400.0, 1800.0),
    "vessels": (100.0, 700.0),
    "liver": (60.0, 160.0),
}
_PERCENTILES = (0.5, 99.5)
_BIT_DEPTHS = (8, 10, 12, 14, 16)  # of detectors whose values are met in 16-bit files


@dataclass(frozen=True)
class Window:
    """A part of the value range that is spread over the grey levels."""

    centre: float  # rescaled units of the file (HU for CT)
    width: float  # the same units, above 0
    function: str = "LINEAR_EXACT"  # LINEAR, LINEAR_EXACT or SIGMOID (DICOM PS3.3 C.11.2.1.2)

    @property
    def pair(self) -> tuple[float, float]:
        return self.centre, self.width

    @property
    def exact_pair(self) -> tuple[float, float]:
        """(centre, width) of the LINEAR_EXACT window with the same ends: black below, white above."""
        if self.function == "LINEAR" and self.width > 1:
            return self.centre - 0.5, self.width - 1
        return self.pair


def preset_name(name: str) -> str:
    """The key of PRESETS that ``name`` spells ("Soft_Tissue" too); raises ValueError with the list."""
    key = " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
    if key not in PRESETS:
        raise ValueError(f"Window {name!r} is unknown. Use one of: {', '.join(PRESETS)}, or (centre, width).")
    return key


def apply_window(values: np.ndarray, window: Window) -> np.ndarray:
    """Values of any shape to float32 in [0, 1]; formulas of DICOM PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and .2."""
    centre, width = window.pair
    if window.function == "SIGMOID":
        # Beyond 50 widths the exponential is 0 or infinite in float32 anyway; clipping avoids overflow warnings.
        steepness = np.clip(-4 * (values - centre) / width, -80, 80)
        return (1 / (1 + np.exp(steepness))).astype(np.float32)
    if window.function == "LINEAR" and width >= 1:
        if width == 1:
            return (values > centre - 0.5).astype(np.float32)
        grey = (values - (centre - 0.5)) / (width - 1) + 0.5
    else:
        grey = (values - centre) / width + 0.5
    return np.clip(grey, 0, 1).astype(np.float32)


def apply_lookup(values: np.ndarray, table: np.ndarray, first_mapped: int) -> np.ndarray:
    """The table's entry for each value; values before its first or behind its last entry get that one."""
    positions = np.clip(np.rint(values).astype(np.int64) - first_mapped, 0, len(table) - 1)
    return table[positions]


def percentile_window(values: np.ndarray, padding: np.ndarray | None = None) -> Window:
    """The window from the 0.5th to the 99.5th percentile of what is not padding; the whole range if that is empty."""
    inside = values if padding is None or padding.all() else values[~padding]
    low, high = np.percentile(inside, _PERCENTILES)
    if high <= low:
        low, high = inside.min(), inside.max()
    width = float(high) - float(low)
    # A blank picture has no width: it stays black below a window that begins at its only value.
    return Window(float(low) + width / 2, width) if width > 0 else Window(float(low) + 0.5, 1.0)


def rule_window(
    values: np.ndarray, *, is_hounsfield: bool, is_chest: bool, padding: np.ndarray | None = None
) -> Window:
    """The window by modality, for a file that brings none."""
    if is_hounsfield:
        return Window(*PRESETS["lung" if is_chest else "soft tissue"])
    return percentile_window(values, padding)


def is_chest_kind(kind: Kind | None) -> bool:
    return kind is not None and kind.slug.startswith("chest")


def bit_depth(largest: float) -> int:
    """The smallest usual bit depth that holds ``largest``: 12-bit values in a 16-bit file are not shown as black."""
    return next((bits for bits in _BIT_DEPTHS if largest <= 2**bits - 1), _BIT_DEPTHS[-1])
