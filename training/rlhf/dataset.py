"""The rated images in memory: pixels, soft labels, and which side of the split each is on.

An image is its bytes: two files with equal content are one image and never sit on two sides of the split. A rated
item is an image under a prompt. Pictures are kept as uint8 at the size the scorers read: 48 KiB each at 128 pixels.
"""

import math
from collections.abc import Callable, Sequence
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
from ratings.agreement.rater_model import EQUAL_ACCURACY, PRIOR_ACCURACY, RaterModel, fit_rater_model
from ratings.csv_schema import RatingRow, RatingsCSVError, read_ratings_file
from training.rlhf.config import Augmentation, RaterSettings

HELD_OUT_SHARE = 0.2  # of the images: never trained on, only measured on
CALIBRATION_SHARE = 0.125  # of the rest: temperature and choice of the epoch
MIN_IMAGES = 10
AUGMENTED_SHARE = 0.5  # of the training images of a step; the others are shown as they are served


@dataclass(frozen=True)
class RatedImages:
    """N rated items (an image under a prompt) and their R ratings."""

    pixels: Tensor  # (N, 3, S, S) uint8
    kinds: Tensor  # (N,) int64, positions in medsyn.modalities.ALL_KINDS
    kind_slugs: tuple[str, ...]  # (N,)
    prompts: tuple[str, ...]  # the distinct prompts, P of them
    prompt_index: Tensor  # (N,) int64, into prompts
    image_ids: tuple[str, ...]  # (N,) sha256 of the file
    item_of_rating: np.ndarray  # (R,) item of each rating
    grades: np.ndarray  # (R,) 1 to 3, as given
    levels: np.ndarray  # (R,) expertise level, 1 to 3
    raters: np.ndarray  # (R,) rater of each rating; the expertise level where raters are not known

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

    ``rater_ids``: who gave each rating, in the order of the file's rows; without it the raters of one expertise
    level count as one rater.
    """
    all_rows = read_ratings_file(ratings_file)
    if rater_ids is not None and len(rater_ids) != len(all_rows):
        raise ValueError(f"{len(rater_ids)} rater ids for the {len(all_rows)} ratings of {ratings_file}.")
    allowed = range(settings.min_expert_level, settings.max_expert_level + 1)
    kept = [number for number, row in enumerate(all_rows) if row.expert_level in allowed]
    rows = [all_rows[number] for number in kept]
    pictures = _read_pictures(ratings_file, rows, image_size, num_workers)
    names = [f"level {row.expert_level}" for row in rows]
    if rater_ids is not None:
        names = [rater_ids[number] for number in kept]
    return _assemble(rows, pictures, names, ratings_file)


@dataclass(frozen=True)
class _Picture:
    sha256: str
    pixels: np.ndarray  # uint8 (S, S, 3)


def _read_pictures(
    ratings_file: Path, rows: list[RatingRow], image_size: int, num_workers: int
) -> dict[str, _Picture]:
    """Every image once, by its path in the CSV; all that cannot be read are reported together."""
    first_rows = {row.image_path: row for row in reversed(rows)}

    def read(row: RatingRow) -> _Picture | str:
        path = row.resolve(ratings_file.parent)
        kind = parse_prompt(row.prompt).kind
        try:
            picture = load(path, modality=kind.prefix).to_rgb(image_size)
            return _Picture(file_sha256(path), picture)
        except ImageReadError as error:
            return f"line {row.line}: {row.image_path}: {error.reason}"

    results = dict(zip(first_rows, _map(read, list(first_rows.values()), num_workers), strict=True))
    faults = [(first_rows[path].line, result) for path, result in results.items() if isinstance(result, str)]
    if faults:
        raise RatingsCSVError(str(ratings_file), [sentence for _, sentence in sorted(faults)])
    return results


def _map(function: Callable, values: list, num_workers: int) -> list:
    if num_workers == 0:
        return [function(value) for value in values]
    with ThreadPoolExecutor(num_workers) as pool:
        return list(pool.map(function, values))


def _assemble(
    rows: list[RatingRow], pictures: dict[str, _Picture], raters: list[str], ratings_file: Path
) -> RatedImages:
    items: dict[tuple[str, str], int] = {}
    item_of_rating = []
    first_paths = []
    for row in rows:
        key = (pictures[row.image_path].sha256, row.prompt)
        if key not in items:
            items[key] = len(items)
            first_paths.append(row.image_path)
        item_of_rating.append(items[key])
    image_ids = tuple(sha256 for sha256, _ in items)
    if len(set(image_ids)) < MIN_IMAGES:
        raise RatingsCSVError(
            str(ratings_file),
            [f"{len(set(image_ids))} different images are rated; at least {MIN_IMAGES} are needed. Rate more."],
        )
    prompts = tuple(dict.fromkeys(prompt for _, prompt in items))
    slugs = tuple(parse_prompt(prompt).kind.slug for _, prompt in items)
    stacked = np.stack([pictures[path].pixels for path in first_paths])
    return RatedImages(
        pixels=torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous(),
        kinds=kind_indices(slugs),
        kind_slugs=slugs,
        prompts=prompts,
        prompt_index=torch.tensor([prompts.index(prompt) for _, prompt in items]),
        image_ids=image_ids,
        item_of_rating=np.array(item_of_rating),
        grades=np.array([row.rating for row in rows]),
        levels=np.array([row.expert_level for row in rows]),
        raters=np.array(raters),
    )


def soft_labels(rated: RatedImages, *, expert_weights: bool) -> tuple[Tensor, RaterModel, tuple[str, ...]]:
    """Posterior grades (N, 3), the fitted rater model, and the raters' names in its order."""
    names, raters = np.unique(rated.raters, return_inverse=True)
    accuracies = np.full(len(names), EQUAL_ACCURACY)
    if expert_weights:
        for number in range(len(names)):
            # One rater may have risen in level between ratings: what he is now is his latest level.
            accuracies[number] = PRIOR_ACCURACY[int(rated.levels[raters == number][-1])]
    model = fit_rater_model(rated.item_of_rating, raters, rated.grades, accuracies, num_images=len(rated))
    return torch.from_numpy(model.posterior).float(), model, tuple(map(str, names))


@dataclass(frozen=True)
class Split:
    """Positions of items; the same image is on one side only."""

    train: Tensor
    calibration: Tensor
    held_out: Tensor


def split_images(rated: RatedImages, *, seed: int) -> Split:
    """A seeded split by image, drawn within each kind so that none is missing from a side by bad luck."""
    generator = torch.Generator().manual_seed(seed)
    image_kind = dict(zip(rated.image_ids, rated.kind_slugs, strict=True))
    sides: dict[str, str] = {}
    for kind in sorted(set(image_kind.values())):
        images = sorted(image for image, slug in image_kind.items() if slug == kind)
        order = [images[i] for i in torch.randperm(len(images), generator=generator)]
        held_out = math.floor(HELD_OUT_SHARE * len(order) + torch.rand((), generator=generator).item())
        calibration = math.floor(
            CALIBRATION_SHARE * (len(order) - held_out) + torch.rand((), generator=generator).item()
        )
        for place, image in enumerate(order):
            is_calibration = held_out <= place < held_out + calibration
            sides[image] = "held_out" if place < held_out else "calibration" if is_calibration else "train"
    positions = {side: [] for side in ("train", "calibration", "held_out")}
    for item, image in enumerate(rated.image_ids):
        positions[sides[image]].append(item)
    for side in ("calibration", "held_out"):  # tiny sets: rounding may leave a side empty
        if not positions[side]:
            positions[side].append(positions["train"].pop())
    return Split(**{side: torch.tensor(items) for side, items in positions.items()})


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
