"""Images in folders ``modality/class/...``: which there are, of what kind and class, and what is left out and why.

The first folder on a file's path that names a kind or modality (any case, blanks, hyphens and underscores alike) is
the modality folder; folders before it, such as ``train``, mean nothing. The folder below it is the class.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from medsyn.modalities import ALL_KINDS, Kind, UnknownModality, kind_from_name

METADATA_NAME = "metadata.csv"
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".dcm", ".nii", ".nii.gz")
_LONGEST_ABBREVIATION = 4  # capitals of a class name: DME and COPD stay, NORMAL becomes normal


@dataclass(frozen=True)
class FoundImage:
    """An image file whose folders say what it shows."""

    path: PurePosixPath  # relative to the dataset's folder
    kind: Kind
    below: tuple[str, ...]  # folders below the modality folder; the first is the class

    @property
    def class_folder(self) -> str:
        """The class as the folder spells it; empty where the file lies in the modality folder itself."""
        return self.below[0] if self.below else ""

    @property
    def stem(self) -> str:
        """The file's name without its ending."""
        return _without_ending(self.path.name)


@dataclass(frozen=True)
class Skipped:
    """A file that is left out."""

    path: PurePosixPath  # relative to the dataset's folder
    reason: str  # the same words for the same reason, so that they can be counted


def find_images(
    folder: Path, *, kind: Kind | None = None, exclude: Sequence[str] = ()
) -> Iterator[FoundImage | Skipped]:
    """Every file below ``folder`` in the order of paths, its own metadata.csv and hidden files apart.

    ``kind``: of all images; the folders then begin with the class. ``exclude``: glob patterns of relative paths.
    """
    for path in sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()):
        relative = PurePosixPath(path.as_posix())
        if relative.name == METADATA_NAME and len(relative.parts) == 1:
            continue
        if any(part.startswith(".") or part == "__MACOSX" for part in relative.parts):
            continue
        yield _classified(relative, kind, exclude)


def _classified(path: PurePosixPath, kind: Kind | None, exclude: Sequence[str]) -> FoundImage | Skipped:
    for pattern in exclude:
        if fnmatch(str(path), pattern):
            return Skipped(path, f"excluded by {pattern}")
    if not path.name.lower().endswith(IMAGE_ENDINGS):
        return Skipped(path, f"its name does not end in one of {', '.join(IMAGE_ENDINGS)}")
    if not _fits_in_a_csv(path):
        return Skipped(
            path, "its path begins or ends with a blank or holds characters that cannot be printed: rename it"
        )
    if kind is not None:
        return FoundImage(path, kind, path.parts[:-1])
    for place, name in enumerate(path.parts[:-1]):
        try:
            return FoundImage(path, kind_from_name(name), path.parts[place + 1 : -1])
        except UnknownModality:
            continue
    known = ", ".join(one.prefix for one in ALL_KINDS)
    return Skipped(path, f"no folder on its path names a kind of image ({known})")


def _fits_in_a_csv(path: PurePosixPath) -> bool:
    text = str(path)
    return text == text.strip() and text.isprintable()


def _without_ending(name: str) -> str:
    for ending in sorted(IMAGE_ENDINGS, key=len, reverse=True):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def as_words(folder_name: str) -> str:
    """A class folder's name as words of a caption: underscores are blanks, capitals stay in abbreviations only."""
    return " ".join(_uncapitalised(word) for word in re.split(r"[_\s]+", folder_name) if word)


def _uncapitalised(word: str) -> str:
    capitals, digits = re.findall(r"[A-Z]", word), re.findall(r"\d", word)
    is_abbreviation = len(word) <= _LONGEST_ABBREVIATION and capitals and len(capitals) + len(digits) > 1
    return word if is_abbreviation else word.lower()
