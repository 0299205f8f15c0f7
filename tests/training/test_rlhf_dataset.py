import pytest
import torch

from medsyn.modalities import parse_prompt
from ratings.csv_schema import RatingRow, RatingsCSVError, read_ratings_file
from tests.training.rlhf_files import PROMPTS, SIZE, write_ratings_file, write_rows
from training.rlhf.config import Augmentation, RaterSettings
from training.rlhf.dataset import augment, load_rated_images, soft_labels, split_images


def load(path, **settings):
    return load_rated_images(path, image_size=SIZE, settings=RaterSettings(**settings))


# --- raters ---


def test_expertise_never_deletes_or_changes_a_rating(tmp_path):
    """The predecessor multiplied ratings by level / 3 and dropped what fell below 1: every poor of level 1 and 2."""
    path = write_ratings_file(tmp_path, images=30, ratings=3)
    rows, rated = read_ratings_file(path), load(path)
    assert rated.grades.tolist() == [row.rating for row in rows]
    assert rated.levels.tolist() == [row.expert_level for row in rows]
    labels, _, _ = soft_labels(rated, expert_weights=True)
    for grade in (1, 2, 3):  # what all raters of an image agree on stays its likeliest grade
        for item in range(len(rated)):
            if (rated.grades[rated.item_of_rating == item] == grade).all():
                assert labels[item].argmax() == grade - 1


def test_expert_weights_off_trusts_every_level_alike(tmp_path):
    write_ratings_file(tmp_path, images=12)
    rows = [
        RatingRow(f"{number}.png", 3, parse_prompt(PROMPTS[0]).modality, 1 + number % 3, PROMPTS[0])
        for number in range(12)
    ]
    rated = load(write_rows(tmp_path / "one.csv", rows))
    alike, _, _ = soft_labels(rated, expert_weights=False)
    by_level, _, _ = soft_labels(rated, expert_weights=True)
    assert (alike - alike[0]).abs().max() < 1e-6
    assert by_level[0, 2] < by_level[1, 2] < by_level[2, 2]


def test_raters_are_their_levels_unless_they_are_named(tmp_path):
    path = write_ratings_file(tmp_path, images=12)
    _, _, names = soft_labels(load(path), expert_weights=True)
    assert set(names) <= {"level 1", "level 2", "level 3"}
    ids = ["ann", "ben"] * 12
    rated = load_rated_images(path, image_size=SIZE, settings=RaterSettings(), rater_ids=ids)
    _, model, names = soft_labels(rated, expert_weights=True)
    assert names == ("ann", "ben")
    assert model.overlap.tolist() == [12, 12]
    with pytest.raises(ValueError, match="1 rater ids for the 24 ratings"):
        load_rated_images(path, image_size=SIZE, settings=RaterSettings(), rater_ids=["ann"])


def test_levels_outside_the_limits_are_left_out(tmp_path):
    rated = load(write_ratings_file(tmp_path, images=60), min_expert_level=2)
    assert set(rated.levels.tolist()) == {2, 3}


# --- images ---


def test_images_come_as_they_lie_in_their_files(tmp_path):
    rated = load(write_ratings_file(tmp_path))
    assert rated.pixels.shape == (30, 3, SIZE, SIZE)
    assert rated.kind_slugs[:3] == ("oct", "oct", "chest_ct")
    images = rated.images(torch.tensor([0, 1]))
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1


def test_threads_read_the_same(tmp_path):
    path = write_ratings_file(tmp_path)
    threaded = load_rated_images(path, image_size=SIZE, settings=RaterSettings(), num_workers=3)
    assert torch.equal(load(path).pixels, threaded.pixels)


def test_missing_and_broken_images_are_reported_together_with_their_lines(tmp_path):
    path = write_ratings_file(tmp_path, images=12, ratings=1)
    (tmp_path / "3.png").unlink()
    (tmp_path / "7.png").write_bytes(b"not a picture")
    with pytest.raises(RatingsCSVError) as caught:
        load(path)
    assert len(caught.value.faults) == 2
    assert caught.value.faults[0].startswith("line 5: 3.png:")
    assert caught.value.faults[1].startswith("line 9: 7.png:")


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(RatingsCSVError, match="9 different images are rated; at least 10"):
        load(write_ratings_file(tmp_path, images=9))


# --- split ---


def test_an_image_is_on_one_side_only_even_under_two_names_and_prompts(tmp_path):
    path = write_ratings_file(tmp_path, images=40, ratings=1)
    rows = read_ratings_file(path)
    copies = []
    for row in rows:
        (tmp_path / f"copy_{row.image_path}").write_bytes((tmp_path / row.image_path).read_bytes())
        copies.append(RatingRow(f"copy_{row.image_path}", 1, row.modality, 1, f"{row.prompt}, again"))
    rated = load(write_rows(path, [*rows, *copies]))
    assert len(rated) == 80
    split = split_images(rated, seed=0)
    sides = [
        {rated.image_ids[item] for item in side.tolist()} for side in (split.train, split.calibration, split.held_out)
    ]
    assert sides[0].isdisjoint(sides[1])
    assert sides[0].isdisjoint(sides[2])
    assert sides[1].isdisjoint(sides[2])
    assert sum(map(len, sides)) == 40


def test_the_split_is_four_to_one_within_each_kind_and_follows_the_seed(tmp_path):
    rated = load(write_ratings_file(tmp_path, images=100, ratings=1))
    split = split_images(rated, seed=3)
    assert len(split.held_out) == pytest.approx(20, abs=3)
    for kind in rated.kinds.unique():
        of_kind = rated.kinds == kind
        assert of_kind[split.held_out].sum() == pytest.approx(0.2 * of_kind.sum().item(), abs=1)
    assert torch.equal(split_images(rated, seed=3).held_out, split.held_out)
    assert not torch.equal(split_images(rated, seed=4).held_out.sort().values, split.held_out.sort().values)


# --- augmentation ---


def settings(rotation=0.0, zoom=0.0, contrast=(1.0, 1.0)) -> Augmentation:
    return Augmentation(rotation, zoom, contrast)


def test_each_augmentation_key_changes_images_and_some_stay_as_they_are():
    images = torch.rand(64, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))

    def changed(chosen: Augmentation) -> float:
        out = augment(images, chosen, torch.Generator().manual_seed(1))
        return ((out - images).abs().amax((1, 2, 3)) > 1e-3).float().mean().item()

    assert changed(settings()) == 0
    for chosen in (settings(rotation=10), settings(zoom=0.2), settings(contrast=(0.5, 0.6))):
        assert 0.25 < changed(chosen) < 0.75


def test_contrast_is_a_factor_about_the_mean():
    images = 0.3 + 0.2 * torch.rand(64, 3, SIZE, SIZE)
    out = augment(images, settings(contrast=(0.5, 0.5)), torch.Generator().manual_seed(0))
    ratio = out.flatten(1).std(1) / images.flatten(1).std(1)
    assert ((ratio - 0.5).abs() < 1e-3).sum() + ((ratio - 1).abs() < 1e-3).sum() == 64


def test_rotation_turns_and_never_mirrors():
    """A bright corner may move a little along its side; it never changes sides."""
    images = torch.zeros(64, 3, SIZE, SIZE)
    images[:, :, 4:12, 4:12] = 1
    out = augment(images, settings(rotation=15, zoom=0.1), torch.Generator().manual_seed(0))
    left, right = out[..., : SIZE // 2].sum((1, 2, 3)), out[..., SIZE // 2 :].sum((1, 2, 3))
    assert (left > 10 * right).all()
