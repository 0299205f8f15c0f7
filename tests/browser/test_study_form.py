"""The form of a new study, as its owner meets it."""

import pytest
from playwright.sync_api import expect

from ratings.models import Study
from ratings.services import set_gold
from tests.factories import GeneratedImageFactory

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def form(page, live_server, alice, bob, signed_in):
    """The form, twelve images and a gold one to choose from."""
    GeneratedImageFactory.create_batch(12)
    set_gold(image=GeneratedImageFactory(), grade=1, rationale="Torn", set_by=alice)
    session = signed_in(alice).cookies["sessionid"].value
    page.context.add_cookies([{"name": "sessionid", "value": session, "url": live_server.url}])
    page.goto("/studies/new/")
    return page


def test_the_plan_follows_what_is_chosen_and_the_form_makes_it(form, bob):
    plan = form.locator("[data-plan]")
    expect(plan).to_contain_text("13 images (1 gold)")  # 5 % of them
    expect(plan).to_contain_text("no reader yet")
    form.get_by_label("bob", exact=True).check()
    form.get_by_label("At most").fill("9")
    form.get_by_label("Hidden repeats (%)").fill("0")
    form.get_by_label("Gold images (%)").fill("0")
    expect(plan).to_contain_text("1 reader: each reads 9, about 1 minute at 6 s")
    expect(plan).to_contain_text("No hidden repeats")
    per_image = form.get_by_label("Readers per image")
    expect(per_image).to_be_hidden()
    form.get_by_label("Each image goes to some of the readers").check()
    expect(per_image).to_be_visible()
    form.get_by_label("Every reader reads every image").check()
    form.get_by_label("Noise").uncheck()
    form.get_by_label("Defects of your own").fill("vessel: Vessels broken off")
    keys = "q Blur w Motion e Artefact r Anatomy wrong t Finding missing y Text or marker u Vessels broken off"
    expect(form.locator("[data-defect-keys]")).to_have_text(keys)
    form.get_by_role("group", name="1 · Poor").locator("img").click()  # the picture is the choice
    form.get_by_role("button", name="Make the study").click()
    expect(form.get_by_label("Name", exact=True)).to_be_focused()  # the browser asks for what is missing
    form.get_by_label("Name", exact=True).fill("By hand")
    form.get_by_role("button", name="Make the study").click()
    expect(form.get_by_text("By hand is made: 9 images.")).to_be_visible(timeout=30_000)
    study = Study.objects.get()
    assert [anchor.grade for anchor in study.protocol.anchors.all()] == [1]
    assert study.protocol.defects[-1] == ["vessel", "Vessels broken off"]
    assert study.assignments.filter(reader=bob).count() == 9


def test_what_did_not_change_is_not_said_again_at_every_key(form):
    said = "new MutationObserver(() => { window.said = (window.said ?? 0) + 1; })"
    form.evaluate(f"{said}.observe(document.querySelector('[data-defect-keys]'), {{ childList: true }})")
    form.get_by_label("Name", exact=True).press_sequentially("By hand")
    assert form.evaluate("window.said") is None
    form.get_by_label("Noise").uncheck()
    assert form.evaluate("window.said") == 1
