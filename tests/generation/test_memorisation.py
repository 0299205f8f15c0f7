"""Copies of training images: planted ones are found, other patients' images are left alone."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from generation.diffusion.phantoms import FINDINGS, draw
from generation.memorisation import (
    LEVEL,
    MIN_HELD_OUT,
    MIN_OWN_KIND,
    MemoryIndex,
    nearest,
    small_pictures,
    thumbnail_correlation,
)
from medsyn.artifacts import ArtifactError

NUM_TRAINED, NUM_HELD_OUT, NUM_COPIES = 60, 100, 40
CLASSES = [phantom_class for phantom_class in FINDINGS if phantom_class.kind.slug == "fundus"]


def phantoms(first: int, count: int) -> torch.Tensor:
    """(N, 3, 128, 128) in [0, 1]."""
    seeds = range(first, first + count)
    pixels = np.stack([draw(CLASSES[seed % len(CLASSES)], seed=seed).pixels for seed in seeds])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def cropped(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """90 % of each side, from anywhere, at the old size again."""
    side = round(0.9 * images.shape[-1])
    corners = torch.randint(0, images.shape[-1] - side + 1, (len(images), 2), generator=generator).tolist()
    parts = [image[:, a : a + side, b : b + side] for image, (a, b) in zip(images, corners, strict=True)]
    return F.interpolate(torch.stack(parts), images.shape[-2:], mode="bilinear", antialias=True)


def other_grey(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    gamma, gain, offset = (
        low + (high - low) * torch.rand(len(images), 1, 1, 1, generator=generator)
        for low, high in ((0.67, 1.5), (0.7, 1.3), (-0.1, 0.1))
    )
    return (images.clamp(1e-4, 1) ** gamma * gain + offset).clamp(0, 1)


PLANTED = {
    "mirrored": lambda images, generator: images.flip(-1),
    "cropped": cropped,
    "other grey": other_grey,
    "noisy": lambda images, generator: (images + 0.08 * torch.randn(images.shape, generator=generator)).clamp(0, 1),
}


@pytest.fixture(scope="module")
def trained():
    return phantoms(0, NUM_TRAINED)


@pytest.fixture(scope="module")
def index(trained):
    pictures = small_pictures(trained)
    similarity, _ = nearest(phantoms(1_000_000, NUM_HELD_OUT), pictures)
    names = tuple(f"{number}.png" for number in range(NUM_TRAINED))
    similarity = torch.cat([similarity, torch.full((MIN_HELD_OUT,), 0.99)])  # another kind's images are all alike
    kinds = ("fundus",) * NUM_HELD_OUT + ("oct",) * MIN_HELD_OUT
    folders = ("/data",) * NUM_TRAINED
    return MemoryIndex(pictures, folders, names, tuple("0" * 64 for _ in names), similarity, kinds)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_planted_copies_are_blocked_and_their_source_is_named(index, trained, name):
    copies = PLANTED[name](trained[:NUM_COPIES], torch.Generator().manual_seed(5))
    judged = index.judge(copies, ["fundus"] * NUM_COPIES)
    caught = [one.is_copy and one.position == number for number, one in enumerate(judged)]
    assert np.mean(caught) >= 0.95


@pytest.mark.slow
def test_other_patients_images_pass(index):
    """At a level of 1 % at most 3 of 40: the chance of more is below 0.1 %."""
    judged = index.judge(phantoms(2_000_000, 40), ["fundus"] * 40)
    assert sum(one.is_copy for one in judged) <= 3
    assert all(0 < one.p_value <= 1 for one in judged)


@pytest.mark.slow
def test_the_usual_correlation_misses_crops(index, trained):
    held_out = thumbnail_correlation(phantoms(1_000_000, NUM_HELD_OUT), index.pictures)
    threshold = torch.quantile(held_out, 1 - LEVEL)
    crops = cropped(trained[:NUM_COPIES], torch.Generator().manual_seed(5))
    assert (thumbnail_correlation(crops, index.pictures) > threshold).float().mean() < 0.8


def test_a_picture_is_most_like_itself_and_its_mirror_image(trained):
    pictures = small_pictures(trained[:20])
    for images in (trained[:5], trained[:5].flip(-1)):
        similarity, position = nearest(images, pictures)
        assert position.tolist() == [0, 1, 2, 3, 4]
        assert similarity.min() > 0.97


def test_an_image_without_any_structure_resembles_none(trained):
    similarity, _ = nearest(torch.full((1, 1, 128, 128), 0.4), small_pictures(trained[:20]))
    assert similarity.item() < 0.2


def small_index(similarities: list[float], kinds: list[str]) -> MemoryIndex:
    picture = torch.zeros(1, 64, 64, dtype=torch.uint8)
    return MemoryIndex(picture, ("/data",), ("a.png",), ("0" * 64,), torch.tensor(similarities), tuple(kinds))


def test_the_p_value_counts_held_out_images_at_least_as_similar():
    similarities = [number / 1000 for number in range(MIN_HELD_OUT)]
    index = small_index(similarities, ["oct"] * MIN_HELD_OUT)
    assert index.p_value(0.5, "oct") == pytest.approx(1 / (MIN_HELD_OUT + 1))
    assert index.p_value(similarities[-2], "oct") == pytest.approx(3 / (MIN_HELD_OUT + 1))
    assert index.p_value(-1, "oct") == 1


def test_a_kind_with_enough_images_of_its_own_is_held_against_those_alone():
    similarities = [0.1] * MIN_OWN_KIND + [0.9] * MIN_HELD_OUT
    index = small_index(similarities, ["oct"] * MIN_OWN_KIND + ["fundus"] * MIN_HELD_OUT)
    assert index.p_value(0.5, "oct") == pytest.approx(LEVEL)
    assert index.p_value(0.5, "fundus") == 1
    assert index.p_value(0.5, "brain_mri") == pytest.approx((1 + MIN_HELD_OUT) / (1 + MIN_OWN_KIND + MIN_HELD_OUT))


def test_too_few_held_out_images_block_nothing():
    index = small_index([0.1] * (MIN_HELD_OUT - 1), ["oct"] * (MIN_HELD_OUT - 1))
    (one,) = index.judge(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)), ["oct"])
    assert one.p_value is None and not one.is_copy


def test_it_is_read_back_as_it_was_written(tmp_path):
    index = small_index([0.25, 0.5], ["oct", "fundus"])
    index.save(tmp_path / "index.safetensors")
    again = MemoryIndex.load(tmp_path / "index.safetensors")
    assert (again.names, again.sha256s, again.held_out_kinds, again.datasets) == (
        index.names,
        index.sha256s,
        index.held_out_kinds,
        index.datasets,
    )
    assert torch.equal(again.pictures, index.pictures)
    assert torch.equal(again.held_out_similarity, index.held_out_similarity)


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "index.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="Build the memory index again"):
        MemoryIndex.load(path)
