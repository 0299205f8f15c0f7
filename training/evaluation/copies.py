"""Copies of training images: how many of the generated images the memory index blocks, beside other patients' images.

A generated image is judged as it is when it is served (generation.memorisation). The real column judges each real
image by all the others, its own group left out: about a share LEVEL of them comes out at LEVEL or below, however the
similarities are spread, unless a few groups stand apart from the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from generation.memorisation import LEVEL, MIN_HELD_OUT, MIN_OWN_KIND, MemoryIndex, nearest
from training.evaluation.drawing import CALL_NAME
from training.evaluation.figures import LIKE_REAL, LOWER, Figure
from training.evaluation.images import GeneratedFile, ImageSet
from training.evaluation.intervals import mean_over_groups

NAME = f"copies of training images (p <= {LEVEL:g})"
SIMILARITY_NAME = "similarity to the nearest training image"
_TOGETHER = 32  # real images compared at a time


@dataclass(frozen=True, eq=False)
class Resemblances:
    """How near the images come to training images."""

    generated: np.ndarray  # (N,) similarity, -1..1
    p_values: np.ndarray  # (N,) of the generated images, 0..1
    real: np.ndarray | None  # (M,) similarity; None where the memory index is not at hand
    real_p_values: np.ndarray | None  # (M,)

    def subset(self, real: np.ndarray, generated: np.ndarray) -> "Resemblances":
        """Those at these positions."""
        kept = (None if each is None else each[real] for each in (self.real, self.real_p_values))
        return Resemblances(self.generated[generated], self.p_values[generated], *kept)


def read_resemblances(
    files: Sequence[GeneratedFile], real: ImageSet, memory: MemoryIndex | None
) -> Resemblances | str:
    """What the sidecars say of the generated images, and the same of the real ones; or why there is none."""
    found = [file.facts.get("memory") for file in files]
    if not all(found):
        return "the generator has no memory index. Fine-tune it with --held_out_share (docs/memorisation.md)."
    if any(each["p_value"] is None for each in found):
        return f"fewer than {MIN_HELD_OUT} images were held out when the memory index was built."
    if not (files[0].path.parent / CALL_NAME).is_file():
        return "manage.py generate leaves copies out. Let this command draw the images."
    similarity, p_values = (np.array([each[key] for each in found]) for key in ("similarity", "p_value"))
    if memory is None:
        return Resemblances(similarity, p_values, None, None)
    own = similarities(real.pixels, memory)
    return Resemblances(similarity, p_values, own, left_out_p_values(own, real.kinds, real.groups))


def similarities(pixels: Tensor, memory: MemoryIndex) -> np.ndarray:
    """(M,) of uint8 images (M, 3, H, W) to their nearest training image."""
    parts = [nearest(part.float() / 255, memory.pictures)[0] for part in pixels.split(_TOGETHER)]
    return np.concatenate([part.numpy() for part in parts]).astype(float)


def left_out_p_values(similarity: np.ndarray, kinds: Sequence[str], groups: Sequence[str]) -> np.ndarray:
    """p (M,) of each image by the images of the other groups: of its kind, or of all kinds where it has fewer than
    MIN_OWN_KIND."""
    kind, group = np.array(kinds), np.array(groups)
    p_values = np.empty(len(similarity))
    for place, value in enumerate(similarity):
        others = group != group[place]
        own = others & (kind == kind[place])
        null = similarity[own if own.sum() >= MIN_OWN_KIND else others]
        p_values[place] = (1 + (null >= value).sum()) / (1 + len(null))
    return p_values


def copy_figures(real: ImageSet, generated: ImageSet, found: Resemblances | str, *, seed: int) -> list[Figure]:
    """The share of copies, and how near to training images the images come; absent where ``found`` says why."""
    if isinstance(found, str):
        return [Figure(name, absent_because=found) for name in (NAME, SIMILARITY_NAME)]
    groups, real_groups = np.array(generated.groups), np.array(real.groups)
    has_real = found.real is not None
    share = Figure(
        NAME,
        better=LOWER,
        value=mean_over_groups((found.p_values <= LEVEL).astype(float), groups, seed=seed),
        interval_method="over generated images",
        real=mean_over_groups((found.real_p_values <= LEVEL).astype(float), real_groups, seed=seed)
        if has_real
        else None,
        chance=LEVEL,
        num_images=len(generated),
        details={
            "chance_is": "the share of images as new as a new patient's that is blocked by mistake",
            "p_values": _rounded(found.p_values),
            "p_values_real": _rounded(found.real_p_values) if has_real else None,
            "real_is": "each real image by those of other groups",
        },
    )
    nearness = Figure(
        SIMILARITY_NAME,
        better=LIKE_REAL,
        value=mean_over_groups(found.generated, groups, seed=seed),
        interval_method="over generated images",
        real=mean_over_groups(found.real, real_groups, seed=seed) if has_real else None,
        num_images=len(generated),
    )
    return [share, nearness]


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 5) for value in sorted(values)]
