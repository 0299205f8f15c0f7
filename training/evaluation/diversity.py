"""Variety within a finding and within a kind by MS-SSIM, beside the variety of the real images."""

from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from training.evaluation.figures import LIKE_REAL, Figure
from training.evaluation.images import ImageSet, finest_label
from training.evaluation.intervals import Interval
from training.evaluation.ms_ssim import MAX_PER_GROUP, PairTable, num_scales

MIN_PAIRS = 10  # of generated images


def diversity_figures(real: ImageSet, generated: ImageSet, *, seed: int) -> list[Figure]:
    """Mean MS-SSIM of pairs within a group: higher than the real images' means less variety."""
    fine = [finest_label(text) for text in real.captions], [finest_label(text) for text in generated.captions]
    level = "finding" if generated.are_phantoms else "caption"
    pixels = real.pixels, generated.pixels
    return [_figure(level, pixels, fine, seed), _figure("kind", pixels, (real.kinds, generated.kinds), seed)]


def _figure(
    level: str, pixels: tuple[Tensor, Tensor], labels: tuple[Sequence[str], Sequence[str]], seed: int
) -> Figure:
    name = f"MS-SSIM within the {level}"
    real, generated = (PairTable(images, names, seed=seed) for images, names in zip(pixels, labels, strict=True))
    shared = real.of_label.keys() & generated.of_label.keys()
    pairs = sum(len(generated.of_label[label]) * (len(generated.of_label[label]) - 1) // 2 for label in shared)
    if pairs < MIN_PAIRS:
        reason = f"only {pairs} pairs of generated images share a {level} that real ones have. Draw more images."
        return Figure(name, absent_because=reason)
    # The same weights for both, so that the mixture of groups is no difference between them.
    counts = Counter(labels[1])
    weights = {label: counts[label] for label in sorted(shared)}
    return Figure(
        name,
        better=LIKE_REAL,
        value=Interval(generated.mean(weights), *generated.interval(weights, seed=seed)),
        interval_method="bootstrap over images within their group, and over groups where they are many",
        real=Interval(real.mean(weights), *real.interval(weights, seed=seed)),
        num_images=sum(min(counts[label], MAX_PER_GROUP) for label in shared),
        details={"groups": len(shared), "pairs": pairs, "scales": num_scales(*pixels[1].shape[2:])},
    )
