"""A real Chromium, driven by playwright against the live server."""

import os
import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect

from ratings.models import Study
from ratings.services import create_study
from tests.factories import PASSWORD, GeneratedImageFactory

expect.set_options(timeout=30_000)  # a busy machine is no fault; what never comes still fails

_CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="package")
def chromium() -> Iterator:
    """The one running browser of these tests (playwright allows one at a time); skips where there is none."""
    path = next(filter(None, map(shutil.which, _CHROMIUM_NAMES)), None)
    if path is None:
        pytest.skip(f"no Chromium on this machine (looked for {', '.join(_CHROMIUM_NAMES)})")
    from playwright.sync_api import sync_playwright

    # Playwright runs an event loop in this thread; Django would refuse the database for that reason alone.
    before = os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE")
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()
    if before is None:
        del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]
    else:
        os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = before


@pytest.fixture
def page(chromium, live_server) -> Iterator:
    """A fresh page (1440x900) whose errors, refused scripts included, fail the test."""
    context = chromium.new_context(base_url=live_server.url, viewport={"width": 1440, "height": 900})
    opened = context.new_page()
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda line: faults.append(line.text) if _is_fault(line) else None)
    yield opened
    context.close()
    assert not faults, faults


def _is_fault(line) -> bool:
    # Requests that a test lets fail on purpose are reported by the browser as console errors too.
    return line.type == "error" and "Failed to load resource" not in line.text


@pytest.fixture
def sign_in(page) -> Callable:
    """``sign_in(user)``: fill in the login form; returns the page. Somebody else who is signed in is signed out."""

    def enter(user):
        page.context.clear_cookies()
        page.goto("/login/")
        page.get_by_label("Username").fill(user.username)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/studies/")
        return page

    return enter


@pytest.fixture
def study(bob, request) -> Study:
    """Three images that bob reads; another number by indirect parametrisation."""
    images = GeneratedImageFactory.create_batch(getattr(request, "param", 3))
    return create_study(name="Keyboard", images=images, readers=[(bob, 3)], order_seed=11)


@pytest.fixture
def prompts(study, bob) -> list[str]:
    """In bob's order."""
    places = study.assignments.filter(reader=bob).order_by("position")
    return [place.image.prompt.text for place in places.select_related("image__prompt")]


@pytest.fixture
def wait_for(page) -> Callable:
    """``wait_for(prompt, in_page=None)``: until that prompt's image is painted and the page listens again (150 ms
    after the paint)."""

    def wait(prompt: str, in_page=None) -> None:
        seen = in_page or page
        expect(seen.locator("[data-prompt]")).to_have_text(prompt)
        expect(seen.locator("[data-stage]")).to_have_attribute("aria-busy", "false")
        seen.wait_for_timeout(170)

    return wait


@pytest.fixture
def room(page, live_server, study, bob, signed_in, prompts, wait_for):
    """The rating page, bob signed in, the first image painted."""
    session = signed_in(bob).cookies["sessionid"].value
    page.context.add_cookies([{"name": "sessionid", "value": session, "url": live_server.url}])
    page.goto(f"/studies/{study.public_id}/rate/")
    wait_for(prompts[0])
    return page
