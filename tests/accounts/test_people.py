"""The pages of people: what they show, change and keep on record."""

import pytest
from django.contrib.auth.models import Group
from django.core.management import call_command
from rest_framework.authtoken.models import Token

from accounts import services
from accounts.checks import check_second_factor, check_shared_cache
from accounts.models import AccountEvent, Person
from medsyn.roles import CLINICIANS, STUDY_OWNERS
from ratings.models import Expertise
from ratings.services import verify_level
from tests.factories import UserFactory


@pytest.fixture
def admin(alice, signed_in):
    return signed_in(alice)


def shown(client, **query) -> list[str]:
    """User names in the list, in its order."""
    return [person.username for person in client.get("/people/", query).context["page"].object_list]


@pytest.fixture
def crowd(alice, bob, carol, olga, study):
    """alice administers, olga owns studies, bob reads at level 3, carol is out, one has no sign-in."""
    verify_level(person=bob, expert_level=3, verified_by=alice)
    services.close_account(person=carol, by=alice, reason="Left")
    imported = UserFactory(username="imported")
    imported.set_unusable_password()
    imported.save()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ["alice", "bob", "carol", "olga"]),
        ({"q": "HOSPITAL.example"}, ["olga"]),
        ({"role": "admin"}, ["alice"]),
        ({"role": "owner"}, ["olga"]),
        ({"role": "clinician"}, ["bob", "carol"]),
        ({"level": "3"}, ["bob"]),
        ({"level": "none"}, ["alice", "carol", "olga"]),
        ({"state": "open"}, ["alice", "bob", "olga"]),
        ({"state": "closed"}, ["carol"]),
        ({"state": "none"}, ["imported"]),
        ({"second_factor": "yes"}, []),
        ({"second_factor": "no", "role": "owner"}, ["olga"]),
        ({"role": "emperor"}, []),
        ({"sort": "-name"}, ["olga", "carol", "bob", "alice"]),
        ({"sort": "-studies", "state": "open"}, ["bob", "olga", "alice"]),
    ],
)
def test_filter_and_order(crowd, admin, query, expected):
    assert shown(admin, **query) == expected


def test_the_list_has_pages(admin, db):
    UserFactory.create_batch(30)
    assert len(shown(admin)) == 25 and len(shown(admin, page=2)) == 6


def test_a_person_in_full(crowd, admin, bob, person_of):
    person = person_of(bob)
    assert (person.role, person.level, person.num_studies, person.has_second_factor) == ("clinician", 3, 1, False)
    page = admin.get(f"/people/{bob.pk}/").content.decode()
    assert "Chest pilot" in page and "0 <span" in page


def test_levels_keep_their_history_and_reach_open_studies(study, admin, alice, olga, bob):
    form = {"expert_level": "3", "specialty": "Thoracic", "verified_by": olga.pk, "level_note": "Board certificate"}
    assert admin.post(f"/people/{bob.pk}/level/", form).status_code == 302
    assert admin.post(f"/people/{bob.pk}/level/", {**form, "expert_level": "1"}).status_code == 302
    rows = Expertise.objects.of(bob)
    assert [(row.expert_level, row.verified_by, row.note) for row in rows] == [
        (1, olga, "Board certificate"),
        (3, olga, "Board certificate"),
    ]
    assert study.memberships.get(reader=bob).expert_level == 1
    page = admin.get(f"/people/{bob.pk}/").content.decode()
    assert page.index("1 <span") < page.index("Board certificate") and "olga" in page


@pytest.mark.parametrize("wrong", [{"expert_level": "4"}, {"expert_level": ""}, {"verified_by": ""}])
def test_a_level_is_1_to_3_and_somebodys_word(study, admin, alice, bob, wrong):
    form = {"expert_level": "3", "verified_by": alice.pk}
    assert admin.post(f"/people/{bob.pk}/level/", form | wrong).status_code == 422
    assert not Expertise.objects.exists() and study.memberships.get(reader=bob).expert_level == 2


def test_a_clinician_vouches_for_nobody(admin, bob, carol):
    assert admin.post(f"/people/{bob.pk}/level/", {"expert_level": "3", "verified_by": carol.pk}).status_code == 422


def test_roles_change_and_are_on_record(admin, alice, bob, person_of):
    for role, groups, is_staff in (
        ("owner", [STUDY_OWNERS], False),
        ("admin", [], True),
        ("clinician", [CLINICIANS], False),
    ):
        assert admin.post(f"/people/{bob.pk}/role/", {"role": role}).status_code == 302
        bob.refresh_from_db()
        assert (bob.is_staff, bob.is_superuser) == (is_staff, is_staff)
        assert [group.name for group in bob.groups.all()] == groups
        assert person_of(bob).role == role
    events = bob.account_events.all()
    assert [(event.action, event.note, event.actor) for event in events] == [
        (AccountEvent.Action.ROLE, note, alice) for note in ("Clinician", "Administrator", "Study owner")
    ]


def test_a_token_lasts_as_long_as_what_it_was_made_for(admin, bob):
    """Tokens are not asked for a second step: one of a clinician must not become an administrator's unseen."""
    for role, survives in (("owner", True), ("admin", False), ("admin", True), ("clinician", False)):
        token = Token.objects.get_or_create(user=bob)[0]
        admin.post(f"/people/{bob.pk}/role/", {"role": role})
        assert Token.objects.filter(pk=token.pk).exists() is survives, role


def test_other_groups_of_a_person_stay(admin, bob):
    bob.groups.add(Group.objects.create(name="Night shift"))
    admin.post(f"/people/{bob.pk}/role/", {"role": "owner"})
    assert {group.name for group in bob.groups.all()} == {"Night shift", STUDY_OWNERS}


def test_nobody_shuts_themselves_out(admin, alice):
    assert admin.post(f"/people/{alice.pk}/role/", {"role": "clinician"}).status_code == 422
    assert admin.post(f"/people/{alice.pk}/state/", {"close-reason": "Tired"}).status_code == 422
    alice.refresh_from_db()
    assert alice.is_staff and alice.is_active and not AccountEvent.objects.exists()


def test_closing_wants_a_reason_and_leaves_the_ratings(study, admin, bob):
    assert admin.post(f"/people/{bob.pk}/state/", {"close-reason": ""}).status_code == 422
    assert admin.post(f"/people/{bob.pk}/state/", {"close-reason": "Left the hospital"}).status_code == 302
    bob.refresh_from_db()
    assert not bob.is_active and study.assignments.filter(reader=bob).count() == 4
    page = admin.get(f"/people/{bob.pk}/").content.decode()
    assert "Left the hospital" in page and "Open the account again" in page
    assert admin.post(f"/people/{bob.pk}/password/").url == f"/people/{bob.pk}/", "no link for a closed account"
    admin.post(f"/people/{bob.pk}/state/", {"open": "1"})
    bob.refresh_from_db()
    assert bob.is_active


def test_readers_without_sign_in_get_no_password(admin, crowd):
    imported = Person.objects.get(username="imported")
    assert admin.post(f"/people/{imported.pk}/password/").status_code == 404
    assert "new password" not in admin.get(f"/people/{imported.pk}/").content.decode()


@pytest.mark.django_db(transaction=True)
@pytest.mark.slow
def test_groups_come_and_go_with_their_migration():
    try:
        call_command("migrate", "accounts", "0001", verbosity=0)
        assert not Group.objects.filter(name__in=[CLINICIANS, STUDY_OWNERS]).exists()
    finally:
        call_command("migrate", "accounts", verbosity=0)
    assert Group.objects.filter(name__in=[CLINICIANS, STUDY_OWNERS]).count() == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"IS_PRODUCTION": True, "REQUIRE_MFA": True}, []),
        ({"IS_PRODUCTION": True, "REQUIRE_MFA": False}, ["accounts.W001"]),
        (
            {
                "IS_PRODUCTION": True,
                "REQUIRE_MFA": True,
                "CACHES": {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
            },
            ["accounts.W002"],
        ),
    ],
)
def test_production_is_warned(settings, changes, expected):
    for name, value in changes.items():
        setattr(settings, name, value)
    found = check_second_factor(None) + check_shared_cache(None)
    assert [message.id for message in found] == expected and all(message.hint for message in found)
