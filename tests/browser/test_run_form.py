"""The form of a new training run, as an administrator meets it."""

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def test_a_signed_out_administrator_is_told_so_and_not_of_a_lost_connection(sign_in, alice):
    page = sign_in(alice)
    page.goto("/training/new/rlhf/")
    page.context.clear_cookies(name="sessionid")
    page.get_by_label("Name", exact=False).first.fill("Pilot")
    expect(page.locator("[data-cost-figures]")).to_have_text("It could not be asked: you are signed out.")
