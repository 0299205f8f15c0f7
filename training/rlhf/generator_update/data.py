"""What a generator update draws and learns from: prompts, seeds, real images to replay and real images held out."""

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from generation.embedded_model import draws_phantoms
from generation.memorisation import MemoryIndex
from medsyn.artifacts import atomic_path, file_sha256
from medsyn.modalities import parse_prompt
from ratings.csv_schema import read_ratings_file
from training.evaluation.images import (
    GeneratedFile,
    choose_captions,
    draw_phantoms,
    phantom_captions,
    read_reference,
)
from training.evaluation.labels import fold_of_each
from training.finetuning.dataset import Row, load_dataset
from training.finetuning.memory_index import index_in
from training.rlhf.generator_update.settings import UpdateError, UpdateSettings
from training.simulation.phantom_dataset import write_phantom_dataset

_FIRST_IMAGE_SEED, _FIRST_PHANTOM_SEED = 1_000_000_000, 1_000_000_000
_SPREAD, _SAMPLE_OFFSET = 1_000_000, 500_000  # seeds between updates, and between choosing and deciding
_FOLDS = 5  # one fold of the real images is held out
_LEAST = 20  # real images that either part must have
_LEAST_PAIRS = 20  # of the panel's ratings
POOR = 1  # the grade


@dataclass(frozen=True)
class Wanted:
    """Images to draw: one for each prompt, the k-th from seed + k."""

    prompts: tuple[str, ...]
    seed: int


@dataclass(frozen=True, eq=False)
class RealData:
    """Real images in two parts that share no patient."""

    replayed: tuple[Row, ...]
    reference: Tensor  # (M, 3, S, S) uint8, held out
    reference_captions: tuple[str, ...]  # (M,)
    prompts: tuple[str, ...]  # captions that prompts are drawn from; empty: any phantom's
    origin: str  # for people

    def wanted(self, settings: UpdateSettings, *, for_decision: bool) -> Wanted:
        """Prompts and seeds of the images to choose from, or of the samples that decide; they never meet."""
        number = settings.sample_size if for_decision else settings.num_synthetic
        stream = 2 * settings.seed + for_decision
        seed = _FIRST_IMAGE_SEED + settings.seed * _SPREAD + for_decision * _SAMPLE_OFFSET
        if not self.prompts:
            return Wanted(phantom_captions(number, seed=stream), seed)
        return Wanted(choose_captions(self.prompts, number, seed=stream), seed)


def load_real_data(settings: UpdateSettings, folder: Path, *, image_size: int) -> RealData:
    """The dataset that the generator was trained on, or for one that draws phantoms new ones, written to ``folder``.

    Raises UpdateError, and DatasetError for a dataset that cannot be read.
    """
    if settings.real_data:
        return _of_dataset(settings, image_size)
    if not draws_phantoms(settings.generator_folder):
        raise UpdateError(
            f"{settings.generator} draws no phantoms: name the dataset CSV that it was trained on (real_data). "
            "Without real images beside its own the generator forgets what they look like."
        )
    if not folder.exists():
        seed = _FIRST_PHANTOM_SEED + settings.seed * _SPREAD
        write_phantom_dataset(folder, num_images=settings.num_real, seed=seed, size=image_size)
    rows, _ = load_dataset(folder / "metadata.csv")
    held_out = draw_phantoms(settings.num_reference, seed=settings.seed, size=(image_size, image_size))
    return RealData(tuple(rows), held_out.pixels, held_out.captions, (), "phantoms without defects")


def _of_dataset(settings: UpdateSettings, image_size: int) -> RealData:
    rows, _ = load_dataset(Path(settings.real_data))
    held_out = _is_held_out(rows, index_in(settings.generator_folder), seed=settings.seed)
    rng = np.random.default_rng([settings.seed, 2])
    parts = []
    for members, limit in (
        (np.flatnonzero(~held_out), settings.num_real),
        (np.flatnonzero(held_out), settings.num_reference),
    ):
        if len(members) < _LEAST:
            raise UpdateError(
                f"{settings.real_data} has too few images: {len(rows)}, of which {int(held_out.sum())} are held out "
                f"by patient. Either part needs {_LEAST}."
            )
        parts.append([rows[index] for index in np.sort(rng.permutation(members)[:limit])])
    replayed, held_out = parts
    reference = read_reference(held_out, size=(image_size, image_size))
    captions = tuple(sorted({row.text for row in rows}))
    return RealData(tuple(replayed), reference.pixels, reference.captions, captions, settings.real_data)


def _is_held_out(rows: Sequence[Row], memory: MemoryIndex | None, *, seed: int) -> np.ndarray:
    """(N,) bool: whose images are kept from the update, whole patients.

    Patients whom the generator's training kept from it stay unseen: they tell its copies from other people's images.
    Where its memory index does not part the dataset, a fifth is held out at random.
    """
    groups = [row.group or row.image_sha256 for row in rows]
    if memory is not None:
        known = set(memory.sha256s)
        seen = {group for group, row in zip(groups, rows, strict=True) if row.image_sha256 in known}
        unseen = np.array([group not in seen for group in groups])
        if min(unseen.sum(), (~unseen).sum()) >= _LEAST:
            return unseen
    return fold_of_each(groups, [row.prompt.kind.prefix for row in rows], _FOLDS, seed=seed) == 0


def write_training_csv(path: Path, real: Sequence[Row], chosen: Sequence[GeneratedFile]) -> None:
    """The dataset CSV of an update: the real rows first, then the chosen images with their prompts."""
    rows = [(row.path.absolute(), row.text, row.prompt.modality) for row in real]
    rows += [(file.path.absolute(), file.prompt, parse_prompt(file.prompt).modality) for file in chosen]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "Text", "modality"), *rows])


def panel_verdicts(ratings_file: Path, samples: Sequence[Sequence[GeneratedFile]]) -> tuple[np.ndarray, np.ndarray]:
    """Which pairs the panel has rated, (N,) bool, and which of their images it calls poor, (len(samples), N) bool.

    An image is poor where more than half of its ratings say so. Rated files are known by their content, so it does
    not matter where they lie. Raises UpdateError where fewer than 20 pairs are rated on both sides.
    """
    grades: dict[str, list[int]] = {}
    digests: dict[Path, str] = {}
    for row in read_ratings_file(ratings_file):
        path = row.resolve(ratings_file.parent)
        digests.setdefault(path, file_sha256(path))
        grades.setdefault(digests[path], []).append(row.rating)
    given = [[grades.get(_digest(file), []) for file in sample] for sample in samples]
    rated = np.array([all(pair) for pair in zip(*given, strict=True)])
    if rated.sum() < _LEAST_PAIRS:
        raise UpdateError(
            f"{ratings_file} rates {int(rated.sum())} of the {len(rated)} pairs of images on both sides; at least "
            f"{_LEAST_PAIRS} are needed. Have the images of both samples rated, blind and mixed."
        )
    poor = np.array([[_is_poor(ratings) for ratings in sample] for sample in given])
    return rated, poor


def _digest(file: GeneratedFile) -> str:
    return hashlib.sha256(file.path.read_bytes()).hexdigest()


def _is_poor(ratings: Sequence[int]) -> bool:
    return 2 * sum(rating == POOR for rating in ratings) > len(ratings)
