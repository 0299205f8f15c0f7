"""Invitations: what they promise, that their links work once, and that a dead link says nothing."""

import io
import logging
from datetime import timedelta

import pytest
from django.contrib.auth import get_user_model
from django.core import mail
from django.db import IntegrityError, transaction
from django.test import Client
from django.utils import timezone

from accounts import services
from accounts.models import AccountEvent, Invitation, Role
from medsyn.roles import CLINICIANS, STUDY_OWNERS
from ratings.models import Expertise
from tests.factories import UserFactory

CHOSEN = {"username": "nora", "password1": "window-lantern-42", "password2": "window-lantern-42"}
User = get_user_model()


@pytest.fixture
def invite(alice, study):
    """``invite(**changes)``: an invitation of Nora, a specialist who is to read the study, and its token."""

    def made(**changes):
        promised = {
            "email": "nora@hospital.example",
            "first_name": "Nora",
            "last_name": "Berg",
            "expert_level": 2,
            "specialty": "Thoracic radiology",
            "level_note": "Board certificate",
            "verified_by": alice,
            "studies": [study],
        }
        return services.invite(invited_by=alice, **(promised | changes))

    return made


def test_an_invitation_becomes_what_it_promises(invite, client, study, alice):
    invitation, token = invite()
    assert client.get(f"/join/{token}/").status_code == 200
    reply = client.post(f"/join/{token}/", CHOSEN, follow=True)
    assert reply.redirect_chain[-1][0] == "/studies/" and "Chest pilot" in reply.content.decode()
    nora = User.objects.get(username="nora")
    assert (nora.email, nora.get_full_name()) == ("nora@hospital.example", "Nora Berg")
    assert not nora.is_staff and [group.name for group in nora.groups.all()] == [CLINICIANS]
    level = Expertise.objects.of(nora).get()
    assert (level.expert_level, level.specialty, level.verified_by) == (2, "Thoracic radiology", alice)
    assert study.memberships.get(reader=nora).expert_level == 2
    assert study.assignments.filter(reader=nora).count() == 4
    assert nora.account_events.get().action == AccountEvent.Action.JOINED
    invitation.refresh_from_db()
    assert invitation.person == nora and invitation.accepted_at


@pytest.mark.parametrize(
    ("role", "is_staff", "groups"),
    [(Role.CLINICIAN, False, [CLINICIANS]), (Role.OWNER, False, [STUDY_OWNERS]), (Role.ADMIN, True, [])],
)
def test_the_role_is_the_promised_one(invite, client, role, is_staff, groups):
    _, token = invite(role=role)
    reply = client.post(f"/join/{token}/", CHOSEN)
    nora = User.objects.get(username="nora")
    assert (nora.is_staff, nora.is_superuser) == (is_staff, is_staff)
    assert [group.name for group in nora.groups.all()] == groups
    assert reply.url == ("/second-step/set-up/" if is_staff else "/")


def _used(invitation, token, client):
    client.post(f"/join/{token}/", CHOSEN, follow=True)  # to the page that says welcome, which takes the message
    client.post("/logout/")


def _too_old(invitation, token, client):
    Invitation.objects.filter(pk=invitation.pk).update(expires_at=timezone.now() - timedelta(seconds=1))


def _withdrawn(invitation, token, client):
    services.revoke_invitation(invitation=invitation)


def _replaced(invitation, token, client):
    services.new_link(invitation=invitation)


def _address_taken(invitation, token, client):
    UserFactory(username="other", email="Nora@Hospital.example")


@pytest.mark.parametrize("what", [_used, _too_old, _withdrawn, _replaced])
@pytest.mark.parametrize("method", ["get", "post"])
def test_a_dead_link_gets_the_reply_of_one_that_never_was(invite, client, what, method):
    invitation, token = invite()
    what(invitation, token, client)
    people = User.objects.count()
    dead = getattr(client, method)(f"/join/{token}/", {**CHOSEN, "username": "another"})
    unknown = getattr(client, method)("/join/never-given-out/", {**CHOSEN, "username": "another"})
    assert dead.status_code == unknown.status_code == 404
    assert dead.content.replace(token.encode(), b"") == unknown.content.replace(b"never-given-out", b"")
    assert User.objects.count() == people


def test_the_address_may_have_got_an_account_meanwhile(invite, client):
    invitation, token = invite()
    _address_taken(invitation, token, client)
    assert client.post(f"/join/{token}/", CHOSEN).status_code == 404
    assert not User.objects.filter(username="nora").exists()


@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: t + "A", lambda t: t.swapcase(), lambda t: "." + t])
def test_a_tampered_link_is_dead(invite, client, change):
    _, token = invite()
    assert client.get(f"/join/{change(token)}/").status_code == 404


def test_a_token_is_256_random_bits_and_only_its_hash_is_kept(invite):
    invitation, token = invite()
    assert len(token) == 43 and services.new_link(invitation=invitation) != token
    invitation.refresh_from_db()
    assert token not in str(Invitation.objects.filter(pk=invitation.pk).values().get())
    assert len(invitation.token_sha256) == 64


def test_a_link_lasts_as_long_as_the_setting_says(invite, settings):
    settings.INVITATION_DAYS = 3
    invitation, _ = invite()
    assert abs(invitation.expires_at - timezone.now() - timedelta(days=3)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"password1": "1234", "password2": "1234"}, "too short"),
        ({"password2": "window-lantern-43"}, "didn’t match"),
        ({"password1": "nora@hospital", "password2": "nora@hospital"}, "too similar"),
        ({"username": "BOB"}, "taken"),
        ({"username": "nora berg"}, "valid username"),
    ],
)
def test_what_does_not_fit_is_said_and_the_link_lives(invite, client, bob, wrong, told):
    _, token = invite()
    reply = client.post(f"/join/{token}/", CHOSEN | wrong)
    assert reply.status_code == 422 and told in reply.content.decode()
    assert client.post(f"/join/{token}/", CHOSEN).status_code == 302


def test_somebody_who_is_signed_in_is_asked_to_sign_out_first(invite, signed_in, bob):
    _, token = invite()
    client = signed_in(bob)
    assert "signed in as bob" in client.get(f"/join/{token}/").content.decode()
    assert client.post(f"/join/{token}/", CHOSEN).status_code == 422
    assert not User.objects.filter(username="nora").exists()


def test_a_study_that_was_closed_meanwhile_is_left_out(invite, client, study):
    _, token = invite()
    study.is_open = False
    study.save()
    client.post(f"/join/{token}/", CHOSEN)
    assert not study.memberships.filter(reader__username="nora").exists()
    assert Expertise.objects.filter(person__username="nora").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"email": "BOB@hospital.example"}, "belongs to the account bob"),
        ({"verified_by": None}, "who verified it"),
        ({"expert_level": None}, "have a level"),
    ],
)
def test_an_invitation_that_cannot_be_kept_is_not_made(invite, bob, changes, told):
    User.objects.filter(pk=bob.pk).update(email="bob@hospital.example")
    with pytest.raises(services.AccountError, match=told):
        invite(**changes)
    assert not Invitation.objects.exists()


def test_an_address_has_one_invitation_at_a_time(invite, client):
    first, _ = invite()
    with pytest.raises(services.AccountError, match="new link"):
        invite(email="NORA@hospital.example")
    _too_old(first, None, None)
    second, token = invite()
    first.refresh_from_db()
    assert first.revoked_at and second.pk != first.pk
    assert client.get(f"/join/{token}/").status_code == 200


def test_the_database_refuses_what_services_never_write(invite, alice):
    invitation, _ = invite()
    later = timezone.now() + timedelta(days=1)
    rows = [
        {"email": "NORA@hospital.example", "token_sha256": "a" * 64},
        {"email": "x@x.example", "token_sha256": "b" * 64, "expert_level": 2},
        {"email": "x@x.example", "token_sha256": "c" * 64, "expert_level": 4, "verified_by": alice},
        {"email": "", "token_sha256": "d" * 64},
        {"kind": "password", "token_sha256": "e" * 64},
        {"email": "x@x.example", "token_sha256": invitation.token_sha256},
    ]
    for row in rows:
        with pytest.raises(IntegrityError), transaction.atomic():
            Invitation.objects.create(expires_at=later, **row)


# The administrator's side -----------------------------------------------------------------------------------

FORM = {"email": "nora@hospital.example", "role": "clinician", "expert_level": "2"}


def test_the_link_is_shown_once_and_works(alice, study, signed_in, client):
    admin = signed_in(alice)
    form = {**FORM, "verified_by": alice.pk, "studies": [study.pk]}
    reply = admin.post("/people/invite/", form)
    assert reply.status_code == 200 and reply["Cache-Control"] == "no-store"
    link = reply.context["link"]
    assert link.startswith("http://testserver/join/") and link in reply.content.decode()
    assert "No mail was sent" in reply.content.decode() and mail.outbox == []
    assert link.rsplit("/", 2)[1] not in admin.get("/people/").content.decode()
    assert client.post(link, CHOSEN).status_code == 302
    assert study.memberships.filter(reader__username="nora").exists()


def test_with_a_mail_server_the_link_is_mailed(alice, signed_in, settings):
    settings.MAIL_IS_CONFIGURED = True
    reply = signed_in(alice).post("/people/invite/", {**FORM, "expert_level": ""})
    (message,) = mail.outbox
    assert message.to == ["nora@hospital.example"] and reply.context["link"] in message.body
    assert Invitation.objects.get().mailed_at and "was mailed" in reply.content.decode()


def test_a_mail_server_that_fails_leaves_the_link_to_copy(alice, signed_in, settings, caplog):
    settings.MAIL_IS_CONFIGURED = True
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "localhost", 1
    reply = signed_in(alice).post("/people/invite/", {**FORM, "expert_level": ""})
    assert reply.status_code == 200 and "No mail was sent" in reply.content.decode()
    assert Invitation.objects.get().mailed_at is None and "could not be handed in" in caplog.text


def test_a_form_that_does_not_fit_keeps_what_was_typed(alice, study, signed_in):
    form = {**FORM, "expert_level": "", "specialty": "Thoracic", "studies": [study.pk]}
    reply = signed_in(alice).post("/people/invite/", form)
    assert reply.status_code == 422 and 'value="Thoracic"' in reply.content.decode()
    assert "have a level" in reply.content.decode() and not Invitation.objects.exists()


def test_a_new_link_and_a_withdrawal_from_the_page(invite, alice, signed_in, client):
    invitation, token = invite()
    admin = signed_in(alice)
    assert "nora@hospital.example" in admin.get("/people/").content.decode()
    link = admin.post(f"/people/invitations/{invitation.pk}/link/").context["link"]
    assert client.get(f"/join/{token}/").status_code == 404 and client.get(link).status_code == 200
    admin.post(f"/people/invitations/{invitation.pk}/withdraw/")
    assert client.get(link).status_code == 404
    for action in ("link", "withdraw"):
        reply = admin.post(f"/people/invitations/{invitation.pk}/{action}/", follow=True)
        assert "withdrawn" in reply.content.decode()


# The log ----------------------------------------------------------------------------------------------------


def test_a_link_that_still_works_does_not_stand_in_the_log(invite, client, monkeypatch):
    _, token = invite(email="nora@x.example")
    (handler,) = [one for one in logging.getLogger().handlers if type(one) is logging.StreamHandler]
    monkeypatch.setattr(handler, "stream", io.StringIO())
    assert client.post(f"/join/{token}/", {"username": ""}).status_code == 422
    assert Client(enforce_csrf_checks=True).post(f"/join/{token}/").status_code == 403
    client.get(f"/password/new/{token}/?x")
    written = handler.stream.getvalue()
    assert written.count("/join/.../") == 2 and "/password/new/.../" in written
    assert token not in written and client.get(f"/join/{token}/").status_code == 200
