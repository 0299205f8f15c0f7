"""Build a generator's memory index: what it must not copy, and how near other patients' images come to it.

    python -m training.finetuning.memory_index --train_data_dir A.csv --held_out_data_dir B.csv --pipeline DIR

Fine-tuning with --held_out_share builds it by itself. For a pipeline trained elsewhere this command does, from its
training data set and from one with images of other patients, which the generator never saw.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from generation.memorisation import FILE_NAME, MIN_HELD_OUT, SIDE, MemoryIndex, nearest, small_pictures
from medsyn.artifacts import MANIFEST_NAME, ArtifactError, file_sha256, read_manifest, write_json
from medsyn.imaging import load
from training.datasets.duplicates import near_pairs
from training.finetuning.dataset import DatasetError, Row, load_dataset

_THUMBNAIL = 32  # pixels at which near duplicates are looked for
_BLACK = 16  # grey levels of 255: nothing brighter is in a margin
_BATCH = 32  # held-out images compared at a time
logger = logging.getLogger(__name__)


def build_index(
    trained: Sequence[Row], held_out: Sequence[Row], *, earlier: MemoryIndex | None = None
) -> MemoryIndex:
    """The index of the rows that a generator was trained on, with held-out rows of other patients beside it.

    ``earlier``: the index of the generator that the training began with. It goes on knowing those images: they are
    part of the new index, and the held-out images are held against them too.
    A held-out image that is nearly the same as a training image stands for no other patient, whatever the data set
    says: it is left out, and the log tells how many were. Raises DatasetError where both have a patient or a file.
    """
    _require_disjoint(trained, held_out)
    index, others = _with_images(earlier, trained), read_pictures(held_out)
    fresh = ~_near_duplicates(index.pictures, others)
    if not fresh.all():
        logger.warning(
            "%d of %d held-out images are nearly the same as training images and say nothing about other patients: "
            "they were left out.",
            int((~fresh).sum()),
            len(fresh),
        )
    kinds = [row.prompt.kind.slug for row, keep in zip(held_out, fresh, strict=True) if keep]
    if len(kinds) < MIN_HELD_OUT:
        logger.warning(
            "Only %d held-out images: copies are named, but none is blocked with fewer than %d. Hold out more.",
            len(kinds),
            MIN_HELD_OUT,
        )
    similarity = _similarities(others[fresh], index.pictures)
    return replace(index, held_out_similarity=similarity, held_out_kinds=tuple(kinds))


def _with_images(earlier: MemoryIndex | None, trained: Sequence[Row]) -> MemoryIndex:
    """The earlier index and the images of these rows that it does not know yet."""
    if earlier is None:
        none = torch.empty(0, SIDE, SIDE, dtype=torch.uint8)
        earlier = MemoryIndex(none, (), (), (), torch.zeros(0), ())
    known = set(earlier.sha256s)
    new = [row for row in trained if row.image_sha256 not in known]
    if not new:
        return earlier
    folder = os.path.commonpath([row.path.resolve().parent for row in new])
    names = tuple(row.path.resolve().relative_to(folder).as_posix() for row in new)
    return replace(
        earlier,
        pictures=torch.cat([earlier.pictures, read_pictures(new)]),
        datasets=earlier.datasets + (folder,) * len(new),
        names=earlier.names + names,
        sha256s=earlier.sha256s + tuple(row.image_sha256 for row in new),
    )


def read_pictures(rows: Sequence[Row]) -> Tensor:
    """What an index keeps of the rows' images: uint8 grey (N, S, S)."""
    pictures = torch.empty(len(rows), SIDE, SIDE, dtype=torch.uint8)
    for number, row in enumerate(tqdm(rows, desc="Reading images", unit="image", disable=None)):
        pixels = load(row.path, modality=row.prompt.kind.prefix).to_rgb(2 * SIDE)
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        pictures[number] = small_pictures(image)[0]
    return pictures


def _require_disjoint(trained: Sequence[Row], held_out: Sequence[Row]) -> None:
    groups, files = {row.group for row in trained if row.group}, {row.image_sha256 for row in trained}
    shared = [row for row in held_out if row.group in groups or row.image_sha256 in files]
    if shared:
        raise DatasetError(
            f"{len(shared)} held-out rows are of patients or files that were trained on, the first in line "
            f"{shared[0].line} ({shared[0].path.name}). Hold out images of other patients only."
        )


def _near_duplicates(pictures: Tensor, others: Tensor) -> Tensor:
    """(n,) bool: which of the others are nearly the same as one of the pictures."""
    thumbnails = torch.stack([_thumbnail(picture) for picture in torch.cat([pictures, others])])
    pairs, is_complete = near_pairs(thumbnails.numpy())
    if not is_complete:
        raise DatasetError("Nearly all images of this data set look alike: no image stands for another patient.")
    found = torch.zeros(len(others), dtype=torch.bool)
    for pair in pairs:
        if pair.first < len(pictures) <= pair.second:
            found[pair.second - len(pictures)] = True
    return found


def _thumbnail(picture: Tensor) -> Tensor:
    """uint8 (T, T) of a picture (S, S) less its black margins.

    The edges of the padding of wide images speak louder than what is in them: with them one in seven fundus
    photographs of other patients seemed the same as a training image. Left out, these were missing among the most
    similar ones, and one in eleven of such images was blocked by mistake.
    """
    is_lit = picture > _BLACK
    down, across = (torch.nonzero(is_lit.any(dim)).flatten() for dim in (1, 0))
    if len(down):
        picture = picture[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
    size = (_THUMBNAIL, _THUMBNAIL)
    return F.interpolate(picture.float()[None, None], size, mode="bilinear", antialias=True)[0, 0].round().byte()


def _similarities(others: Tensor, pictures: Tensor) -> Tensor:
    """(n,) of each other picture to its nearest one."""
    batches = tqdm(others.split(_BATCH), desc="Comparing with held-out images", unit="batch", disable=None)
    found = [nearest(batch.float()[:, None] / 255, pictures)[0] for batch in batches]
    return torch.cat(found) if found else torch.zeros(0)


def index_in(folder: Path) -> MemoryIndex | None:
    """The memory index of a pipeline's folder; None where it has none. Raises ArtifactError for a damaged one."""
    path = folder / FILE_NAME
    return MemoryIndex.load(path) if path.is_file() else None


def index_after(earlier: MemoryIndex | None, trained: Sequence[Row], held_out: Sequence[Row]) -> MemoryIndex | None:
    """What a generator must not copy once it was trained on further rows; None where nobody was ever held out.

    Without newly held-out images the earlier ones go on telling how near other patients come. They were held against
    fewer training images then, which errs on the side of blocking.
    """
    if held_out:
        return build_index(trained, held_out, earlier=earlier)
    return None if earlier is None else _with_images(earlier, trained)


def add_to_pipeline(index: MemoryIndex, folder: Path) -> None:
    """Put the index into a pipeline's folder, and into its manifest where it has one."""
    index.save(folder / FILE_NAME)
    if (folder / MANIFEST_NAME).exists():
        manifest = read_manifest(folder)
        manifest["files"][FILE_NAME] = file_sha256(folder / FILE_NAME)
        write_json(folder / MANIFEST_NAME, manifest)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.finetuning.memory_index", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--train_data_dir", type=Path, required=True, help="data set CSV that was trained on")
    parser.add_argument("--held_out_data_dir", type=Path, required=True, help="data set CSV of other patients")
    parser.add_argument("--pipeline", type=Path, required=True, help="pipeline folder that the index goes into")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if not (options.pipeline / "model_index.json").is_file():
            raise DatasetError(f"{options.pipeline} is no pipeline folder: it has no model_index.json.")
        trained, _ = load_dataset(options.train_data_dir)
        held_out, _ = load_dataset(options.held_out_data_dir)
        index = build_index(trained, held_out)
        add_to_pipeline(index, options.pipeline)
    except (DatasetError, ArtifactError, OSError) as error:
        logger.error("%s", error)
        return 2
    logger.info("%d training images, %d held out: %s", len(index), len(index.held_out_kinds), FILE_NAME)
    return 0


if __name__ == "__main__":
    sys.exit(main())
