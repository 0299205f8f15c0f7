"""The second step: set up, asked for, recovered, reset; and where administrators need it, nothing opens without."""

import re

import pytest
from allauth.mfa.models import Authenticator
from django.core.cache import cache
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.test import Client
from rest_framework.authtoken.models import Token

from accounts import services
from tests.accounts.conftest import totp
from tests.factories import PASSWORD, UserFactory

EVERYWHERE = ("/studies/", "/people/", "/admin/", "/generate/", "/password/", "/second-step/", "/second-step/codes/")


@pytest.fixture
def needed(settings):
    """Administrators need a second step."""
    settings.REQUIRE_MFA = True


@pytest.fixture
def set_up(enter):
    """``set_up(name)``: signs in, sets the second step up; returns the browser, the key and the recovery codes."""

    def done(name: str):
        client = enter(name)
        secret = client.get("/second-step/set-up/").context["form"].secret
        reply = client.post("/second-step/set-up/", {"code": totp(secret)}, follow=True)
        assert reply.redirect_chain[-1][0] == "/second-step/codes/"
        return client, secret, re.findall(r"<code>(\d{8})</code>", reply.content.decode())

    return done


def give(client: Client, code: str):
    return client.post("/login/second-step/", {"code": code})


# Setting up, signing in -------------------------------------------------------------------------------------


def test_the_code_is_asked_for_after_the_password(bob, set_up, enter):
    _, secret, _ = set_up("bob")
    client = enter("bob")
    assert client.reply.url == "/login/second-step/"
    assert client.get("/studies/").status_code == 302, "the password alone opens nothing"
    assert client.get("/login/").url == "/login/second-step/"
    assert give(client, "000000").status_code == 422
    assert give(client, totp(secret, steps=1)).url == "/"
    assert client.get("/studies/").status_code == 200


def test_a_code_works_once(bob, set_up, enter):
    _, secret, _ = set_up("bob")
    code = totp(secret, steps=1)
    assert give(enter("bob"), code).status_code == 302
    assert give(enter("bob"), code).status_code == 422


def test_a_code_works_once_for_as_long_as_it_is_right(bob, set_up, enter):
    """It is right for three periods; allauth's own mark, taken away here, lasts for one."""
    client, secret, _ = set_up("bob")
    other, code = totp(secret), totp(secret, steps=1)
    assert give(enter("bob"), code).status_code == 302
    cache.delete(f"allauth.mfa.totp.used?user={bob.pk}&code={code}")
    assert give(enter("bob"), f"{code[:3]} {code[3:]}").status_code == 422
    assert client.post("/login/confirm/code/", {"code": code}).status_code == 422
    assert give(enter("bob"), other).status_code == 302


def test_a_recovery_code_stands_in_once(bob, set_up, enter):
    _, _, codes = set_up("bob")
    assert len(set(codes)) == 10
    assert give(enter("bob"), codes[3]).status_code == 302
    assert give(enter("bob"), codes[3]).status_code == 422
    assert give(enter("bob"), codes[4]).status_code == 302


def test_guessing_codes_is_limited_and_the_limit_is_the_accounts(bob, set_up, enter):
    _, secret, _ = set_up("bob")
    client = enter("bob")
    assert [give(client, f"00000{n}").status_code for n in range(6)] == [422] * 5 + [429]
    assert give(enter("bob"), totp(secret, steps=1)).status_code == 429


def test_one_may_begin_again_as_somebody_else(bob, carol, set_up, enter):
    set_up("bob")
    client = enter("bob")
    client.post("/logout/")
    assert enter("carol", client=client).reply.url == "/"
    assert client.get("/studies/").status_code == 200


def test_recovery_codes_are_shown_once(bob, set_up):
    client, _, codes = set_up("bob")
    again = client.get("/second-step/codes/").content.decode()
    assert not [code for code in codes if code in again] and "10 of 10" in again
    assert client.post("/second-step/codes/new/").url == "/second-step/codes/"
    fresh = re.findall(r"<code>(\d{8})</code>", client.get("/second-step/codes/").content.decode())
    assert len(fresh) == 10 and not set(fresh) & set(codes)


def test_a_wrong_first_code_sets_nothing_up(bob, enter):
    client = enter("bob")
    secret = client.get("/second-step/set-up/").context["form"].secret
    assert client.post("/second-step/set-up/", {"code": "000000"}).status_code == 422
    assert not Authenticator.objects.exists()
    assert client.post("/second-step/set-up/", {"code": totp(secret)}).status_code == 302


def test_an_older_session_gives_its_password_first(bob, signed_in):
    client = signed_in(bob)
    assert client.get("/second-step/set-up/").url == "/login/confirm/?next=%2Fsecond-step%2Fset-up%2F"
    assert client.post("/login/confirm/", {"password": "wrong"}).status_code == 422
    reply = client.post("/login/confirm/", {"password": PASSWORD, "next": "/second-step/set-up/"})
    assert reply.url == "/second-step/set-up/" and client.get(reply.url).status_code == 200


def test_it_can_be_turned_off_where_nobody_needs_it(bob, set_up, enter):
    client, _, _ = set_up("bob")
    assert client.post("/second-step/end/").url == "/second-step/"
    assert not Authenticator.objects.exists()
    assert enter("bob").reply.url == "/"


def test_the_qr_code_keeps_to_the_content_security_policy(bob, enter):
    reply = enter("bob").get("/second-step/set-up/")
    page = reply.content.decode()
    assert "style=" not in page and "<style" not in page and "data:" not in page and "fill=" not in page
    policy = reply["Content-Security-Policy"]
    assert "style-src 'self'" in policy and "unsafe" not in policy
    modules = {(int(x), int(y)) for x, y in re.findall(r"M(\d+) (\d+)h1v1h-1z", page)}
    size = int(re.search(r'class="qr"[^>]*viewBox="0 0 (\d+)', page).group(1))
    corner = {(x, y) for x in range(7) for y in range(7) if x in (0, 6) or y in (0, 6) or (1 < x < 5 and 1 < y < 5)}
    found = {(x - 4, y - 4) for x, y in modules if x < 11 and y < 11}
    assert found & {(x, y) for x in range(7) for y in range(7)} == corner, "the finder pattern of ISO/IEC 18004"
    assert all(4 <= x < size - 4 and 4 <= y < size - 4 for x, y in modules), "the quiet zone"


def test_the_key_is_stored_encrypted(bob, set_up, settings):
    _, secret, _ = set_up("bob")
    row = Authenticator.objects.get(type=Authenticator.Type.TOTP)
    assert secret not in str(row.data)
    old = settings.SECRET_KEY
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "another" * 10, [old]
    assert row.wrap().validate_code(totp(secret, steps=1))
    settings.SECRET_KEY_FALLBACKS = []
    with pytest.raises(ImproperlyConfigured, match="MEDSYN_SECRET_KEY"):
        row.wrap().validate_code(totp(secret))


# Administrators ---------------------------------------------------------------------------------------------


def test_without_it_an_administrator_reaches_the_set_up_and_nothing_else(alice, enter, needed):
    client = enter("alice")
    for address in EVERYWHERE:
        assert client.get(address).url == "/second-step/set-up/", address
    refused = client.get("/api/studies/")
    assert refused.status_code == 403 and "second factor" in refused.json()["detail"]
    assert client.post("/api/studies/", {}, content_type="application/json").status_code == 403
    page = client.get("/second-step/set-up/").content.decode()
    assert "Not now" not in page and 'href="/people/"' not in page
    assert client.post("/logout/").status_code == 302


def test_with_it_everything_opens(alice, set_up, needed):
    client, _, _ = set_up("alice")
    assert {client.get(address).status_code for address in EVERYWHERE} == {200}
    assert client.get("/api/studies/").status_code == 200


def test_and_again_after_signing_in_with_the_code(alice, set_up, enter, needed):
    _, secret, _ = set_up("alice")
    client = enter("alice")
    assert give(client, totp(secret, steps=1)).url == "/"
    assert client.get("/people/").status_code == 200


def test_passing_costs_no_query(alice, set_up, needed, django_assert_num_queries):
    client, _, _ = set_up("alice")
    with django_assert_num_queries(2):  # session and person
        client.get("/people/invitations/0/link/")  # 405: nothing else is asked


def test_a_session_that_began_before_the_set_up_gives_a_code_too(alice, enter, set_up, needed):
    older = enter("alice")
    _, secret, _ = set_up("alice")
    sent = older.get("/people/?q=x")
    assert sent.url == "/login/confirm/code/?next=%2Fpeople%2F%3Fq%3Dx"
    assert older.post("/people/invite/", {}).url == "/login/confirm/code/"
    assert older.post(sent.url, {"code": "000000"}).status_code == 422
    assert older.post(sent.url, {"code": totp(secret, steps=1)}).url == "/people/?q=x"
    assert older.get("/people/").status_code == 200


def test_somebody_made_administrator_signs_in_again_and_meets_it(bob, alice, enter, set_up, person_of, needed):
    client, _, _ = set_up("bob")
    other = enter("bob")
    client.post("/second-step/end/")
    assert client.get("/studies/").status_code == 200
    services.change_role(person=person_of(bob), role="admin", by=alice)
    assert client.get("/studies/").url.startswith("/login/") and other.get("/studies/").url.startswith("/login/")
    assert enter("bob").get("/studies/").url == "/second-step/set-up/"


def test_an_administrator_cannot_turn_it_off(alice, set_up, needed):
    client, _, _ = set_up("alice")
    assert "Turn it off" not in client.get("/second-step/").content.decode()
    client.post("/second-step/end/")
    assert Authenticator.objects.filter(user=alice, type=Authenticator.Type.TOTP).exists()


def test_clinicians_and_tokens_are_not_asked(bob, alice, enter, client, needed):
    assert enter("bob").get("/studies/").status_code == 200
    token = Token.objects.create(user=alice)
    assert client.get("/api/studies/", headers={"authorization": f"Token {token.key}"}).status_code == 200


def test_a_new_administrator_sets_it_up_right_after_joining(alice, client, needed):
    _, token = services.invite(email="nora@x.example", role="admin", invited_by=alice)
    chosen = {"username": "nora", "password1": "window-lantern-42", "password2": "window-lantern-42"}
    page = client.post(f"/join/{token}/", chosen, follow=True)
    assert page.redirect_chain == [("/second-step/set-up/", 302)] and page.status_code == 200
    secret = page.context["form"].secret
    assert client.post("/second-step/set-up/", {"code": totp(secret)}).url == "/second-step/codes/"
    assert client.get("/people/").status_code == 200


def test_a_link_for_a_password_does_not_pass_it_by(alice, set_up, enter, needed):
    set_up("alice")
    _, token = services.offer_new_password(person=alice)
    client = Client()
    client.post(f"/password/new/{token}/", {"new_password1": "new-horse-staple", "new_password2": "new-horse-staple"})
    assert enter("alice", "new-horse-staple").reply.url == "/login/second-step/"


# Lost -------------------------------------------------------------------------------------------------------


def test_another_administrator_resets_it_and_says_why(alice, set_up, enter, needed, db):
    other = UserFactory(username="ada", is_staff=True, is_superuser=True)
    theirs, _, _ = set_up("ada")
    ours, _, _ = set_up("alice")
    address = f"/people/{other.pk}/second-step/"
    assert ours.post(address, {"reset-reason": " "}).status_code == 422
    assert ours.post(address, {"reset-reason": "Telephone lost"}).url == f"/people/{other.pk}/"
    assert theirs.get("/people/").status_code == 302, "signed out"
    assert enter("ada").get("/people/").url == "/second-step/set-up/"
    event = other.account_events.get()
    assert (event.action, event.note, event.actor) == ("second_factor", "Telephone lost", alice)
    assert ours.post(address, {"reset-reason": "Again"}).status_code == 422, "there is none to reset"
    assert ours.post(f"/people/{alice.pk}/second-step/", {"reset-reason": "Mine"}).status_code == 422


def test_somebody_who_waits_at_the_code_while_it_is_reset_gets_on(bob, set_up, enter, person_of):
    set_up("bob")
    waiting = enter("bob")
    assert waiting.reply.url == "/login/second-step/"
    services.reset_second_factor(person=person_of(bob), by=None, reason="Telephone lost")
    hops = waiting.post("/login/second-step/", {"code": "000000"}, follow=True)
    assert hops.status_code == 200 and hops.redirect_chain == [("/login/", 302)]
    assert enter("bob", client=waiting).reply.url == "/"


@pytest.mark.parametrize("what", ["password", "closed"])
def test_half_a_sign_in_does_not_outlive_the_password_or_the_account(bob, alice, set_up, enter, person_of, what):
    _, secret, _ = set_up("bob")
    halfway = enter("bob")
    if what == "password":
        _, token = services.offer_new_password(person=person_of(bob))
        services.choose_password(token=token, password="another-horse-staple")
    else:
        services.close_account(person=person_of(bob), by=alice, reason="Left")
    assert give(halfway, totp(secret, steps=1)).url == "/login/"
    if what == "closed":
        services.open_account(person=person_of(bob), by=alice)
    assert halfway.get("/studies/").url.startswith("/login/?next="), "nothing of it comes alive"
    assert halfway.get("/login/").status_code == 200


def test_whoever_runs_the_server_resets_the_last_administrators(alice, set_up, enter, capsys):
    set_up("alice")
    call_command("reset_second_step", "alice", "--reason", "All lost")
    assert "set up a new one" in capsys.readouterr().out
    assert enter("alice").reply.url == "/" and alice.account_events.get().actor is None
    with pytest.raises(CommandError, match="no second factor"):
        call_command("reset_second_step", "alice", "--reason", "Again")
    with pytest.raises(CommandError, match="Nobody signs in"):
        call_command("reset_second_step", "nobody", "--reason", "?")
