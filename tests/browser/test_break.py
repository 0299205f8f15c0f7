"""A break after so many images: the reader's pace, what is left, and how to be rid of it."""

import pytest
from playwright.sync_api import expect

from ratings.models import Rating
from ratings.views import rating as rating_page

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True)
def every_second_image(monkeypatch):
    monkeypatch.setattr(rating_page, "BREAK_EVERY", 2)


def pause(page):
    return page.get_by_role("heading", name="A break, if you like")


def rate(page, prompts, wait_for, key: str = "3") -> None:
    for prompt in prompts:
        wait_for(prompt)
        page.keyboard.press(key)


@pytest.mark.parametrize("study", [7], indirect=True)
def test_a_break_says_pace_and_rest_and_ends_with_a_key(room, prompts, wait_for):
    rate(room, prompts[:2], wait_for)
    expect(pause(room)).to_be_visible()
    expect(room.locator("[data-lines]")).to_contain_text("2 images rated in a row")
    expect(room.locator("[data-lines]")).to_contain_text("5 images are left: about")
    expect(room.locator("[data-stage] canvas")).to_be_hidden()
    room.keyboard.press("1")  # rates nothing
    room.wait_for_timeout(200)  # what was just rated is on its way by then
    expect(room.locator("[data-saving]")).to_have_text("saved")
    assert Rating.objects.count() == 2  # saving goes on behind it
    room.keyboard.press("Enter")
    rate(room, prompts[2:4], wait_for)
    expect(pause(room)).to_be_visible()
    room.keyboard.press("Backspace")  # the last one was a slip: back to it, without the break
    wait_for(prompts[3])
    expect(pause(room)).to_be_hidden()
    room.keyboard.press("1")
    wait_for(prompts[4])
    rate(room, prompts[4:5], wait_for)
    expect(pause(room)).to_be_visible()
    room.get_by_role("button", name="Go on").click()
    rate(room, prompts[5:], wait_for)
    expect(room.get_by_text("Everything is saved.")).to_be_visible(timeout=30_000)  # no break before the end
    values = {row.assignment.image.prompt.text: row.value for row in Rating.objects.all()}
    assert values == {prompt: 1 if prompt == prompts[3] else 3 for prompt in prompts}


@pytest.mark.parametrize("study", [9], indirect=True)
def test_breaks_are_switched_off_for_good_and_on_again(room, prompts, wait_for):
    rate(room, prompts[:2], wait_for)
    room.get_by_role("button", name="No more breaks").click()
    rate(room, prompts[2:4], wait_for)
    wait_for(prompts[4])
    room.reload()
    rate(room, prompts[4:6], wait_for)
    wait_for(prompts[6])
    room.keyboard.press("?")
    box = room.get_by_label("A break every 2 images")
    expect(box).not_to_be_checked()
    box.check()
    room.keyboard.press("Escape")
    rate(room, prompts[6:8], wait_for)
    expect(pause(room)).to_be_visible()


@pytest.mark.parametrize("study", [5], indirect=True)
def test_time_spent_on_a_break_is_nobody_s(room, prompts, wait_for):
    rate(room, prompts[:2], wait_for)
    expect(pause(room)).to_be_visible()
    room.wait_for_timeout(1500)
    room.keyboard.press("Enter")
    rate(room, prompts[2:3], wait_for)
    wait_for(prompts[3])
    expect(room.locator("[data-saving]")).to_have_text("saved")
    after = Rating.objects.get(assignment__image__prompt__text=prompts[2])
    assert after.active_ms < 1500
    spent = room.evaluate("performance.getEntriesByName('key-to-paint').map((entry) => entry.duration)")
    assert len(spent) == 2  # neither the break's own end counts as a key that was waited for
