"""The parts of an import: pictures that are checked and copied, anonymous readers, and their ratings."""

import contextlib
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.utils import timezone

from generation.models import GeneratedImage, Prompt
from medsyn.artifacts import file_sha256, write_bytes
from medsyn.modalities import parse_prompt
from ratings.csv_schema import RatingRow
from ratings.models import Assignment, Membership, Rating, RatingEvent, Study

_FOLDER = "images/imported"  # below the artifact root
_BATCH_ROWS = 500


@dataclass(frozen=True)
class Picture:
    """A readable image file that a CSV names."""

    path: Path
    sha256: str  # of its bytes
    width: int  # pixels
    height: int  # pixels

    @property
    def file(self) -> str:
        """Where its copy lies below the artifact root: named by content, so that equal files are kept once."""
        suffix = ".nii.gz" if self.path.name.lower().endswith(".nii.gz") else self.path.suffix.lower()
        return f"{_FOLDER}/{self.sha256}{suffix}"


class Pictures:
    """The pictures of one CSV, each read once however many rows name it."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._found: dict[Path, Picture | str] = {}  # the picture, or why there is none
        self._images: dict[tuple[str, str], GeneratedImage] = {}  # by sha256 and prompt

    def check(self, row: RatingRow) -> None:
        """Raise ValueError where the row's picture is missing or cannot be read."""
        path = row.resolve(self._folder)
        if path not in self._found:
            self._found[path] = self._examine(path, row)
        if isinstance(self._found[path], str):
            raise ValueError(self._found[path])

    @staticmethod
    def _examine(path: Path, row: RatingRow) -> Picture | str:
        from medsyn.imaging import ImageReadError, load  # heavy, and only commands import

        if not path.is_file():
            return f"image_path names {path}, which is not there. Paths are relative to the CSV's folder."
        try:
            height, width = load(path, modality=parse_prompt(row.prompt).kind.prefix).pixels.shape[:2]
        except ImageReadError as error:
            return f"image_path: {error}"
        return Picture(path=path, sha256=file_sha256(path), width=width, height=height)

    @contextlib.contextmanager
    def copied(self) -> Iterator[None]:
        """Copy the pictures below the artifact root; the new copies go again if the block fails."""
        written = []
        try:
            for picture in self._found.values():
                target = settings.ARTIFACT_ROOT / picture.file
                if not target.exists():
                    write_bytes(target, picture.path.read_bytes())
                    written.append(target)
            yield
        except BaseException:
            for target in written:
                target.unlink(missing_ok=True)
            raise

    def image_of(self, row: RatingRow, *, is_phantom: bool) -> GeneratedImage:
        """The image row of a checked row: the one that is known by its bytes and prompt, else a new one."""
        picture = self._found[row.resolve(self._folder)]
        key = (picture.sha256, row.prompt)
        if key not in self._images:
            kind = parse_prompt(row.prompt).kind.slug
            prompt, _ = Prompt.objects.get_or_create(text=row.prompt, defaults={"kind": kind})
            known = GeneratedImage.objects.filter(sha256=picture.sha256, prompt=prompt).first()
            self._images[key] = known or GeneratedImage.objects.create(
                source=GeneratedImage.Source.IMPORTED,
                prompt=prompt,
                is_phantom=is_phantom,
                file=picture.file,
                sha256=picture.sha256,
                width=picture.width,
                height=picture.height,
            )
        return self._images[key]


class _Readers:
    """Anonymous readers of a study: the n-th rating of an image at a level belongs to the level's n-th reader."""

    def __init__(self, study: Study, is_simulated: bool):
        self._study, self._is_simulated = study, is_simulated
        self._readers: dict[tuple[int, int], int] = {}  # (level, number) -> key of the account
        self._ratings_of: Counter[tuple[int, int]] = Counter()  # by image and level
        self._places: Counter[int] = Counter()  # length of each reader's list

    def next_place(self, image: GeneratedImage, expert_level: int) -> Assignment:
        self._ratings_of[image.pk, expert_level] += 1
        key = (expert_level, self._ratings_of[image.pk, expert_level])
        if key not in self._readers:
            self._readers[key] = self._enrol(*key)
        reader_id = self._readers[key]
        self._places[reader_id] += 1
        return Assignment(study=self._study, reader_id=reader_id, image=image, position=self._places[reader_id] - 1)

    def _enrol(self, expert_level: int, number: int) -> int:
        reader = get_user_model().objects.create(
            username=f"imported-{self._study.public_id.hex[:8]}-level{expert_level}-{number}",
            password=make_password(None),
            is_active=False,
        )
        Membership.objects.create(
            study=self._study, reader=reader, expert_level=expert_level, is_simulated=self._is_simulated
        )
        return reader.pk


def store(study: Study, rated: list[tuple[RatingRow, GeneratedImage]], *, is_simulated: bool) -> None:
    """Store one place, one rating and one event per row. Call within a transaction."""
    readers, now = _Readers(study, is_simulated), timezone.now()
    places = Assignment.objects.bulk_create(
        [readers.next_place(image, row.expert_level) for row, image in rated], batch_size=_BATCH_ROWS
    )
    ratings = Rating.objects.bulk_create(
        [
            Rating(
                assignment=place,
                value=row.rating,
                expert_level=row.expert_level,
                protocol_version=study.protocol_version,
                is_simulated=is_simulated,
                submitted_at=now,
            )
            for place, (row, _) in zip(places, rated, strict=True)
        ],
        batch_size=_BATCH_ROWS,
    )
    events = [
        RatingEvent(
            rating=rating,
            revision=1,
            action=RatingEvent.Action.SUBMIT,
            state=rating.state,
            value=rating.value,
            expert_level=rating.expert_level,
            protocol_version=rating.protocol_version,
            is_simulated=rating.is_simulated,
            submitted_at=rating.submitted_at,
            actor_id=rating.assignment.reader_id,
            client_uuid=uuid.uuid4(),
        )
        for rating in ratings
    ]
    RatingEvent.objects.bulk_create(events, batch_size=_BATCH_ROWS)
