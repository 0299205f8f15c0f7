"""Shares and kinds of image as people read them."""

import re
from pathlib import Path

import pytest
from django.template import Context, Template

from medsyn.modalities import ALL_KINDS
from medsyn.percent import percent

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("share", "decimals", "text"),
    [
        (0.1, None, "10 %"),
        (0.025, None, "2.5 %"),
        (0.995, None, "99.5 %"),  # not 100 %
        (0.99999, None, "99.999 %"),
        (0.00125, None, "0.125 %"),  # not 0.12 %, which promises more
        (0.07, None, "7 %"),  # 100 * 0.07 is 7.000000000000001
        (0, None, "0 %"),
        (1 / 3, 0, "33 %"),
        (1 / 3, 1, "33.3 %"),
        (1.0, 1, "100.0 %"),
    ],
)
def test_a_share_stands_before_a_sign_that_never_wraps(share, decimals, text):
    assert percent(share, decimals) == text.replace(" ", "\u00a0")
    page = Template("{{ share|percent:decimals }}").render(Context({"share": share, "decimals": decimals}))
    assert page == percent(share, decimals)


def test_a_change_has_its_sign():
    assert percent(0.052, 1, is_signed=True) == "+5.2\u00a0%"
    assert percent(-0.052, 1, is_signed=True) == "-5.2\u00a0%"


def test_no_share_is_a_dash():
    assert Template("{{ nothing|percent }}").render(Context({"nothing": None})) == "–"


def test_kinds_have_names():
    page = Template("{% for kind in kinds %}{{ kind|kind_name }};{% endfor %}")
    text = page.render(Context({"kinds": [kind.slug for kind in ALL_KINDS]}))
    assert text.startswith("OCT;Fundus;Chest X-ray;") and "_" not in text


def test_no_text_is_given_a_percent_sign_by_a_format():
    """Python's own, "10%", has no space: medsyn.percent writes every share that people read."""
    apps = ("accounts", "generation", "medsyn", "ratings", "training")
    modules = [path for app in apps for path in (ROOT / app).rglob("*.py")]
    found = [path.name for path in modules if re.search(r":[+-]?(\.\d)?%\}", path.read_text())]
    assert len(modules) > 100 and not found


def test_templates_write_no_percent_sign_of_their_own():
    """In text a percent sign follows a no-break space; other signs come from the filter."""
    found = []
    for path in (ROOT / "templates").rglob("*.html"):
        text = re.sub(r"\{%.*?%\}|\{#.*?#\}", "", path.read_text(), flags=re.DOTALL)
        found += [f"{path.name}: {hit}" for hit in re.findall(r".{12}(?<!&nbsp;)%.{0,8}", text)]
    assert not found
