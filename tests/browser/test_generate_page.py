"""The page that starts generation: examples beside what is typed, and help as wide as the form."""

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
NORMAL = "Chest X-ray: normal lung fields without infiltrates"
LARGE_HEART = "Chest X-ray: cardiomegaly"
TYPED = "Chest CT: my own words"


@pytest.fixture
def generate(page, live_server, alice, signed_in):
    """Opens the page with a query."""
    session = signed_in(alice).cookies["sessionid"].value
    page.context.add_cookies([{"name": "sessionid", "value": session, "url": live_server.url}])

    def open_page(query: str = ""):
        page.goto(f"/generate/{query}", wait_until="networkidle")
        return page

    return open_page


def _press(page, example: str) -> None:
    page.locator(f'[data-prompt="{example}"]').click()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("", [LARGE_HEART], "Prompt filled in"),
        (NORMAL, [NORMAL, LARGE_HEART], "Added to the box, which holds 2 prompts"),
        (TYPED, [TYPED, LARGE_HEART], "Added to the box, which holds 2 prompts"),
        (f"{TYPED}\n{NORMAL}\n\n", [TYPED, NORMAL, LARGE_HEART], "Added to the box, which holds 3 prompts"),
        (f"{NORMAL}, seen from behind", [f"{NORMAL}, seen from behind", LARGE_HEART], "Added to the box"),
        (f"{LARGE_HEART}\n{TYPED}", [LARGE_HEART, TYPED], "The prompt is in the box already"),
    ],
)
def test_an_example_leaves_what_was_typed(generate, before, after, said):
    page = generate()
    box = page.get_by_label("Prompt", exact=True)
    box.fill(before)
    _press(page, LARGE_HEART)
    expect(box).to_have_value("\n".join(after))
    expect(box).to_be_focused()
    expect(page.locator("#announcer")).to_contain_text(said)


def test_examples_pressed_one_after_the_other_take_turns(generate):
    page = generate(f"?prompt={NORMAL}")
    box = page.get_by_label("Prompt", exact=True)
    expect(box).to_have_value(NORMAL)
    _press(page, LARGE_HEART)
    _press(page, NORMAL)
    expect(box).to_have_value(NORMAL)


@pytest.mark.parametrize("width", [390, 768, 1440])
def test_what_a_certificate_settles_is_said_across_the_form(generate, width):
    page = generate()
    page.set_viewport_size({"width": width, "height": 900})
    page.get_by_label("Keep only what selector and policy accept").check()
    field = page.locator(".field", has=page.get_by_label("Under a certificate"))
    assert field.bounding_box()["width"] == page.locator(".field", has_text="Several prompts").bounding_box()["width"]
    height_in_lines = "p => p.offsetHeight / parseFloat(getComputedStyle(p).lineHeight)"
    lines = field.locator(".help").evaluate(height_in_lines)
    assert round(lines) == {390: 2, 768: 1, 1440: 1}[width]


def test_what_the_server_refuses_has_the_focus(generate):
    page = generate()
    page.get_by_label("Prompt", exact=True).fill(TYPED)
    page.locator("summary", has_text="Sampling and model").click()
    page.get_by_label("Guidance from").fill("0.9")
    page.get_by_label("Guidance until").fill("0.2")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_label("Guidance until")).to_be_focused()
    expect(page.locator(".notice.error")).to_contain_text("What you typed is kept.")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(TYPED)
