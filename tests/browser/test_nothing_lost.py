"""Whatever happens to network, page, sign-in or a second window: every rating arrives, and arrives once."""

import os
import statistics
import uuid

import pytest
from playwright.sync_api import Error, expect

from ratings.models import Rating, RatingEvent
from ratings.services import enrol_reader, submit_rating
from tests.factories import PASSWORD

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
API = "**/api/**"
TARGET_MS = 100  # from the key press to the next image's paint, 95th percentile


def stored() -> dict[str, int | None]:
    """Grades that stand, by prompt."""
    rows = Rating.objects.answered().values_list("assignment__image__prompt__text", "value")
    assert len(rows) == len(dict(rows))
    return dict(rows)


def saving(page):
    return page.locator("[data-saving]")


def spent(page) -> list[float]:
    """Milliseconds from each key press to the next image's paint."""
    return page.evaluate("performance.getEntriesByName('key-to-paint').map((entry) => entry.duration)")


def judge(times: list[float]) -> None:
    """Hold the times against the target; on a machine that others keep busy, hold their median against much less."""
    p95 = statistics.quantiles(times, n=20)[-1]
    load, cores = os.getloadavg()[0], os.cpu_count()
    median = statistics.median(times)
    print(f"key to paint, {len(times)} images: median {median:.0f} ms, p95 {p95:.0f} ms, load {load:.1f}")  # noqa: T201
    if load < cores:
        assert p95 < TARGET_MS, sorted(times)
    assert median < 10 * TARGET_MS, sorted(times)


@pytest.mark.parametrize("study", [51], indirect=True)
def test_fifty_images_by_keyboard_ten_of_them_cut_off_with_a_reload(room, prompts, wait_for):
    grades = {prompt: 1 + number * 7 % 3 for number, prompt in enumerate(prompts[:50])}
    times = []
    for number, (prompt, grade) in enumerate(grades.items()):
        wait_for(prompt)
        if number == 20:  # no network at all
            expect(saving(room)).to_have_text("saved")
            room.context.set_offline(True)
        elif number == 25:  # the page can be loaded, but neither list nor image nor save gets through
            expect(saving(room)).to_contain_text("5 unsaved: no connection")
            times += spent(room)
            room.route(API, lambda route: route.abort())
            room.context.set_offline(False)
            room.reload()
            wait_for(prompt)
            expect(room.locator(".room-progress")).to_contain_text("25 / 51")
            expect(saving(room)).to_contain_text("5 unsaved")
        elif number == 30:
            expect(saving(room)).to_contain_text("10 unsaved")
            room.unroute(API)
        room.keyboard.press(str(grade))
    wait_for(prompts[50])
    expect(saving(room)).to_have_text("saved", timeout=40_000)
    expect(room.locator(".room-progress")).to_contain_text("50 / 51")
    times += spent(room)
    assert stored() == grades
    assert RatingEvent.objects.count() == 50 and set(Rating.objects.values_list("revision", flat=True)) == {1}
    judge(times)


def test_what_was_taken_back_while_cut_off_is_first_after_a_reload(room, prompts, wait_for):
    room.route(API, lambda route: route.abort())
    room.keyboard.press("2")
    wait_for(prompts[1])
    room.keyboard.press("3")
    wait_for(prompts[2])
    room.keyboard.press("Control+z")
    wait_for(prompts[1])
    room.reload()
    wait_for(prompts[1])
    expect(saving(room)).to_contain_text("3 unsaved")
    room.keyboard.press("Backspace")  # the session goes on: the first is still to be reached
    wait_for(prompts[0])
    room.unroute(API)
    for prompt, grade in zip(prompts, "113", strict=True):
        wait_for(prompt)
        room.keyboard.press(grade)
    expect(room.get_by_text("Everything is saved.")).to_be_visible(timeout=30_000)
    assert stored() == dict(zip(prompts, (1, 1, 3), strict=True))


def test_a_crash_takes_nothing(room, study, prompts, wait_for):
    room.route(API, lambda route: route.abort())
    room.keyboard.press("3")
    with pytest.raises(Error, match="crash"):
        room.goto("chrome://crash")  # ends the page's process
    after = room.context.new_page()
    after.goto(f"/studies/{study.public_id}/rate/")
    wait_for(prompts[1], after)
    expect(saving(after)).to_have_text("saved")
    assert stored() == {prompts[0]: 3}


def test_a_signed_out_session_keeps_everything_for_its_reader(room, study, bob, carol, prompts, wait_for, sign_in):
    enrol_reader(study=study, reader=carol, expert_level=1)
    room.context.clear_cookies(name="sessionid")
    room.keyboard.press("3")
    wait_for(prompts[1])
    expect(saving(room)).to_contain_text("1 unsaved: you are signed out")
    expect(room.get_by_role("link", name="Sign in")).to_be_visible()
    room.get_by_text("Which").click()
    expect(room.locator("[data-unsaved-list]")).to_contain_text(f"3 Excellent · {prompts[0]}")
    room.reload()
    expect(room.get_by_label("Password")).to_be_visible()
    sign_in(carol)
    room.goto(f"/studies/{study.public_id}/rate/")
    expect(room.get_by_role("button", name="Poor")).to_be_enabled(timeout=30_000)
    expect(saving(room)).to_have_text("saved")
    assert not Rating.objects.exists()  # bob's rating is neither carol's nor gone
    sign_in(bob)
    room.goto(f"/studies/{study.public_id}/rate/")
    wait_for(prompts[1])
    expect(saving(room)).to_have_text("saved")
    assert stored() == {prompts[0]: 3} and Rating.objects.get().assignment.reader == bob


def test_a_session_that_ends_and_begins_again_beside_the_page_goes_on(room, bob, prompts, wait_for):
    room.context.clear_cookies(name="sessionid")
    room.keyboard.press("1")
    wait_for(prompts[1])
    expect(saving(room)).to_contain_text("1 unsaved: you are signed out")
    with room.context.expect_page() as opened:
        room.get_by_role("link", name="Sign in").click()
    beside = opened.value
    beside.get_by_label("Username").fill(bob.username)
    beside.get_by_label("Password").fill(PASSWORD)
    beside.get_by_role("button", name="Sign in").click()
    beside.wait_for_url("**/studies/")
    beside.close()
    expect(saving(room)).to_have_text("saved", timeout=40_000)
    assert stored() == {prompts[0]: 1}


def test_two_windows_agree(room, study, prompts, wait_for):
    second = room.context.new_page()
    second.goto(f"/studies/{study.public_id}/rate/")
    wait_for(prompts[0], second)
    room.bring_to_front()
    room.keyboard.press("2")
    wait_for(prompts[1])
    second.bring_to_front()
    wait_for(prompts[1], second)  # went on by itself
    expect(second.locator(".room-progress")).to_contain_text("1 / 3")
    second.keyboard.press("3")
    wait_for(prompts[2], second)
    room.bring_to_front()
    wait_for(prompts[2])
    room.keyboard.press("Backspace")  # its own, not the one that the other window gave last
    wait_for(prompts[0])
    expect(room.locator(".room-progress")).to_contain_text("1 / 3")
    expect(saving(room)).to_have_text("saved")
    assert stored() == {prompts[1]: 3}


def test_a_refusal_is_said_until_it_is_read(room, study, bob, prompts, wait_for):
    place = study.assignments.get(reader=bob, position=0)
    submit_rating(assignment=place, reader=bob, cannot_judge="views", client_uuid=uuid.uuid4())
    room.keyboard.press("1")
    alert = room.get_by_role("alert").filter(has_text="Rated in another window")
    expect(alert).to_contain_text("Cannot judge stands for this image there; 1 Poor was not stored")
    room.reload()
    wait_for(prompts[1])
    expect(alert).to_contain_text(prompts[0])
    expect(room.locator(".room-progress")).to_contain_text("1 / 3")
    alert.get_by_role("button", name="Understood").click()
    expect(alert).to_have_count(0)
    room.reload()
    wait_for(prompts[1])
    expect(alert).to_have_count(0)
    assert stored() == {prompts[0]: None}


def test_without_a_database_the_page_says_so_and_warns(page, study, bob, prompts, sign_in, wait_for):
    page.add_init_script("Object.defineProperty(window, 'indexedDB', { value: undefined })")
    sign_in(bob)
    page.goto(f"/studies/{study.public_id}/rate/")
    wait_for(prompts[0])
    expect(page.get_by_text("This browser keeps nothing")).to_be_visible()
    page.route(API, lambda route: route.abort())
    page.keyboard.press("2")
    wait_for(prompts[1])
    warned = []
    page.once("dialog", lambda dialog: (warned.append(dialog.type), dialog.dismiss()))
    page.close(run_before_unload=True)
    expect(saving(page)).to_contain_text("1 unsaved")
    page.unroute(API)
    expect(saving(page)).to_have_text("saved")
    assert warned == ["beforeunload"] and stored() == {prompts[0]: 2}


def test_a_full_disk_is_said_and_the_rating_still_arrives(room, prompts, wait_for):
    room.evaluate(
        """() => {
          IDBObjectStore.prototype.add = () => { throw new DOMException("The disk is full", "QuotaExceededError"); };
        }"""
    )
    room.keyboard.press("2")
    wait_for(prompts[1])
    expect(room.get_by_text("This browser keeps nothing")).to_be_visible()
    expect(saving(room)).to_have_text("saved")
    assert stored() == {prompts[0]: 2}


@pytest.mark.parametrize("study", [22], indirect=True)
def test_twenty_can_wait_and_no_more(room, prompts, wait_for):
    room.wait_for_load_state("networkidle")
    room.context.set_offline(True)
    for prompt in prompts[:20]:
        wait_for(prompt)
        room.keyboard.press("3")
    wait_for(prompts[20])
    expect(saving(room)).to_contain_text("20 unsaved")
    room.keyboard.press("1")
    expect(room.locator("[data-note]")).to_contain_text("20 ratings wait for the connection")
    expect(room.locator("[data-prompt]")).to_have_text(prompts[20])
    room.context.set_offline(False)
    expect(saving(room)).to_have_text("saved", timeout=40_000)
    assert stored() == dict.fromkeys(prompts[:20], 3)


def test_what_only_the_server_knows_is_not_taken_back_without_it(room, study, bob, prompts, wait_for):
    place = study.assignments.get(reader=bob, position=0)
    submit_rating(assignment=place, reader=bob, value=2, client_uuid=uuid.uuid4())
    room.route("**/undo/", lambda route: route.abort())  # before the reload: an open page may still send one past it
    room.reload()
    wait_for(prompts[1])
    room.keyboard.press("Backspace")
    expect(room.locator("[data-note]")).to_contain_text("Nothing was taken back: no connection")
    room.unroute("**/undo/")
    room.keyboard.press("Backspace")
    wait_for(prompts[0])
    expect(room.locator(".room-progress")).to_contain_text("0 / 3")
    assert stored() == {}


def test_a_missing_image_is_said_and_comes_with_the_network(page, study, prompts, bob, sign_in, wait_for):
    second = f"**/{study.assignments.get(reader=bob, position=1).public_id}/image"
    page.route(second, lambda route: route.abort())
    sign_in(bob)
    page.goto(f"/studies/{study.public_id}/rate/")
    wait_for(prompts[0])
    page.context.set_offline(True)
    page.keyboard.press("2")
    expect(page.get_by_role("heading", name="This image could not be loaded")).to_be_visible()
    page.unroute(second)
    page.context.set_offline(False)
    wait_for(prompts[1])
    expect(saving(page)).to_have_text("saved")
    assert stored() == {prompts[0]: 2}
