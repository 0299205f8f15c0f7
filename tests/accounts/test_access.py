"""Who reaches what of the pages of people: one table for every address, tried by everybody."""

import pytest
from django.urls import reverse

from accounts import urls
from accounts.services import invite, offer_new_password

PEOPLE = ("nobody", "clinician", "owner", "admin")
PAGE = (302, 404, 404, 200)  # sign in first; does not exist; does not exist; there
ACTION = (302, 404, 404, 302)
ANYBODY = (200, 200, 200, 200)
OWN = (302, 302, 302, 302)  # sent on: to the sign-in, or to where the password is given again

# name, method, what nobody / a clinician / a study owner / an administrator gets
TABLE = [
    ("accounts:people", "get", PAGE),
    ("accounts:invite", "get", PAGE),
    ("accounts:invite", "post", (302, 404, 404, 422)),
    ("accounts:invitation-link", "post", (302, 404, 404, 200)),
    ("accounts:invitation-revoke", "post", ACTION),
    ("accounts:person", "get", PAGE),
    ("accounts:person-role", "post", ACTION),
    ("accounts:person-level", "post", ACTION),
    ("accounts:person-state", "post", ACTION),
    ("accounts:person-second-factor", "post", (302, 404, 404, 422)),
    ("accounts:person-password", "post", (302, 404, 404, 200)),
    ("accounts:join", "get", ANYBODY),
    ("accounts:join", "post", (422, 422, 422, 422)),
    ("accounts:new-password", "get", ANYBODY),
    ("accounts:new-password", "post", (422, 422, 422, 422)),
    ("accounts:forgotten", "get", ANYBODY),
    ("accounts:forgotten", "post", (422, 422, 422, 422)),
    ("login", "get", (200, 302, 302, 302)),
    ("login", "post", (422, 302, 302, 302)),
    ("account_login", "get", (200, 302, 302, 302)),
    ("account_login", "post", (422, 302, 302, 302)),
    ("account_inactive", "get", ANYBODY),
    ("account_reauthenticate", "get", (302, 200, 200, 200)),
    ("account_reauthenticate", "post", (302, 422, 422, 422)),
    ("logout", "post", (302, 302, 302, 302)),
    ("password_change", "get", (302, 200, 200, 200)),
    ("password_change", "post", (302, 200, 200, 200)),
    ("mfa_authenticate", "get", OWN),
    ("mfa_authenticate", "post", OWN),
    ("mfa_reauthenticate", "get", OWN),
    ("mfa_reauthenticate", "post", OWN),
    ("mfa_index", "get", (302, 200, 200, 200)),
    ("mfa_activate_totp", "get", OWN),
    ("mfa_activate_totp", "post", OWN),
    ("mfa_deactivate_totp", "get", (302, 404, 404, 404)),
    ("mfa_deactivate_totp", "post", (302, 404, 404, 404)),
    ("mfa_view_recovery_codes", "get", (302, 404, 404, 404)),
    ("mfa_generate_recovery_codes", "get", OWN),
    ("mfa_generate_recovery_codes", "post", OWN),
    ("admin_door", "get", (302, 404, 404, 302)),
    ("admin_door", "post", (302, 404, 404, 302)),
    ("admin_password", "get", (302, 302, 302, 302)),
]
METHODS = ("get", "post", "put", "patch", "delete")


def _names() -> dict[str, list[str]]:
    """Every address of the app with the arguments that it takes."""
    plain = {pattern.name: pattern for pattern in urls._signing_in}
    spaced = {f"accounts:{pattern.name}": pattern for pattern in urls._pages}
    return {name: list(pattern.pattern.converters) for name, pattern in (plain | spaced).items()}


@pytest.fixture
def world(alice, bob, olga, carol, settings):
    settings.MAIL_IS_CONFIGURED = True
    invitation, token = invite(email="nora@x.example", invited_by=alice)
    _, password_token = offer_new_password(person=carol, offered_by=alice)
    arguments = {
        "accounts:invitation-link": [invitation.pk],
        "accounts:invitation-revoke": [invitation.pk],
        "accounts:join": [token],
        "accounts:new-password": [password_token],
    }
    bodies = {
        "accounts:person-role": {"role": "owner"},
        "accounts:person-level": {"expert_level": 2, "verified_by": alice.pk},
        "accounts:person-state": {"close-reason": "Left"},
        "accounts:person-second-factor": {"reset-reason": "Lost"},
    }
    people = {"nobody": None, "clinician": bob, "owner": olga, "admin": alice}
    return people, arguments, bodies, carol


def address(name: str, arguments: dict, person) -> str:
    return reverse(name, args=arguments.get(name, [person.pk] if _names()[name] else []))


@pytest.mark.parametrize("name, method, expected", TABLE, ids=lambda value: value if isinstance(value, str) else "")
def test_everybody_gets_what_the_table_says(world, signed_in, name, method, expected):
    people, arguments, bodies, carol = world
    for who, status in zip(PEOPLE, expected, strict=True):
        send = getattr(signed_in(people[who]), method)
        assert send(address(name, arguments, carol), bodies.get(name, {})).status_code == status, who


def test_the_table_names_every_address_of_the_app():
    assert _names().keys() == {name for name, _, _ in TABLE}


def test_no_page_of_people_takes_a_method_that_the_table_does_not_name(world, signed_in):
    people, arguments, _, carol = world
    allowed = {(name, method) for name, method, _ in TABLE}
    admin = signed_in(people["admin"])
    for name in {name for name, _ in allowed if name.startswith("accounts:")}:
        for method in METHODS:
            if (name, method) not in allowed:
                reply = getattr(admin, method)(address(name, arguments, carol))
                assert reply.status_code == 405, (name, method)


def test_ids_that_nobody_has_do_not_exist(alice, signed_in):
    client = signed_in(alice)
    assert client.get("/people/4711/").status_code == 404
    for address in ("role", "level", "state", "second-step", "password"):
        assert client.post(f"/people/4711/{address}/").status_code == 404
    for action in ("link", "withdraw"):
        assert client.post(f"/people/invitations/4711/{action}/").status_code == 404
