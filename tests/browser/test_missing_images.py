"""Images that are not to be had: they hold up nobody, and no other image."""

import pytest
from playwright.sync_api import expect

from ratings.models import Rating
from tests.browser.test_nothing_lost import stored

GONE = {"status": 404, "json": {"detail": "The file is gone."}}


@pytest.fixture
def without(page, study, bob, sign_in):
    """``without(1)``: bob's rating page, the image at that position of his list not to be had; its address."""

    def opened(position: int, **reply) -> str:
        image = f"**/{study.assignments.get(reader=bob, position=position).public_id}/image"
        page.route(image, lambda route: route.fulfill(**(reply or GONE)))
        sign_in(bob)
        page.goto(f"/studies/{study.public_id}/rate/")
        return image

    return opened


def say_why(page) -> None:
    page.wait_for_timeout(170)
    page.keyboard.press("0")
    page.locator("[data-reason=display]").click()


def test_an_image_that_never_loads_is_answered_and_taken_back(page, without, prompts, wait_for):
    image = without(0)
    expect(page.locator("[data-failed]")).to_be_visible()
    expect(page.locator("[data-prompt]")).to_have_text(prompts[0])
    page.wait_for_timeout(170)
    page.keyboard.press("2")  # a grade cannot be given to what was not seen
    expect(page.locator("[data-grade='2']")).to_be_disabled()
    expect(page.locator("[data-failed]")).to_be_visible()
    say_why(page)
    wait_for(prompts[1])
    expect(page.locator("[data-saving]")).to_have_text("saved")
    rating = Rating.objects.get()
    assert (rating.value, rating.cannot_judge, rating.state) == (None, "display", Rating.State.CANNOT_JUDGE)
    assert rating.assignment.image.prompt.text == prompts[0] and "zoom" not in rating.display
    page.keyboard.press("Backspace")
    expect(page.locator("[data-failed]")).to_be_visible()
    page.unroute(image)
    page.get_by_role("button", name="Try again").click()
    wait_for(prompts[0])
    page.keyboard.press("3")
    wait_for(prompts[1])
    expect(page.locator("[data-saving]")).to_have_text("saved")
    assert stored() == {prompts[0]: 3}


def test_the_answer_before_an_image_that_never_loads_is_taken_back(page, without, prompts, wait_for):
    without(1)
    wait_for(prompts[0])
    page.keyboard.press("1")
    expect(page.locator("[data-failed]")).to_be_visible()
    page.keyboard.press("Backspace")
    wait_for(prompts[0])
    expect(page.locator("[data-failed]")).to_be_hidden()


@pytest.mark.parametrize("study", [8], indirect=True)
@pytest.mark.parametrize("reply", [GONE, {"status": 500, "body": "Broken"}], ids=["refused", "broken"])
def test_one_image_that_is_not_to_be_had_stops_no_other(page, without, study, bob, prompts, reply):
    last = study.assignments.get(reader=bob, position=7).public_id
    with page.expect_response(f"**/{last}/image") as arrived:
        without(6, **reply)  # behind those that are decoded, before the last
    assert arrived.value.ok


def test_a_refusal_without_json_is_a_refusal(page, room, prompts, wait_for):
    room.route("**/rating/", lambda route: route.fulfill(status=404, content_type="text/html", body="<h1>Gone</h1>"))
    room.keyboard.press("2")
    wait_for(prompts[1])
    expect(room.locator("[data-saving]")).to_have_text("saved")  # it is not tried for ever
    expect(room.locator(".messages")).to_contain_text("The server refused it (404)")
