"""MS-SSIM, intervals, labels, classification and retrieval: independent formulas and constructed cases."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from scipy.stats import binomtest

from training.evaluation.classification import PENALTY, LinearClassifier, classification_accuracy_score
from training.evaluation.degradation import DEGRADATIONS, Ladder, degrade
from training.evaluation.diversity import diversity_figures
from training.evaluation.images import ImageSet, choose_captions, draw_phantoms, phantom_captions
from training.evaluation.intervals import mean_over_groups, wilson
from training.evaluation.labels import Labelling, choose_labels, fold_of_each
from training.evaluation.ms_ssim import WEIGHTS, ms_ssim, num_scales
from training.evaluation.retrieval import (
    TextMap,
    chance_of_hit,
    image_image_retrieval,
    image_text_retrieval,
)


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def image_set(captions, groups=None, size=16):
    pixels = torch.zeros(len(captions), 3, size, size, dtype=torch.uint8)
    return ImageSet(pixels, tuple(captions), tuple(groups or map(str, range(len(captions)))))


# --- intervals ---


@pytest.mark.parametrize(("right", "count"), [(0, 12), (7, 12), (12, 12), (590, 600)])
def test_wilson_is_scipys(right, count):
    expected = binomtest(right, count).proportion_ci(method="wilson")
    found = wilson(right, count)
    assert (found.value, found.low, found.high) == pytest.approx((right / count, *expected), abs=1e-9)


def test_images_of_one_patient_widen_the_interval(rng):
    values = np.repeat(rng.integers(0, 2, 20), 10).astype(float)
    alone = mean_over_groups(values, np.arange(200), seed=0)
    together = mean_over_groups(values, np.repeat(np.arange(20), 10), seed=0)
    assert alone.value == together.value
    assert together.high - together.low > 2 * (alone.high - alone.low)


# --- MS-SSIM ---


def reference_ms_ssim(x, y):
    """Wang et al. (2003) with scipy's filter on the whole image, cut to where the window fits."""
    steps = np.arange(-5, 6)
    kernel = np.exp(-(steps**2) / (2 * 1.5**2))
    kernel /= kernel.sum()

    def window(image):
        return correlate1d(correlate1d(image, kernel, axis=0), kernel, axis=1)[5:-5, 5:-5]

    scales = next(s for s in range(5, 0, -1) if min(x.shape) >= 11 * 2 ** (s - 1))
    weights, result = np.array(WEIGHTS[:scales]) / sum(WEIGHTS[:scales]), 1.0
    for scale in range(scales):
        mx, my = window(x), window(y)
        vx, vy, cov = window(x * x) - mx**2, window(y * y) - my**2, window(x * y) - mx * my
        result *= max(((2 * cov + 0.0009) / (vx + vy + 0.0009)).mean(), 0) ** weights[scale]
        if scale == scales - 1:
            result *= ((2 * mx * my + 0.0001) / (mx**2 + my**2 + 0.0001)).mean() ** weights[scale]
        half = [side // 2 for side in x.shape]
        x, y = (z[: 2 * half[0], : 2 * half[1]].reshape(half[0], 2, half[1], 2).mean((1, 3)) for z in (x, y))
    return result


@pytest.mark.parametrize(("side", "scales"), [(11, 1), (32, 2), (128, 4), (180, 5), (400, 5)])
def test_small_images_have_fewer_scales(side, scales):
    assert num_scales(side, side + 3) == scales


def test_ms_ssim_is_an_independent_implementation(rng):
    x = rng.random((90, 70))
    y = np.clip(0.7 * x + 0.3 * rng.random((90, 70)), 0, 1)
    found = ms_ssim(torch.from_numpy(x)[None], torch.from_numpy(y)[None])
    assert found.item() == pytest.approx(reference_ms_ssim(x, y), rel=1e-6)


def test_equal_images_are_one_and_the_order_of_two_is_nothing(rng):
    x, y = (torch.from_numpy(rng.random((3, 64, 64))).float() for _ in range(2))
    assert torch.allclose(ms_ssim(x, x), torch.ones(3), atol=1e-5)
    assert torch.allclose(ms_ssim(x, y), ms_ssim(y, x)) and ms_ssim(x, y).max() < 0.3
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ms_ssim(torch.zeros(1, 10, 30), torch.zeros(1, 10, 30))


def test_a_generator_that_repeats_itself_has_no_variety():
    real = draw_phantoms(40, seed=1, size=(48, 48))
    first = {}  # every image of a kind replaced by the kind's first
    places = [first.setdefault(kind, place) for place, kind in enumerate(real.kinds)]
    collapsed = ImageSet(real.pixels[places], real.captions, real.groups)
    same, within_kind = (diversity_figures(real, made, seed=0)[1] for made in (real, collapsed))
    assert same.value.value == pytest.approx(same.real.value)
    assert within_kind.value.value == pytest.approx(1, abs=1e-4) and within_kind.real.value < 0.8


# --- degradation ---


def test_degradations_do_what_they_say(rng):
    pixels = torch.from_numpy(rng.integers(0, 256, (2, 3, 64, 64)).astype(np.uint8))
    blur, noise, contrast = DEGRADATIONS
    spread = pixels.float().std((1, 2, 3))
    # Blur of a constant is that constant; white noise keeps 1 / (2 sigma sqrt(pi)) of its deviation, 1 pixel at 128.
    flat = torch.full((1, 3, 64, 64), 90, dtype=torch.uint8)
    assert torch.equal(degrade(flat, blur, 2.0, seed=0), flat)
    smooth = degrade(pixels, blur, 4.0, seed=0)[..., 16:48, 16:48].float().std((1, 2, 3))
    assert torch.allclose(smooth / spread, torch.tensor(1 / (2 * 2 * np.pi**0.5)), atol=0.03)
    noisy = degrade(torch.full((1, 3, 128, 128), 128, dtype=torch.uint8), noise, 0.1, seed=0).float()
    assert noisy.std().item() == pytest.approx(25.5, rel=0.05) and torch.equal(noisy[:, 0], noisy[:, 2])
    assert torch.allclose(degrade(pixels, contrast, 0.4, seed=0).float().std((1, 2, 3)), 0.6 * spread, rtol=0.01)
    assert torch.equal(degrade(pixels, noise, 0.1, seed=5), degrade(pixels, noise, 0.1, seed=5))


@pytest.mark.parametrize(
    ("values", "lower_is_better", "in_order", "tau"),
    [
        ((0.0, 0.1, 0.3, 0.9), True, True, 1),
        ((0.0, 0.3, 0.1, 0.9), True, False, 2 / 3),
        ((0.9, 0.5, 0.0, 0.0), False, True, None),
        ((0.0, 0.15, 0.1, 0.9), True, True, 2 / 3),  # below 0.2 it cannot tell
        ((0.0, 0.05, 0.1, 0.15), True, False, 1),  # it never notices
        ((0.9, 0.5, 0.55, 0.1), False, False, 2 / 3),
        ((0.0, 0.1, 0.3, 0.9), False, False, -1),
        ((0.5, 0.5, 0.5, 0.5), True, False, 0),
    ],
)
def test_a_ladder_is_in_order_only_where_every_rung_that_is_noticed_is_worse(values, lower_is_better, in_order, tau):
    ladder = Ladder("blur", (0, 1, 2, 3), values, lower_is_better, floor_end=0.2 if lower_is_better else 0.6)
    assert ladder.in_order is in_order
    assert tau is None or ladder.kendall_tau == pytest.approx(tau)


def test_a_ladder_says_from_where_it_notices():
    assert Ladder("blur", (0, 1, 2, 3), (0.0, 0.3, 0.1, 0.9), True, floor_end=0.2).noticed_from == 3
    assert Ladder("blur", (0, 1, 2), (0.9, 0.5, 0.4), False, floor_end=0.6).noticed_from == 1
    assert Ladder("blur", (0, 1, 2), (0.0, 0.1, 0.1), True, floor_end=0.2).noticed_from is None


# --- captions and labels ---


def test_captions_come_all_before_one_comes_twice():
    captions = [f"Fundus: number {i}" for i in range(10)]
    drawn = choose_captions(captions, 25, seed=3)
    assert sorted(drawn[:10]) == sorted(drawn[10:20]) == sorted(captions) and drawn[:10] != tuple(captions)
    assert drawn == choose_captions(captions, 25, seed=3) != choose_captions(captions, 25, seed=4)


def test_held_out_phantoms_follow_from_the_seed_and_are_not_those_whose_captions_are_drawn():
    once, again = (draw_phantoms(6, seed=2, size=(32, 48)) for _ in range(2))
    assert torch.equal(once.pixels, again.pixels) and once.pixels.shape == (6, 3, 32, 48)
    assert once.are_phantoms and once.captions != phantom_captions(6, seed=2)
    assert once.pixels[:, :, :, :8].max() == 0 and once.pixels[:, :, :, 8:40].amax((1, 2, 3)).min() > 0


def test_labels_are_findings_shared_captions_or_kinds():
    phantoms = draw_phantoms(400, seed=0, size=(16, 16))
    assert choose_labels(phantoms, phantoms).level == "finding"
    shared = image_set(["Fundus: scan a"] * 6 + ["Fundus: scan b"] * 6 + ["Fundus: scan c"])
    found = choose_labels(shared, image_set(["Fundus: scan b", "Fundus: scan c"]))
    assert (found.level, found.names) == ("caption", ("Fundus: scan a", "Fundus: scan b"))
    assert found.real[-1] == "" and found.generated == ("Fundus: scan b", "")
    unlike = image_set([f"{kind}: case {i}" for i in range(6) for kind in ("Fundus", "OCT")])
    assert choose_labels(unlike, unlike).level == "kind" and choose_labels(unlike, unlike).names == ("Fundus", "OCT")


def test_folds_keep_groups_whole_and_spread_labels():
    groups = [str(i // 3) for i in range(90)]
    labels = [str(i // 3 % 3) for i in range(90)]
    folds = fold_of_each(groups, labels, 5, seed=0)
    assert all(len(set(folds[i : i + 3])) == 1 for i in range(0, 90, 3))
    assert np.bincount(folds).tolist() == [18] * 5
    assert all(np.bincount(folds[[label == name for label in labels]]).tolist() == [6] * 5 for name in "012")


# --- classification ---


def test_the_classifier_stands_at_the_minimum_of_its_loss(rng):
    features, classes = rng.normal(size=(60, 4)), rng.integers(0, 3, 60)
    model = LinearClassifier.fit(features, classes, 3)
    inputs = (features - model.mean) / model.std
    logits = inputs @ model.weight + model.bias
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    residual = (probabilities - np.eye(3)[classes]) / 60
    assert np.abs(inputs.T @ residual + PENALTY * model.weight).max() < 1e-4, "the gradient is zero"
    assert np.abs(residual.sum(0)).max() < 1e-4


def blobs(rng, labels, centres, noise):
    return np.stack([centres[label] for label in labels]) + noise * rng.normal(size=(len(labels), 5))


def test_cas_falls_to_chance_where_generated_images_carry_wrong_labels(rng):
    centres = {name: rng.normal(size=5) * 3 for name in ("a", "b", "c")}
    real_labels, made_labels = ("a", "b", "c") * 40, ("a", "b", "c") * 20
    labels = Labelling("kind", ("a", "b", "c"), real_labels, made_labels)
    real, groups = blobs(rng, real_labels, centres, 0.5), np.arange(120)
    good = blobs(rng, made_labels, centres, 0.5)
    wrong = blobs(rng, made_labels[1:] + made_labels[:1], centres, 0.5)  # every image shows another class
    score = classification_accuracy_score(real, good, labels, groups, encoder="test", seed=0)
    assert score.value.value > 0.95 and score.real.value > 0.95 and score.chance == pytest.approx(1 / 3)
    assert score.details["trained_on_real"] == score.details["trained_on_generated"] == 60
    assert classification_accuracy_score(real, wrong, labels, groups, encoder="t", seed=0).value.value < 0.1


def test_cas_says_why_it_is_absent(rng):
    labels = Labelling("kind", ("a", "b"), ("a", "b") * 20, ("a",) * 4)
    figure = classification_accuracy_score(
        rng.normal(size=(40, 3)), rng.normal(size=(4, 3)), labels, np.arange(40), encoder="t", seed=0
    )
    assert figure.value is None and "only 4 generated images" in figure.absent_because


# --- retrieval ---


def test_nearest_images_of_the_right_label_count(rng):
    captions = [f"Fundus: {name}" for name in "abc" for _ in range(10)]
    real, made = image_set(captions), image_set(captions)
    centres = dict(zip(sorted(set(captions)), np.eye(5)[:3] * 10, strict=True))
    features = blobs(rng, captions, centres, 0.5), blobs(rng, captions, centres, 0.5)
    first, five = image_image_retrieval(real, made, features, choose_labels(real, made), encoder="t", seed=0)
    assert first.value.value == five.value.value == first.real.value == 1 and first.chance == pytest.approx(1 / 3)
    swapped = features[0], np.roll(features[1], 10, axis=0)
    first, _ = image_image_retrieval(real, made, swapped, choose_labels(real, made), encoder="t", seed=0)
    assert first.value.value == 0


def test_real_images_are_not_found_in_their_own_group(rng):
    """Ten patients of two equal pictures each: within the patient the answer would be trivial."""
    captions = [f"Fundus: {'ab'[i % 2]}" for i in range(10) for _ in range(2)]
    real = image_set(captions, groups=[str(i) for i in range(10) for _ in range(2)])
    features = np.repeat(rng.normal(size=(10, 200)), 2, axis=0)
    first, _ = image_image_retrieval(real, real, (features, features), choose_labels(real, real), encoder="t", seed=0)
    assert first.value.value == 1 and first.real.value < 0.9


def test_the_text_map_is_ridge_regression(rng):
    text, images = rng.normal(size=(30, 4)), rng.normal(size=(30, 3))
    fitted = TextMap.fit(text, images, penalty=0.5)
    x, y = (text - text.mean(0)) / text.std(0), (images - images.mean(0)) / images.std(0)
    stacked = np.vstack([x, np.sqrt(0.5 * 30) * np.eye(4)])  # ridge as least squares on added rows
    expected, *_ = np.linalg.lstsq(stacked, np.vstack([y, np.zeros((4, 3))]), rcond=None)
    assert fitted.weight == pytest.approx(expected, abs=1e-5)


def test_captions_find_their_images(rng):
    captions = [f"Fundus: finding {i % 8}" for i in range(80)]
    text = {caption: rng.normal(size=12) for caption in set(captions)}
    turn = rng.normal(size=(12, 20))
    images = np.stack([text[caption] for caption in captions]) @ turn + 0.3 * rng.normal(size=(80, 20))
    real, made = image_set(captions), image_set(captions)
    first, five = image_text_retrieval(real, made, (images, images), text, encoder="t", seed=0)
    assert first.value.value > 0.95 and first.real.value > 0.95
    assert (first.chance, five.chance) == pytest.approx((1 / 8, 5 / 8))
    blind = rng.normal(size=(80, 20))
    first, _ = image_text_retrieval(real, made, (images, blind), text, encoder="t", seed=0)
    assert first.value.value < 0.3
    alike = np.ones((80, 20))  # a generator that draws one picture: no caption is preferred by its place in the list
    first, _ = image_text_retrieval(real, made, (images, alike), text, encoder="t", seed=0)
    assert first.value.value == pytest.approx(1 / 8, abs=0.13)


def test_chance_of_a_hit_is_the_share_of_draws(rng):
    draws = [rng.choice(9, 4, replace=False).min() < 2 for _ in range(4000)]  # two right ones of nine
    assert chance_of_hit(9, 2, 4) == pytest.approx(np.mean(draws), abs=0.03)
    assert chance_of_hit(3, 1, 5) == 1
