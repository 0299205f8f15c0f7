"""The modules every page loads, in a real browser under the real content security policy.

The page is made of the shared partials alone and served by a server of its own: no view, no database.
"""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
from django.conf import settings
from django.template import engines
from django.template.loader import render_to_string

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: install the package chromium"),
]
STATIC = Path(settings.BASE_DIR) / "static"
NUM_POINTS = 120

PAGE = """{% extends "base.html" %}{% block content %}
<h1>Modules</h1>
<p>Started <time id="past" datetime="{{ past }}">earlier</time></p>
{% include "_progress.html" with label="Generating" url="/job" state="running" done=1 total=8 unit="images" %}
<div class="chart" data-chart data-url="/curve" data-label="Loss"></div>
<form method="get" action="/gone" data-confirm="128 ratings will be lost." data-confirm-title="Delete the study?"
  data-confirm-action="Delete study"><button class="button danger" name="verb" value="delete">Delete</button></form>
<form method="post" action="/jobs">
<details><summary>Sampling</summary><input name="folded" type="number" max="3"></details>
<div hidden><input name="hidden" type="number" max="3"></div><button class="button">Generate</button></form>
{% endblock %}"""

ROOM = """{% extends "base.html" %}{% block body_class %}reading-room{% endblock %}
{% block topbar %}<header class="room-bar"><div><a class="brand" href="/">MedSyn</a>
<h1 class="room-title">Pilot</h1></div>
<div class="room-progress"><b>1</b> / 4</div><div>Dr A</div></header>{% endblock %}
{% block content %}<div class="room">
<section class="room-stage" aria-label="Image"><canvas width="512" height="512"></canvas></section>
<div class="room-viewbar">W 400</div><aside class="room-side"><p class="room-prompt">Chest CT: {{ words }}</p></aside>
<div class="room-rail"><button class="grade">Poor</button><button class="grade">Acceptable</button>
<button class="grade">Excellent</button><button class="grade aside">Cannot judge</button></div>
<p class="room-foot">saved</p></div>{% endblock %}"""


def _policy_header() -> str:
    """The header django-csp sends for the project's directives."""
    directives = settings.CONTENT_SECURITY_POLICY["DIRECTIVES"]
    return "; ".join(f"{name} {' '.join(sources)}" for name, sources in directives.items())


def _render(source: str, **context) -> str:
    return engines["django"].from_string(source).render(context)


class _Moved(str):
    """An answer that leads to this path."""


class _Handler(SimpleHTTPRequestHandler):
    """Static files, plus the answers of ``self.server.answers`` by path (a callable makes each answer anew)."""

    def log_message(self, *args):
        """Keep the test's output quiet."""

    def translate_path(self, path: str) -> str:
        return super().translate_path(path.removeprefix("/static"))

    def do_GET(self):
        answer = self.server.answers.get(self.path.split("?")[0])
        if answer is None:
            return super().do_GET()
        body = (answer() if callable(answer) else answer).encode()
        if isinstance(answer, _Moved):
            self.send_response(302)
            self.send_header("Location", answer)
        else:
            self.send_response(200)
        self.send_header("Content-Type", "application/json" if body[:1] == b"{" else "text/html; charset=utf-8")
        self.send_header("Content-Security-Policy", _policy_header())
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return self.wfile.write(body)


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(STATIC)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def answers(server) -> dict:
    """What the server answers, by path: a job half done, a curve, the page."""
    curve = {
        "x": list(range(NUM_POINTS)),
        "x_label": "step",
        "y_label": "loss",
        "series": [{"label": "selector", "values": [1 / (1 + x) for x in range(NUM_POINTS)]}],
    }
    job = {"state": "running", "done": 4, "total": 8, "unit": "images", "eta_seconds": 90, "error": ""}
    past = (datetime.now(UTC) - timedelta(minutes=3)).isoformat()
    server.answers = {
        "/": _render(PAGE, past=past),
        "/job": json.dumps(job),
        "/curve": json.dumps(curve),
        "/gone": "<title>gone</title>",
        "/favicon.ico": " ",  # asked for by the bare page above
    }
    return server.answers


@pytest.fixture
def page(chromium, server, answers):
    """The open page; anything the console complains of fails the test at its end."""
    context = chromium.new_context(viewport={"width": 1280, "height": 720})
    page = context.new_page()
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(f"http://127.0.0.1:{server.server_port}/")
    yield page
    context.close()
    assert complaints == []


def test_time_reads_relative_with_the_exact_time_as_title(page):
    assert page.inner_text("#past") == "3 min ago"
    assert str(datetime.now(UTC).year) in page.get_attribute("#past", "title")


def test_progress_follows_its_job_to_the_end(page, answers):
    from playwright.sync_api import expect

    box = page.locator(".progress")
    expect(box).to_contain_text("4 / 8 images")
    expect(box).to_contain_text("about 2 min left")
    page.evaluate("addEventListener('progress:finished', (event) => { window.ended = event.detail.state; })")
    answers["/job"] = json.dumps({"state": "failed", "done": 5, "total": 8, "unit": "images", "error": "disk full"})
    expect(box).to_contain_text("Failed", timeout=6000)
    expect(box).to_contain_text("disk full")
    expect(page.locator("#announcer")).to_have_text("Generating: failed")
    assert page.evaluate("window.ended") == "failed"
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.wait_for_timeout(2500)
    assert not any(url.endswith("/job") for url in requests), "a finished job is polled no more"


def test_a_job_is_asked_for_by_one_clock_however_often_the_page_is_looked_at(page, answers):
    from playwright.sync_api import expect

    asked = []

    def slow() -> str:
        asked.append(time.monotonic())
        time.sleep(0.5)
        return json.dumps({"state": "running", "done": len(asked), "total": 99, "unit": "images"})

    address = page.url
    page.goto("about:blank")  # the clock of the page before is not counted
    answers["/job"] = slow
    page.goto(address)
    for _ in range(4):  # each while an answer is on its way
        page.wait_for_timeout(100)
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator(".progress")).to_contain_text("3 / 99 images")
    assert min(later - earlier for earlier, later in pairwise(asked)) > 2, "two seconds and the answer's own time"


def test_an_answer_that_is_none_is_not_called_a_lost_connection(page, answers):
    from playwright.sync_api import expect

    answers["/job"] = "<title>Bad gateway</title>"
    expect(page.locator("[data-progress-eta]")).to_have_text("the answer broke off, trying again in 4 s")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (_Moved("/gone"), "No curve: you are signed out. Reload the page to try again."),
        ("<title>Bad gateway</title>", "No curve: the answer broke off. Reload the page to try again."),
    ],
)
def test_a_chart_without_numbers_says_why_in_plain_words(page, answers, answer, said):
    from playwright.sync_api import expect

    answers["/curve"] = answer
    page.reload()
    expect(page.locator(".chart")).to_have_text(said)


def test_chart_is_drawn_described_and_follows_the_theme(page):
    from playwright.sync_api import expect

    canvas = page.locator(".chart canvas")
    canvas.wait_for()
    assert "selector 0.008333" in page.get_attribute(".chart", "aria-label")
    dark = page.evaluate("document.querySelector('.chart canvas').toDataURL()")
    page.click("[data-theme-toggle]")
    assert page.get_attribute("html", "data-theme") == "light"
    assert page.evaluate("document.querySelector('.chart canvas').toDataURL()") != dark
    page.click("summary:has-text('Numbers')")
    expect(page.locator(".fold tr")).to_have_count(1 + NUM_POINTS)
    page.reload()
    assert page.get_attribute("html", "data-theme") == "light", "the choice outlives the page"


def test_destructive_form_asks_once_and_sends_its_button(page):
    page.click("text=Delete")
    dialog = page.get_by_role("alertdialog", name="Delete the study?")
    dialog.wait_for()
    assert "128 ratings will be lost." in dialog.inner_text()
    page.keyboard.press("Enter")  # the safe answer has the focus
    dialog.wait_for(state="detached")
    assert "/gone" not in page.url
    page.click("text=Delete")
    page.click("dialog >> text=Delete study")
    page.wait_for_url("**/gone?verb=delete")


def test_a_destructive_form_that_was_sent_in_vain_asks_again(page):
    page.route("**/gone?*", lambda route: route.fulfill(status=204))  # nothing came of it
    for _ in range(2):
        page.click("text=Delete")
        page.click("dialog >> text=Delete study")
        page.locator("dialog").wait_for(state="detached")
    page.click("text=Delete")
    page.get_by_role("alertdialog", name="Delete the study?").wait_for()


def test_a_form_is_sent_once_however_often_its_button_is_pressed(page):
    sent = []
    page.route("**/jobs", lambda route: (sent.append(route.request.method), route.fulfill(status=204)))
    button = page.get_by_role("button", name="Generate")
    button.dblclick()
    button.click()
    page.wait_for_timeout(300)
    assert sent == ["POST"]


@pytest.mark.parametrize("name", ["folded", "hidden"])
def test_a_field_that_keeps_a_form_from_being_sent_is_shown(page, name):
    from playwright.sync_api import expect

    field = page.locator(f"[name={name}]")
    field.evaluate("(field) => { field.value = 9; }")
    expect(field).to_be_hidden()
    page.get_by_role("button", name="Generate").click()
    expect(field).to_be_focused()  # the browser says there what is wrong


def test_the_chosen_theme_outlives_printing_where_nothing_is_kept(page):
    blocked = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('blocked'); } })"
    page.add_init_script(blocked)
    page.reload()
    page.click("[data-theme-toggle]")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.get_attribute("html", "data-theme") == "light"
    page.click("[data-theme-toggle]")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.get_attribute("html", "data-theme") == "light", "printing is always light"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.get_attribute("html", "data-theme") == "dark"


def test_what_happens_twice_is_announced_twice(page):
    said = """async () => {
      const { announce } = await import("/static/js/announce.js");
      const heard = new MutationObserver(() => {});
      heard.observe(document.querySelector("#announcer"), { childList: true });
      return [1, 2].map(() => { announce("Taken back: 1 Poor."); return heard.takeRecords().length; });
    }"""
    assert page.evaluate(said) == [1, 1]


def test_keyboard_reaches_the_content_first(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (1280, 720), (720, 450)])
def test_reading_room_never_scrolls_on_a_desk(page, server, answers, width, height):
    answers["/room"] = _render(ROOM, words="ground glass opacities " * 60)
    page.set_viewport_size({"width": width, "height": height})
    page.goto(f"http://127.0.0.1:{server.server_port}/room")
    size = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert size == [width, height]
    stage = page.locator(".room-stage").bounding_box()
    assert stage["height"] > 0.6 * height
    rail = page.locator(".room-rail").bounding_box()
    assert rail["y"] + rail["height"] <= height


def test_reading_room_keeps_grades_in_reach_on_a_phone(page, server, answers):
    answers["/room"] = _render(ROOM, words="ground glass opacities " * 60)
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"http://127.0.0.1:{server.server_port}/room")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for button in page.locator(".grade").all():
        box = button.bounding_box()
        assert box["y"] + box["height"] <= 844 and box["height"] >= 38


def test_pages_of_errors_render_without_a_request():
    assert "Something went wrong" in render_to_string("500.html")
