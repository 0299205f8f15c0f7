"""The modules every page loads, in a real browser under the real content security policy.

The page is made of the shared partials alone and served by a server of its own: no view, no database.
"""

import json
import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
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
