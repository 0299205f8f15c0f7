"""Two things at once: another window, a reply that comes late or never, a key that is held, a database that fails."""

import uuid

import pytest
from playwright.sync_api import expect

from ratings.models import Rating
from ratings.services import submit_rating

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def stored() -> dict[str, int | None]:
    """Grades that stand, by prompt."""
    return dict(Rating.objects.answered().values_list("assignment__image__prompt__text", "value"))


def saved(page) -> None:
    page.wait_for_timeout(150)
    expect(page.locator("[data-saving]")).to_have_text("saved")


def test_a_reason_asked_for_is_not_given_to_the_image_after(room, study, prompts, wait_for):
    second = room.context.new_page()
    second.goto(f"/studies/{study.public_id}/rate/")
    wait_for(prompts[0], second)
    room.bring_to_front()
    room.keyboard.press("0")
    expect(room.get_by_role("dialog")).to_be_visible()
    second.bring_to_front()
    second.keyboard.press("3")
    wait_for(prompts[1], second)
    room.bring_to_front()
    wait_for(prompts[1])
    expect(room.get_by_role("dialog")).to_be_hidden()
    room.keyboard.press("2")
    wait_for(prompts[2])
    saved(room)
    assert stored() == {prompts[0]: 3, prompts[1]: 2}


def test_what_was_noted_of_an_image_that_leaves_is_not_the_next_ones(room, study, bob, prompts, wait_for):
    room.keyboard.press("q")
    room.keyboard.press("1")
    wait_for(prompts[1])
    saved(room)
    place = study.assignments.get(reader=bob, position=0)
    submit_rating(assignment=place, reader=bob, value=3, revision=1, client_uuid=uuid.uuid4())
    room.keyboard.press("Backspace")  # refused: another window has changed it meanwhile
    expect(room.get_by_role("alert").filter(has_text="Rated in another window")).to_be_visible(timeout=30_000)
    wait_for(prompts[1])
    assert room.locator("[data-defect][aria-pressed=true]").count() == 0
    room.keyboard.press("3")
    wait_for(prompts[2])
    saved(room)
    assert stored() == {prompts[0]: 3, prompts[1]: 3}
    assert Rating.objects.get(assignment__image__prompt__text=prompts[1]).defects == []


def rate_all(study, reader) -> None:
    for place in study.assignments.filter(reader=reader).order_by("position"):
        submit_rating(assignment=place, reader=reader, value=2, client_uuid=uuid.uuid4())


def test_undo_pressed_twice_at_the_end_takes_back_one(room, study, bob, prompts, wait_for):
    rate_all(study, bob)
    room.reload()
    expect(room.get_by_text("All images are rated")).to_be_visible()
    for _ in range(2):
        room.keyboard.press("Backspace")
    wait_for(prompts[-1])
    assert stored() == dict.fromkeys(prompts[:-1], 2)


def test_an_undo_whose_reply_was_lost_takes_back_one(room, study, bob, prompts, wait_for):
    rate_all(study, bob)
    room.route("**/undo/", lambda route: (route.fetch(), route.abort()))  # first: an open page may send one past it
    room.reload()
    expect(room.get_by_text("All images are rated")).to_be_visible()
    room.keyboard.press("Backspace")
    expect(room.locator("[data-note]")).to_contain_text("no connection")
    assert len(stored()) == len(prompts) - 1  # it had arrived
    room.unroute("**/undo/")
    room.keyboard.press("Backspace")
    wait_for(prompts[-1])
    assert stored() == dict.fromkeys(prompts[:-1], 2)


def test_an_image_that_fails_late_does_not_cover_the_one_after(page, study, prompts, bob, sign_in, wait_for):
    held = []
    image = f"**/{study.assignments.get(reader=bob, position=1).public_id}/image"
    page.route(image, lambda route: held.append(route))
    sign_in(bob)
    page.goto(f"/studies/{study.public_id}/rate/")
    wait_for(prompts[0])
    page.keyboard.press("2")
    second = page.context.new_page()
    second.goto(f"/studies/{study.public_id}/rate/")
    wait_for(prompts[1], second)
    second.keyboard.press("3")
    wait_for(prompts[2], second)
    page.bring_to_front()
    wait_for(prompts[2])
    for route in held:
        route.fulfill(status=404, json={"detail": "gone"})
    page.wait_for_timeout(300)
    expect(page.locator("[data-failed]")).to_be_hidden()


def test_a_networks_own_page_is_not_kept_as_an_image(page, study, prompts, bob, sign_in, wait_for):
    image = f"**/{study.assignments.get(reader=bob, position=1).public_id}/image"
    page.route(image, lambda route: route.fulfill(content_type="text/html", body="<p>Sign in to the hotel's network"))
    sign_in(bob)
    page.goto(f"/studies/{study.public_id}/rate/")
    wait_for(prompts[0])
    page.unroute(image)
    page.keyboard.press("2")
    wait_for(prompts[1])


def test_a_database_that_fails_twice_at_once_keeps_nothing_back(room, prompts, wait_for):
    room.evaluate(
        """() => {
          IDBTransaction.prototype.commit = undefined;
          for (const verb of ["add", "getAll"]) {
            IDBObjectStore.prototype[verb] = function () {
              try { this.transaction.abort(); } catch { /* it was, a moment ago */ }
              return {};
            };
          }
          const { reader } = document.querySelector("[data-room]").dataset;
          const heard = new BroadcastChannel("medsyn-rating"); // after the page's own, which reads its database
          heard.onmessage = () => document.dispatchEvent(new KeyboardEvent("keydown", { key: "2", bubbles: true }));
          new BroadcastChannel("medsyn-rating").postMessage({ reader: Number(reader) });
        }"""
    )
    wait_for(prompts[1])
    saved(room)
    assert stored() == {prompts[0]: 2}


def test_a_held_i_does_not_flicker(room):
    for _ in range(2):
        room.keyboard.down("i")
    room.keyboard.up("i")
    expect(room.get_by_role("button", name="invert")).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize("study", [1], indirect=True)
def test_the_end_of_the_list_does_not_cut_short_what_is_written_of_the_last_image(room):
    held = []
    room.route("**/queue/?*", lambda route: held.append(route))
    room.keyboard.press("1")
    room.keyboard.press("c")
    room.keyboard.type("Vessels ")
    for route in held:
        route.continue_()
    expect(room.get_by_text("All images are rated")).to_be_visible()
    room.keyboard.type("end")
    room.keyboard.press("Enter")
    saved(room)
    assert held and [(row.comment, row.defects) for row in Rating.objects.all()] == [("Vessels end", [])]


def test_undo_takes_nothing_back_before_the_page_knows_what_is_unsaved(room, study, bob, prompts, wait_for):
    rate_all(study, bob)
    asked = []
    room.on("request", lambda request: asked.append(request.url) if request.url.endswith("/undo/") else None)
    room.add_init_script(
        """const { set } = Object.getOwnPropertyDescriptor(IDBTransaction.prototype, "oncomplete");
        Object.defineProperty(IDBTransaction.prototype, "oncomplete", { set(heard) { // a slow disk
          set.call(this, () => setTimeout(() => { document.documentElement.dataset.hasRead = ""; heard(); }, 700));
        } });"""
    )
    room.reload()
    room.wait_for_selector("html[data-has-read]")  # to see that there is a database: next comes what it has
    room.keyboard.press("Backspace")
    expect(room.get_by_text("All images are rated")).to_be_visible()
    assert not asked and stored() == dict.fromkeys(prompts, 2)
