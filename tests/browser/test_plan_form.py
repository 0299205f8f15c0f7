"""The form that plans a calibration, as an administrator meets it."""

import pytest
from playwright.sync_api import expect

from generation.models import GenerationJob
from tests.ratings.calibration_world import draw_job, make_release

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def form(page, live_server, alice, signed_in):
    """The form; a job of the active release, one of another, and a release without any."""
    draw_job(make_release("first", is_active=True), number=520)
    draw_job(make_release("other"), number=510, seed=1)
    make_release("bare")
    session = signed_in(alice).cookies["sessionid"].value
    page.context.add_cookies([{"name": "sessionid", "value": session, "url": live_server.url}])
    page.goto("/certificates/plan/")
    return page


def test_jobs_of_the_chosen_release_alone_are_shown_and_sent(form):
    other_job = GenerationJob.objects.get(release__name="other")
    release, first, other = (
        form.get_by_label("Release"),
        form.get_by_label("520 images"),
        form.get_by_label("510 images"),
    )
    expect(first).to_be_visible()
    expect(other).to_be_hidden()
    first.check()
    release.select_option(label="other (oooooooo)")
    expect(first).to_be_hidden()
    other.check()
    sent = form.evaluate("new FormData(document.querySelector('form:has([name=jobs])')).getAll('jobs')")
    assert sent == [str(other_job.pk)]
    assert first.is_checked()  # what was ticked comes back with its release


def test_without_a_job_to_show_it_is_said_why(form):
    release, boxes = form.get_by_label("Release"), form.get_by_role("group", name="Jobs")
    release.select_option(label="bare (bbbbbbbb)")
    expect(boxes.get_by_text("No job of this release fits yet")).to_be_visible()
    release.select_option(label="Choose a release")
    expect(boxes.get_by_text("Choose a release: its jobs are listed here.")).to_be_visible()
    expect(boxes.get_by_role("checkbox")).to_have_count(0)
    release.select_option(label="first (ffffffff)")
    expect(boxes.get_by_role("checkbox")).to_have_count(1)


def test_where_no_job_was_ticked_the_focus_is_on_one_that_can_be(form):
    form.get_by_label("Name of the study").fill("Set A")
    form.get_by_label("Images to rate, of each kind").fill("10")
    form.get_by_role("button", name="Draw and make the study").click()
    expect(form.get_by_role("alert")).to_be_visible()
    expect(form.get_by_label("520 images")).to_be_focused()
    expect(form.get_by_label("510 images")).to_be_hidden()
