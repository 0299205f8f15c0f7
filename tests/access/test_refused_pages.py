"""What somebody reads who may not, or whose form was opened under another sign-in."""

import pytest
from django.test import Client

pytestmark = pytest.mark.django_db


def test_a_refused_page_says_why_and_which_address_to_ask_for(bob, signed_in):
    reply = signed_in(bob).get("/releases/")
    page = reply.content.decode()
    assert reply.status_code == 403 and "Only administrators" in page
    assert "<code>/releases/</code>" in page and 'href="/studies/">Go to your studies' in page


def test_a_form_without_its_token_leads_on(bob):
    """Signed out to the sign-in page, signed in to the studies."""
    client = Client(enforce_csrf_checks=True)
    reply = client.post("/login/", {"username": "bob"})
    assert reply.status_code == 403 and "This form is out of date" in reply.content.decode()
    assert 'href="/login/">Sign in' in reply.content.decode()
    client.force_login(bob)
    assert 'href="/studies/">Go to your studies' in client.post("/password/").content.decode()
