"""The study's page in a real browser: it keeps itself up to date, and the agreement page fits a phone."""

import os
import uuid
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from ratings.models import Assignment, Rating
from ratings.services import create_study, enrol_reader, submit_rating
from tests.factories import GeneratedImageFactory, UserFactory

pytestmark = pytest.mark.browser
SIZES = {"desk": (1440, 900), "tablet": (1024, 768), "phone": (390, 844)}


@pytest.fixture
def rated(alice):
    """Two origins, five readers of whom two are simulated in a study of people, repeats; most of it rated."""
    images = GeneratedImageFactory.create_batch(30) + GeneratedImageFactory.create_batch(18, imported=True)
    study = create_study(name="Chest CT pilot", images=images, created_by=alice, is_simulated=True)
    random = np.random.default_rng(3)
    quality = dict(zip((image.pk for image in images), random.normal(size=48) + np.arange(48) / 60, strict=True))
    for number, level in enumerate((3, 2, 2, 1, 1)):
        reader = UserFactory(username=f"reader-{number + 1}")
        enrol_reader(study=study, reader=reader, expert_level=level, is_simulated=number > 2)
        places = list(study.assignments.filter(reader=reader).order_by("position"))[: 48 - 6 * number]
        if number in (0, 1):
            places += [
                Assignment.objects.create(
                    study=study, reader=reader, image=place.image, occurrence=2, position=100 + at, kind="repeat"
                )
                for at, place in enumerate(places[:12])
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
    expect(summary).to_contain_text(f"{Rating.objects.count()} ratings")
    place = rated.assignments.filter(rating=None).first()
    submit_rating(assignment=place, reader=place.reader, value=2, client_uuid=uuid.uuid4())
    owner.clock.run_for(16_000)
    expect(figure).not_to_have_text(before)
    assert str(Rating.objects.count()) in figure.inner_text()
    for _ in range(4):  # agreement follows within a minute and one turn
        owner.clock.run_for(16_000)
        owner.wait_for_timeout(400)
    expect(summary).to_contain_text(f"{Rating.objects.count()} ratings")
