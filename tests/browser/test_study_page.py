"""The study's page in a real browser: it keeps itself up to date, and the agreement page fits a phone."""

import os
import uuid
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from ratings.models import Assignment, Rating
from ratings.services import create_study, enrol_reader, set_gold, submit_rating
from tests.factories import GeneratedImageFactory, UserFactory

pytestmark = pytest.mark.browser
PROTOCOL = {"num_training_images": 3}
SIZES = {"desk": (1440, 900), "tablet": (1024, 768), "phone": (390, 844)}


@pytest.fixture
def rated(alice):
    """Two generators, real and gold images, five readers of whom two are simulated, a training round, repeats; most
    of it rated."""
    images = GeneratedImageFactory.create_batch(22) + GeneratedImageFactory.create_batch(10, imported=True)
    images += GeneratedImageFactory.create_batch(10, imported=True, is_real=True)
    images += GeneratedImageFactory.create_batch(6, imported=True)
    taught = GeneratedImageFactory.create_batch(3, imported=True)
    for number, image in enumerate([*images[-6:], *taught]):
        set_gold(image=image, grade=1 + number % 3, set_by=alice, rationale="Planted")
    study = create_study(name="Chest CT pilot", images=images, created_by=alice, is_simulated=True, protocol=PROTOCOL)
    random = np.random.default_rng(3)
    keys = [image.pk for image in (*images, *taught)]
    quality = dict(zip(keys, random.normal(size=51) + np.arange(51) / 60, strict=True))
    for number, level in enumerate((3, 2, 2, 1, 1)):
        reader = UserFactory(username=f"reader-{number + 1}")
        enrol_reader(study=study, reader=reader, expert_level=level, is_simulated=number > 2)
        places = list(study.assignments.filter(reader=reader).order_by("position"))[: 48 - 6 * number]
        if number in (0, 1):
            places += [
                Assignment.objects.create(
                    study=study, reader=reader, image=place.image, occurrence=2, position=100 + at, kind="repeat"
                )
                for at, place in enumerate(places[3:15])
            ]
        for place in places:
            value = int(np.digitize(quality[place.image_id] + 0.7 * random.normal(), [-0.4, 0.8])) + 1
            submit_rating(
                assignment=place,
                reader=reader,
                value=value,
                client_uuid=uuid.uuid4(),
                active_ms=int(random.integers(2500, 9000)),
            )
    return study


def num_counted() -> int:
    return Rating.objects.without_training_round().count()


@pytest.fixture
def owner(page, live_server, alice, signed_in):
    """The page, alice signed in."""
    session = signed_in(alice).cookies["sessionid"].value
    page.context.add_cookies([{"name": "sessionid", "value": session, "url": live_server.url}])
    return page


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_the_screen(owner, rated, size):
    owner.set_viewport_size(dict(zip(("width", "height"), SIZES[size], strict=True)))
    for name, path in (("progress", ""), ("agreement", "agreement/")):
        owner.goto(f"/studies/{rated.public_id}/{path}")
        owner.wait_for_selector("#agreement")  # on the progress page it is put in by the module
        assert owner.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert owner.locator("svg.plot circle.dot").count() >= 4
        if name == "agreement":
            for part in ("gold", "training", "panel", "confusion", "repeats", "real", "sources", "downloads"):
                assert owner.locator(f"section[aria-labelledby={part}]").is_visible(), part
            plot = owner.locator("section[aria-labelledby=real] .by-reader .interval-cell svg").first
            box = plot.bounding_box()  # on a phone too the plot is on the screen, not beside it
            assert box["x"] >= 0 and box["x"] + box["width"] <= SIZES[size][0] and box["width"] > 90
        if folder := os.environ.get("MEDSYN_SHOTS"):
            owner.screenshot(path=Path(folder) / f"{name}-{size}.png", full_page=True)
            owner.evaluate("document.documentElement.dataset.theme = 'light'")
            owner.screenshot(path=Path(folder) / f"{name}-{size}-light.png", full_page=True)


def test_a_rating_given_elsewhere_appears_without_a_reload(owner, rated):
    owner.clock.install()
    owner.goto(f"/studies/{rated.public_id}/")
    figure = owner.locator("dl.figures dd").first
    before = figure.inner_text()
    summary = owner.locator("[data-agreement] .panel-head")
    expect(summary).to_contain_text(f"{num_counted()} ratings")
    place = rated.assignments.filter(rating=None).first()
    submit_rating(assignment=place, reader=place.reader, value=2, client_uuid=uuid.uuid4())
    owner.clock.run_for(16_000)
    expect(figure).not_to_have_text(before)
    assert str(num_counted()) in figure.inner_text()
    for _ in range(4):  # agreement follows within a minute and one turn
        owner.clock.run_for(16_000)
        owner.wait_for_timeout(400)
    expect(summary).to_contain_text(f"{num_counted()} ratings")


def test_agreement_that_could_not_be_fetched_is_asked_for_again(owner, rated):
    owner.clock.install()
    owner.route("**/agreement/", lambda route: route.abort())
    with owner.expect_event("requestfailed"):
        owner.goto(f"/studies/{rated.public_id}/")
    owner.unroute("**/agreement/")
    for _ in range(5):
        owner.clock.run_for(16_000)
        owner.wait_for_timeout(400)
    expect(owner.locator("[data-agreement] .panel-head")).to_contain_text(f"{num_counted()} ratings")


def test_grades_that_are_hidden_are_not_asked_for_either(owner, alice, carol):
    study = create_study(name="Both", images=GeneratedImageFactory.create_batch(2), readers=[(alice, 3), (carol, 1)])
    asked = []
    owner.on("request", lambda request: asked.append(request.url))
    owner.clock.install()
    owner.goto(f"/studies/{study.public_id}/")
    expect(owner.locator(".notice")).to_contain_text("Grades are hidden")
    titles = owner.locator("table.readers thead th").count()
    for place in study.assignments.filter(reader=alice):  # in another window: from here on she is told
        submit_rating(assignment=place, reader=alice, value=2, client_uuid=uuid.uuid4())
    owner.clock.run_for(16_000)
    expect(owner.locator("dl.figures dd").first).to_contain_text("2 / 4")
    assert owner.locator("table.readers tbody tr").first.locator("th, td").count() == titles
    assert not [url for url in asked if "/agreement/" in url]
