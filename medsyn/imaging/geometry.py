"""Which way up: slices turned the radiological way and stretched to square pixels.

Directions are unit-free vectors in the patient's LPS frame (x to the patient's left, y to the back, z to the head),
as DICOM has them. Seen the radiological way, the patient's right is on the left of the picture.
"""

import numpy as np

from medsyn.imaging.image import resample

RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
# By the patient axis that a slice is perpendicular to: (axis, sign) of what runs to the right, and of what runs down.
_RIGHT_AND_DOWN = {
    0: ((1, 1), (2, -1)),  # sagittal: the back to the right, the feet down
    1: ((0, 1), (2, -1)),  # coronal: the patient's left to the right, the feet down
    2: ((0, 1), (1, 1)),  # axial: the patient's left to the right, the back down
}
_SQUARE_TOLERANCE = 0.01  # pixels that differ by less are square: no resampling


def turn_upright(
    pixels: np.ndarray, spacing: tuple[float, float], rightward: np.ndarray, downward: np.ndarray
) -> tuple[np.ndarray, tuple[float, float]]:
    """Transpose and flip a slice (H, W, ...) into the radiological view of its plane.

    ``rightward`` and ``downward`` say where increasing columns and rows lead (LPS); ``spacing`` is (row, column) in
    mm. An oblique slice is treated as the plane it is closest to. Returns the slice and its spacing.
    """
    normal = np.abs(np.cross(rightward, downward))
    (right_axis, right_sign), (down_axis, down_sign) = _RIGHT_AND_DOWN[int(np.argmax(normal))]
    straight = abs(rightward[right_axis]) + abs(downward[down_axis])
    crossed = abs(downward[right_axis]) + abs(rightward[down_axis])
    if crossed > straight:
        pixels, spacing = np.swapaxes(pixels, 0, 1), spacing[::-1]
        rightward, downward = downward, rightward
    if rightward[right_axis] * right_sign < 0:
        pixels = pixels[:, ::-1]
    if downward[down_axis] * down_sign < 0:
        pixels = pixels[::-1]
    return pixels, spacing


def is_usable(spacing: tuple[float, float]) -> bool:
    """Whether (row, column) spacing says anything: some files carry zeros or nonsense."""
    return all(np.isfinite(length) and length > 0 for length in spacing)


def square_size(height: int, width: int, spacing: tuple[float, float]) -> tuple[int, int]:
    """The size (H, W) with square pixels: the coarser side is stretched, so that no detail is lost."""
    if not is_usable(spacing):
        return height, width
    ratio = spacing[0] / spacing[1]
    if abs(ratio - 1) < _SQUARE_TOLERANCE:
        return height, width
    return (round(height * ratio), width) if ratio > 1 else (height, round(width / ratio))


def to_square_pixels(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.ascontiguousarray(resample(pixels, *size))
