"""Two runs ticked in the list, and both their curves in one chart."""

import pytest
from playwright.sync_api import expect

from tests.training.runs import CONFIG, State, make_run
from tests.training.test_views import full_report
from training.run_directory import RunDirectory

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def runs():
    longer = {**CONFIG, "training": {**CONFIG["training"], "max_epochs": 7}}
    made = [
        make_run(name=name, state=State.SUCCEEDED, figures=full_report("0" * 64), config=config)
        for name, config in (("Short", CONFIG), ("Long", longer))
    ]
    for number, run in enumerate(made, start=1):
        for epoch in range(1, 3 * number):
            RunDirectory(run.path).log(step=epoch, epoch=epoch, policy_loss=1 / epoch, selector_loss=2 / epoch)
    return made


def test_two_ticked_runs_stand_side_by_side(sign_in, alice, runs):
    page = sign_in(alice)
    page.goto("/training/")
    button = page.get_by_role("button", name="Compare the two that are ticked")
    expect(button).to_be_disabled()
    for run in runs:
        page.get_by_label(f"Compare {run}").check()
    expect(button).to_be_enabled()
    button.click()
    expect(
        page.get_by_role("cell", name="training.max_epochs").or_(page.get_by_text("training.max_epochs"))
    ).to_be_visible()
    chart = page.locator(".chart[data-label^=Losses]")
    expect(chart).to_have_attribute("aria-label", "Losses of both runs against epoch, last values: A: Policy 0.5, "
        "A: Selector 1, B: Policy 0.2, B: Selector 0.4")  # fmt: skip
    expect(chart.locator(".u-legend .u-series")).to_have_count(5)  # epoch, and two lines of each


def test_the_report_is_drawn_within_the_pages_width(sign_in, alice, runs):
    page = sign_in(alice)
    for width, height in ((1440, 900), (1024, 768), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        page.goto(runs[0].get_absolute_url())
        drawings = page.locator("svg.framed")
        expect(drawings).to_have_count(4)  # reliability, pass curve, two histograms
        for drawing in drawings.all():
            box = drawing.bounding_box()
            assert box["width"] > 200 and box["x"] >= 0 and box["x"] + box["width"] <= width
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        expect(page.locator("[data-seconds]").last).to_have_text("30 s")
