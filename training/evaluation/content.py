"""What the judge reads in the images of phantom captions: kind, finding, side, and faults."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from generation.diffusion.phantoms import FINDINGS, PhantomClass, class_of_caption
from training.evaluation.figures import HIGHER, LOWER, Figure
from training.evaluation.images import ImageSet
from training.evaluation.intervals import mean_over_groups, wilson
from training.simulation.judge import Judge

_BATCH = 64
_WILSON = "Wilson"
NAMES = (
    "kind right (judge)",
    "finding right (judge)",
    "class right: finding, side, sequence (judge)",
    "laterality right (judge)",
)
FAULT_NAME = "fault, 0 to 1 (judge)"


@dataclass(frozen=True)
class Reading:
    """What the judge says about N images made for known classes."""

    right: dict[str, np.ndarray]  # name -> bool (n,); for laterality the images of a class with a side only
    faults: np.ndarray  # (N,) 0..1


def content_figures(real: ImageSet, generated: ImageSet, *, seed: int) -> list[Figure]:
    """Shares of images that show what their captions ask for; absent where the captions are not phantoms'."""
    if not generated.are_phantoms:
        reason = (
            "the judge knows phantoms only, and these captions are not phantoms'. For medical images let experts "
            "rate them (a study), or read CAS and retrieval."
        )
        return [Figure(name, absent_because=reason) for name in (*NAMES, FAULT_NAME)]
    judge = Judge.load()
    made = read(judge, generated)
    drawn = read(judge, real) if real.are_phantoms else None
    figures = [_share(name, made, drawn) for name in NAMES]
    fault = Figure(
        FAULT_NAME,
        better=LOWER,
        value=mean_over_groups(made.faults, np.array(generated.groups), seed=seed),
        interval_method="bootstrap over generated images",
        real=mean_over_groups(drawn.faults, np.array(real.groups), seed=seed) if drawn else None,
        num_images=len(generated),
    )
    return [*figures, fault]


def _share(name: str, made: Reading, drawn: Reading | None) -> Figure:
    right = made.right[name]
    if not len(right):
        return Figure(name, absent_because="no caption names a side.")
    reference = drawn.right[name] if drawn else ()
    return Figure(
        name,
        better=HIGHER,
        value=wilson(int(right.sum()), len(right)),
        interval_method=_WILSON,
        real=wilson(int(reference.sum()), len(reference)) if len(reference) else None,
        num_images=len(right),
    )


@torch.inference_mode()
def read(judge: Judge, images: ImageSet) -> Reading:
    """Judge images whose captions are all phantoms'."""
    outputs = [judge(part.float() / 255) for part in images.pixels.split(_BATCH)]
    logits = torch.cat([finding for finding, _ in outputs])
    faults = torch.cat([fault for _, fault in outputs]).double().numpy()
    asked = [class_of_caption(caption) for caption in images.captions]
    named = [FINDINGS[number] for number in logits.argmax(1).tolist()]
    pairs = list(zip(asked, named, strict=True))
    right = {
        NAMES[0]: [one.kind == other.kind for one, other in pairs],
        NAMES[1]: [(one.kind, one.finding) == (other.kind, other.finding) for one, other in pairs],
        NAMES[2]: [one == other for one, other in pairs],
        NAMES[3]: _sides_right(logits, asked),
    }
    return Reading({name: np.array(values, dtype=bool) for name, values in right.items()}, faults)


def _sides_right(logits: Tensor, asked: list[PhantomClass]) -> list[bool]:
    """Of the images with a side: whether the judge holds it for likelier than the same finding on the other side.

    So an image whose finding is not recognised still counts, by which side it leans to.
    """
    right = []
    for row, wanted in zip(logits, asked, strict=True):
        if wanted.side:
            side = "left" if wanted.side == "right" else "right"
            mirrored = PhantomClass(wanted.kind, wanted.finding, side, wanted.sequence)
            right.append(bool(row[FINDINGS.index(wanted)] > row[FINDINGS.index(mirrored)]))
    return right
