"""A clinician at the keyboard."""

import csv
import uuid

import pytest
from django.core.management import call_command
from playwright.sync_api import expect

from ratings.models import Rating
from ratings.services import submit_rating

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
GRADES = [1, 2, 3, 3, 2, 1, 2, 3, 1, 2]


@pytest.mark.parametrize("study", [12], indirect=True)
def test_ten_images_by_keyboard_one_undone_end_up_in_the_csv(study, bob, sign_in, tmp_path, prompts, wait_for):
    page = sign_in(bob)
    page.get_by_role("link", name="Start Keyboard").press("Enter")
    for prompt, grade in zip(prompts, GRADES, strict=False):
        wait_for(prompt)
        page.keyboard.press(str(grade))
    wait_for(prompts[10])
    page.keyboard.press("Backspace")  # the tenth was a slip: 3, not 2
    wait_for(prompts[9])
    expect(page.locator("[data-note]")).to_contain_text("2 Acceptable")
    page.keyboard.press("3")
    wait_for(prompts[10])
    expect(page.locator("[data-saving]")).to_have_text("saved")
    expect(page.locator(".room-progress")).to_contain_text("10 / 12")
    spent = page.evaluate("performance.getEntriesByName('key-to-paint').map((entry) => entry.duration)")
    assert len(spent) >= 10
    assert sorted(spent)[len(spent) // 2] < 1000  # ms; 100 are the dark gap, some 130 in all on a quiet machine

    call_command("export_ratings", study="Keyboard", output=tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = [(row["prompt"], row["rating"], row["expert_level"]) for row in csv.DictReader(file)]
    given = [*GRADES[:9], 3]
    assert sorted(rows) == sorted((prompt, str(grade), "3") for prompt, grade in zip(prompts, given, strict=False))
    changed = Rating.objects.get(assignment__image__prompt__text=prompts[9])
    assert [event.action for event in changed.events.all()] == ["submit", "undo", "submit"]
    assert all(rating.shown_at and rating.active_ms >= 150 for rating in Rating.objects.all())


def test_a_lost_connection_loses_no_rating(study, bob, sign_in, prompts, wait_for):
    page = sign_in(bob)
    page.goto(f"/studies/{study.public_id}/rate/")
    wait_for(prompts[0])
    lost = []

    def swallow(route):
        """The server saves, its answer is lost on the way."""
        route.fetch()
        lost.append(route.request.post_data)
        route.abort()

    page.route("**/rating/", swallow)
    page.keyboard.press("1")
    wait_for(prompts[1])
    page.keyboard.press("3")
    wait_for(prompts[2])
    expect(page.locator("[data-saving]")).to_contain_text("2 unsaved: no connection")
    page.unroute("**/rating/")
    expect(page.locator("[data-saving]")).to_have_text("saved", timeout=10_000)
    assert lost and Rating.objects.count() == 2
    assert {rating.assignment.image.prompt.text: rating.value for rating in Rating.objects.all()} == {
        prompts[0]: 1,
        prompts[1]: 3,
    }
    assert all(rating.revision == 1 for rating in Rating.objects.all())


def test_undo_reaches_an_image_that_has_just_left_the_screen(study, bob, sign_in, prompts, wait_for):
    page = sign_in(bob)
    page.goto(f"/studies/{study.public_id}/rate/")
    wait_for(prompts[0])
    page.keyboard.press("1")
    page.keyboard.press("Backspace")  # within the dark gap
    wait_for(prompts[0])
    for prompt, grade in zip(prompts, "321", strict=True):
        wait_for(prompt)
        page.keyboard.press(grade)
    expect(page.get_by_text("Everything is saved.")).to_be_visible()
    assert sorted(Rating.objects.submitted().values_list("value", "revision")) == [(1, 1), (2, 1), (3, 3)]


def test_what_another_window_did_is_said_and_stands(study, bob, sign_in, prompts, wait_for):
    page = sign_in(bob)
    page.goto(f"/studies/{study.public_id}/rate/")
    wait_for(prompts[0])
    place = study.assignments.get(reader=bob, position=0)
    submit_rating(assignment=place, reader=bob, value=3, client_uuid=uuid.uuid4())
    page.keyboard.press("1")
    expect(page.get_by_role("alert")).to_contain_text("Excellent stands")
    wait_for(prompts[1])
    study.is_open = False
    study.save()
    page.keyboard.press("2")
    expect(page.get_by_text("The study was closed")).to_be_visible()
    expect(page.get_by_role("button", name="Poor")).to_be_disabled()
    assert Rating.objects.get().value == 3


def test_a_held_key_rates_one_image(study, bob, sign_in, prompts, wait_for):
    page = sign_in(bob)
    page.goto(f"/studies/{study.public_id}/rate/")
    wait_for(prompts[0])
    for _ in range(20):  # repeated keydown without keyup is what a held key sends
        page.keyboard.down("2")
        page.wait_for_timeout(30)
    page.keyboard.up("2")
    wait_for(prompts[1])
    expect(page.locator("[data-saving]")).to_have_text("saved")
    assert Rating.objects.count() == 1


def test_the_list_ends_with_thanks_and_undo_still_works_after_a_reload(study, bob, sign_in, prompts, wait_for):
    page = sign_in(bob)
    page.goto(f"/studies/{study.public_id}/rate/")
    for prompt in prompts:
        wait_for(prompt)
        page.keyboard.press("2")
    expect(page.get_by_text("All images are rated")).to_be_visible()
    expect(page.get_by_text("Everything is saved.")).to_be_visible()
    page.reload()
    expect(page.get_by_text("All images are rated")).to_be_visible()
    page.keyboard.press("Control+z")
    wait_for(prompts[-1])
    page.keyboard.press("1")
    expect(page.get_by_text("Everything is saved.")).to_be_visible()
    assert Rating.objects.submitted().count() == 3
    assert Rating.objects.get(assignment__image__prompt__text=prompts[-1]).value == 1


@pytest.mark.parametrize("width, height", [(1440, 900), (1280, 720)])
def test_the_page_fits_without_scrolling(study, bob, sign_in, width, height, prompts, wait_for):
    page = sign_in(bob)
    page.set_viewport_size({"width": width, "height": height})
    page.goto(f"/studies/{study.public_id}/rate/")
    wait_for(prompts[0])
    assert page.evaluate("document.documentElement.scrollHeight") <= height
    image = page.locator("[data-stage] canvas").bounding_box()
    assert image["height"] >= height * 0.6
    for name in ("Poor", "Acceptable", "Excellent", "Undo"):
        expect(page.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)


def test_a_phone_has_big_buttons(study, bob, sign_in, prompts, wait_for):
    page = sign_in(bob)
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"/studies/{study.public_id}/rate/")
    wait_for(prompts[0])
    for name in ("Poor", "Acceptable", "Excellent"):
        button = page.get_by_role("button", name=name)
        expect(button).to_be_in_viewport(ratio=1)
        box = button.bounding_box()
        assert box["width"] >= 88 and box["height"] >= 44
    page.get_by_role("button", name="Excellent").click()
    wait_for(prompts[1])
    expect(page.locator("[data-saving]")).to_have_text("saved")
    assert Rating.objects.get().value == 3
