"""Keys beside the grades: defects, comment, "cannot judge", and which presses count at all."""

import pytest
from playwright.sync_api import expect

from ratings.models import Rating

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def pressed(page) -> list[str]:
    """Codes of the chips that are on."""
    return page.locator("[data-defect][aria-pressed=true]").evaluate_all(
        "(chips) => chips.map((c) => c.dataset.defect)"
    )


def saved(page) -> None:
    page.wait_for_timeout(150)
    expect(page.locator("[data-saving]")).to_have_text("saved")


def answers(prompts) -> list[tuple]:
    """(value, defects, comment) in the reader's order."""
    rows = {rating.assignment.image.prompt.text: rating for rating in Rating.objects.all()}
    given = [rows[prompt] for prompt in prompts if prompt in rows]
    return [(rating.value, rating.defects, rating.comment) for rating in given]


def test_defects_are_asked_for_after_a_low_grade_without_a_stop(room, prompts, wait_for):
    asked = room.locator("[data-asked]")
    expect(asked).to_have_text("of this image")
    room.keyboard.press("2")
    expect(asked).to_have_text("of the last image (2 Acceptable)")
    room.keyboard.press("w")  # at once: meant for the last image, whatever is on the screen by now
    room.keyboard.press("q")
    wait_for(prompts[1])
    assert pressed(room) == ["noise", "blur"]
    room.keyboard.press("q")  # off again
    room.keyboard.press("Enter")
    expect(asked).to_have_text("of this image")
    assert pressed(room) == []
    room.keyboard.press("r")
    room.keyboard.press("1")  # its defects are given: nothing is asked
    expect(asked).to_have_text("of this image")
    wait_for(prompts[2])
    assert pressed(room) == []
    room.keyboard.press("3")
    expect(room.get_by_text("Everything is saved.")).to_be_visible(timeout=30_000)
    assert answers(prompts) == [(2, ["blur"], ""), (1, ["artefact"], ""), (3, [], "")]
    first = Rating.objects.get(value=2)
    assert [event.action for event in first.events.all()] == ["submit", "remark", "remark", "remark"]


def test_a_comment_is_written_without_rating(room, prompts, wait_for):
    room.keyboard.press("c")
    room.keyboard.type("120 kV, 3 mm")  # digits are text here
    room.keyboard.press("Enter")
    expect(room.locator("[data-prompt]")).to_have_text(prompts[0])
    room.keyboard.press("e")
    room.keyboard.press("1")
    wait_for(prompts[1])
    room.keyboard.press("Backspace")
    wait_for(prompts[0])
    assert pressed(room) == ["motion"]  # what was said is there to be changed
    expect(room.get_by_label("Comment")).to_have_value("120 kV, 3 mm")
    room.keyboard.press("2")
    wait_for(prompts[1])
    room.keyboard.press("3")
    wait_for(prompts[2])
    saved(room)
    assert answers(prompts) == [(2, ["motion"], "120 kV, 3 mm"), (3, [], "")]


def test_cannot_judge_takes_a_reason_and_no_grade(room, prompts, wait_for):
    room.keyboard.press("0")
    dialog = room.get_by_role("dialog", name="Why can it not be judged?")
    expect(dialog).to_be_visible()
    room.keyboard.press("Control+1")  # the browser's own: its first tab
    expect(dialog).to_be_visible()
    room.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(room.locator("[data-prompt]")).to_have_text(prompts[0])
    room.keyboard.press("0")
    room.keyboard.press("3")
    wait_for(prompts[1])
    room.get_by_role("button", name="Cannot judge").click()
    room.keyboard.press("5")  # another reason: in words
    room.keyboard.type("shown 2 times")
    room.keyboard.press("Enter")
    wait_for(prompts[2])
    room.keyboard.press("Control+z")
    expect(room.locator("[data-note]")).to_contain_text("Taken back: Cannot judge")
    wait_for(prompts[1])
    room.keyboard.press("2")
    wait_for(prompts[2])
    saved(room)
    expect(room.locator(".room-progress")).to_contain_text("2 / 3")
    first, second = (Rating.objects.get(assignment__image__prompt__text=prompt) for prompt in prompts[:2])
    assert (first.state, first.value, first.cannot_judge) == ("cannot_judge", None, "views")
    assert (second.state, second.value, second.cannot_judge) == ("submitted", 2, "")
    first_answer = second.events.first()
    assert (first_answer.cannot_judge, first_answer.comment) == ("other", "shown 2 times")


def test_presses_within_150_ms_of_the_paint_count_for_nothing(room, prompts, wait_for):
    """Each paint is followed by a press after 60 ms, which must not rate, and one after 400 ms, which must."""
    room.evaluate(
        """() => {
          const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
          window.paints = 0;
          new PerformanceObserver((list) => list.getEntries().forEach(({ startTime, duration }) => {
            window.paints += 1;
            if (window.paints > 1) return;
            const painted = startTime + duration; // the observer is told of it later
            setTimeout(() => { window.early = performance.now() - painted; press("1"); press("q"); }, 60);
            setTimeout(() => press("3"), 400);
          })).observe({ entryTypes: ["measure"] });
        }"""
    )
    room.keyboard.press("3")
    wait_for(prompts[2])
    saved(room)
    if room.evaluate("window.early") < 140:  # the timer came in time, on this machine
        assert answers(prompts) == [(3, [], ""), (3, [], "")]


def test_times_and_display_are_kept(room, prompts, wait_for):
    room.set_viewport_size({"width": 1024, "height": 768})
    room.mouse.click(300, 300)
    room.wait_for_timeout(300)
    room.keyboard.press("3")
    wait_for(prompts[1])
    saved(room)
    rating = Rating.objects.get()
    screen = {"viewport_width": 1024, "viewport_height": 768, "device_pixel_ratio": 1}
    assert rating.display.items() >= screen.items() and not rating.display["window_touched"]
    assert rating.shown_at < rating.first_input_at < rating.answered_at < rating.submitted_at
    assert (rating.answered_at - rating.first_input_at).total_seconds() >= 0.3
    looked = (rating.answered_at - rating.shown_at).total_seconds() * 1000
    assert abs(looked - rating.active_ms) < 100


def test_the_keys_are_listed(room, prompts):
    room.keyboard.press("?")
    listed = room.get_by_role("dialog", name="Keys")
    expect(listed).to_contain_text("Cannot judge")
    room.keyboard.press("1")  # not while the list is open
    room.keyboard.press("Escape")
    expect(listed).to_be_hidden()
    expect(room.locator("[data-prompt]")).to_have_text(prompts[0])


def test_the_enter_that_ends_a_character_sends_nothing(room):
    """Where characters are composed of several keys, Enter takes the one that is offered."""
    compose = """(field) => field.dispatchEvent(
      new KeyboardEvent("keydown", { key: "Enter", isComposing: true, bubbles: true, cancelable: true }))"""
    comment, words = room.get_by_label("Comment"), room.get_by_label("In your own words")
    comment.fill("かn")
    comment.evaluate(compose)
    expect(comment).to_be_focused()
    comment.press("Enter")
    room.keyboard.press("0")
    words.fill("がぞu")
    words.evaluate(compose)
    expect(room.get_by_role("dialog")).to_be_visible()
    assert not Rating.objects.exists()
