"""One door: names, limits that bite and let go, and nothing said about who has an account."""

import re
import time
from datetime import timedelta

import pytest
from django.core import mail
from django.test import Client
from django.urls import NoReverseMatch, get_resolver, reverse
from django.utils import timezone
from rest_framework.authtoken.models import Token

from accounts import services
from tests.factories import PASSWORD, UserFactory

NEW = "another-horse-staple"


@pytest.fixture
def nora(db):
    return UserFactory(username="nora", email="nora@hospital.example")


def _body(reply) -> str:
    """The page without what differs from request to request: tokens, and the name that was typed."""
    text = re.sub(r'name="csrfmiddlewaretoken" value="[^"]+"', "", reply.content.decode())
    return re.sub(r'name="username" value="[^"]*"', "", text)


@pytest.mark.parametrize("name", ["nora", "NORA", " nora ", "nora@hospital.example", "Nora@Hospital.EXAMPLE"])
def test_user_name_and_address_sign_in(enter, nora, name):
    client = enter(name)
    assert client.reply.status_code == 302 and client.reply.url == "/"
    assert client.get("/studies/").status_code == 200


def test_one_is_led_back_to_the_page_one_came_for_and_to_no_other_site(client, nora):
    form = {"username": "nora", "password": PASSWORD}
    assert "/people/" in client.get("/login/?next=/people/").content.decode()
    assert client.post("/login/", {**form, "next": "/people/"}).url == "/people/"
    assert Client().post("/login/", {**form, "next": "https://elsewhere.example/"}).url == "/"


def test_a_failure_does_not_tell_whether_there_is_an_account(enter, nora):
    replies = [
        enter(name, "wrong").reply for name in ("nora", "nobody", "nora@hospital.example", "nobody@hospital.example")
    ]
    assert {reply.status_code for reply in replies} == {422}
    assert len({_body(reply) for reply in replies}) == 1


def test_after_a_wrong_password_the_password_is_asked_for_again(enter, nora):
    """The name stays, the focus is on the password, and the reason is its description."""
    page = enter("nora", "wrong").reply.content.decode()
    name, password = (re.search(rf'<input[^>]*name="{field}"[^>]*>', page)[0] for field in ("username", "password"))
    assert 'value="nora"' in name and "autofocus" not in name
    assert " autofocus" in password and "value=" not in password and 'aria-describedby="form-errors"' in password
    reason = re.search(r'<div class="notice error" id="form-errors" role="alert">(.*?)</div>', page, re.S)[1]
    assert "do not belong together" in reason
    nameless = enter("", "wrong").reply.content.decode()
    assert " autofocus" in re.search(r'<input[^>]*name="username"[^>]*>', nameless)[0]


def test_a_closed_account_is_told_to_whoever_knows_its_password_only(enter, nora, alice):
    services.close_account(person=nora, by=alice, reason="Left")
    assert enter("nora", "wrong").reply.status_code == 422
    client = enter("nora")
    assert client.reply.url == "/login/closed/" and "closed" in client.get("/login/closed/").content.decode()
    assert client.get("/studies/").status_code == 302


def test_signing_in_changes_the_session_key(client, nora):
    client.get("/login/")
    session = client.session
    session["kept"] = True
    session.save()
    before = client.session.session_key
    client.post("/login/", {"username": "nora", "password": PASSWORD})
    assert client.session.session_key != before
    assert client.session.get_expiry_age() == 8 * 3600


# Limits -----------------------------------------------------------------------------------------------------


@pytest.fixture
def limits(settings):
    """``limits(login_failed=...)``: other limits than the installation's."""

    def are(**rates):
        settings.ACCOUNT_RATE_LIMITS = settings.ACCOUNT_RATE_LIMITS | rates

    return are


def test_five_failures_close_the_account_to_the_right_password_too(enter, nora):
    assert [enter("nora", "wrong").reply.status_code for _ in range(6)] == [422] * 5 + [429]
    refused = enter("nora").reply
    assert refused.status_code == 429 and refused["Retry-After"] == "300"
    assert "Too many attempts" in refused.content.decode()


def test_the_limit_lets_go(enter, nora, limits, monkeypatch):
    limits(login_failed="2/60s/key")
    assert [enter("nora", "wrong").reply.status_code for _ in range(3)] == [422, 422, 429]
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 61)
    assert enter("nora").reply.status_code == 302


def test_the_limit_counts_the_account_under_all_its_names_and_all_hosts(enter, nora, limits, settings):
    settings.ALLOWED_HOSTS = ["testserver"]
    limits(login_failed="3/300s/key")
    tries = [("nora", "testserver:1"), ("NORA", "testserver:2"), ("nora@hospital.example", "testserver:3")]
    assert [enter(name, "wrong", headers={"host": host}).reply.status_code for name, host in tries] == [422] * 3
    assert enter("Nora@hospital.example", "wrong", headers={"host": "testserver:4"}).reply.status_code == 429
    assert enter("nora", headers={"host": "testserver:5"}).reply.status_code == 429


def test_names_without_an_account_are_limited_alike(enter, nora):
    known = [_body(enter("nora", "wrong").reply) for _ in range(7)]
    assert [_body(enter("nobody", "wrong").reply) for _ in range(7)] == known


def test_one_account_does_not_close_another(enter, nora, bob):
    for _ in range(6):
        enter("nora", "wrong")
    assert enter("bob").reply.status_code == 302


def test_an_address_is_limited_over_all_accounts(enter, nora, bob, limits):
    limits(login_failed="3/m/ip")
    assert [enter(f"guess{n}", "wrong").reply.status_code for n in range(4)] == [422] * 3 + [429]
    assert enter("bob").reply.status_code == 429
    assert enter("bob", REMOTE_ADDR="10.0.0.7").reply.status_code == 302


def test_behind_a_proxy_the_address_is_the_one_the_proxy_saw(enter, bob, limits, settings):
    settings.ALLAUTH_TRUSTED_PROXY_COUNT = 1
    limits(login_failed="2/m/ip")

    def from_address(seen: str, made_up: str, password: str) -> int:
        return enter("bob", password, headers={"x-forwarded-for": f"{made_up}, {seen}"}).reply.status_code

    assert [from_address("10.0.0.1", f"9.9.9.{n}", "wrong") for n in range(3)] == [422, 422, 429]
    assert from_address("10.0.0.2", "9.9.9.9", PASSWORD) == 302


def test_success_costs_nothing(enter, nora):
    assert [enter("nora").reply.status_code for _ in range(12)] == [302] * 12


def test_the_page_of_a_limit_on_the_address(enter, nora, limits):
    limits(login="2/m/ip")
    reply = [enter("nora").reply for _ in range(3)][-1]
    assert reply.status_code == 429 and "Too many attempts" in reply.content.decode()


def test_guessing_the_old_password_on_the_way_to_a_new_one_is_limited(signed_in, bob):
    client = signed_in(bob)
    form = {"old_password": "guess", "new_password1": NEW, "new_password2": NEW}
    assert [client.post("/password/", form).status_code for _ in range(6)] == [200] * 5 + [429]


# Sessions ---------------------------------------------------------------------------------------------------


def test_a_new_password_signs_out_everywhere_else(enter, nora):
    here, there = enter("nora"), enter("nora")
    here.post("/password/", {"old_password": PASSWORD, "new_password1": NEW, "new_password2": NEW})
    assert here.get("/studies/").status_code == 200
    assert there.get("/studies/").status_code == 302


def test_closing_an_account_ends_sessions_tokens_and_links(enter, nora, alice):
    client, other = enter("nora"), enter("alice")
    token = Token.objects.create(user=nora)
    _, link = services.offer_new_password(person=nora, offered_by=alice)
    services.close_account(person=nora, by=alice, reason="Left the hospital")
    assert client.get("/studies/").status_code == 302
    assert Client().get("/api/studies/", headers={"authorization": f"Token {token.key}"}).status_code in (401, 403)
    assert Client().get(f"/password/new/{link}/").status_code == 404
    assert other.get("/studies/").status_code == 200
    services.open_account(person=nora, by=alice)
    assert client.get("/studies/").status_code == 302, "the old session stays dead"
    assert Client().get("/api/studies/", headers={"authorization": f"Token {token.key}"}).status_code in (401, 403)
    assert enter("nora").reply.status_code == 302


# No second door -----------------------------------------------------------------------------------------------


def test_djangos_administration_has_no_sign_in_of_its_own(client, alice, bob, signed_in):
    form = {"username": "alice", "password": PASSWORD}
    for method in (client.get, client.post):
        reply = method("/admin/login/", form)
        assert reply.status_code == 302 and reply.url.startswith("/login/?next=%2Fadmin%2F")
    hops = client.get("/admin/", follow=True).redirect_chain
    assert [status for _, status in hops] == [302, 302] and hops[-1][0] == "/login/?next=%2Fadmin%2F"
    assert signed_in(bob).get("/admin/login/").status_code == 404
    assert signed_in(alice).get("/admin/login/?next=https://elsewhere.example/").url == "/admin/"
    assert signed_in(alice).get("/admin/").status_code == 200
    assert signed_in(alice).get("/admin/password_change/").url == "/password/"


def test_djangos_administration_makes_and_changes_nobody_and_shows_no_secret(alice, bob, signed_in):
    client = signed_in(alice)
    assert client.get("/admin/auth/user/").status_code == 200
    assert client.get("/admin/auth/user/add/").status_code == 403
    assert client.post(f"/admin/auth/user/{bob.pk}/change/", {"is_staff": "on"}).status_code == 403
    for table in ("mfa/authenticator", "account/emailaddress", "auth/group", "accounts/cacherow"):
        assert client.get(f"/admin/{table}/").status_code == 404, table
    invitation, _ = services.invite(email="x@x.example", invited_by=alice)
    page = client.get(f"/admin/accounts/invitation/{invitation.pk}/change/").content.decode()
    assert "x@x.example" in page and invitation.token_sha256 not in page


def test_of_allauth_only_what_is_used_can_be_reached(client):
    for name in ("account_signup", "account_email", "account_reset_password", "account_set_password",
                 "account_email_verification_sent", "account_request_login_code", "mfa_download_recovery_codes",
                 "account_confirm_login_code", "account_logout", "account_change_password"):  # fmt: skip
        with pytest.raises(NoReverseMatch):
            reverse(name)
    routed = {str(callback) for callback, *_ in get_resolver().reverse_dict.values() if "allauth" in str(callback)}
    assert routed == set()
    modules = {pattern.callback.__module__ for pattern in _patterns(get_resolver())}
    assert not [module for module in modules if module.startswith("allauth")], "allauth's own views, unstyled"


def _patterns(resolver):
    for pattern in resolver.url_patterns:
        if hasattr(pattern, "url_patterns"):
            yield from _patterns(pattern)
        else:
            yield pattern


# Passwords by link ------------------------------------------------------------------------------------------


def test_an_administrator_makes_a_link_for_a_new_password(enter, nora, alice, signed_in):
    elsewhere = enter("nora")
    reply = signed_in(alice).post(f"/people/{nora.pk}/password/")
    link = reply.context["link"]
    client = Client()
    assert "nora" in client.get(link).content.decode()
    assert client.post(link, {"new_password1": "1234", "new_password2": "1234"}).status_code == 422
    assert enter("nora").reply.status_code == 302, "the old password works until the link is used"
    assert client.post(link, {"new_password1": NEW, "new_password2": NEW}).url == "/login/"
    assert client.get("/studies/").status_code == 302, "the link sets a password; it does not sign in"
    assert elsewhere.get("/studies/").status_code == 302
    assert enter("nora", NEW).reply.status_code == 302
    assert client.get(link).status_code == 404
    assert [event.action for event in nora.account_events.all()] == ["password", "password_link"]


def test_a_newer_link_kills_the_older_and_kinds_do_not_mix(nora, alice, client):
    _, older = services.offer_new_password(person=nora, offered_by=alice)
    _, newer = services.offer_new_password(person=nora, offered_by=alice)
    assert client.get(f"/password/new/{older}/").status_code == 404
    assert client.get(f"/join/{newer}/").status_code == 404
    assert client.get(f"/password/new/{newer}/").status_code == 200


def test_a_password_changed_by_hand_kills_the_link_too_and_it_lasts_a_day(enter, nora, alice, client):
    invitation, link = services.offer_new_password(person=nora, offered_by=alice)
    assert timedelta(hours=23) < invitation.expires_at - timezone.now() < timedelta(hours=25)
    form = {"old_password": PASSWORD, "new_password1": NEW, "new_password2": NEW}
    enter("nora").post("/password/", {**form, "old_password": "guess"})
    assert client.get(f"/password/new/{link}/").status_code == 200
    enter("nora").post("/password/", form)
    assert client.get(f"/password/new/{link}/").status_code == 404


@pytest.mark.parametrize("how", ["close", "demote"])
def test_links_of_an_administrator_who_is_trusted_no_more_die(alice, client, bob, how):
    ada = UserFactory(username="ada", is_staff=True, is_superuser=True)
    _, invited = services.invite(email="friend@x.example", role="admin", invited_by=ada)
    _, password = services.offer_new_password(person=bob, offered_by=ada)
    _, kept = services.invite(email="other@x.example", invited_by=alice)
    if how == "close":
        services.close_account(person=ada, by=alice, reason="Left")
    else:
        services.change_role(person=ada, role="clinician", by=alice)
    assert client.get(f"/join/{invited}/").status_code == 404
    assert client.get(f"/password/new/{password}/").status_code == 404
    assert client.get(f"/join/{kept}/").status_code == 200


def _settled(n: int) -> list:
    """The mail that was sent behind a reply, once ``n`` have arrived or a minute has passed."""
    until = time.monotonic() + 60
    while len(mail.outbox) < n and time.monotonic() < until:
        time.sleep(0.01)
    return mail.outbox


def test_a_forgotten_password_by_mail_says_the_same_to_everybody(nora, settings, client):
    settings.MAIL_IS_CONFIGURED = True
    replies = [
        client.post("/password/forgotten/", {"email": email})
        for email in ("NORA@hospital.example", "nobody@hospital.example")
    ]
    assert {(reply.status_code, reply.url) for reply in replies} == {(302, "/password/forgotten/?sent")}
    (message,) = _settled(1)
    assert message.to == ["nora@hospital.example"]
    link = re.search(r"http://\S+", message.body).group()
    assert client.post(link, {"new_password1": NEW, "new_password2": NEW}).url == "/login/"


def test_asking_again_and_again_is_limited_whether_there_is_an_account_or_not(nora, settings, client):
    settings.MAIL_IS_CONFIGURED = True
    for email in ("nora@hospital.example", "nobody@hospital.example"):
        codes = [client.post("/password/forgotten/", {"email": email}).status_code for _ in range(6)]
        assert codes == [302] * 5 + [429]
    assert len(_settled(5)) == 5


def test_without_mail_nothing_is_offered_by_mail(client, db):
    assert client.get("/password/forgotten/").status_code == 404
    assert "forgotten" not in client.get("/login/").content.decode()
