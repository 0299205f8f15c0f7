from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from generation.scoring.selector import KIND_SLUGS
from training.rlhf.calibration import fit_offset, fit_temperature
from training.rlhf.evaluation import (
    auc,
    bootstrap,
    brier,
    evaluate_scores,
    expected_calibration_error,
    human_ceiling,
)
from training.rlhf.prompt_matching import PromptScores, matched_prompt_auc
from training.rlhf.reliability import (
    FAILS_EXCELLENT,
    PASSES_POOR,
    HeldOut,
    histogram,
    pass_curve,
    reliability,
    worst,
)
from training.rlhf.timing import RemainingTime, Timing


def pairwise_auc(scores, labels) -> float:
    wins = [(p > n) + (p == n) / 2 for p in scores[labels == 1] for n in scores[labels == 0]]
    return float(np.mean(wins))


def test_auc_counts_pairs_and_halves_ties():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 6, 60) / 5, rng.integers(0, 2, 60)
    assert auc(scores, labels) == pytest.approx(pairwise_auc(scores, labels))
    repeated = np.repeat([2, 1], 30)
    weighted = auc(scores, labels, repeated.astype(float))
    assert weighted == pytest.approx(pairwise_auc(np.repeat(scores, repeated), np.repeat(labels, repeated)))
    assert auc(scores, np.ones(60)) is None


def test_brier_and_calibration_error_of_known_cases():
    assert brier(np.array([1.0, 0.5]), np.array([1, 0])) == pytest.approx(0.125)
    says_80, happens_50 = np.full(1000, 0.8), np.tile([0, 1], 500)
    assert expected_calibration_error(says_80, happens_50) == pytest.approx(0.3, abs=0.02)
    rng = np.random.default_rng(0)
    honest = rng.random(20_000)
    assert expected_calibration_error(honest, rng.random(20_000) < honest) < 0.02


def test_the_interval_of_the_calibration_error_holds_it_and_most_often_the_one_of_many_images():
    hits = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        good = rng.uniform(0.2, 0.8, 150)
        grades = [np.where(rng.random(1) < min(1 - value + 0.15, 1), 1, 2) for value in good]  # 0.15 too sure of good
        found = evaluate_scores(good, grades, seed=seed)["ece"]
        assert 0 <= found["low"] <= found["value"] <= found["high"]
        hits += found["low"] <= 0.15 <= found["high"]
    assert hits >= 34


def test_the_bootstrap_interval_of_a_mean_has_the_textbook_width():
    values = np.random.default_rng(1).normal(size=400)
    estimate = bootstrap(lambda rows: float(values[rows].mean()), 400, seed=0, repeats=1000)
    half_width = 1.96 * values.std() / 20
    assert estimate.high - estimate.low == pytest.approx(2 * half_width, rel=0.15)
    assert estimate.low < estimate.value < estimate.high


def test_scores_are_measured_against_every_single_rating():
    good = np.array([0.9, 0.2, 0.6])
    grades = [np.array([3, 1]), np.array([1, 1, 2]), np.array([2])]
    figures = evaluate_scores(good, grades, seed=0)
    poor = np.array([0, 1, 1, 1, 0, 0])
    stated = 1 - np.array([0.9, 0.9, 0.2, 0.2, 0.2, 0.6])
    assert figures["auc_poor"]["value"] == pytest.approx(pairwise_auc(stated, poor))
    assert figures["brier"]["value"] == pytest.approx(np.mean((stated - poor) ** 2))


def test_the_human_ceiling_is_one_half_for_raters_who_guess_and_one_for_raters_who_agree():
    rng = np.random.default_rng(0)
    guesses = [rng.integers(1, 4, 3) for _ in range(400)]
    assert human_ceiling(guesses, seed=0)["value"] == pytest.approx(0.5, abs=0.05)
    agreed = [np.full(2, grade) for grade in rng.integers(1, 4, 50)]
    assert human_ceiling(agreed, seed=0)["value"] == 1
    assert human_ceiling([np.array([1])], seed=0) == {"value": None, "low": None, "high": None, "images": 0}


def test_the_temperature_that_made_the_labels_is_found_again():
    torch.manual_seed(0)
    logits = 2 * torch.randn(800, 1)
    targets = torch.sigmoid(logits[:, 0] / 2.5)
    kinds = torch.tensor([0] * 790 + [1] * 10)
    temperature = fit_temperature(logits, targets, kinds)
    assert temperature.shape == (len(KIND_SLUGS),)
    assert temperature[0].item() == pytest.approx(2.5, rel=0.08)
    assert temperature[1] == temperature[5]  # ten images are too few for a temperature of their own


def test_the_offset_gives_scores_the_mean_of_the_labels():
    torch.manual_seed(0)
    logits, targets = 3 * torch.randn(200), torch.rand(200).sqrt()
    offset = fit_offset(logits, targets)
    assert torch.sigmoid(logits + offset).mean().item() == pytest.approx(targets.mean().item(), abs=1e-6)
    assert np.isfinite(fit_offset(logits, torch.ones(200))) and np.isfinite(fit_offset(logits, torch.zeros(200)))


# --- what a page draws ---


def held_out(seed=0, count=200) -> HeldOut:
    rng = np.random.default_rng(seed)
    scores = rng.random((3, count))
    return HeldOut(
        good=scores[0],
        serving=scores[1],
        alignment=scores[2],
        grades=[rng.integers(1, 4, rng.integers(1, 4)) for _ in range(count)],
        paths=[f"{number}.png" for number in range(count)],
        sha256=[f"{number:064}" for number in range(count)],
        prompts=["OCT: drusen"] * count,
    )


def test_reliability_bins_hold_every_rating_once_with_wilsons_interval():
    data = held_out()
    bins = reliability(data.good, data.grades)
    for each in bins:
        inside = [
            grade > 1
            for good, grades in zip(data.good, data.grades, strict=True)
            for grade in grades
            if each["low"] <= good < each["high"]
        ]
        interval = binomtest(sum(inside), len(inside)).proportion_ci(method="wilson")
        assert each["count"] == len(inside)
        assert each["observed"] == pytest.approx(np.mean(inside))
        assert (each["observed_low"], each["observed_high"]) == pytest.approx((interval.low, interval.high))
        assert each["low"] <= each["mean"] <= each["high"]
    assert sum(each["count"] for each in bins) == sum(map(len, data.grades))


def test_reliability_knows_the_ends_and_leaves_out_empty_bins():
    bins = reliability(np.array([0.0, 1.0, 1.0]), [np.array([1]), np.array([3]), np.array([2, 1])])
    assert [(each["low"], each["high"], each["count"]) for each in bins] == [(0, 0.1, 1), (0.9, 1, 3)]
    assert [each["observed"] for each in bins] == pytest.approx([0, 2 / 3])


def test_histograms_count_ratings_at_their_images_score():
    shown = histogram(np.array([0.0, 0.51, 1.0]), [np.array([1]), np.array([2, 3]), np.array([3])])
    assert shown["edges"] == pytest.approx([number / 20 for number in range(21)])
    places = {grade: [place for place, count in enumerate(counts) for _ in range(count)]
              for grade, counts in shown["by_grade"].items()}  # fmt: skip
    assert places == {"1": [0], "2": [10], "3": [10, 19]}


def test_the_pass_curve_of_four_images_by_hand():
    data = replace(
        held_out(count=4),
        serving=np.array([0.1, 0.3, 0.5, 0.9]),
        alignment=np.array([0.9, 0.2, 0.9, 0.9]),
        grades=[np.array([1, 1]), np.array([1, 2]), np.array([3]), np.array([2, 3, 1])],
    )
    curve = {point["threshold"]: point for point in pass_curve(data)}
    assert curve[0.0] == {
        "threshold": 0, "selector": 1, "both": 1,
        "poor_selector": pytest.approx((1 + 0.5 + 0 + 1 / 3) / 4), "poor_both": pytest.approx((1.5 + 1 / 3) / 4),
    }  # fmt: skip
    assert curve[0.3] == {
        "threshold": 0.3, "selector": 0.75, "both": 0.5,
        "poor_selector": pytest.approx((0.5 + 1 / 3) / 3), "poor_both": pytest.approx(1 / 6),
    }  # fmt: skip
    assert (curve[0.9]["selector"], curve[0.92]["selector"]) == (0.25, 0)
    assert curve[0.92]["poor_selector"] is None


def test_the_worst_are_served_though_poor_or_refused_though_excellent():
    data = replace(
        held_out(count=5),
        serving=np.array([0.7, 0.99, 0.2, 0.9, 0.1]),
        alignment=np.array([0.8, 0.95, 0.9, 0.3, 0.1]),
        grades=[np.array([1, 1, 2]), np.array([1]), np.array([3]), np.array([3, 3]), np.array([1])],
    )
    found = worst(data, threshold=0.6)
    assert [(each["image_path"], each["why"]) for each in found] == [
        ("1.png", PASSES_POOR),  # 0.95 over nothing
        ("2.png", FAILS_EXCELLENT),  # 0.8 short
        ("0.png", PASSES_POOR),  # 0.7 over
        ("3.png", FAILS_EXCELLENT),  # 0.7 short
    ]
    assert (found[0]["selector"], found[0]["policy"], found[0]["grades"]) == (0.99, 0.95, [1])
    assert len(worst(held_out(), threshold=0.2)) == 12


def test_matched_against_shuffled_prompts_counts_pairs_with_the_weight_of_their_image():
    rng = np.random.default_rng(2)
    scores, own = rng.random((12, 4)).round(1), rng.integers(0, 4, 12)
    is_other = np.arange(4) != own[:, None]
    same_kind = np.array([0, 0, 0, 1])[own][:, None] == np.array([0, 0, 0, 1])
    matched = PromptScores(scores, own, is_other, same_kind)
    for among in (is_other, same_kind):
        wins, weights = 0.0, 0.0
        images = [image for image in range(12) if (among & is_other)[image].any()]
        for one in images:
            for other in images:
                prompts = np.nonzero((among & is_other)[other])[0]
                for prompt in prompts:
                    mine, theirs = scores[one, own[one]], scores[other, prompt]
                    wins += ((mine > theirs) + (mine == theirs) / 2) / len(prompts)
                    weights += 1 / len(prompts)
        assert matched_prompt_auc(matched, among, seed=0).value == pytest.approx(wins / weights)
    assert matched_prompt_auc(matched, np.zeros((12, 4), dtype=bool), seed=0).value is None


# --- time ---


def test_the_time_left_is_the_mean_step_of_the_window_times_the_steps_left():
    times = iter([0, 1, 2, 3, 13, 14])  # an epoch ends after the fourth step
    remaining = RemainingTime(window=3, clock=lambda: next(times))
    assert remaining.after(1, 10) is None
    assert [remaining.after(step, 10) for step in (2, 3, 4)] == [8, 7, 6]
    assert remaining.after(5, 10) == pytest.approx((13 - 1) / 3 * 5)
    assert remaining.after(6, 10) == pytest.approx((14 - 2) / 3 * 4)


def test_timing_adds_up_by_name():
    times = iter([0, 2, 10, 13, 20, 21])
    timing = Timing(clock=lambda: next(times))
    for name in ("read", "score", "read"):
        with timing.of(name):
            pass
    assert timing.seconds == {"read": 3, "score": 3}
