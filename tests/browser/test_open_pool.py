"""An open pool at the keyboard: the list grows as it is read, and ends when others have the rest."""

import pytest
from playwright.sync_api import expect

from ratings.models import Assignment, Rating, StudyImage
from ratings.services import create_study, draw_places, pools
from tests.factories import GeneratedImageFactory

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True)
def small_portions(monkeypatch):
    monkeypatch.setattr(pools, "PORTION", 3)
    monkeypatch.setattr(pools, "FEWEST_OPEN", 2)


def test_more_images_come_until_the_pool_is_empty(page, live_server, bob, carol, signed_in):
    images = GeneratedImageFactory.create_batch(9)
    readers = [(bob, 3), (carol, 1)]
    study = create_study(name="Pool", images=images, readers=readers, order_seed=5, protocol={"overlap_target": 1})
    draw_places(study=study, reader=carol)  # three of them are hers
    session = signed_in(bob).cookies["sessionid"].value
    page.context.add_cookies([{"name": "sessionid", "value": session, "url": live_server.url}])
    page.goto(f"/studies/{study.public_id}/rate/")
    progress = page.locator(".room-progress")
    for number in range(6):
        expect(progress).to_contain_text(f"{number} / 6")
        expect(page.locator("[data-stage]")).to_have_attribute("aria-busy", "false")
        page.wait_for_timeout(170)
        page.keyboard.press("3")
        expect(page.locator("[data-saving]")).to_have_text("saved")
    expect(page.get_by_text("Everything is saved.")).to_be_visible(timeout=30_000)
    expect(progress).to_contain_text("6 / 6")
    assert Rating.objects.filter(assignment__reader=bob).count() == 6
    assert set(StudyImage.objects.values_list("num_readers", flat=True)) == {1}
    assert Assignment.objects.filter(reader=carol).count() == 3
