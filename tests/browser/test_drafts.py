"""What is noted before the grade is given survives a reload, and goes with the image it was noted of."""

import pytest
from playwright.sync_api import expect

from ratings.models import Rating
from ratings.services import create_study
from tests.factories import GeneratedImageFactory

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def chips(page) -> list[str]:
    return page.locator("[data-defect][aria-pressed=true]").evaluate_all("(all) => all.map((c) => c.dataset.defect)")


def test_a_half_written_comment_and_its_chips_are_there_after_a_reload(room, prompts, wait_for):
    room.keyboard.press("w")
    room.keyboard.press("c")
    room.keyboard.type("Vessels end too ea")
    room.wait_for_timeout(500)
    room.reload()
    wait_for(prompts[0])
    expect(room.get_by_label("Comment")).to_have_value("Vessels end too ea")
    assert chips(room) == ["blur"]
    room.keyboard.press("1")
    wait_for(prompts[1])
    expect(room.get_by_label("Comment")).to_have_value("")
    expect(room.locator("[data-saving]")).to_have_text("saved")
    assert [(row.defects, row.comment) for row in Rating.objects.all()] == [(["blur"], "Vessels end too ea")]
    room.reload()  # the note went with its image
    wait_for(prompts[1])
    expect(room.get_by_label("Comment")).to_have_value("")
    assert chips(room) == []


def test_the_last_key_before_a_reload_is_kept(room, prompts, wait_for):
    room.keyboard.press("c")
    room.keyboard.type("Now")
    room.reload()
    wait_for(prompts[0])
    expect(room.get_by_label("Comment")).to_have_value("Now")


def test_a_crash_keeps_what_was_written(room, study, prompts, wait_for):
    room.keyboard.press("c")
    room.keyboard.type("Before the crash")
    room.wait_for_timeout(600)
    after = room.context.new_page()
    after.goto(f"/studies/{study.public_id}/rate/")
    wait_for(prompts[0], after)
    expect(after.get_by_label("Comment")).to_have_value("Before the crash")


def test_a_comment_on_the_last_image_that_was_not_finished_is_stored(room, prompts, wait_for):
    room.keyboard.press("2")
    wait_for(prompts[1])
    room.keyboard.press("c")
    room.keyboard.type("Seen too late")
    room.reload()
    wait_for(prompts[1])
    expect(room.locator("[data-saving]")).to_have_text("saved")
    expect(room.get_by_label("Comment")).to_have_value("")
    assert Rating.objects.get().comment == "Seen too late"


def test_another_study_does_not_get_the_note(room, bob, prompts, wait_for):
    room.keyboard.press("c")
    room.keyboard.type("Only here")
    room.wait_for_timeout(500)
    images = GeneratedImageFactory.create_batch(1)
    other = create_study(name="Other", images=images, readers=[(bob, 3)])
    room.goto(f"/studies/{other.public_id}/rate/")
    wait_for(images[0].prompt.text)
    expect(room.get_by_label("Comment")).to_have_value("")


def test_the_chips_and_texts_are_those_of_the_protocol(page, live_server, bob, signed_in, wait_for):
    images = GeneratedImageFactory.create_batch(2)
    protocol = {
        "defects": [["vessel", "Vessels broken off"], ["blur", "Blur"]],
        "scale_texts": {"1": "Of no use", "3": "As a patient's"},
    }
    study = create_study(name="Own chips", images=images, readers=[(bob, 3)], protocol=protocol, order_seed=1)
    session = signed_in(bob).cookies["sessionid"].value
    page.context.add_cookies([{"name": "sessionid", "value": session, "url": live_server.url}])
    page.goto(f"/studies/{study.public_id}/rate/")
    first = study.assignments.get(position=0).image.prompt.text
    wait_for(first)
    assert page.locator("[data-defect]").evaluate_all("(all) => all.map((c) => c.textContent)") == [
        "qVessels broken off",
        "wBlur",
    ]
    expect(page.get_by_role("button", name="Poor")).to_have_attribute("title", "Of no use")
    expect(page.locator(".grade-text")).to_have_count(2)
    page.keyboard.press("q")
    page.keyboard.press("2")
    wait_for(study.assignments.get(position=1).image.prompt.text)
    expect(page.locator("[data-saving]")).to_have_text("saved")
    assert Rating.objects.get().defects == ["vessel"]
