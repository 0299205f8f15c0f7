"""The training round: the known grade after each answer, and only then the study."""

import pytest
from playwright.sync_api import expect

from ratings.models import Assignment, Rating
from ratings.services import create_study, set_gold
from tests.factories import GeneratedImageFactory

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
API = "**/api/**"
KNOWN = {1: "Vessels end in the dark", 2: "Too smooth", 3: "No fault found"}


@pytest.fixture
def study(bob, alice):
    """Two images to rate, after three whose grade is known."""
    for grade, why in KNOWN.items():
        set_gold(image=GeneratedImageFactory(), grade=grade, rationale=why, set_by=alice)
    images = GeneratedImageFactory.create_batch(2)
    protocol = {"num_training_images": 3}
    return create_study(name="Keyboard", images=images, readers=[(bob, 3)], order_seed=11, protocol=protocol)


@pytest.fixture
def grades(study, bob) -> list[int]:
    """Known grades of the training round, in bob's order."""
    places = study.assignments.filter(reader=bob, kind=Assignment.Kind.TRAINING).order_by("position")
    return [place.image.gold.grade for place in places.select_related("image__gold")]


@pytest.fixture
def room(page, live_server, study, bob, signed_in, prompts, wait_for):
    """The rating page, past the words before the round: its first image painted."""
    session = signed_in(bob).cookies["sessionid"].value
    page.context.add_cookies([{"name": "sessionid", "value": session, "url": live_server.url}])
    page.goto(f"/studies/{study.public_id}/rate/")
    expect(page.get_by_role("heading", name="A training round first")).to_be_visible()
    page.keyboard.press("Enter")
    wait_for(prompts[0])
    return page


def verdict(page):
    return page.locator("[data-verdict]")


def banner(page):
    return page.locator("[data-training]")


def learn(page, said: int) -> None:
    """Answer, wait until the grade is told, go on."""
    page.keyboard.press(str(said))
    expect(page.locator("[data-lesson] [data-go-on]")).to_be_visible(timeout=30_000)
    page.wait_for_timeout(170)
    page.keyboard.press("Enter")


def test_grades_are_told_then_the_study_begins(room, prompts, grades, wait_for):
    expect(banner(room)).to_have_text("Training 1 of 3: not part of the study")
    expect(room.locator(".room-progress")).to_be_hidden()
    room.keyboard.press(str(grades[0]))
    expect(verdict(room)).to_contain_text(f"Yes: {grades[0]}")
    expect(room.locator("[data-why]")).to_have_text(KNOWN[grades[0]])
    expect(room.locator("[data-prompt]")).to_have_text(prompts[0])  # the image stays to be looked at
    expect(room.locator("[data-stage] canvas")).to_be_visible()
    room.wait_for_timeout(170)
    room.keyboard.press("2")  # any grade's key goes on, and rates nothing
    wait_for(prompts[1])
    expect(banner(room)).to_have_text("Training 2 of 3: not part of the study")
    wrong = grades[1] % 3 + 1
    room.keyboard.press(str(wrong))
    expect(verdict(room)).to_contain_text(f"It is {grades[1]}")
    expect(verdict(room)).to_contain_text(f"You said {wrong}")
    expect(room.locator("[data-known]")).to_have_attribute("data-grade", str(grades[1]))
    room.wait_for_timeout(170)
    room.keyboard.press("Enter")
    wait_for(prompts[2])
    room.keyboard.press("Backspace")
    expect(room.locator("[data-note]")).to_contain_text("not part of the study")
    room.keyboard.press("0")
    room.keyboard.press("1")
    expect(verdict(room)).to_contain_text("it cannot be judged")
    room.wait_for_timeout(170)
    room.keyboard.press("Enter")
    expect(room.get_by_role("heading", name="The study begins")).to_be_visible()
    expect(banner(room)).to_be_hidden()
    room.keyboard.press("3")  # not yet
    room.keyboard.press("Enter")
    wait_for(prompts[3])
    expect(room.locator(".room-progress")).to_contain_text("0 / 2")
    room.keyboard.press("Backspace")
    expect(room.locator("[data-note]")).to_have_text("Nothing to undo.")
    for prompt in prompts[3:]:
        wait_for(prompt)
        room.keyboard.press("3")
    expect(room.get_by_text("Everything is saved.")).to_be_visible(timeout=30_000)
    expect(verdict(room)).to_be_hidden()
    assert Rating.objects.count() == 5 and set(Rating.objects.values_list("revision", flat=True)) == {1}
    assert Rating.objects.without_training_round().filter(value=3).count() == 2


def test_without_a_connection_it_waits_and_says_so(room, prompts, grades, wait_for):
    room.route(API, lambda route: route.abort())
    room.keyboard.press(str(grades[0]))
    expect(room.locator("[data-trouble]").first).to_contain_text("no connection")
    room.keyboard.press("Enter")  # no way past the grade
    expect(room.locator("[data-prompt]")).to_have_text(prompts[0])
    room.reload()  # neither answer nor lesson is lost
    expect(room.locator("[data-trouble]").first).to_contain_text("no connection")
    expect(room.locator("[data-prompt]")).to_have_text(prompts[0])
    assert not Rating.objects.exists()
    room.unroute(API)
    expect(verdict(room)).to_contain_text(f"Yes: {grades[0]}", timeout=40_000)
    room.wait_for_timeout(170)
    room.keyboard.press("Enter")
    wait_for(prompts[1])
    assert Rating.objects.get().value == grades[0]


def test_a_second_window_that_sends_the_answer_hides_no_grade(room, study, prompts, grades, wait_for):
    """Of two windows one sends at a time; the one that asked gets its grade all the same."""
    second = room.context.new_page()
    second.goto(f"/studies/{study.public_id}/rate/")
    expect(second.get_by_role("heading", name="A training round first")).to_be_visible()
    room.route("**/rating/", lambda route: route.abort())
    room.bring_to_front()
    room.keyboard.press(str(grades[0]))
    expect(room.locator("[data-trouble]").first).to_contain_text("no connection")
    expect(room.locator("[data-saving]")).to_have_text("saved", timeout=40_000)  # by the second window
    room.unroute("**/rating/")
    expect(verdict(room)).to_contain_text(f"Yes: {grades[0]}")
    assert Rating.objects.get().events.count() == 1
    second.bring_to_front()
    second.keyboard.press("Enter")
    wait_for(prompts[1], second)  # not the one that was answered meanwhile


def test_a_reload_goes_on_where_the_round_was(room, prompts, grades, wait_for):
    learn(room, grades[0])
    wait_for(prompts[1])
    room.reload()
    expect(room.get_by_role("heading", name="The training round goes on")).to_be_visible()
    room.keyboard.press("Enter")
    wait_for(prompts[1])
    expect(banner(room)).to_have_text("Training 2 of 3: not part of the study")


def test_the_grade_is_in_sight_beside_the_image(room, grades):
    room.keyboard.press(str(grades[0]))
    expect(verdict(room)).to_be_visible(timeout=30_000)
    for width, height in ((1440, 900), (1024, 768), (390, 844)):
        room.set_viewport_size({"width": width, "height": height})
        expect(verdict(room)).to_be_in_viewport(ratio=1)
        expect(room.locator("[data-lesson] [data-go-on]")).to_be_in_viewport(ratio=1)
        image, lesson = (room.locator(part).bounding_box() for part in ("[data-stage]", "[data-lesson]"))
        assert lesson["x"] >= image["x"] + image["width"] or lesson["y"] >= image["y"] + image["height"]
