"""What happens to people: called alike by pages and commands.

Every function guards first, then writes in one transaction. Links are made here and leave as their token, once: the
database keeps the token's hash.
"""

import logging
import secrets
from collections.abc import Iterable
from datetime import timedelta

from allauth.mfa.models import Authenticator
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.contrib.sessions.models import Session
from django.core.mail import EmailMessage
from django.db import transaction
from django.template.loader import render_to_string
from django.utils import timezone
from rest_framework.authtoken.models import Token

from accounts.models import AccountEvent, Invitation, Person, Role, token_sha256
from medsyn.roles import CLINICIANS, STUDY_OWNERS
from ratings.models import Study
from ratings.services import StudyError, enrol_reader, verify_level

_TOKEN_BYTES = 32
_log = logging.getLogger(__name__)


class AccountError(ValueError):
    """What was asked does not fit the account; the text says why and what to do."""


class DeadLink(AccountError):
    """The link is unknown, used, withdrawn or too old: which of them, its holder is not told."""

    def __init__(self):
        super().__init__(
            "This link does not work: it was used, withdrawn or replaced, or it is too old. Ask whoever sent it for "
            "a new one."
        )


def _give_link(invitation: Invitation) -> str:
    """A fresh link for an invitation that is then saved; returns its token, 256 random bits."""
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    invitation.token_sha256 = token_sha256(token)
    invitation.expires_at = timezone.now() + timedelta(days=invitation.days)
    return token


# Invitations ------------------------------------------------------------------------------------------------


def _require_address_free(email: str) -> None:
    person = Person.objects.named(email).first()
    if person is not None:
        raise AccountError(
            f"{email} belongs to the account {person.get_username()}. Change its role or its studies on its page."
        )


@transaction.atomic
def invite(
    *,
    email: str,
    invited_by,
    role: str = Role.CLINICIAN,
    first_name: str = "",
    last_name: str = "",
    expert_level: int | None = None,
    specialty: str = "",
    level_note: str = "",
    verified_by=None,
    studies: Iterable[Study] = (),
) -> tuple[Invitation, str]:
    """Invite ``email``; returns the invitation and its token, which nobody can read again.

    expert_level: 1 to 3, verified by ``verified_by``; needed where ``studies`` are joined on acceptance.

    Raises AccountError where the address has an account or an outstanding invitation, or the level is missing.
    """
    email, studies = email.strip(), list(studies)
    _require_address_free(email)
    if expert_level is not None and verified_by is None:
        raise AccountError(
            "A level is recorded with the person who verified it. Name them, or leave the level empty."
        )
    if studies and expert_level is None:
        raise AccountError("Readers of a study have a level of expertise. Give it, or add the studies later.")
    same = Invitation.objects.outstanding().filter(kind=Invitation.Kind.JOIN, email__iexact=email)
    if same.usable().exists():
        raise AccountError(f"{email} has an invitation already. Make a new link for it, or withdraw it first.")
    same.update(revoked_at=timezone.now())
    invitation = Invitation(
        email=email,
        role=role,
        first_name=first_name,
        last_name=last_name,
        expert_level=expert_level,
        specialty=specialty,
        level_note=level_note,
        verified_by=verified_by if expert_level is not None else None,
        created_by=invited_by,
    )
    token = _give_link(invitation)
    invitation.save()
    invitation.studies.set(studies)
    return invitation, token


@transaction.atomic
def new_link(*, invitation: Invitation) -> str:
    """Replace an invitation's link, which starts its days anew; returns the token. Raises DeadLink if it is done."""
    invitation = Invitation.objects.select_for_update().outstanding().filter(pk=invitation.pk).first()
    if invitation is None:
        raise DeadLink
    token, invitation.mailed_at = _give_link(invitation), None
    invitation.save(update_fields=["token_sha256", "expires_at", "mailed_at"])
    return token


@transaction.atomic
def revoke_invitation(*, invitation: Invitation) -> None:
    """Withdraw a link that was not used yet. Raises DeadLink if it was, or is withdrawn already."""
    if not Invitation.objects.outstanding().filter(pk=invitation.pk).update(revoked_at=timezone.now()):
        raise DeadLink


def _locked(token: str, kind: str) -> Invitation:
    """The usable link, locked until the transaction ends: of two who use it at once the second finds it used."""
    outstanding = Invitation.objects.select_for_update(of=("self",)).usable()
    invitation = outstanding.with_token(token).filter(kind=kind).first()
    if invitation is None:
        raise DeadLink
    return invitation


@transaction.atomic
def accept_invitation(*, token: str, username: str, password: str) -> Person:
    """Make the account that the invitation promises: role, verified level, studies. Returns the person.

    The password is stored as given: whoever calls has validated it. Studies that were closed meanwhile are left out.
    Raises DeadLink, or AccountError for a user name that is taken.
    """
    invitation = _locked(token, Invitation.Kind.JOIN)
    if Person.objects.named(invitation.email).exists():
        raise DeadLink
    if Person.objects.named(username).exists():
        raise AccountError("This user name is taken. Choose another one.")
    user = get_user_model().objects.create_user(
        username=username,
        email=invitation.email,
        password=password,
        first_name=invitation.first_name,
        last_name=invitation.last_name,
    )
    person = Person.objects.get(pk=user.pk)
    _give_role(person, invitation.role)
    _take_up_reading(person, invitation)
    invitation.person, invitation.accepted_at = person, timezone.now()
    invitation.save(update_fields=["person", "accepted_at"])
    _record(person, AccountEvent.Action.JOINED, invitation.created_by, Role(invitation.role).label)
    return person


def _take_up_reading(person: Person, invitation: Invitation) -> None:
    if invitation.expert_level is None:
        return
    verify_level(
        person=person,
        expert_level=invitation.expert_level,
        verified_by=invitation.verified_by,
        specialty=invitation.specialty,
        note=invitation.level_note,
    )
    for study in invitation.studies.filter(is_open=True).order_by("pk"):
        try:
            enrol_reader(study=study, reader=person, expert_level=invitation.expert_level)
        except StudyError:  # closed while the form was filled in: the owner may add the person later
            _log.warning("%s could not join %s on accepting an invitation", person, study, exc_info=True)


# Passwords --------------------------------------------------------------------------------------------------


@transaction.atomic
def offer_new_password(*, person, offered_by=None) -> tuple[Invitation, str]:
    """A link under which the person chooses a new password; earlier ones stop working. Returns it and its token.

    offered_by: the administrator, or None where the person asked for it. Raises AccountError for a closed account.
    """
    if not person.is_active:
        raise AccountError(f"The account {person.get_username()} is closed. Open it first.")
    withdraw_password_links(person=person)
    invitation = Invitation(
        kind=Invitation.Kind.PASSWORD, person_id=person.pk, email=person.email, created_by=offered_by
    )
    token = _give_link(invitation)
    invitation.save()
    _record(
        person, AccountEvent.Action.PASSWORD_LINK, offered_by, "" if offered_by else "Asked for by e-mail address"
    )
    return invitation, token


def withdraw_password_links(*, person) -> None:
    """Links that were made for a new password stop working: the person has one, or may have none."""
    links = Invitation.objects.outstanding().filter(kind=Invitation.Kind.PASSWORD, person_id=person.pk)
    links.update(revoked_at=timezone.now())


@transaction.atomic
def choose_password(*, token: str, password: str) -> Person:
    """Set the password of whom the link is for, and sign them out everywhere. Raises DeadLink.

    The second factor stays: a link for a password does not replace it.
    """
    invitation = _locked(token, Invitation.Kind.PASSWORD)
    person = Person.objects.get(pk=invitation.person_id)
    person.set_password(password)
    person.save(update_fields=["password"])
    invitation.accepted_at = timezone.now()
    invitation.save(update_fields=["accepted_at"])
    _record(person, AccountEvent.Action.PASSWORD, person)
    return person


def send_link(*, invitation: Invitation, link: str) -> bool:
    """Send the link to the invitation's address; returns whether a mail server took it. Asks the database nothing.

    Without a configured server or an address nothing is sent. A server that fails is written to the log, not raised:
    the link can be copied instead.
    """
    if not settings.MAIL_IS_CONFIGURED or not invitation.email:
        return False
    context = {"invitation": invitation, "link": link, "days": invitation.days}
    subject = "MedSyn: your invitation" if invitation.kind == Invitation.Kind.JOIN else "MedSyn: a new password"
    body = render_to_string("accounts/mail.txt", context)
    try:
        EmailMessage(subject, body, to=[invitation.email]).send()
    except OSError:  # SMTPException is one
        _log.exception("Mail for invitation %s could not be handed in", invitation.pk)
        return False
    return True


def mail_link(*, invitation: Invitation, link: str) -> bool:
    """``send_link``, and note that it was sent."""
    is_sent = send_link(invitation=invitation, link=link)
    if is_sent:
        Invitation.objects.filter(pk=invitation.pk).update(mailed_at=timezone.now())
    return is_sent


# Accounts ---------------------------------------------------------------------------------------------------


def _record(person, action: AccountEvent.Action, actor, note: str = "") -> None:
    AccountEvent.objects.create(
        person_id=person.pk, action=action, actor_id=actor.pk if actor else None, note=note.strip()
    )


def _require_another(person, by, what: str) -> None:
    """Nobody shuts themselves out."""
    if person.pk == by.pk:
        raise AccountError(f"You cannot {what} yourself. Ask another administrator.")


def _require_administrator_besides(person) -> None:
    """An administrator is always left: of two who shut each other out at once the second is refused.

    Locks the rows of all administrators, in one order for everybody, until the transaction ends.
    """
    administrators = get_user_model().objects.filter(is_staff=True, is_active=True).select_for_update()
    if not [pk for pk in administrators.order_by("pk").values_list("pk", flat=True) if pk != person.pk]:
        raise AccountError(
            f"{person.get_username()} is the only administrator left: the role was taken from you meanwhile."
        )


def _require_reason(reason: str) -> None:
    if not reason.strip():
        raise AccountError("Say why: it stays on record with the account.")


def _give_role(person, role: str) -> None:
    person.is_staff = person.is_superuser = role == Role.ADMIN
    person.save(update_fields=["is_staff", "is_superuser"])
    of_role = {Role.CLINICIAN: [CLINICIANS], Role.OWNER: [STUDY_OWNERS], Role.ADMIN: []}[Role(role)]
    person.groups.remove(*Group.objects.filter(name__in=[CLINICIANS, STUDY_OWNERS]))
    person.groups.add(*[Group.objects.get_or_create(name=name)[0] for name in of_role])


def _withdraw_what_they_made(person) -> None:
    """A link that somebody made who is trusted no more would let them in again."""
    Invitation.objects.outstanding().filter(created_by_id=person.pk).update(revoked_at=timezone.now())


@transaction.atomic
def change_role(*, person, role: str, by) -> None:
    """Make the person a clinician, study owner or administrator (a Role) from now on.

    Administrators who lose the role lose their API tokens and the links they made with it; whoever becomes one signs
    in again, and a token made for less does not become an administrator's. Raises AccountError for oneself, and for
    the only administrator left.
    """
    _require_another(person, by, "change the role of")
    if role != Role.ADMIN:
        _require_administrator_besides(person)
    was_admin = person.is_staff
    _give_role(person, role)
    if was_admin != (role == Role.ADMIN):
        Token.objects.filter(user_id=person.pk).delete()
    if was_admin and role != Role.ADMIN:
        _withdraw_what_they_made(person)
    if role == Role.ADMIN:
        end_sessions(person=person)
    _record(person, AccountEvent.Action.ROLE, by, Role(role).label)


@transaction.atomic
def close_account(*, person, by, reason: str) -> None:
    """Shut a person out at once: sessions, API tokens, links for them and links they made end. Ratings stay.

    Raises AccountError for oneself, for the only administrator left, or without a reason.
    """
    _require_another(person, by, "close the account of")
    _require_reason(reason)
    _require_administrator_besides(person)
    person.is_active = False
    person.save(update_fields=["is_active"])
    Token.objects.filter(user_id=person.pk).delete()
    withdraw_password_links(person=person)
    _withdraw_what_they_made(person)
    end_sessions(person=person)
    _record(person, AccountEvent.Action.CLOSED, by, reason)


@transaction.atomic
def open_account(*, person, by) -> None:
    """Let a person in again, with the password they had."""
    person.is_active = True
    person.save(update_fields=["is_active"])
    _record(person, AccountEvent.Action.OPENED, by)


@transaction.atomic
def reset_second_factor(*, person, by, reason: str) -> None:
    """Forget a person's authenticator and recovery codes, and sign them out: a lost telephone.

    by: another administrator; None from the command line. Raises AccountError for oneself, or where there is none.
    """
    if by is not None:
        _require_another(person, by, "reset the second factor of")
    _require_reason(reason)
    if not Authenticator.objects.filter(user_id=person.pk).exists():
        raise AccountError(f"{person.get_username()} has no second factor.")
    Authenticator.objects.filter(user_id=person.pk).delete()
    end_sessions(person=person)
    _record(person, AccountEvent.Action.SECOND_FACTOR, by, reason)


def end_sessions(*, person) -> int:
    """Sign a person out everywhere; returns how many sessions ended. Reads every live session: they are few."""
    key = str(person.pk)
    live = Session.objects.filter(expire_date__gt=timezone.now()).iterator()
    ended = [session.pk for session in live if session.get_decoded().get("_auth_user_id") == key]
    Session.objects.filter(pk__in=ended).delete()
    return len(ended)
