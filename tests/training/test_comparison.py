"""Two runs side by side: differences, figures, data and curves."""

import pytest
from django.urls import reverse

from tests.training.runs import CONFIG, Purpose, State, make_run
from training import comparison
from training.curves import CHARTS
from training.run_directory import RunDirectory

pytestmark = pytest.mark.django_db


def figures(auc: float, half: float, **more) -> dict:
    return {"selector": {"auc_poor": {"value": auc, "low": auc - half, "high": auc + half}}, **more}


@pytest.fixture
def pair():
    longer = {
        **CONFIG,
        "training": {**CONFIG["training"], "max_epochs": 7},
        "data": {**CONFIG["data"], "ratings_file": "x"},
    }
    a = make_run(name="Short", state=State.SUCCEEDED, figures=figures(0.7, 0.02, counts={"ratings": 10}, seconds=5))
    b = make_run(
        name="Long", state=State.SUCCEEDED, figures=figures(0.9, 0.02, counts={"ratings": 12}), config=longer
    )
    for run, epochs in ((a, (1, 2)), (b, (2, 4))):
        for epoch in epochs:
            RunDirectory(run.path).log(step=epoch, epoch=epoch, policy_loss=0.1 * epoch, policy_validation_loss=1.0)
    return a, b


def test_only_what_differs_is_listed_and_no_paths(pair):
    a, b = pair
    (only,) = comparison.differences(a, b)
    assert (only.key, only.a, only.b) == ("training.max_epochs", CONFIG["training"]["max_epochs"], 7)
    assert comparison.differences(a, a) == []


def test_figures_stand_beside_each_other(pair):
    (auc,) = comparison.interval_pairs(*pair)
    assert (auc.a.value, auc.b.value, auc.change) == (0.7, 0.9, pytest.approx(0.2))
    assert auc.are_apart and not comparison.Pair("x", "", auc.a, auc.a).are_apart
    assert (
        not comparison.Pair("x", "", auc.a, None).are_apart and comparison.Pair("x", "", None, auc.b).change is None
    )
    assert ("Time", 5, None) in [
        (label, a and a.value, b and b.value) for label, a, b in comparison.figure_pairs(*pair)
    ]
    assert ("Ratings", 10, 12) in comparison.data_pairs(*pair)


def test_both_curves_share_one_axis_and_a_quantity_keeps_its_colour(pair):
    merged = comparison.merged_curves(*pair, CHARTS[Purpose.RLHF][0])
    assert merged["x"] == [1, 2, 4] and merged["finished"] is True
    lines = {line["label"]: line for line in merged["series"]}
    assert list(lines) == ["A: Policy", "A: Policy validation", "B: Policy", "B: Policy validation"]
    assert lines["A: Policy"]["values"] == [0.1, 0.2, None]
    assert lines["B: Policy"]["values"] == [None, 0.2, 0.4]
    assert lines["A: Policy"]["colour"] == lines["B: Policy"]["colour"] != lines["B: Policy validation"]["colour"]
    assert len({str(line["dash"]) for line in merged["series"]}) == 4


def test_the_page_shows_both(staff, pair):
    a, b = pair
    page = staff.get(reverse("training:compare"), {"a": a.pk, "b": b.pk}).content.decode()
    for text in ("Short", "Long", "training.max_epochs", "+0.200", "apart", f"?with={b.pk}"):
        assert text in page
    chart = staff.get(reverse("training:chart", args=[a.pk, "losses"]), {"with": b.pk}).json()
    assert chart["x"] == [1, 2, 4]


def test_two_are_ticked_in_the_list(staff, pair):
    a, b = pair
    answer = staff.get(reverse("training:compare"), {"run": [b.pk, a.pk]})
    assert answer.url == f"/training/compare/?a={a.pk}&b={b.pk}"
    other = make_run(Purpose.FINETUNE, config={})
    for chosen in ([a.pk], [a.pk, b.pk, other.pk], [a.pk, other.pk], ["x", "9" * 30]):
        answer = staff.get(reverse("training:compare"), {"run": chosen}, follow=True)
        assert "Choose two runs of the same purpose" in answer.content.decode()


def test_what_cannot_be_compared_does_not_exist(staff, pair):
    other = make_run(Purpose.FINETUNE, config={})
    for b in (other.pk, 9999, "x", "9" * 30):
        assert staff.get(reverse("training:compare"), {"a": pair[0].pk, "b": b}).status_code == 404
        assert staff.get(reverse("training:chart", args=[pair[0].pk, "losses"]), {"with": b}).status_code == 404
    assert staff.get(reverse("training:compare"), {"a": "x", "b": pair[0].pk}).status_code == 404
