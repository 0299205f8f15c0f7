"""The look's promises that can be computed: contrast, no inline code, partials that say what they must."""

import re
from pathlib import Path

import pytest
from django import forms
from django.core.paginator import Paginator
from django.template.loader import render_to_string
from django.test import RequestFactory

ROOT = Path(__file__).resolve().parent.parent
CSS = (ROOT / "static" / "css" / "medsyn.css").read_text()
TEMPLATES = sorted((ROOT / "templates").rglob("*.html"))
STYLES = sorted((ROOT / "static" / "css").glob("*.css"))
MODULES = sorted((ROOT / "static" / "js").rglob("*.js"))

SURFACES = ("page", "panel", "raised")
INKS = ("text", "secondary", "accent", "ok", "warn", "error")
FILLS = (("on-accent", "accent-fill"), ("on-accent", "accent-fill-hover"), ("on-danger", "danger-fill"))
SERIES = tuple(f"series-{number}" for number in range(1, 7))


def _palette(selector: str) -> dict[str, str]:
    """The colours of the rule that opens with ``selector``."""
    body = CSS.split(selector, 1)[1].split("}", 1)[0]
    return dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6});", body))


THEMES = {
    "dark": _palette(":root,\nbody.reading-room {"),
    "light": _palette(':root[data-theme="light"] {'),
    "print": _palette(":root, :root[data-theme], body.reading-room {"),
}


def _luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2: linear sRGB weighted 0.2126, 0.7152, 0.0722."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _contrast(one: str, other: str) -> float:
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_of_known_colours():
    assert _contrast("#000000", "#ffffff") == pytest.approx(21)
    assert _contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("ink", INKS)
def test_text_stands_out_from_every_surface(theme, surface, ink):
    palette = THEMES[theme]
    assert _contrast(palette[ink], palette[surface]) >= 4.5


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize(("ink", "fill"), FILLS)
def test_text_stands_out_from_filled_buttons(theme, ink, fill):
    assert _contrast(THEMES[theme][ink], THEMES[theme][fill]) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("line", ("control-line", *SERIES))
def test_control_borders_and_curves_reach_three_to_one(theme, line):
    for surface in ("page", "panel"):
        assert _contrast(THEMES[theme][line], THEMES[theme][surface]) >= 3


def test_palette_of_the_reading_room_is_the_agreed_one():
    agreed = {"page": "#0c0e11", "panel": "#15181d", "line": "#262b33", "text": "#d7dbe0", "secondary": "#8b939e"}
    assert agreed.items() <= THEMES["dark"].items()


def test_print_repeats_the_light_theme():
    assert THEMES["print"] and THEMES["print"].items() <= THEMES["light"].items()


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("style", STYLES, ids=lambda path: path.name)
def test_every_colour_in_use_is_defined(style, theme):
    used = set(re.findall(r"var\(--([\w-]+)", style.read_text())) - {"gap", "radius", "radius-small"}
    assert used == used & THEMES[theme].keys()


# Django's lists of errors, the code of the second step, the parts of a chart
OF_OTHERS = re.compile(r"errorlist|qr|uplot|u-.*")


@pytest.fixture(scope="module")
def classes_in_use() -> set[str]:
    """Words of class attributes and of the modules' strings; one that ends in a dash is the head of many."""
    tag = r"{%.*?%}"
    found = set()
    for template in TEMPLATES:
        for value in re.findall(rf'class="((?:[^"{{]|{tag}|{{{{.*?}}}})*)"', template.read_text()):
            found.update(re.sub(r"{{.*?}}", "", re.sub(tag, " ", value)).split())
        found.update(re.findall(r"block body_class %}([\w-]+)", template.read_text()))
    for module in MODULES:
        for value in re.findall(r"[\"`]([^\"`\n]*)[\"`]", module.read_text()):
            found.update(re.findall(r"[\w-]+", value))
    return found


@pytest.mark.parametrize("style", STYLES, ids=lambda path: path.name)
def test_every_class_with_a_rule_is_in_use(style, classes_in_use):
    rules = re.sub(r"/\*.*?\*/", "", style.read_text(), flags=re.DOTALL)
    named = set(re.findall(r"\.([a-z][\w-]*)", " ".join(re.findall(r"([^{}]+){", rules))))
    heads = tuple(name for name in classes_in_use if name.endswith("-"))
    dead = {name for name in named - classes_in_use if not OF_OTHERS.fullmatch(name) and not name.startswith(heads)}
    assert not dead


INLINE = {
    "a style attribute": r"\sstyle\s*=",
    "a style element": r"<style\b",
    "an event attribute": r"<[a-z][^>]*\son[a-z]+\s*=",
    "an inline script": r"<script\b(?![^>]*(\bsrc=|type=[\"']application/json))",
    "a javascript address": r"javascript:",
}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: str(path.relative_to(ROOT / "templates")))
def test_templates_hold_no_inline_script_or_style(template):
    text = template.read_text()
    found = [what for what, pattern in INLINE.items() if re.search(pattern, text, re.IGNORECASE)]
    assert not found, f"{template.name} holds {found}: the content security policy forbids it"


@pytest.mark.parametrize(
    ("html", "what"),
    [
        ('<p style="x">', "a style attribute"),
        ('<a onclick="x()">', "an event attribute"),
        ("<script>x</script>", "an inline script"),
        ("<STYLE>", "a style element"),
    ],
)
def test_the_search_for_inline_code_finds_it(html, what):
    assert re.search(INLINE[what], html, re.IGNORECASE)


@pytest.mark.parametrize("reference", re.findall(r"static '([^']+)'", (ROOT / "templates/base.html").read_text()))
def test_base_page_refers_to_files_that_exist(reference):
    assert (ROOT / "static" / reference).is_file()


def test_modules_import_files_that_exist():
    for module in MODULES:
        for target in re.findall(r"(?:from|import\()\s*\"(\.[^\"]+)\"", module.read_text()):
            assert (module.parent / target).is_file(), f"{module.name} imports {target}"


def test_vendored_code_has_its_version_and_licence():
    for folder in (ROOT / "static" / "vendor").iterdir():
        assert re.search(r"-\d+\.\d+\.\d+$", folder.name), folder.name
        assert any(path.name.upper().startswith("LICENSE") for path in folder.iterdir()), folder.name


# What the partials say ------------------------------------------------------------------------------------


class _StudyForm(forms.Form):
    name = forms.CharField(help_text="Readers see this name.")
    overlap = forms.IntegerField(min_value=1)
    blind = forms.BooleanField(required=False)
    mode = forms.ChoiceField(choices=[("a", "A"), ("b", "B")], widget=forms.RadioSelect, help_text="who reads what")

    def clean(self):
        raise forms.ValidationError("The study has no images.")


def test_form_keeps_what_was_typed_and_ties_errors_to_fields():
    html = render_to_string("_form.html", {"form": _StudyForm({"name": "Pilot", "overlap": "0"})})
    assert 'value="Pilot"' in html
    assert "The study has no images." in html
    assert 'aria-describedby="id_overlap_error"' in html and 'id="id_overlap_error"' in html
    assert 'aria-describedby="id_name_helptext"' in html and 'id="id_name_helptext"' in html
    assert html.count("<legend>") == 1
    assert ">Who reads what</p>" in html  # some helps are the comments of a configuration file
    assert re.search(r'<label for="id_blind"><input type="checkbox"', html)


def _page(number: int, path: str = "/studies/?q=ct&sort=-name"):
    page = Paginator(range(95), 20).page(number)
    return {"page": page}, RequestFactory().get(path)


def test_pager_counts_and_keeps_the_other_parameters():
    context, request = _page(2)
    html = render_to_string("_pager.html", context, request=request)
    assert "21–40 of 95" in html
    assert 'href="?q=ct&amp;sort=-name&amp;page=3"' in html
    last, request = _page(5)
    assert 'rel="next"' not in render_to_string("_pager.html", last, request=request)


@pytest.mark.parametrize(
    ("sort", "state", "link"),
    [("name", "ascending", "-name"), ("-name", "descending", "name"), ("date", None, "name")],
)
def test_sort_header_says_its_order_and_turns_it(sort, state, link):
    request = RequestFactory().get("/studies/", {"sort": sort, "page": 3})
    html = render_to_string("_sort_header.html", {"key": "name", "label": "Name"}, request=request)
    assert (f'aria-sort="{state}"' in html) if state else ("aria-sort" not in html)
    assert f'href="?sort={link}"' in html


class _Filter(forms.Form):
    q = forms.CharField(label="Name", required=False)
    state = forms.ChoiceField(choices=[("", "All"), ("open", "Open")], required=False)


class _OrderingFilter(_Filter):
    sort = forms.ChoiceField(choices=[("", "Newest first"), ("name", "Name")], required=False)


def _filter_bar(query: str, form: type[forms.Form] = _Filter) -> str:
    request = RequestFactory().get(f"/studies/?{query}")
    return render_to_string(
        "_filter_bar.html", {"form": form(request.GET), "label": "Filter studies"}, request=request
    )


@pytest.mark.parametrize(
    ("query", "clearable"),
    [("", False), ("q=&state=", False), ("page=2&sort=name", False), ("q=ct", True), ("state=closed-for-good", True)],
)
def test_a_filter_that_restricts_can_be_cleared(query, clearable):
    html = _filter_bar(query)
    assert 'role="search" aria-label="Filter studies"' in html and '<label for="id_q">Name' in html
    assert ('<a class="button quiet" href="/studies/">Clear</a>' in html) == clearable


def test_a_filter_keeps_the_order_of_the_list():
    assert '<input type="hidden" name="sort" value="-name">' in _filter_bar("sort=-name")
    assert 'name="sort"' not in _filter_bar("q=ct")
    assert _filter_bar("sort=name", _OrderingFilter).count('name="sort"') == 1  # a field of its own already


def test_no_list_writes_a_filter_of_its_own():
    own = {path.name for path in TEMPLATES if 'class="filter-bar"' in path.read_text()}
    assert own == {"_filter_bar.html", "comparison.html"}  # the latter has an order only, nothing to clear


def test_progress_shows_counts_and_escapes_its_error():
    context = {"label": "Generating", "url": "/x", "state": "failed", "done": 3, "total": 12, "unit": "images"}
    html = render_to_string("_progress.html", context | {"error": "<b>disk full</b>"})
    assert 'value="3" max="12"' in html and "3 / 12 images" in html
    assert "&lt;b&gt;disk full" in html
    assert 'data-state="failed"' in html and "Failed" in html


@pytest.mark.parametrize("compact", [True, False])
def test_phantom_notice_says_what_the_pictures_are_not(compact):
    text = render_to_string("_phantom_notice.html", {"compact": compact}).lower()
    assert re.search(r"procedural phantoms?, not (a )?medical images?", text)


class _Person:
    is_authenticated = True
    get_full_name = "Dr A"

    def __init__(self, is_staff: bool):
        self.is_staff = is_staff


def _navigation(is_staff: bool, path: str) -> list[tuple[str, bool]]:
    """(name, is current) for every entry of the top bar."""
    context = {"user": _Person(is_staff)}
    html = render_to_string("_topbar.html", context, request=RequestFactory().get(path))
    bar = html.split('aria-label="Main"')[1].split("</nav>")[0]
    return [(name, "aria-current" in attributes) for attributes, name in re.findall(r"<a ([^>]*)>(\w+)</a>", bar)]


def test_a_clinician_sees_only_studies():
    assert _navigation(False, "/studies/3/") == [("Studies", True)]


def test_staff_sees_every_room_and_where_it_is():
    entries = _navigation(True, "/images/3/")
    assert [name for name, _ in entries] == ["Studies", "Generate", "Training", "Releases", "Data", "People"]
    assert [name for name, current in entries if current] == ["Generate"]
