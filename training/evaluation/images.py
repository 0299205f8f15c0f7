"""The two sets that are compared: reference images of a dataset CSV or drawn phantoms, and generated ones."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from generation.diffusion.phantoms import FINDINGS, PhantomClass, caption, class_of_caption, draw
from medsyn.artifacts import file_sha256
from medsyn.imaging import ImageReadError, load
from medsyn.modalities import parse_prompt
from training.finetuning.dataset import Row

# Phantoms from here on are seen by nothing that is trained: generator, encoder and judge draw below.
HELD_OUT_SEED = 80_000_000
_SPREAD = 1_000_000  # seeds between two evaluations of different --seed
PHANTOM_MARK = "procedural phantom"  # in the sidecar's statement of what the image is


class EvaluationError(ValueError):
    """What was given cannot be evaluated; the message says why and what to give instead."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images with what is known about each."""

    pixels: Tensor  # (N, 3, H, W) uint8
    captions: tuple[str, ...]  # full prompts in canonical spelling
    groups: tuple[str, ...]  # patient or other group; an image's own name where none is known

    def __post_init__(self) -> None:
        if not len(self.pixels) == len(self.captions) == len(self.groups):
            raise ValueError(f"{len(self.pixels)} images, {len(self.captions)} captions, {len(self.groups)} groups.")

    def __len__(self) -> int:
        return len(self.captions)

    def subset(self, positions: np.ndarray) -> "ImageSet":
        """The images at these positions (n,)."""
        captions, groups = (tuple(each[i] for i in positions) for each in (self.captions, self.groups))
        return ImageSet(self.pixels[torch.from_numpy(positions)], captions, groups)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Prefix of each caption's kind."""
        return tuple(parse_prompt(text).kind.prefix for text in self.captions)

    @property
    def are_phantoms(self) -> bool:
        """Whether every caption is one that a phantom can carry."""
        return all(class_of_caption(text) is not None for text in self.captions)


def _tensor(pictures: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def phantom_captions(num_images: int, *, seed: int) -> tuple[str, ...]:
    """Captions to draw, of phantoms drawn at random like those of `draw_phantoms`, but others.

    Were they the same ones, both sets would show each finding equally often, more alike than chance makes two sets.
    """
    return tuple(caption(*wanted) for wanted in _random_phantoms(num_images, seed, first=_SPREAD // 2))


def _random_phantoms(num_images: int, seed: int, *, first: int) -> list[tuple[PhantomClass, int]]:
    """Class, drawn evenly from FINDINGS, and seed of each."""
    rng = np.random.default_rng([seed, first])
    start = HELD_OUT_SEED + seed * _SPREAD + first
    return [(FINDINGS[number], start + i) for i, number in enumerate(rng.integers(0, len(FINDINGS), num_images))]


def draw_phantoms(num_images: int, *, seed: int, size: tuple[int, int]) -> ImageSet:
    """Held-out phantoms of ``size`` (height, width) in pixels, drawn square and padded with black."""
    wanted = _random_phantoms(num_images, seed, first=0)
    phantoms = [
        draw(phantom_class, seed=one, size=min(size))
        for phantom_class, one in tqdm(wanted, desc="phantoms", leave=False, disable=None)
    ]
    pixels = _tensor([phantom.pixels for phantom in phantoms])
    top, left = ((side - min(size)) // 2 for side in size)
    framed = pixels.new_zeros((num_images, 3, *size))
    framed[:, :, top : top + min(size), left : left + min(size)] = pixels
    groups = tuple(f"phantom {one}" for _, one in wanted)
    return ImageSet(framed, tuple(phantom.caption for phantom in phantoms), groups)


def read_reference(rows: Sequence[Row], *, size: tuple[int, int]) -> ImageSet:
    """The images of checked dataset rows at ``size`` (height, width), padded to its proportions."""
    pictures = [load(row.path, modality=row.prompt.kind.prefix).to_rgb(size) for row in rows]
    # Without a group two copies of one file still are one: they must not lie on two sides of a split.
    groups = tuple(f"group {row.group}" if row.group else f"file {row.image_sha256}" for row in rows)
    return ImageSet(_tensor(pictures), tuple(row.text for row in rows), groups)


@dataclass(frozen=True)
class GeneratedFile:
    """An image that a command of this project wrote, with its sidecar's facts."""

    path: Path
    prompt: str
    seed: int
    weights_sha256: dict[str, str]  # by role: generator and, where it was filtered, selector and policy
    model: str
    is_phantom: bool
    facts: dict  # the whole sidecar


def generated_files(folder: Path) -> list[GeneratedFile]:
    """The images of a folder that `manage.py generate` or an evaluation wrote, by name; raises EvaluationError."""
    paths = sorted(path for path in folder.glob("*.png") if path.with_suffix(".json").is_file())
    if not paths:
        raise EvaluationError(
            f"{folder} holds no PNG with a JSON sidecar of the same name. Give a folder that manage.py generate "
            "wrote."
        )
    return [_generated_file(path) for path in paths]


def _generated_file(path: Path) -> GeneratedFile:
    sidecar = path.with_suffix(".json")
    try:
        facts = json.loads(sidecar.read_text(encoding="utf-8"))
        found = GeneratedFile(
            path=path,
            prompt=parse_prompt(facts["prompt"]).text,
            seed=int(facts["seed"]),
            weights_sha256=facts["weights_sha256"],
            model=facts["model"],
            is_phantom=PHANTOM_MARK in facts["synthetic"],
            facts=facts,
        )
        expected = facts["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"{sidecar} is no sidecar of manage.py generate ({error!r}). Remove or restore it."
        ) from None
    if file_sha256(path) != expected:
        raise EvaluationError(f"{path} is not the image that {sidecar.name} describes. Remove both or restore it.")
    return found


def read_generated(files: Sequence[GeneratedFile]) -> ImageSet:
    """Their pixels, all of one size; raises EvaluationError that names the first of another."""
    pictures = []
    for file in files:
        try:
            picture = load(file.path).to_rgb()
        except ImageReadError as error:
            raise EvaluationError(str(error)) from None
        if pictures and picture.shape != pictures[0].shape:
            sizes = " and ".join(f"{shape[1]} x {shape[0]}" for shape in (pictures[0].shape, picture.shape))
            raise EvaluationError(
                f"{file.path} has another size than the images before it ({sizes}): evaluate apart."
            )
        pictures.append(picture)
    # The same noise gives related images under different prompts: one group.
    return ImageSet(_tensor(pictures), tuple(file.prompt for file in files), tuple(f"seed {f.seed}" for f in files))


def choose_captions(captions: Sequence[str], num_images: int, *, seed: int) -> tuple[str, ...]:
    """Captions to draw, at random and without repeating one before all have come."""
    rng = np.random.default_rng([seed, 0])
    rounds = -(-num_images // len(captions))
    order = np.concatenate([rng.permutation(len(captions)) for _ in range(rounds)])
    return tuple(captions[i] for i in order[:num_images])


def finest_label(text: str) -> str:
    """The phantom's class where the caption is a phantom's, else the caption itself."""
    phantom_class = class_of_caption(text)
    return text if phantom_class is None else phantom_class.name
