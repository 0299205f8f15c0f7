"""The viewer under mouse, keys and fingers: what the screen shows is held against formulas written out here."""

import base64
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from generation.models import GeneratedImage
from medsyn.artifacts import file_sha256
from medsyn.imaging.windowing import PRESETS
from ratings.models import Rating
from ratings.services import create_study
from tests.factories import GeneratedImageFactory, PromptFactory
from tests.medsyn.imaging_files import hounsfield

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
SIZE = 64
RAMP = np.arange(-1024, 3072).reshape(SIZE, SIZE)  # every 12-bit value once, in Hounsfield units
FIRST = (40.0, 400.0)

# What a graphics card that is imitated by the processor needs to be taken for a real one.
REAL_CARD = """() => {
  const answer = WebGL2RenderingContext.prototype.getParameter;
  WebGL2RenderingContext.prototype.getParameter = function (name) {
    const given = answer.call(this, name);
    return typeof given === "string" ? given.replace(/swiftshader|software|llvmpipe/gi, "card") : given;
  };
}"""
NO_CARD = """() => {
  const get = HTMLCanvasElement.prototype.getContext;
  HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
    return kind === "webgl2" ? null : get.call(this, kind, ...rest);
  };
}"""


def ct(artifact_root, number: int, values: np.ndarray) -> GeneratedImage:
    path = artifact_root / "images" / f"{number}.dcm"
    path.parent.mkdir(parents=True, exist_ok=True)
    hounsfield(path, values, WindowCenter=str(FIRST[0]), WindowWidth=str(FIRST[1]), BitsStored=12, HighBit=11)
    prompt = PromptFactory(text=f"Chest CT: finding {number}", kind="chest_ct")
    known = {"file": f"images/{number}.dcm", "sha256": file_sha256(path), "width": SIZE, "height": SIZE}
    return GeneratedImageFactory(imported=True, prompt=prompt, **known)


@pytest.fixture
def study(bob, artifact_root, settings, tmp_path):
    """Two CT slices of all 12 bits; in place of the package's PNG."""
    settings.VAR_DIR = tmp_path / "var"
    images = [ct(artifact_root, 1, RAMP), ct(artifact_root, 2, RAMP[::-1])]
    return create_study(name="Deep", images=images, readers=[(bob, 3)], order_seed=11)


@pytest.fixture
def first(study, bob) -> np.ndarray:
    """The values of the image that bob sees first."""
    place = study.assignments.get(reader=bob, position=0)
    return RAMP if place.image.prompt.text.endswith("1") else RAMP[::-1]


@pytest.fixture
def stage(room):
    return Stage(room)


class Stage:
    """What is painted, and where."""

    def __init__(self, page):
        self.page = page
        self.box = page.locator("[data-stage] canvas").bounding_box()
        width, height = self.box["width"], self.box["height"]
        self.scale = min(width, height) / SIZE  # CSS pixels per pixel of the image, as it comes
        self.left = round((width - SIZE * self.scale) / 2)
        self.top = round((height - SIZE * self.scale) / 2)

    def shot(self) -> np.ndarray:
        """Grey levels of the stage as painted, (rows, columns)."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        content = self.page.screenshot(clip=self.box)
        colours = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
        return colours[..., 0]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A point of the stage on the page."""
        return self.box["x"] + x, self.box["y"] + y

    def whole(self, x: float, y: float) -> tuple[float, float]:
        """The same to the next whole pixel of the page, as a wheel's event tells it."""
        across, down = self.at(x, y)
        return round(across) - self.box["x"], round(down) - self.box["y"]

    def drag(self, button: str, right: float, down: float, start=(300, 300)) -> None:
        mouse = self.page.mouse
        mouse.move(*self.at(*start))
        mouse.down(button=button)
        mouse.move(*self.at(start[0] + right, start[1] + down), steps=5)
        mouse.up(button=button)

    @property
    def readout(self) -> str:
        return " ".join(self.page.locator("[data-readout]").text_content().split())

    def expected(self, values, window, place=None, inverted=False) -> tuple[np.ndarray, np.ndarray]:
        """Grey levels (float, 0 to 255) and where they hold, by the definitions: bilinear between the centres of the
        image's pixels, then LINEAR of DICOM PS3.3 C.11.2.1.2.1. place: (left, top, scale)."""
        left, top, scale = place or (self.left, self.top, self.scale)
        columns, rows = (int(self.box[side]) for side in ("width", "height"))
        x, y = (np.arange(columns) + 0.5 - left) / scale, (np.arange(rows) + 0.5 - top) / scale
        inside = np.outer((y > 0) & (y < SIZE), (x > 0) & (x < SIZE))
        across = np.stack([np.interp(x - 0.5, np.arange(SIZE), row) for row in values.astype(float)])
        both = np.stack([np.interp(y - 0.5, np.arange(SIZE), column) for column in across.T], axis=1)
        centre, width = window
        level = np.clip((both - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
        return 255 * (1 - level if inverted else level), inside

    def assert_shows(self, values, window, place=None, inverted=False) -> None:
        grey, inside = self.expected(values, window, place, inverted)
        inside[[0, -1]] = inside[:, [0, -1]] = False
        # The row or column in which the image's edge lies belongs to it or not by a rounding.
        inner = (
            inside & np.roll(inside, 1, 0) & np.roll(inside, -1, 0) & np.roll(inside, 1, 1) & np.roll(inside, -1, 1)
        )
        assert inner.sum() > 10_000
        assert np.abs(self.shot() - grey)[inner].max() <= 1.001


def test_a_left_drag_changes_window_and_level_by_dicoms_formula(stage, first):
    stage.assert_shows(first, FIRST)
    assert stage.readout.startswith("W 400 L 40 HU")
    stage.drag("left", 100, -70)
    assert stage.readout.startswith("W 600 L \u2212100 HU")  # 2 HU a pixel: wider to the right, brighter upwards
    stage.assert_shows(first, (-100, 600))
    stage.page.keyboard.press("Shift+ArrowLeft")
    stage.page.keyboard.press("Shift+ArrowDown")
    stage.assert_shows(first, (-80, 580))


def test_neighbouring_hounsfield_units_are_told_apart_in_a_narrow_window(stage, first):
    stage.drag("left", -400, 80)
    assert stage.readout.startswith("W 2 L 200 HU")
    stage.page.mouse.move(5, 5)
    seen, (row, column) = stage.shot(), np.argwhere(first == 199)[0]
    place = (int(stage.top + (row + 0.5) * stage.scale), int(stage.left + (column + 0.5) * stage.scale))
    step = int(stage.scale)
    assert seen[place] < 10 and seen[place[0], place[1] + step] > 245  # 199 black, 200 white


def test_the_wheel_keeps_the_point_under_the_cursor(stage, first):
    point = stage.whole(stage.left + 500, stage.top + 200)
    right, down = point[0] - stage.left, point[1] - stage.top
    stage.page.mouse.move(*stage.at(*point))
    for turn, total in ((-240, 240), (120, 120)):
        stage.page.mouse.wheel(0, turn)
        growth = np.exp(total / 400)
        place = (point[0] - right * growth, point[1] - down * growth, stage.scale * growth)
        stage.assert_shows(first, FIRST, place)
    assert stage.readout.endswith(f"{stage.scale * growth:.0f}x")


def test_right_drag_zooms_about_its_start_and_middle_drag_moves(stage, first):
    start = (stage.left + 300.0, stage.top + 400.0)
    stage.drag("right", 0, -100, start)
    growth = np.exp(100 / 200)
    left, top = start[0] - 300 * growth, start[1] - 400 * growth
    stage.assert_shows(first, FIRST, (left, top, stage.scale * growth))
    stage.drag("middle", 60, -45)
    stage.assert_shows(first, FIRST, (left + 60, top - 45, stage.scale * growth))
    stage.page.keyboard.press("ArrowLeft")
    stage.assert_shows(first, FIRST, (left + 20, top - 45, stage.scale * growth))
    stage.page.keyboard.press("Space")
    stage.assert_shows(first, FIRST)
    assert not stage.page.evaluate("document.querySelector('[data-stage] canvas').dispatchEvent("
                                   "new MouseEvent('contextmenu', { bubbles: true, cancelable: true }))")  # fmt: skip


def test_the_browsers_own_zoom_and_wheel_elsewhere_are_left_alone(stage):
    stopped = stage.page.evaluate(
        """() => [["[data-stage] canvas", true], ["[data-stage] canvas", false], [".room-side", false]].map(
          ([where, ctrlKey]) => !document.querySelector(where).dispatchEvent(
            new WheelEvent("wheel", { deltaY: 100, ctrlKey, bubbles: true, cancelable: true })))"""
    )
    assert stopped == [False, True, False]


def test_invert_presets_and_reset(stage, first):
    keyboard = stage.page.keyboard
    keyboard.press("i")
    stage.assert_shows(first, FIRST, inverted=True)
    expect(stage.page.get_by_role("button", name="invert")).to_have_attribute("aria-pressed", "true")
    windows = dict(enumerate([(-600, 1500), (40, 400), (400, 1800), (100, 700), (60, 160)], start=1))
    names = {1: "Lung", 2: "Soft tissue", 3: "Bone", 4: "Vessels", 5: "Liver"}
    for number, window in windows.items():
        keyboard.press(f"Shift+Digit{number}")
        stage.assert_shows(first, window, inverted=True)
        button = stage.page.get_by_role("button", name=names[number])
        assert button.get_attribute("title") == f"W {window[1]} L {window[0]} HU"
        assert PRESETS[names[number].lower()] == window
    stage.page.get_by_role("button", name="Lung").click()
    keyboard.press("Space")  # the button has let the focus go
    stage.assert_shows(first, FIRST)
    expect(stage.page.locator("[data-prompt]")).to_contain_text("Chest CT")
    assert not Rating.objects.exists()  # Shift and a digit is no grade


def test_every_image_comes_anew_and_the_display_is_stored(room, stage, first, prompts, wait_for):
    stage.drag("left", 50, 20)
    room.keyboard.press("i")
    room.keyboard.press("+")
    room.keyboard.press("2")
    wait_for(prompts[1])
    stage.assert_shows(first[::-1], FIRST)
    room.keyboard.press("3")
    expect(room.get_by_text("Everything is saved.")).to_be_visible(timeout=30_000)
    touched, plain = Rating.objects.order_by("assignment__position")
    screen = {"viewport_width": 1440, "viewport_height": 900, "device_pixel_ratio": 1}
    assert touched.display == screen | {
        "window_width": 500, "window_center": 80, "window_unit": "HU", "zoom": pytest.approx(stage.scale * 1.25),
        "inverted": True, "window_touched": True, "zoom_touched": True,
    }  # fmt: skip
    assert plain.display == screen | {
        "window_width": 400, "window_center": 40, "window_unit": "HU", "zoom": pytest.approx(stage.scale),
        "inverted": False, "window_touched": False, "zoom_touched": False,
    }  # fmt: skip
    expect(room.locator("[data-stage] canvas")).to_be_hidden()


@pytest.fixture
def visit(page, live_server, study, bob, signed_in, prompts, wait_for):
    """``visit(script)``: the rating page with a script run before its own."""

    def enter(script: str) -> Stage:
        session = signed_in(bob).cookies["sessionid"].value
        page.context.add_cookies([{"name": "sessionid", "value": session, "url": live_server.url}])
        page.add_init_script(f"({script})()")
        page.goto(f"/studies/{study.public_id}/rate/")
        wait_for(prompts[0])
        return Stage(page)

    return enter


def gone_through(stage) -> list[np.ndarray]:
    """The stage as it comes, through a narrow window, enlarged, reduced, inverted."""
    shots = [stage.shot()]
    stage.drag("left", -150, 33)
    shots.append(stage.shot())
    stage.page.mouse.move(*stage.at(400, 300))
    for turn in (-300, 1200):
        stage.page.mouse.wheel(0, turn)
        shots.append(stage.shot())
    stage.page.keyboard.press("i")
    return [*shots, stage.shot()]


@pytest.mark.parametrize("pixels", ["deep", "colour"])
def test_graphics_card_and_processor_paint_the_same(visit, first, page, study, bob, pixels, settings):
    if pixels == "colour":  # 8 bits of three channels, larger than the stage, odd in size
        noise = np.random.default_rng(3).integers(0, 256, (1001, 701, 3), dtype=np.uint8)
        for image in study.images.all():
            Image.fromarray(noise).save(image.path, format="PNG")
    card = visit(REAL_CARD)
    if page.locator("[data-stage]").get_attribute("data-surface") != "webgl2":
        pytest.skip("this Chromium has no WebGL2, not even an imitated one")
    by_card = gone_through(card)
    page.evaluate("() => document.querySelector('[data-stage] canvas').getContext('webgl2')"
                  ".getExtension('WEBGL_lose_context').loseContext()")  # fmt: skip
    expect(page.locator("[data-stage]")).to_have_attribute("data-surface", "canvas")
    assert np.abs(by_card[-1] - card.shot()).max() <= 1  # taken over where it was
    plain = visit(NO_CARD)
    expect(page.locator("[data-stage]")).to_have_attribute("data-surface", "canvas")
    for one, other in zip(by_card, gone_through(plain), strict=True):
        assert np.abs(one - other).max() <= 1


def test_a_reduced_image_is_averaged_not_thinned_out(visit, page, study):
    """A checkerboard finer than the screen is an even grey; leaving pixels out would make it stripes."""
    board = np.indices((1600, 1600)).sum(axis=0) % 2 * 255
    for image in study.images.all():
        Image.fromarray(board.astype(np.uint8)).save(image.path, format="PNG")
    stage = visit(NO_CARD)
    row, column = (int(stage.box[side]) // 2 for side in ("height", "width"))
    middle = stage.shot()[row - 100 : row + 100, column - 100 : column + 100]
    assert np.abs(middle - 127.5).max() <= 1.5
    expect(page.locator("[data-presets]")).to_be_hidden()
    assert stage.readout.startswith("W 100 L 50 %")


@pytest.fixture
def fingers(page):
    """``fingers("touchMove", (x, y), ...)``: where they lie on the page now."""
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *points) -> None:
        touches = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    return touch


def test_fingers(stage, first, fingers):
    point = stage.at(400, 300)
    fingers("touchStart", point)
    fingers("touchMove", (point[0] + 20, point[1] - 10))
    fingers("touchMove", (point[0] + 60, point[1] - 40))
    fingers("touchEnd")
    stage.assert_shows(first, (FIRST[0] - 80, FIRST[1] + 120))

    one, other = stage.at(350, 300), stage.at(450, 300)
    fingers("touchStart", one)
    fingers("touchStart", one, other)
    fingers("touchMove", (one[0] - 50, one[1] + 20), (other[0] + 50, other[1] + 20))
    fingers("touchEnd")
    left, top = 400 - (400 - stage.left) * 2, 320 - (320 - (stage.top + 20)) * 2  # twice as large, 20 pixels lower
    stage.assert_shows(first, (FIRST[0] - 80, FIRST[1] + 120), (left, top, stage.scale * 2))

    for _ in range(2):
        fingers("touchStart", point)
        fingers("touchEnd")
    stage.assert_shows(first, FIRST)


def test_examples_show_while_held(page, study, bob, sign_in_by_cookie, prompts, wait_for):
    place = study.assignments.get(reader=bob, position=0)
    url = f"/api/assignments/{place.public_id}/image"
    asked = []
    anchors = json.dumps({"anchors": [{"grade": grade, "image": f"{url}?{grade}"} for grade in (1, 2, 3)]})
    page.route("**/anchors-of-test", lambda route: (asked.append(1), route.fulfill(body=anchors)))
    page.add_init_script(
        """addEventListener("readystatechange", () => {
          const room = document.querySelector("[data-room]");
          if (room) room.dataset.anchorsUrl = "/anchors-of-test";
        }, true)"""
    )
    page.goto(f"/studies/{study.public_id}/rate/")
    wait_for(prompts[0])
    overlay, button = page.locator("[data-anchors]"), page.locator("[data-hold-anchors]")
    expect(button).to_be_visible()
    expect(overlay).to_be_hidden()
    page.keyboard.down("a")
    expect(overlay.locator("figcaption")).to_have_text(["1 Poor", "2 Acceptable", "3 Excellent"])
    boxes = [figure.bounding_box() for figure in overlay.locator("canvas").all()]
    assert len({box["y"] for box in boxes}) == 1 and boxes[0]["width"] > 200
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot(clip=boxes[1]))).convert("L"))
    assert shot.max() == 255 and shot.min() < 15  # the window of 400 HU within 4096
    page.keyboard.up("a")
    expect(overlay).to_be_hidden()
    box = button.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    expect(overlay).to_be_visible()
    page.mouse.move(box["x"] + 500, box["y"] - 200)
    expect(overlay).to_be_visible()
    page.mouse.up()
    expect(overlay).to_be_hidden()
    page.keyboard.down("a")
    page.keyboard.press("2")  # the next image is never covered
    wait_for(prompts[1])
    expect(overlay).to_be_hidden()
    page.keyboard.up("a")
    assert asked == [1]


@pytest.fixture
def sign_in_by_cookie(page, live_server, bob, signed_in):
    session = signed_in(bob).cookies["sessionid"].value
    page.context.add_cookies([{"name": "sessionid", "value": session, "url": live_server.url}])


def test_without_examples_there_is_no_button(room):
    expect(room.locator("[data-hold-anchors]")).to_be_hidden()
    room.keyboard.down("a")
    expect(room.locator("[data-anchors]")).to_be_hidden()
    room.keyboard.up("a")


def filtered(rows: np.ndarray, step: int) -> bytes:
    """Bytes (H, stride) with PNG's five filters in turn; x, its left, upper, upper left byte: ISO/IEC 15948, 9.2."""
    padded = np.pad(rows.astype(int), ((1, 0), (step, 0)))
    x, a, b, c = padded[1:, step:], padded[1:, :-step], padded[:-1, step:], padded[:-1, :-step]
    p = a + b - c
    far = np.stack([abs(p - a), abs(p - b), abs(p - c)])
    nearest = np.choose(far.argmin(axis=0), [a, b, c])  # the first of equals, in this order
    guesses = [np.zeros_like(x), a, b, (a + b) // 2, nearest]
    return b"".join(
        bytes([row % 5]) + ((x[row] - guesses[row % 5][row]) % 256).astype(np.uint8).tobytes()
        for row in range(len(x))
    )


def png(rows: np.ndarray, columns: int, depth: int, colour: int, **extra: bytes) -> bytes:
    step = rows.shape[1] // columns
    packed = zlib.compress(filtered(rows, step))
    header = struct.pack(">IIBBBBB", columns, len(rows), depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *((name.encode(), body) for name, body in extra.items())]
    parts += [(b"IDAT", packed[:100]), (b"IDAT", packed[100:]), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


DECODE = """async (text) => {
  const { decode } = await import("/static/js/rating/png.js");
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  try {
    const { columns, rows, channels, samples, top, scale } = await decode(bytes.buffer);
    return { columns, rows, channels, samples: [...samples], top, scale };
  } catch (error) {
    return error.message;
  }
}"""


def test_every_filter_and_form_is_decoded_to_the_same_samples(page):
    page.goto("/login/")
    random = np.random.default_rng(8)

    def decode(content: bytes):
        return page.evaluate(DECODE, base64.b64encode(content).decode())

    deep = random.integers(0, 65536, (23, 17))
    rows = deep.astype(">u2").view(np.uint8).reshape(23, 34)
    found = decode(png(rows, 17, 16, 0, viEw=struct.pack("<4d2B", 0.5, -100.25, 40, 400, 1, 1)))
    assert (found["columns"], found["rows"], found["channels"], found["top"]) == (17, 23, 1, deep.max())
    assert found["samples"] == deep.ravel().tolist()
    scale = {"slope": 0.5, "intercept": -100.25, "centre": 40, "width": 400, "unit": "HU", "isLinear": True}
    assert found["scale"] == scale
    colours = random.integers(0, 256, (23, 17, 3))
    found = decode(png(colours.reshape(23, 51), 17, 8, 2))
    assert found["channels"] == 3 and found["samples"] == colours.ravel().tolist()
    grey = np.repeat(colours[..., :1], 3, axis=2)
    found = decode(png(grey.reshape(23, 51), 17, 8, 2))
    assert found["channels"] == 1 and found["samples"] == grey[..., 0].ravel().tolist()
    assert "not known here" in decode(png(colours[..., 0], 17, 8, 0))
    assert decode(b"\xff\xd8\xff") == "the image is no PNG"
    cut = png(rows, 17, 16, 0)
    assert isinstance(decode(cut[: len(cut) // 2]), str)


def test_where_shift_makes_the_digit_it_is_a_grade(room, prompts, wait_for):
    room.evaluate(
        """() => document.body.dispatchEvent(new KeyboardEvent(
          "keydown", { key: "1", code: "Digit1", shiftKey: true, bubbles: true, cancelable: true }))"""
    )
    wait_for(prompts[1])
    expect(room.locator("[data-saving]")).to_have_text("saved")
    assert Rating.objects.get().value == 1
