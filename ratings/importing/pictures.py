"""The images that an imported file names: known by what the file tells of them, or brought in from their files."""

import contextlib
from pathlib import Path

from generation.importing import StagedImage, Staging, image_row
from generation.models import GeneratedImage
from medsyn.artifacts import file_sha256
from medsyn.modalities import parse_prompt
from ratings.importing.rows import ImportedRow


class Pictures:
    """The images of one file, each looked at once however many rows name it."""

    def __init__(self, folder: Path, staging: Staging, *, is_phantom: bool):
        """``folder``: of the file; ``is_phantom``: what new images are where the file does not tell."""
        self._folder = folder
        self._staging = staging
        self._is_phantom = is_phantom
        self._copies: dict[Path, StagedImage] = {}
        self._original_sha256: dict[Path, str] = {}  # of files of which a table tells it
        self._keys: dict[tuple[str, str], int] = {}  # (identity or path, prompt) -> key of the image
        self._taken: set[int] = set()  # those keys

    def check(self, row: ImportedRow) -> None:
        """Raise ValueError where the row's image is neither known nor there to be read."""
        if self._known(row) is None:
            self._copy_of(row)

    def published(self) -> contextlib.AbstractContextManager[None]:
        """Give the copies of what was checked their names; see Staging."""
        return self._staging.published(list(self._copies.values()))

    def image_of(self, row: ImportedRow) -> int:
        """Key of the image of a checked row: of the one that is known, else of a new one. Call while published."""
        key = self._key(row)
        known = self._known(row)
        if known is not None:
            return known
        facts = {"is_phantom": self._is_phantom, **row.image}
        facts.pop("sha256", None)  # of the copy from now on
        image, _ = image_row(self._copy_of(row), row.prompt, parse_prompt(row.prompt).kind, **facts)
        if row.image and image.pk in self._taken:
            image.pk, image.public_id, image.seed = None, facts["public_id"], facts["seed"]
            image.save(force_insert=True)  # a second image of the table, with equal bytes
        return self._remember(key, image.pk)

    def _copy_of(self, row: ImportedRow) -> StagedImage:
        path = row.resolve(self._folder)
        if path not in self._copies:
            if not path.is_file():
                raise ValueError(
                    f"image_path names {path}, which is not there. Paths are relative to the CSV's folder."
                )
            try:
                self._copies[path] = self._staging.image_of(path, parse_prompt(row.prompt).kind)
            except ValueError as error:
                raise ValueError(f"image_path: {error}") from error
        self._require_told_bytes(row, path)
        return self._copies[path]

    def _require_told_bytes(self, row: ImportedRow, path: Path) -> None:
        if not row.image:
            return
        if path not in self._original_sha256:
            self._original_sha256[path] = file_sha256(path)
        if self._original_sha256[path] != row.image["sha256"]:
            raise ValueError(
                f"image_path names {path}, whose sha256 is {self._original_sha256[path]}, not image_sha256"
            )

    @staticmethod
    def _key(row: ImportedRow) -> tuple[str, str]:
        return str(row.image.get("public_id") or row.image_path), row.prompt

    def _known(self, row: ImportedRow) -> int | None:
        """Key of the row's image if it is known; a table that tells an identity finds it in the database by that,
        else by its bytes."""
        key = self._key(row)
        if key not in self._keys and row.image:
            known = self._by_identity(row) or self._by_bytes(row)
            if known is not None:
                _require_usable(known)
                self._remember(key, known)
        return self._keys.get(key)

    @staticmethod
    def _by_identity(row: ImportedRow) -> int | None:
        images = GeneratedImage.objects.filter(public_id=row.image["public_id"])
        for pk, prompt in images.values_list("pk", "prompt__text"):
            if prompt != row.prompt:
                raise ValueError(f"image_uuid {row.image['public_id']} is known here, with the prompt {prompt!r}")
            return pk
        return None

    def _by_bytes(self, row: ImportedRow) -> int | None:
        """Two images of a table stay two, even if their bytes are equal."""
        images = GeneratedImage.objects.filter(sha256=row.image["sha256"], prompt__text=row.prompt).order_by("pk")
        return next((pk for pk in images.values_list("pk", flat=True) if pk not in self._taken), None)

    def _remember(self, key: tuple[str, str], image_id: int) -> int:
        self._keys[key] = image_id
        self._taken.add(image_id)
        return image_id


def _require_usable(image_id: int) -> None:
    """Raise ValueError for what readers may not see, or in no other study."""
    image = GeneratedImage.objects.filter(pk=image_id)
    if image.blocked().exists():
        raise ValueError("the image is blocked here: it copies an image that its generator was trained on")
    if image.filter(calibration__isnull=False).exists():
        raise ValueError("the image was drawn for calibration here: it belongs to no other study")
