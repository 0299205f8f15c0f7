"""The report's drawings: where a number lands on the page, and that a report without them draws nothing."""

import pytest

from training import charts
from training.charts import Frame

BINS = [
    {"low": 0.2, "high": 0.3, "count": 10, "mean": 0.25, "observed": 0.5, "observed_low": 0.2, "observed_high": 0.8},
    {
        "low": 0.9,
        "high": 1.0,
        "count": 40,
        "mean": 0.95,
        "observed": 1.0,
        "observed_low": None,
        "observed_high": None,
    },
]


@pytest.fixture
def square() -> Frame:
    """100 units to the right and upwards, beginning at (10, 110)."""
    return Frame(width=120, height=130, left=10, right=10, top=10, bottom=20)


def test_a_frame_counts_to_the_right_and_upwards(square):
    assert [square.x(value) for value in (0, 0.25, 1)] == [10, 35, 110]
    assert [square.y(value) for value in (0, 0.25, 1)] == [110, 85, 10]
    assert square.x_ticks[2] == (60, "0.5") and square.y_ticks[-1] == (10, "1")


def test_a_report_without_drawings_has_none():
    for report in ({}, {"reliability": {}, "histograms": {}, "pass_curve": [], "timing": {}}, {"reliability": None}):
        assert charts.reliability(report) is None
        assert charts.histograms(report, 0.5) == []
        assert charts.pass_curve(report, 0.5) is None
        assert charts.timing(report) == []


def test_a_bin_lies_at_its_mean_with_its_interval():
    drawn = charts.reliability({"reliability": {"selector": BINS}})
    first, last = drawn.bins
    frame = drawn.frame
    assert (first.x, first.y) == (frame.x(0.25), frame.y(0.5))
    assert first.y_low > first.y > first.y_high  # y points down
    assert last.y_low is None and last.y == frame.top
    # On the diagonal where stated and observed agree: both axes have their own length.
    diagonal = frame.y_end - (first.x - frame.left) * (frame.y_end - frame.top) / (frame.x_end - frame.left)
    assert first.y < diagonal  # more is observed than was stated
    assert first.radius < last.radius


def test_histogram_bars_are_shares_of_a_grade():
    given = {"edges": [0, 0.5, 1], "by_grade": {"1": [3, 1], "2": [0, 0], "3": [0, 200]}}
    (drawn,) = charts.histograms({"histograms": {"policy": given}}, 0.5)
    poor, acceptable, excellent = drawn.rows
    assert (drawn.title, drawn.x_threshold) == ("Policy: score by grade", drawn.frame.x(0.5))
    assert [bar.height for bar in poor.bars] == pytest.approx([62 * 0.75, 62 * 0.25], abs=0.06)
    assert acceptable.bars == [] and acceptable.count == 0
    (bar,) = excellent.bars
    assert bar.height == 62 and bar.y + bar.height == pytest.approx(excellent.y_end)
    assert drawn.frame.x(0.5) < bar.x < bar.x + bar.width < drawn.frame.x_end
    assert drawn.table == [(0, 0.5, [3, 0, 0]), (0.5, 1, [1, 0, 200])]


def test_the_pass_curve_ends_where_nothing_passes():
    rows = [
        {"threshold": 0.0, "selector": 1.0, "both": 1.0, "poor_selector": 0.4, "poor_both": 0.4},
        {"threshold": 0.5, "selector": 0.5, "both": 0.25, "poor_selector": 0.2, "poor_both": 0.1},
        {"threshold": 1.0, "selector": 0.0, "both": 0.0, "poor_selector": None, "poor_both": None},
    ]
    drawn = charts.pass_curve({"pass_curve": rows}, 0.55)
    lines = {line.name: line.points.split() for line in drawn.lines}
    assert {name: len(points) for name, points in lines.items()} == {
        "both": 3, "selector": 3, "poor_both": 2, "poor_selector": 2,
    }  # fmt: skip
    assert lines["both"][1] == f"{drawn.frame.x(0.5)},{drawn.frame.y(0.25)}"
    assert drawn.at_threshold is rows[1] and drawn.x_threshold == drawn.frame.x(0.55)
    assert charts.pass_curve({"pass_curve": rows}, None).at_threshold is None


def test_the_time_is_a_bar_without_gaps():
    drawn = charts.timing({"timing": {"read": 1.0, "stage1": 6.0, "stage2": 0.0, "new_step": 3.0}})
    assert [each.label for each in drawn] == ["Reading the images", "Stage 1", "New step"]
    assert [(each.x, each.width) for each in drawn] == [(0, 10), (10, 60), (70, 30)]
