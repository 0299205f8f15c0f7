"""What a reader can say of an image beside its grade: coded defects, and why an image cannot be judged [pure].

Codes are stored and exported; labels are what the rating page shows. A code keeps its meaning for good: leave it out
of a study's list to retire it.
"""

from collections.abc import Collection, Iterable

DEFECTS = {
    "noise": "Noise",
    "blur": "Blur",
    "motion": "Motion",
    "artefact": "Artefact",
    "anatomy": "Anatomy wrong",
    "finding": "Finding missing",
    "marker": "Text or marker",
}
CANNOT_JUDGE_REASONS = {
    "expertise": "Outside my expertise",
    "prompt": "Prompt unclear or contradictory",
    "views": "Needs other views or sequences",
    "display": "Image not displayed properly",
    "other": "Another reason",
}
MAX_COMMENT = 2000  # characters


def in_order(defects: Iterable[str], known: Collection[str] = DEFECTS) -> list[str]:
    """The codes once each, in the order of ``known``. Raises ValueError that names unknown ones."""
    chosen = set(defects)
    unknown = chosen - set(known)
    if unknown:
        raise ValueError(f"Unknown defects: {', '.join(sorted(unknown))}. Known are {', '.join(known)}.")
    return [code for code in known if code in chosen]
