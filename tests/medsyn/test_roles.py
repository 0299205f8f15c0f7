"""The three roles: what follows from an account, and what it costs to ask."""

import pytest
from django.contrib.auth.models import AnonymousUser
from django.template.loader import render_to_string
from django.test import RequestFactory

from medsyn.roles import IsAdmin, IsStudyOwner, is_admin, is_study_owner
from tests.factories import StudyOwnerFactory


@pytest.fixture
def owner(db):
    return StudyOwnerFactory(username="owner")


def test_what_each_role_may(alice, owner, bob):
    assert [is_admin(person) for person in (AnonymousUser(), bob, owner, alice)] == [False, False, False, True]
    assert [is_study_owner(person) for person in (AnonymousUser(), bob, owner, alice)] == [False, False, True, True]


def test_asking_costs_one_query_at_most(alice, owner, bob, django_assert_num_queries):
    for person, queries in ((owner, 1), (owner, 0), (bob, 1), (bob, 0), (alice, 0), (AnonymousUser(), 0)):
        with django_assert_num_queries(queries):
            is_study_owner(person)


def test_permission_classes_say_the_same(rf, alice, owner, bob):
    for person in (AnonymousUser(), bob, owner, alice):
        request = rf.get("/")
        request.user = person
        assert IsAdmin().has_permission(request, None) == is_admin(person)
        assert IsStudyOwner().has_permission(request, None) == is_study_owner(person)


def test_the_bar_shows_an_owner_studies_and_data(owner, bob):
    def bar(person) -> str:
        request = RequestFactory().get("/studies/")
        request.user = person
        return render_to_string("_topbar.html", request=request)

    assert 'href="/data/"' in bar(owner) and 'href="/training/"' not in bar(owner)
    assert 'href="/people/"' not in bar(owner)
    assert 'href="/data/"' not in bar(bob)
