"""Pictures that are nearly the same: scaled, compressed again, brighter, noisy or mirrored copies, adjacent slices.

A picture's fingerprint is its 32 x 32 thumbnail less its own blur, scaled to mean 0 and length 1; two pictures are
nearly the same where their fingerprints correlate. The blur is taken off because it is what all pictures of a kind
share: of the pairs among 1,403 real images 0.6 % correlate at 0.98 with it and 0.01 % without it, while JPEG of
quality 15, half the size and 5 % noise keep every one of 120 images above 0.98.

All pairs are compared, without missing any: fingerprints are projected on a few principal axes, and what lies
off these axes enters as its length. By the Cauchy-Schwarz inequality the product of such short vectors is never
below the correlation, so that one matrix product leaves few pairs to be compared in full.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

THRESHOLD = 0.97  # correlation from which two pictures count as nearly the same
MAX_PAIRS = 1_000_000  # beyond this a data set is one crowd of look-alikes; the search stops and says so
_BLUR = 1.5  # pixels of the thumbnail, standard deviation
_FLAT = 1.0  # grey levels: a thumbnail that differs less from its blur has no fingerprint
_AXES = 96
_SAMPLE = 4096  # fingerprints that the axes are computed from
_TILE_ROWS, _TILE_COLUMNS = 512, 4096
_CHUNK = 8192
_ROUNDING = 2e-3  # of half-precision fingerprints; the final comparison is made in single precision


@dataclass(frozen=True)
class NearPair:
    """Two pictures that are nearly the same."""

    first: int  # position in the sequence, below ``second``
    second: int
    correlation: float  # of the fingerprints, THRESHOLD..1
    is_mirrored: bool  # one is like the other's mirror image


def fingerprints(thumbnails: np.ndarray) -> np.ndarray:
    """uint8 (N, S, S) to float16 (N, S * S) of mean 0 and length 1; zeros for a flat picture, which is like none."""
    result = np.zeros((len(thumbnails), thumbnails[0].size if len(thumbnails) else 0), dtype=np.float16)
    for start in range(0, len(thumbnails), _CHUNK):
        chunk = thumbnails[start : start + _CHUNK].astype(np.float32)
        edges = (chunk - gaussian_filter(chunk, (0, _BLUR, _BLUR), mode="nearest")).reshape(len(chunk), -1)
        edges -= edges.mean(axis=1, keepdims=True)
        length = np.linalg.norm(edges, axis=1, keepdims=True)
        is_flat = length < _FLAT * np.sqrt(edges.shape[1])
        result[start : start + _CHUNK] = np.where(is_flat, 0, edges / np.maximum(length, 1e-6))
    return result


def mirrored(prints: np.ndarray) -> np.ndarray:
    """The fingerprints of the mirrored pictures."""
    side = round(prints.shape[1] ** 0.5)
    return np.ascontiguousarray(prints.reshape(-1, side, side)[:, :, ::-1]).reshape(prints.shape)


def near_pairs(thumbnails: np.ndarray, *, threshold: float = THRESHOLD) -> tuple[list[NearPair], bool]:
    """Every pair of uint8 (N, S, S) thumbnails that correlate at ``threshold``, and whether these are all.

    A pair that is alike both ways (a picture like its own mirror image) is given once, unmirrored.
    """
    if len(thumbnails) < 2:
        return [], True
    prints = fingerprints(thumbnails)
    axes = _axes(prints)
    short = _shortened(prints, axes)
    found: dict[tuple[int, int], NearPair] = {}
    for is_mirrored in (False, True):
        others = mirrored(prints) if is_mirrored else prints
        other_short = _shortened(others, axes) if is_mirrored else short
        for rows, columns in _candidates(short, other_short, threshold - _ROUNDING):
            for pair in _compared(prints, others, rows, columns, threshold, is_mirrored):
                found.setdefault((pair.first, pair.second), pair)
            if len(found) > MAX_PAIRS:
                return sorted(found.values(), key=_place), False
    return sorted(found.values(), key=_place), True


def clusters(count: int, pairs: Sequence[NearPair]) -> list[list[int]]:
    """Positions that hang together by pairs, each group in order, groups by their first position."""
    if not pairs:
        return []
    ends = np.array([(pair.first, pair.second) for pair in pairs])
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    members: dict[int, list[int]] = {}
    for position in np.unique(ends):
        members.setdefault(int(labels[position]), []).append(int(position))
    return sorted(members.values())


def _place(pair: NearPair) -> tuple[int, int]:
    return pair.first, pair.second


def _axes(prints: np.ndarray) -> np.ndarray:
    """The principal axes (S * S, _AXES) of an even sample of the fingerprints and their mirror images."""
    sample = prints[:: max(1, len(prints) // _SAMPLE)].astype(np.float32)
    both = np.concatenate([sample, mirrored(sample)])
    _, vectors = np.linalg.eigh(both.T @ both)
    return np.ascontiguousarray(vectors[:, -_AXES:], dtype=np.float32)


def _shortened(prints: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """float32 (N, _AXES + 1): coordinates on the axes, and the length of what lies off them."""
    short = np.empty((len(prints), axes.shape[1] + 1), dtype=np.float32)
    for start in range(0, len(prints), _CHUNK):
        chunk = prints[start : start + _CHUNK].astype(np.float32)
        on_axes = chunk @ axes
        off_axes = (chunk * chunk).sum(axis=1) - (on_axes * on_axes).sum(axis=1)
        short[start : start + _CHUNK, :-1] = on_axes
        short[start : start + _CHUNK, -1] = np.sqrt(np.maximum(off_axes, 0))
    return short


def _candidates(short: np.ndarray, others: np.ndarray, bound: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions (first < second) whose correlation may reach ``bound``, tile by tile."""
    count = len(short)
    starts = range(0, count, _TILE_ROWS)
    for top in tqdm(starts, desc="Comparing images", unit="tile", disable=None if len(starts) > 8 else True):
        rows = short[top : top + _TILE_ROWS]
        for left in range(top, count, _TILE_COLUMNS):
            bounds = rows @ others[left : left + _TILE_COLUMNS].T
            first, second = np.divmod(np.flatnonzero(bounds >= bound), bounds.shape[1])
            first, second = first + top, second + left
            is_ordered = first < second
            if is_ordered.any():
                yield first[is_ordered], second[is_ordered]


def _compared(
    prints: np.ndarray, others: np.ndarray, rows: np.ndarray, columns: np.ndarray, threshold: float, is_mirrored: bool
) -> Iterator[NearPair]:
    """Those of the candidate pairs whose whole fingerprints correlate."""
    for start in range(0, len(rows), _CHUNK):
        first, second = rows[start : start + _CHUNK], columns[start : start + _CHUNK]
        correlations = np.einsum("nd,nd->n", prints[first].astype(np.float32), others[second].astype(np.float32))
        for place in np.flatnonzero(correlations >= threshold):
            value = min(1.0, float(correlations[place]))
            yield NearPair(int(first[place]), int(second[place]), value, is_mirrored)
