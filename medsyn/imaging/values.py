"""Grey pictures in their full depth: 16-bit samples that a viewer puts through a window of its own.

Values in Hounsfield units stay so. All others become per cent of how the picture is shown at first (0 black, 100
white): what the numbers of a magnetic resonance image or of a detector mean differs from file to file.
"""

from dataclasses import dataclass, replace

import numpy as np

from medsyn.imaging.reading import Reading
from medsyn.imaging.windowing import Window, apply_window

_TOP = 65535
_FRACTION = Window(0.5, 1.0)


@dataclass(frozen=True, eq=False)
class ValueImage:
    """Upright samples with square pixels: value = sample * slope + intercept."""

    samples: np.ndarray  # uint16 (H, W)
    slope: float  # units per sample, above 0
    intercept: float  # value of sample 0
    unit: str  # "HU", or "%" of the first showing
    window: Window  # of the first showing, in the unit: LINEAR or LINEAR_EXACT


def value_image(reading: Reading) -> ValueImage | None:
    """The reading in 16 bits; None for colours. Values further apart than a 65535th of the range stay apart."""
    if reading.values.ndim != 2:
        return None
    values, window = _grey_scale(reading)
    if reading.padding is not None and not reading.padding.all():
        centre, width = window.exact_pair
        black = min(float(values[~reading.padding].min()), centre - width / 2)
        values = np.where(reading.padding, values.dtype.type(black), values)
    samples, slope, intercept = _quantised(reading.lay_out(values))
    return ValueImage(samples, slope, intercept, "HU" if _keeps_hounsfield(reading) else "%", window)


def _keeps_hounsfield(reading: Reading) -> bool:
    """A sigmoid or an inverted scale cannot be told from the values: they are drawn into them."""
    window = reading.window
    return reading.is_hounsfield and not reading.is_inverted and window is not None and window.function != "SIGMOID"


def _grey_scale(reading: Reading) -> tuple[np.ndarray, Window]:
    """Values that rise from black to white, in the image's unit, and their window."""
    if _keeps_hounsfield(reading):
        function = "LINEAR" if reading.window.function == "LINEAR" and reading.window.width > 1 else "LINEAR_EXACT"
        return reading.values, replace(reading.window, function=function)
    values, window = reading.values.astype(np.float64), reading.window or _FRACTION
    if window.function == "SIGMOID":
        values, window = apply_window(values, window).astype(np.float64), _FRACTION
    centre, width = window.exact_pair
    fractions = (values - centre) / width + 0.5
    if reading.is_inverted:
        fractions = 1 - fractions
    return 100 * fractions, Window(50.0, 100.0)


def _quantised(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    low, high = float(values.min()), float(values.max())
    is_whole = high - low <= _TOP and bool((values == np.rint(values)).all())
    slope = 1.0 if is_whole or high == low else (high - low) / _TOP
    # In double precision: neighbours at the ends of a wide range must not fall together.
    samples = np.rint((values.astype(np.float64) - low) / slope)
    return samples.clip(0, _TOP).astype(np.uint16), slope, low
