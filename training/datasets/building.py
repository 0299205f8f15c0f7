"""A dataset CSV from a folder of images: rows for what can be used, reasons for what cannot."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medsyn.artifacts import write_bytes
from medsyn.modalities import Kind, parse_prompt
from training.datasets.captioning import CaptionError, Captions
from training.datasets.folder_layout import METADATA_NAME, FoundImage, Skipped, find_images
from training.finetuning.dataset import BadRow, Row, open_row, sort_out


class BuildError(ValueError):
    """No dataset can be made of this folder; the message says why."""


@dataclass(frozen=True)
class BuiltRow:
    """A row of the dataset CSV to be."""

    path: PurePosixPath  # relative to the CSV's folder
    caption: str  # in canonical spelling
    kind: Kind
    class_folder: str
    group: str  # empty where none was asked for


@dataclass(frozen=True)
class Built:
    """What a folder gave."""

    rows: tuple[BuiltRow, ...]  # by path
    skipped: tuple[Skipped, ...]  # by path
    unused_classes: tuple[str, ...]  # of the mapping, without an image
    has_groups: bool


@dataclass(frozen=True)
class GroupRule:
    """How a path names its group (the patient): by one of its folders, or by what a pattern finds in it."""

    level: int | None = None  # folder: 1 the first below the dataset's, -1 the one that the file lies in
    pattern: re.Pattern[str] | None = None  # its group "group", else its first, else all that it matched

    @classmethod
    def parse(cls, text: str) -> "GroupRule":
        """A whole number or a regular expression; raises BuildError."""
        if re.fullmatch(r"[+-]?\d+", text):
            if int(text) == 0:
                raise BuildError("group_from: folders are counted from 1, or from -1 upwards from the file.")
            return cls(level=int(text))
        try:
            return cls(pattern=re.compile(text))
        except re.error as error:
            raise BuildError(f"group_from: {text!r} is no regular expression ({error}).") from error

    def group(self, path: PurePosixPath) -> str:
        """The group of a file; raises CaptionError where its path has none."""
        found = self._at_level(path.parts[:-1]) if self.level is not None else self._matched(str(path))
        if not found.strip():
            raise CaptionError("its path names no group by --group_from")
        return found.strip()

    def _at_level(self, folders: Sequence[str]) -> str:
        place = self.level - 1 if self.level > 0 else len(folders) + self.level
        return folders[place] if 0 <= place < len(folders) else ""

    def _matched(self, path: str) -> str:
        match = self.pattern.search(path)
        if match is None:
            return ""
        if "group" in self.pattern.groupindex:
            return match["group"] or ""
        return (match[1] or "") if self.pattern.groups else match[0]


def build(
    folder: Path,
    captions: Captions,
    *,
    kind: Kind | None = None,
    groups: GroupRule | None = None,
    exclude: Sequence[str] = (),
    num_threads: int = 4,
) -> Built:
    """Look at every file below ``folder``; every image is opened. Raises BuildError where nothing can be used."""
    if not folder.is_dir():
        raise BuildError(f"There is no folder {folder}.")
    found = list(find_images(folder, kind=kind, exclude=exclude))
    images = [one for one in found if isinstance(one, FoundImage)]
    skipped = [one for one in found if isinstance(one, Skipped)]
    described: list[BuiltRow] = []
    for image in images:
        try:
            group = groups.group(image.path) if groups else ""
            described.append(BuiltRow(image.path, captions.caption(image), image.kind, image.class_folder, group))
        except CaptionError as error:
            skipped.append(Skipped(image.path, str(error)))
    rows, unreadable = _readable(folder, described, num_threads)
    skipped += unreadable
    if not rows:
        raise BuildError(_nothing(folder, skipped))
    return Built(
        rows=tuple(rows),
        skipped=tuple(sorted(skipped, key=lambda one: one.path)),
        unused_classes=tuple(captions.unused(images)),
        has_groups=groups is not None,
    )


def _readable(folder: Path, rows: Sequence[BuiltRow], num_threads: int) -> tuple[list[BuiltRow], list[Skipped]]:
    """Rows whose image opens. Their place stands in for the line that they do not have yet."""
    planned = [Row(place, folder / row.path, parse_prompt(row.caption)) for place, row in enumerate(rows)]
    opened, bad = sort_out(planned, _opens, num_threads=num_threads, description="Opening images")
    unreadable = []
    for one in bad:
        path = rows[one.line].path
        unreadable.append(Skipped(path, one.reason.removeprefix(f"{folder / path}: ")))
    return [rows[row.line] for row in opened], unreadable


def _opens(row: Row) -> Row | BadRow:
    opened = open_row(row)
    return opened if isinstance(opened, BadRow) else opened[0]


def _nothing(folder: Path, skipped: Sequence[Skipped]) -> str:
    if not skipped:
        return f"{folder} holds no files. Expected: modality/class/image files."
    reasons = list(dict.fromkeys(one.reason for one in skipped))[:5]
    return f"{folder}: none of {len(skipped)} files can be used. Reasons:\n  " + "\n  ".join(reasons)


def write_metadata(folder: Path, built: Built, *, overwrite: bool = False) -> Path:
    """Write ``metadata.csv`` whole or not at all. Raises BuildError where one is there, unless ``overwrite``."""
    target = folder / METADATA_NAME
    refuse_to_overwrite(folder, overwrite=overwrite)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "Text", "modality", *(["group"] if built.has_groups else [])])
    for row in built.rows:
        group = [row.group] if built.has_groups else []
        writer.writerow([row.path.as_posix(), row.caption, row.kind.modality, *group])
    write_bytes(target, text.getvalue().encode())
    return target


def refuse_to_overwrite(folder: Path, *, overwrite: bool) -> None:
    """Raise BuildError where a metadata.csv is there and may not be replaced."""
    target = folder / METADATA_NAME
    if target.exists() and not overwrite:
        raise BuildError(f"{target} is there already. Give --overwrite to replace it.")
