"""The rated images in memory: pixels, ratings, soft labels.

An image is its bytes: two files with equal content are one image and never sit on two sides of the split. A rated
item is an image under a prompt. Pictures are kept as uint8 at the size the scorers read: 48 KiB each at 128 pixels.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from generation.scoring.selector import kind_indices
from medsyn.artifacts import file_sha256
from medsyn.imaging import ImageReadError, load
from medsyn.modalities import parse_prompt
from ratings.agreement.rater_model import (
    EQUAL_ACCURACY,
    NUM_LEVELS,
    PRIOR_ACCURACY,
    RaterModel,
    fit_rater_model,
    usual_levels,
)
from ratings.csv_schema import RatingRow, RatingsCSVError, TidyRow, read_ratings_file, tidy_path
from training.rlhf.config import Augmentation, RaterSettings
from training.rlhf.splits import Split, connected_groups, split_groups
from training.rlhf.tidy import EXPERT_LEVELS, GIVEN, TIDY_FILE, Tidy, find_tidy

MIN_IMAGES = 10
AUGMENTED_SHARE = 0.5  # of the training images of a step; the others are shown as they are served


@dataclass(frozen=True)
class DataSeen:
    """What files the ratings came from, and what of them stayed out."""

    ratings_file_sha256: str
    tidy_file_sha256: str | None  # None: there is no tidy table that belongs to the ratings file
    rater_source: str  # training.rlhf.tidy.TIDY_FILE, EXPERT_LEVELS or GIVEN
    left_out: dict[str, int]  # rows by reason: repeat, calibration, real, training, cannot_judge, ...


@dataclass(frozen=True)
class RatedImages:
    """N rated items (an image under a prompt) and their R ratings."""

    pixels: Tensor  # (N, 3, S, S) uint8
    kinds: Tensor  # (N,) int64, positions in medsyn.modalities.ALL_KINDS
    kind_slugs: tuple[str, ...]  # (N,)
    prompts: tuple[str, ...]  # the distinct prompts, P of them
    prompt_index: Tensor  # (N,) int64, into prompts
    image_ids: tuple[str, ...]  # (N,) sha256 of the file
    paths: tuple[str, ...]  # (N,) the file as the CSV names it
    groups: np.ndarray  # (N,) number of the group that is on one side of the split
    known: np.ndarray  # (N,) the grade that an image is known to have (gold), 1 to 3; 0: not known
    item_of_rating: np.ndarray  # (R,) item of each rating
    grades: np.ndarray  # (R,) 1 to 3, as given
    levels: np.ndarray  # (R,) expertise level, 1 to 3
    raters: np.ndarray  # (R,) rater of each rating; the expertise level where raters are not known
    seen: DataSeen

    def __len__(self) -> int:
        return len(self.kind_slugs)

    def images(self, index: Tensor) -> Tensor:
        """float32 (B, 3, S, S) in [0, 1]."""
        return self.pixels[index].float() / 255


def load_rated_images(
    ratings_file: Path,
    *,
    image_size: int,
    settings: RaterSettings,
    num_workers: int = 0,
    rater_ids: Sequence[str] | None = None,
) -> RatedImages:
    """Read a ratings CSV and its images; raises RatingsCSVError with every fault and its line, or FileNotFoundError.

    Who gave each rating, which images are of one patient or drawn from one prompt and seed, and which have a known
    grade is read from the tidy table beside the CSV, where that belongs to it. Without one the raters of one
    expertise level count as one rater, and only equal files belong together.

    ``rater_ids``: who gave each rating, in the order of the file's rows, instead of what the tidy table says.
    """
    rows = read_ratings_file(ratings_file)
    if rater_ids is not None and len(rater_ids) != len(rows):
        raise ValueError(f"{len(rater_ids)} rater ids for the {len(rows)} ratings of {ratings_file}.")
    ratings_sha256 = file_sha256(ratings_file)
    tidy = find_tidy(ratings_file, rows)
    entries = _entries(rows, tidy, rater_ids)
    kept, left_out = _choose(entries, tidy, settings)
    pictures = _read_pictures(ratings_file, kept, image_size, num_workers)
    source = GIVEN if rater_ids is not None else EXPERT_LEVELS if tidy is None else TIDY_FILE
    tidy_sha256 = None if tidy is None else file_sha256(tidy.path)
    return _assemble(kept, pictures, ratings_file, DataSeen(ratings_sha256, tidy_sha256, source, left_out))


@dataclass(frozen=True)
class _Entry:
    """One rating and what the tidy table knows of it."""

    row: RatingRow
    rater: str
    tidy: TidyRow | None


def _entries(rows: list[RatingRow], tidy: Tidy | None, rater_ids: Sequence[str] | None) -> list[_Entry]:
    known = [None] * len(rows) if tidy is None else tidy.rows
    names = rater_ids
    if names is None:
        names = [f"level {row.expert_level}" for row in rows] if tidy is None else [row.reader for row in tidy.rows]
    return [_Entry(*each) for each in zip(rows, names, known, strict=True)]


def _choose(entries: list[_Entry], tidy: Tidy | None, settings: RaterSettings) -> tuple[list[_Entry], dict[str, int]]:
    """The ratings to learn from, and by reason how many stay out."""
    left_out = Counter({} if tidy is None else tidy.left_out)
    allowed = range(settings.min_expert_level, settings.max_expert_level + 1)
    kept = []
    for entry in entries:
        if entry.row.expert_level not in allowed:
            left_out["expert_level"] += 1
        elif entry.tidy is not None and entry.tidy.image_sha256 in tidy.calibration_images:
            left_out["calibration_image"] += 1  # one reader's calibration image is nobody's training image
        else:
            kept.append(entry)
    return kept, dict(left_out)


@dataclass(frozen=True)
class _Picture:
    sha256: str
    pixels: np.ndarray  # uint8 (S, S, 3)


def _read_pictures(
    ratings_file: Path, entries: list[_Entry], image_size: int, num_workers: int
) -> dict[str, _Picture]:
    """Every image once, by its path in the CSV; all that cannot be read are reported together."""
    first = {entry.row.image_path: entry for entry in reversed(entries)}

    def read(entry: _Entry) -> _Picture | str:
        row, path = entry.row, entry.row.resolve(ratings_file.parent)
        kind = parse_prompt(row.prompt).kind
        try:
            picture = _Picture(file_sha256(path), load(path, modality=kind.prefix).to_rgb(image_size))
        except ImageReadError as error:
            return f"line {row.line}: {row.image_path}: {error.reason}"
        except FileNotFoundError:
            return f"line {row.line}: {row.image_path}: there is no such file"
        if entry.tidy is not None and entry.tidy.image_sha256 != picture.sha256:
            return (
                f"line {row.line}: {row.image_path} is not the file that was rated: its sha256 differs from that of "
                f"{tidy_path(ratings_file).name}, line {entry.tidy.line}. Restore the file, or export again"
            )
        return picture

    results = dict(zip(first, _map(read, list(first.values()), num_workers), strict=True))
    faults = [(first[path].row.line, result) for path, result in results.items() if isinstance(result, str)]
    if faults:
        raise RatingsCSVError(str(ratings_file), [sentence for _, sentence in sorted(faults)])
    return results


def _map(function: Callable, values: list, num_workers: int) -> list:
    if num_workers == 0:
        return [function(value) for value in values]
    with ThreadPoolExecutor(num_workers) as pool:
        return list(pool.map(function, values))


def _assemble(
    entries: list[_Entry], pictures: dict[str, _Picture], ratings_file: Path, seen: DataSeen
) -> RatedImages:
    items: dict[tuple[str, str], list[_Entry]] = {}
    for entry in entries:
        items.setdefault((pictures[entry.row.image_path].sha256, entry.row.prompt), []).append(entry)
    number = {key: place for place, key in enumerate(items)}
    image_ids = tuple(sha256 for sha256, _ in items)
    if len(set(image_ids)) < MIN_IMAGES:
        raise RatingsCSVError(
            str(ratings_file),
            [f"{len(set(image_ids))} different images are rated; at least {MIN_IMAGES} are needed. Rate more."],
        )
    prompts = tuple(dict.fromkeys(prompt for _, prompt in items))
    place_of_prompt = {prompt: place for place, prompt in enumerate(prompts)}
    slugs = tuple(parse_prompt(prompt).kind.slug for _, prompt in items)
    paths = tuple(entries[0].row.image_path for entries in items.values())
    stacked = np.stack([pictures[path].pixels for path in paths])
    return RatedImages(
        pixels=torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous(),
        kinds=kind_indices(slugs),
        kind_slugs=slugs,
        prompts=prompts,
        prompt_index=torch.tensor([place_of_prompt[prompt] for _, prompt in items]),
        image_ids=image_ids,
        paths=paths,
        groups=connected_groups([_shared_keys(key, of_item) for key, of_item in items.items()]),
        known=_known_grades(items, ratings_file),
        item_of_rating=np.array(
            [number[pictures[entry.row.image_path].sha256, entry.row.prompt] for entry in entries]
        ),
        grades=np.array([entry.row.rating for entry in entries]),
        levels=np.array([entry.row.expert_level for entry in entries]),
        raters=np.array([entry.rater for entry in entries]),
        seen=seen,
    )


def _shared_keys(item: tuple[str, str], entries: list[_Entry]) -> list[Hashable]:
    """What an item shares with those that must be on its side: its bytes, its patient, its prompt and seed."""
    sha256, prompt = item
    known = [entry.tidy for entry in entries if entry.tidy is not None]
    patients = [("patient", row.patient) for row in known if row.patient]
    seeds = [("seed", prompt, row.seed) for row in known if row.seed is not None]
    return [("image", sha256), *patients, *seeds]


def _known_grades(items: dict[tuple[str, str], list[_Entry]], ratings_file: Path) -> np.ndarray:
    """(N,) the known grade of each item, 0 where none is known; raises RatingsCSVError where two are."""
    known = np.zeros(len(items), dtype=int)
    faults = []
    for number, entries in enumerate(items.values()):
        grades = {entry.tidy.gold_grade: entry.tidy.line for entry in entries if entry.tidy and entry.tidy.gold_grade}
        if len(grades) > 1:
            said = " and ".join(f"{grade} (line {line})" for grade, line in sorted(grades.items()))
            faults.append(f"{entries[0].row.image_path} has two known grades: {said}. Correct one, and export again")
        known[number] = next(iter(grades), 0)
    if faults:
        raise RatingsCSVError(str(tidy_path(ratings_file)), faults)
    return known


def rater_levels(rated: RatedImages) -> np.ndarray:
    """(J,) the expertise level under which each rater gave most ratings; raters in the order of their names."""
    names, raters = np.unique(rated.raters, return_inverse=True)
    by_level = np.bincount(raters * NUM_LEVELS + rated.levels - 1, minlength=NUM_LEVELS * len(names))
    return usual_levels(by_level.reshape(-1, NUM_LEVELS))


def fit_raters(
    rated: RatedImages,
    *,
    expert_weights: bool,
    counts: np.ndarray | None = None,
    image_prior: np.ndarray | None = None,
) -> tuple[RaterModel, tuple[str, ...]]:
    """The rater model of all ratings, or of those that ``counts`` (R,) marks, and the raters' names in its order.

    Known grades enter as a rater who is always right. ``image_prior`` (N, 3): as in `fit_rater_model`.
    """
    names, raters = np.unique(rated.raters, return_inverse=True)
    levels = rater_levels(rated).tolist()
    accuracies = np.array([PRIOR_ACCURACY[level] if expert_weights else EQUAL_ACCURACY for level in levels])
    rows = slice(None) if counts is None else counts
    model = fit_rater_model(
        rated.item_of_rating[rows],
        raters[rows],
        rated.grades[rows],
        accuracies,
        num_images=len(rated),
        known=rated.known,
        image_prior=image_prior,
    )
    return model, tuple(map(str, names))


def soft_labels(rated: RatedImages, *, expert_weights: bool) -> tuple[Tensor, RaterModel, tuple[str, ...]]:
    """Posterior grades (N, 3) by all raters, the fitted rater model, and the raters' names in its order."""
    model, names = fit_raters(rated, expert_weights=expert_weights)
    return torch.from_numpy(model.posterior).float(), model, names


def split_images(rated: RatedImages, *, seed: int) -> Split:
    """A seeded split by group, drawn within each kind; raises SplitError where too few groups are left."""
    return split_groups(rated.groups, rated.kind_slugs, rated.image_ids, seed=seed)


def augment(images: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """Rotate, zoom and change the contrast of a share of the images (B, 3, S, S); the others stay as they are."""
    count = len(images)
    drawn = torch.rand(4, count, generator=generator)
    angle = torch.deg2rad((2 * drawn[0] - 1) * settings.rotation_range)
    scale = 1 + (2 * drawn[1] - 1) * settings.zoom_range
    low, high = settings.contrast_range
    contrast = low + (high - low) * drawn[2]
    cosine, sine, zero = angle.cos() / scale, angle.sin() / scale, torch.zeros(count)
    matrix = torch.stack([torch.stack([cosine, -sine, zero], 1), torch.stack([sine, cosine, zero], 1)], 1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    mean = moved.mean((1, 2, 3), keepdim=True)
    changed = (mean + (moved - mean) * contrast[:, None, None, None]).clamp(0, 1)
    is_changed = drawn[3] < AUGMENTED_SHARE
    return torch.where(is_changed[:, None, None, None], changed, images)
