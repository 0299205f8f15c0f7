"""Images brought in from files: read, rid of what names a patient, copied, and stored as rows.

First everything is looked at and copied into a folder beside the others (``staged``); only when all rows are known
to be good do the copies get their names, in the transaction that makes the rows. An import that is stopped leaves
neither rows nor files.
"""

import contextlib
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.db import transaction

from generation.models import GeneratedImage, Prompt
from medsyn.artifacts import file_sha256
from medsyn.dataset_csv import BadRow, Row
from medsyn.modalities import Kind

FOLDER = "images/imported"  # below the artifact root
MAX_BATCH_NAME = 100
MAX_PATIENT = 100
_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "dicom": ".dcm", "nifti": ".nii"}
_LOOKUP_ROWS = 500
logger = logging.getLogger(__name__)


class ImportImagesError(ValueError):
    """Images cannot be brought in; the message says which and why."""


@dataclass(frozen=True)
class StagedImage:
    """A readable image file and its copy, not yet under its name."""

    copy: Path
    sha256: str  # of the copy's bytes
    suffix: str
    width: int  # pixels
    height: int  # pixels
    removed: frozenset[str]  # what the copy does not hold any more

    @property
    def file(self) -> str:
        """Where the copy will lie below the artifact root: named by content, so that equal files are kept once."""
        return f"{FOLDER}/{self.sha256}{self.suffix}"


@dataclass(frozen=True)
class ImportedImages:
    """What an import did."""

    images: tuple[tuple[Row, GeneratedImage], ...]  # every good row with its image, in the order of the rows
    num_new: int  # images that were not known before
    bad: tuple[BadRow, ...]  # left out
    removed: tuple[tuple[str, int], ...]  # what was removed from how many files, the most frequent first


class Staging:
    """A folder of copies; each file is read once however many rows name it."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._found: dict[tuple[Path, Kind | None], StagedImage | str] = {}  # its copy, or why there is none

    def image_of(self, path: Path, kind: Kind | None) -> StagedImage:
        """The copy of a file of that kind of image, if it is known, made now or before. Raises ValueError where the
        file is missing or cannot be read."""
        key = (path, kind)
        if key not in self._found:
            try:
                self._found[key] = self._stage(path, kind)
            except (ValueError, OSError) as error:
                self._found[key] = str(error)
        found = self._found[key]
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def _stage(self, path: Path, kind: Kind | None) -> StagedImage:
        import numpy as np  # image libraries: only when images come in

        from generation.deidentification import write_scrubbed
        from medsyn.imaging import ImageReadError, load

        if not path.is_file():
            raise ImageReadError(path, "there is no such file")
        modality = kind.prefix if kind else None
        picture = load(path, modality=modality)
        with path.open("rb") as file:
            is_packed = picture.format == "nifti" and file.read(2) == b"\x1f\x8b"
        suffix = _SUFFIXES[picture.format] + (".gz" if is_packed else "")
        copy = self._folder / f"{len(self._found)}{suffix}"
        try:
            removed = write_scrubbed(path, copy, file_format=picture.format)
        except ValueError as error:
            raise ImageReadError(path, str(error)) from error
        if not np.array_equal(load(copy, modality=modality).pixels, picture.pixels):
            raise ImageReadError(path, "without its header's other data it shows another picture")
        height, width = picture.pixels.shape[:2]
        return StagedImage(copy, file_sha256(copy), suffix, width, height, removed)

    @contextlib.contextmanager
    def published(self, staged: Sequence[StagedImage]) -> Iterator[None]:
        """Give the copies their names below the artifact root; new ones go again if the block fails, but for those
        that another import has found there and stored meanwhile."""
        written: dict[str, Path] = {}
        try:
            for image in {image.file: image for image in staged}.values():
                target = settings.ARTIFACT_ROOT / image.file
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    image.copy.chmod(0o644)
                    image.copy.replace(target)
                    written[image.file] = target
            yield
        except BaseException:
            for file, target in written.items():
                if not GeneratedImage.objects.filter(file=file).exists():
                    target.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                (settings.ARTIFACT_ROOT / FOLDER).rmdir()  # where nothing else is left in it
            raise


@contextlib.contextmanager
def staged() -> Iterator[Staging]:
    """An empty staging folder on the disk of the artifacts, gone afterwards."""
    parent = settings.ARTIFACT_ROOT / "images"
    made = [folder for folder in (parent, settings.ARTIFACT_ROOT) if not folder.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=".import-"))
    try:
        yield Staging(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for empty in made:
            with contextlib.suppress(OSError):  # something came in: it stays
                empty.rmdir()


def image_row(staged_image: StagedImage, prompt_text: str, kind: Kind, **facts) -> tuple[GeneratedImage, bool]:
    """The row of a published copy and prompt: the one that is known by both, else a new one with ``facts``; and
    whether it is new."""
    prompt, _ = Prompt.objects.get_or_create(text=prompt_text, defaults={"kind": kind.slug})
    known = GeneratedImage.objects.filter(sha256=staged_image.sha256, prompt=prompt).first()
    if known is not None:
        return known, False
    image = GeneratedImage.objects.create(
        source=GeneratedImage.Source.IMPORTED,
        prompt=prompt,
        file=staged_image.file,
        sha256=staged_image.sha256,
        width=staged_image.width,
        height=staged_image.height,
        **facts,
    )
    return image, True


def import_images(
    *,
    rows: Sequence[Row],
    is_real: bool,
    batch: str,
    is_phantom: bool = False,
    skip_bad_rows: bool = False,
    bad_before: Sequence[BadRow] = (),
    on_row: Callable[[], None] = lambda: None,
) -> ImportedImages:
    """Bring in the images of dataset rows under the name ``batch``; all of them or, after an error, none.

    An image whose copy's bytes and prompt are known already is not stored twice: it keeps its row, its patient and
    its batch. Row.group is the patient's pseudonym, stored for real images as it stands. ``bad_before``: rows that
    were bad before any image was opened. ``on_row`` is called after each row that was looked at.

    Raises ImportImagesError that lists every bad row, unless ``skip_bad_rows``; in any case where none is left.
    """
    if not batch.strip() or len(batch) > MAX_BATCH_NAME:
        raise ImportImagesError(f"Give the images a name of 1 to {MAX_BATCH_NAME} characters; this is {batch!r}.")
    if is_real and is_phantom:
        raise ImportImagesError("A procedural phantom is no image of a patient: say one of the two.")
    with staged() as staging:
        good, bad = _looked_at(rows, staging, is_real=is_real, on_row=on_row)
        bad = sorted([*bad_before, *bad], key=lambda row: row.line)
        if bad and not skip_bad_rows:
            raise ImportImagesError(_told(bad, "Correct them, or leave them out with --skip-bad-rows."))
        if not good:
            raise ImportImagesError(_told(bad, "No row is left to import."))
        with staging.published([image for _, image in good]), transaction.atomic():
            stored = [_stored(row, image, is_real, is_phantom, batch.strip()) for row, image in good]
    removed = Counter(name for image in {image.file: image for _, image in good}.values() for name in image.removed)
    images = tuple((row, image) for (row, _), (image, _) in zip(good, stored, strict=True))
    num_new = sum(is_new for _, is_new in stored)
    logger.info("Imported %d images as %r, %d of them new.", len(images), batch, num_new)
    return ImportedImages(images, num_new, tuple(bad), tuple(removed.most_common()))


def _told(bad: Sequence[BadRow], remedy: str) -> str:
    number = f"{len(bad)} bad row{'' if len(bad) == 1 else 's'}:"
    return "\n  ".join([number, *map(str, bad)]) + f"\n{remedy}" if bad else f"There are no rows. {remedy}"


def _looked_at(
    rows: Sequence[Row], staging: Staging, *, is_real: bool, on_row: Callable[[], None]
) -> tuple[list[tuple[Row, StagedImage]], list[BadRow]]:
    good: list[tuple[Row, StagedImage]] = []
    bad: list[BadRow] = []
    for row in rows:
        try:
            if len(row.group) > MAX_PATIENT:
                raise ValueError(f"the patient's pseudonym is longer than {MAX_PATIENT} characters")
            good.append((row, staging.image_of(row.path, row.prompt.kind)))
        except ValueError as error:
            bad.append(BadRow(row.line, str(error)))
        on_row()
    known = _known({image.sha256 for _, image in good})
    contrary = [
        BadRow(row.line, reason)
        for row, image in good
        if (reason := _contradiction(row, known.get((image.sha256, row.text)), is_real))
    ]
    lines = {row.line for row in contrary}
    return [(row, image) for row, image in good if row.line not in lines], [*bad, *contrary]


def _known(digests: set[str]) -> dict[tuple[str, str], GeneratedImage]:
    """Stored images by sha256 and prompt."""
    ordered, found = sorted(digests), {}
    for start in range(0, len(ordered), _LOOKUP_ROWS):
        chunk = GeneratedImage.objects.filter(sha256__in=ordered[start : start + _LOOKUP_ROWS])
        found |= {(image.sha256, image.prompt.text): image for image in chunk.select_related("prompt")}
    return found


def _contradiction(row: Row, known: GeneratedImage | None, is_real: bool) -> str:
    """Why a row cannot mean the image that is stored already; empty: it can, or none is."""
    if known is None:
        return ""
    if known.is_real != is_real:
        return f"this image is stored already, as a {'real' if known.is_real else 'synthetic'} one"
    if is_real and row.group and known.patient and row.group != known.patient:
        return f"this image is stored already, as one of patient {known.patient!r}"
    return ""


def _stored(
    row: Row, staged_image: StagedImage, is_real: bool, is_phantom: bool, batch: str
) -> tuple[GeneratedImage, bool]:
    facts = {"is_real": is_real, "is_phantom": is_phantom, "patient": row.group if is_real else "", "batch": batch}
    return image_row(staged_image, row.text, row.prompt.kind, **facts)


def sha256_of_copy(path: Path) -> str:
    """What the copy of a file would hash to: by this an image that was imported from it is found again. Raises
    ValueError where the file is missing or cannot be read."""
    with staged() as staging:
        return staging.image_of(path, None).sha256
