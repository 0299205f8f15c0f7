"""What is in a dataset CSV: faults, counts, captions, doubles, and what may mislead whoever trains on it.

*Faults* are rows that cannot be trained on, by the rules of training.finetuning.dataset. *Warnings* are rows that
can, but may do harm: the same picture under two patients (it would be in training and validation), or under two
captions.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from medsyn.percent import percent
from training.datasets.caption_tokens import CaptionTokens, count_tokens
from training.datasets.duplicates import NearPair, clusters, near_pairs
from training.datasets.examination import Examination, examine
from training.finetuning.dataset import BadRow, read_rows, sort_out

ALMOST_EMPTY = 0.01  # share of pixels that differ visibly from the background, below which there is nothing to see


@dataclass(frozen=True)
class Spread:
    """Smallest, middle and largest of some numbers."""

    smallest: float
    middle: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        return cls(min(values), median(values), max(values)) if values else None


@dataclass(frozen=True)
class Warned:
    """Rows that can be trained on, but should be looked at."""

    lines: tuple[int, ...]  # of the CSV file
    reason: str


@dataclass(frozen=True)
class Survey:
    """What is in a dataset CSV."""

    csv_path: Path
    images: tuple[Examination, ...]  # of the usable rows, in file order
    faults: tuple[BadRow, ...]  # in file order
    has_groups: bool  # whether the CSV has a group column
    tokens: CaptionTokens | None  # None where no model was asked
    near_pairs: tuple[NearPair, ...]  # positions in ``images``; of files that differ
    found_all_pairs: bool  # False: so many look-alikes that the search stopped

    @property
    def kinds(self) -> Counter[str]:
        return Counter(image.row.prompt.kind.prefix for image in self.images)

    @property
    def modalities(self) -> Counter[str]:
        return Counter(image.row.prompt.modality for image in self.images)

    @property
    def formats(self) -> Counter[str]:
        return Counter(image.format for image in self.images)

    @property
    def sizes(self) -> Counter[tuple[int, int]]:
        """Images by (width, height) in pixels."""
        return Counter((image.width, image.height) for image in self.images)

    @property
    def groups(self) -> Counter[str]:
        """Rows by group; rows without one are left out."""
        return Counter(image.row.group for image in self.images if image.row.group)

    @property
    def words(self) -> Spread | None:
        """Words of the captions."""
        return Spread.of([len(image.row.text.split()) for image in self.images])

    @property
    def captions(self) -> Counter[str]:
        return Counter(image.row.text for image in self.images)

    @property
    def num_sided(self) -> int:
        """Captions that name a side: their images are never mirrored in training."""
        return sum(not image.row.may_flip for image in self.images)

    @property
    def same_files(self) -> list[list[int]]:
        """Lines of rows whose files are equal byte by byte."""
        by_digest = defaultdict(list)
        for image in self.images:
            by_digest[image.row.image_sha256].append(image.row.line)
        return [lines for lines in by_digest.values() if len(lines) > 1]

    @property
    def near_groups(self) -> list[list[int]]:
        """Lines of rows whose pictures are nearly the same, each group hanging together by pairs."""
        found = clusters(len(self.images), self.near_pairs)
        return [[self.images[position].row.line for position in group] for group in found]

    @property
    def warnings(self) -> list[Warned]:
        return [*_empty_images(self.images), *_contradictions(self)]


def survey(
    csv_path: Path,
    *,
    image_column: str = "path",
    caption_column: str = "Text",
    model: str | Path | None = None,
    num_threads: int = 4,
) -> Survey:
    """Open every row and look. Raises DatasetError for what is no dataset CSV, TokenizerError for ``model``."""
    rows, bad = read_rows(csv_path, image_column=image_column, caption_column=caption_column)
    tokens = count_tokens(model, [row.text for row in rows]) if model else None
    images, unreadable = sort_out(rows, examine, num_threads=num_threads, description="Opening images")
    pairs, found_all = pairs_of_different_files(images)
    return Survey(
        csv_path=csv_path,
        images=tuple(images),
        faults=tuple(sorted([*bad, *unreadable], key=lambda row: row.line)),
        has_groups=any(row.group for row in rows),
        tokens=tokens,
        near_pairs=tuple(pairs),
        found_all_pairs=found_all,
    )


def pairs_of_different_files(images: Sequence[Examination]) -> tuple[list[NearPair], bool]:
    """Near pairs, each file taken once: copies of a file are told apart already by their digest."""
    first_of: dict[str, int] = {}
    for position, image in enumerate(images):
        first_of.setdefault(image.row.image_sha256, position)
    chosen = list(first_of.values())
    if not chosen:
        return [], True
    pairs, found_all = near_pairs(np.stack([images[position].thumbnail for position in chosen]))
    return [
        NearPair(chosen[pair.first], chosen[pair.second], pair.correlation, pair.is_mirrored) for pair in pairs
    ], found_all


def _empty_images(images: Sequence[Examination]) -> list[Warned]:
    warned = []
    for image in images:
        if image.is_constant:
            warned.append(Warned((image.row.line,), "every pixel of the image is the same"))
        elif image.drawn_share < ALMOST_EMPTY:
            share = percent(image.drawn_share, 1)
            warned.append(Warned((image.row.line,), f"the image is almost empty: {share} of it differ visibly"))
    return warned


def _contradictions(found: Survey) -> list[Warned]:
    """Equal and nearly equal pictures whose rows disagree about the patient or the caption."""
    by_line = {image.row.line: image.row for image in found.images}
    warned = []
    doubles = [("the same file", tuple(lines)) for lines in found.same_files]
    for pair in found.near_pairs:
        lines = tuple(found.images[position].row.line for position in (pair.first, pair.second))
        alike = "mirror images" if pair.is_mirrored else "nearly the same picture"
        what = f"{alike} (correlation {pair.correlation:.3f})"
        doubles.append((what, lines))
        rows = [by_line[line] for line in lines]
        if pair.is_mirrored and rows[0].text == rows[1].text and not rows[0].may_flip:
            warned.append(Warned(lines, f"{what}, yet both captions name the same side: {rows[0].text}"))
    for what, lines in doubles:
        rows = [by_line[line] for line in lines]
        if len({row.group for row in rows if row.group}) > 1:
            groups = ", ".join(sorted({row.group for row in rows if row.group}))
            warned.append(Warned(lines, f"{what} in different groups: {groups}"))
        if len({row.text for row in rows}) > 1:
            captions = " | ".join(dict.fromkeys(row.text for row in rows))
            warned.append(Warned(lines, f"{what} under different captions: {captions}"))
    return warned


def as_json(found: Survey) -> dict[str, Any]:
    """Everything that was found, lists uncut."""
    return {
        "csv": str(found.csv_path),
        "usable_rows": len(found.images),
        "faults": [{"line": fault.line, "reason": fault.reason} for fault in found.faults],
        "warnings": [{"lines": list(warned.lines), "reason": warned.reason} for warned in found.warnings],
        "kinds": dict(found.kinds),
        "modalities": dict(found.modalities),
        "formats": dict(found.formats),
        "sizes": {f"{width}x{height}": count for (width, height), count in found.sizes.most_common()},
        "groups": dict(found.groups) if found.has_groups else None,
        "captions": {
            "different": len(found.captions),
            "words": _numbers(found.words),
            "naming_a_side": found.num_sided,
            "tokens": _tokens_as_json(found.tokens),
        },
        "same_files": found.same_files,
        "near_duplicates": {
            "complete": found.found_all_pairs,
            "groups": found.near_groups,
            "pairs": [_pair_as_json(found, pair) for pair in found.near_pairs],
        },
    }


def _numbers(spread: Spread | None) -> dict[str, float] | None:
    return spread and {"smallest": spread.smallest, "median": spread.middle, "largest": spread.largest}


def _tokens_as_json(tokens: CaptionTokens | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    numbers = _numbers(Spread.of(tokens.counts))
    return {"model": tokens.model, "limit": tokens.limit, "captions_cut": tokens.num_cut, "counts": numbers}


def _pair_as_json(found: Survey, pair: NearPair) -> dict[str, Any]:
    lines = [found.images[position].row.line for position in (pair.first, pair.second)]
    return {"lines": lines, "correlation": round(pair.correlation, 4), "mirrored": pair.is_mirrored}
