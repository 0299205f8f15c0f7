"""What the charts show: which keys, how they are thinned and smoothed."""

import pytest

from tests.training.runs import Purpose, State, make_run
from training.curves import CHARTS, chart_of, columns_of, curves, running_mean, thinned
from training.models import TrainingRun
from training.run_directory import RunDirectory

LOSSES = CHARTS[Purpose.RLHF][0]


def test_a_chart_takes_the_keys_with_its_ending_and_the_lines_that_have_one():
    lines = [
        {"event": "started", "epoch": 0},
        {"step": 1, "epoch": 1, "progress": {"done": 1}},
        {"step": 2, "epoch": 1, "policy_loss": 0.5, "selector_loss": None, "pass_rate": 1.0},
        {"step": 4, "epoch": 2, "policy_loss": 0.4, "selector_loss": 1.5, "synthetic_loss": None},
        {"policy_loss": 9.0},
    ]
    assert columns_of(lines, LOSSES) == ([1, 2], {"policy_loss": [0.5, 0.4], "selector_loss": [None, 1.5]})


def test_thinning_keeps_the_mean_and_the_gaps():
    assert thinned([1, 2, 3], 3) == [1, 2, 3]
    assert thinned([1, 3, None, 5, None, None, 7], 4) == [2, 5, None, 7]
    assert thinned([], 4) == []


@pytest.mark.parametrize("length", [999, 1000, 1001, 2500, 100_003])
def test_no_chart_has_more_points_than_the_screen_shows(length):
    assert length / 101 <= len(thinned(list(range(length)), 1000)) <= 1000


def test_the_running_mean_of_a_constant_is_the_constant():
    assert running_mean([None, 3.0, 3.0, None, 3.0]) == [None] + [pytest.approx(3.0)] * 4


def test_the_running_mean_weighs_the_past_by_powers_of_098():
    values = [5.0, 1.0, 4.0]
    weights = [0.98**2, 0.98, 1.0]
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert running_mean(values)[-1] == pytest.approx(expected)


@pytest.mark.django_db
def test_a_long_fine_tuning_is_thinned_with_its_running_mean():
    run = make_run(Purpose.FINETUNE, config={})
    directory = RunDirectory(run.path)
    for step in range(1, 2502):
        directory.log(step=step, loss=float(step % 2), learning_rate=1e-4)
    data = curves(run, chart_of(run, "losses"))
    assert [series["label"] for series in data["series"]] == ["Loss", "Loss, running mean"]
    assert len(data["x"]) == 834 and data["x"][-1] == 2501  # three steps a point
    assert all(len(series["values"]) == 834 for series in data["series"])
    assert data["series"][1]["values"][-1] == pytest.approx(0.5, abs=0.02)
    assert data["finished"] is False
    assert chart_of(run, "pass-rate") is None


@pytest.mark.django_db
def test_a_run_that_logged_nothing_has_empty_charts_and_a_finished_one_says_so():
    run = make_run(state=State.FAILED)
    for chart in CHARTS[run.purpose]:
        data = curves(run, chart)
        assert (data["x"], data["series"], data["finished"]) == ([], [], True)


def test_both_purposes_have_charts_with_names_of_their_own():
    for purpose in TrainingRun.Purpose:
        names = [chart.name for chart in CHARTS[purpose]]
        assert len(set(names)) == len(names) > 0
