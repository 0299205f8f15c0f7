"""A protocol in words, and how two versions differ."""

from dataclasses import dataclass

from medsyn.percent import percent
from ratings.models import Grade, Protocol


@dataclass(frozen=True)
class Line:
    """One thing that a protocol lays down."""

    label: str
    value: str
    meaning: str = ""


def _share(share: float, of: str) -> str:
    return f"{percent(share)} {of}" if share else "none"


def _scale(protocol: Protocol) -> str:
    said = [(grade, protocol.scale_texts.get(str(grade.value), "")) for grade in Grade]
    return "; ".join(f"{grade.value} {grade.label}: {text}" for grade, text in said if text) or "the names alone"


def _anchors(protocol: Protocol) -> str:
    chosen = [f"{anchor.get_grade_display()}: image {anchor.image.public_id}" for anchor in protocol.anchors.all()]
    return "; ".join(chosen) or "none"


def lines_of(protocol: Protocol) -> list[Line]:
    """All that it lays down, anchors and scale texts included; one query unless anchors and images are fetched."""
    per_image = protocol.overlap_target
    return [
        Line(
            "Readers per image",
            str(per_image) if per_image else "all",
            "An open pool: whoever reads takes the next images." if per_image else "Every reader reads every image.",
        ),
        Line(
            "Hidden repeats", _share(protocol.repeat_share, "of a reader's images"), "How steadily a reader grades."
        ),
        Line("Least distance of a repeat", f"{protocol.repeat_distance} images"),
        Line(
            "Gold images", _share(protocol.gold_share, "of the images"), "How often a reader finds the known grade."
        ),
        Line("Real images", _share(protocol.real_share, "of the images"), "Whether synthetic ones are graded lower."),
        Line("Calibration", _share(protocol.calibration_share, "of the other images"), "Never trained on."),
        Line(
            "Training round",
            f"{protocol.num_training_images} gold images" if protocol.num_training_images else "none",
            "With feedback, before a reader begins; not part of the study.",
        ),
        Line("Scale", _scale(protocol), "Under the buttons of the rating page."),
        Line("Anchors", _anchors(protocol), "Examples of the grades that readers can look at."),
        Line("Defects", ", ".join(label for _, label in protocol.defects) or "none", "In the order of their keys."),
    ]


@dataclass(frozen=True)
class Change:
    """One thing that a version lays down otherwise than the one before."""

    label: str
    before: str
    after: str


def changes_between(old: Protocol, new: Protocol) -> list[Change]:
    """What ``new`` lays down otherwise than ``old``."""
    pairs = zip(lines_of(old), lines_of(new), strict=True)
    return [Change(before.label, before.value, after.value) for before, after in pairs if before.value != after.value]
