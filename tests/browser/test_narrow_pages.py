"""Pages on a telephone: nothing is cut off, nothing scrolls sideways."""

import uuid

import pytest
from playwright.sync_api import expect

from ratings.services import submit_rating

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def telephone(page, live_server, alice, signed_in):
    session = signed_in(alice).cookies["sessionid"].value
    page.context.add_cookies([{"name": "sessionid", "value": session, "url": live_server.url}])
    page.set_viewport_size({"width": 390, "height": 844})
    return page


def _is_wider_than_the_screen(page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")


def test_every_room_is_in_sight(telephone):
    telephone.goto("/studies/", wait_until="networkidle")
    rooms = telephone.get_by_role("navigation", name="Main").get_by_role("link")
    expect(rooms).to_have_count(6)
    for room in rooms.all():
        expect(room).to_be_in_viewport(ratio=1)
    assert not _is_wider_than_the_screen(telephone)


def test_a_long_address_that_leads_nowhere_wraps(telephone):
    telephone.goto(f"/studies/{'3f' * 16}/agreement/", wait_until="networkidle")
    expect(telephone.get_by_role("heading", name="There is nothing here")).to_be_visible()
    assert not _is_wider_than_the_screen(telephone)


def test_the_table_of_readers_is_in_sight_on_a_tablet(telephone, study, bob):
    place = study.assignments.order_by("position").first()
    submit_rating(assignment=place, reader=bob, value=2, client_uuid=uuid.uuid4())
    telephone.set_viewport_size({"width": 1024, "height": 768})
    telephone.goto(f"/studies/{study.public_id}/", wait_until="networkidle")
    readers = telephone.locator(".table-scroll", has=telephone.get_by_role("columnheader", name="14 days"))
    expect(readers).to_be_visible()
    assert readers.evaluate("table => table.scrollWidth <= table.clientWidth")


def test_a_filter_uses_the_width(telephone, study):
    telephone.goto("/studies/", wait_until="networkidle")
    bar = telephone.get_by_role("search").bounding_box()
    name = telephone.get_by_label("Name").bounding_box()
    state = telephone.get_by_label("State").bounding_box()
    assert name["y"] == state["y"]
    assert name["width"] + state["width"] > 0.8 * bar["width"]
