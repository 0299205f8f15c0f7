"""Who reaches what: matrix.csv, tried cell by cell, and held against Django's resolver.

Response times are not compared: a measurement on a busy machine would say nothing.
"""

import re

import pytest
from django.conf import settings

from tests.access.addresses import Address, addresses, is_of_admin_model
from tests.access.asking import Asking
from tests.access.bodies import bodies
from tests.access.headers import header_faults
from tests.access.matrix import FORMS, PATH, REFUSALS, SUCCESSES, Line, as_text, read_matrix
from tests.access.world import ROLES

pytestmark = pytest.mark.django_db
METHODS = ("get", "post", "put", "patch", "delete")
MATRIX = read_matrix()
ADDRESSES = {address.route: address for address in addresses() if not is_of_admin_model(address)}
# Looking at these may write, for the reason that stands beside them.
WRITES_WHEN_READ = {
    "/second-step/codes/": "recovery codes are shown once",
}
# Pages of Django and allauth that take any method for GET or POST, with the same guards: no 405, and no more either.
METHOD_DOES_NOT_MATTER = {
    "/login/",
    "/login/confirm/",
    "/login/confirm/code/",
    "/login/second-step/",
    "/password/",
    "/second-step/codes/new/",
    "/second-step/end/",
    "/second-step/set-up/",
}
# These change nothing though they succeed, for the reason that stands beside them.
WRITES_NOTHING = {
    "/login/confirm/": "only the session knows of it",
    "/login/confirm/code/": "only the session knows of it",
    "/login/second-step/": "there is nothing to confirm where no password was given before",
    "/logout/": "only the session ends",
    "/training/cost/<purpose>/": "it reckons what a run would cost and starts none",
    "/api/training/runs/rlhf/cost/": "likewise",
    "/api/training/runs/finetune/cost/": "likewise",
}


def is_indifferent(route: str) -> bool:
    return route.startswith("/admin/") or route in METHOD_DOES_NOT_MATTER


@pytest.fixture(scope="module")
def all_bodies(world) -> dict:
    return bodies(world)


def url_of(address: Address, asking: Asking, of: str = "") -> str:
    values = asking.world.values
    return address.filled({**values, **(values[f"of {of}"] if of else {})})


def files_below(folder) -> set[tuple[str, int]]:
    """Path and modification time of every file."""
    return {(str(path), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def faults_of(line: Line, method: str, url: str, body, asking: Asking) -> list[str]:
    """What every role got otherwise than the line says, wrote though it was refused, or found in the headers."""
    faults = []
    files = files_below(settings.ARTIFACT_ROOT)
    # Who is refused comes first: files that a success writes stay behind, unlike its rows.
    for role in sorted(ROLES, key=lambda role: line.expected[role] in SUCCESSES):
        expected = line.expected[role]
        answer = asking.ask(role, method, url, body)
        if answer.word != expected:
            faults.append(f"{role}: {answer.word}, not {expected}")
        is_read = method == "get" and line.route not in WRITES_WHEN_READ
        if answer.changed and (is_read or expected not in SUCCESSES):
            faults.append(f"{role}: wrote to {', '.join(sorted(answer.changed))}")
        if expected not in SUCCESSES and files_below(settings.ARTIFACT_ROOT) != files:
            faults.append(f"{role}: files were written")
        faults += [f"{role}: {fault}" for fault in header_faults(url, answer.response)]
    return faults


@pytest.mark.parametrize("line", MATRIX, ids=lambda line: line.label)
def test_everybody_gets_what_the_table_says(asking, all_bodies, line):
    url = url_of(ADDRESSES[line.route], asking, line.of)
    for method in line.methods:
        faults = faults_of(line, method, url, all_bodies.get((method, line.route)), asking)
        assert not faults, f"{method.upper()} {url}"


def test_the_table_names_every_address_and_no_other(asking, all_bodies):
    missing = ADDRESSES.keys() - {line.route for line in MATRIX}
    drafts = [text for route in sorted(missing) for text in drafted(ADDRESSES[route], asking, all_bodies)]
    assert not missing, f"judge these lines, correct the cells, and add them to {PATH.name}:\n" + "\n".join(drafts)
    assert not {line.route for line in MATRIX} - ADDRESSES.keys()


def drafted(address: Address, asking: Asking, all_bodies: dict) -> list[str]:
    """Lines of the table as the application answers today: to be judged, not to be believed."""
    url = url_of(address, asking)
    lines, refused = {}, []
    for method in METHODS[:2] if is_indifferent(address.route) else METHODS:
        body = all_bodies.get((method, address.route))
        words = {role: asking.ask(role, method, url, body).word for role in ROLES}
        lines[method] = as_text((method,), address.route, "", words)
        if set(words.values()) <= set(REFUSALS):
            refused.append(method)
    return [lines[method] for method in lines if method not in refused] or [lines["get"]]


@pytest.mark.parametrize("route", sorted(ADDRESSES))
def test_nobody_gets_through_with_another_method(asking, all_bodies, route):
    """Methods that the table does not name are refused to all, and change nothing."""
    lines = [line for line in MATRIX if line.route == route]
    url = url_of(ADDRESSES[route], asking)
    for method in METHODS:
        if any(method in line.methods for line in lines):
            continue
        for role in ROLES:
            answer = asking.ask(role, method, url, all_bodies.get(("post", route)))
            may_look = any(line.expected[role] not in REFUSALS for line in lines)
            may_do = any(line.expected[role] not in REFUSALS for line in lines if not line.is_safe)
            is_let_in = answer.word in SUCCESSES or answer.word in FORMS
            assert answer.word in REFUSALS or (is_let_in and is_indifferent(route) and may_look), (
                role,
                method,
                url,
                answer,
            )
            assert not answer.changed or (is_indifferent(route) and may_do), (role, method, url, answer)


@pytest.mark.parametrize("route", sorted(ADDRESSES))
def test_whom_an_address_refuses_it_tells_nothing_of_its_methods(asking, route):
    """OPTIONS describes an endpoint: its fields, what they mean, what exists."""
    lines = [line for line in MATRIX if line.route == route]
    for role in ("anonymous", "clinician", "other_owner", "reader_token"):
        if all(line.expected[role] in REFUSALS for line in lines):
            answer = asking.ask(role, "options", url_of(ADDRESSES[route], asking))
            is_silent = answer.word in REFUSALS or not answer.response.getvalue()
            assert is_silent and not answer.changed, (role, route, answer)


UNSAFE = [line for line in MATRIX if not line.is_safe]


@pytest.mark.parametrize("line", UNSAFE, ids=lambda line: line.label)
def test_every_action_works_for_somebody_and_not_for_a_forged_page(asking, all_bodies, line):
    """Cross-site request forgery: what works with a session fails without the page's token, and works with it."""
    roles = [role for role in line.successes() if not role.endswith("_token")]
    roles.sort(key=lambda role: line.expected[role] == "ok")  # a redirect says more than a page
    if not roles:
        assert line.of, "a body with which it works for somebody belongs into tests/access/bodies.py"
        return
    role, method, route = roles[0], line.methods[-1], line.route
    url, body = url_of(ADDRESSES[route], asking, line.of), all_bodies.get((method, route))
    forged = asking.ask(role, method, url, body, is_strict=True)
    assert forged.word == "refused" and not forged.changed
    meant = asking.ask(role, method, url, body, is_strict=True, is_from_page=True)
    assert meant.word == line.expected[role]
    is_idle = route in WRITES_NOTHING or route.startswith("/admin/")
    assert meant.changed or is_idle, "it succeeds and changes nothing: is the body right?"


MIRRORED = {"reader": "other_reader", "owner": "other_owner", "other_reader": "reader", "other_owner": "owner"}
HELD_BY_A_STUDY = re.compile(r"<study_id>|/(assignments|anchors|exports|ratings|data)/<")
OF_A_STUDY = [line for line in MATRIX if not line.of and HELD_BY_A_STUDY.search(line.route)]


@pytest.mark.parametrize("line", OF_A_STUDY, ids=lambda line: line.label)
def test_the_other_study_is_its_own_peoples(asking, all_bodies, line):
    """The same line, of the other study: its reader and owner take the places of the study's."""
    url = url_of(ADDRESSES[line.route], asking, "other")
    expected = {role: line.expected[MIRRORED.get(role, role)] for role in ROLES}
    expected["reader_token"] = line.expected["other_reader"] if line.expected["reader_token"] in SUCCESSES else None
    for method in line.methods:
        body = all_bodies.get((method, line.route, "other"), all_bodies.get((method, line.route)))
        for role in ROLES:
            answer = asking.ask(role, method, url, body)
            assert answer.word == (expected[role] or line.expected[role]), (role, method, url)
            assert answer.word in SUCCESSES or not answer.changed
