"""The API's page, drawn by Swagger UI under our content security policy: the page fixture fails on any refusal."""

import re

from django.urls import reverse
from drf_spectacular.generators import SchemaGenerator
from playwright.sync_api import expect

from medsyn.api_refusals import METHODS


def test_every_endpoint_is_drawn_and_opens(page, sign_in, alice):
    paths = SchemaGenerator().get_schema(request=None, public=True)["paths"]
    number = sum(method in METHODS for operations in paths.values() for method in operations)
    sign_in(alice).goto(reverse("api-docs"))
    expect(page.locator(".opblock")).to_have_count(number)
    rating = page.locator(".opblock", has_text="/api/assignments/{assignment_id}/rating/")
    rating.locator(".opblock-summary").click()
    expect(rating).to_contain_text("why it cannot be judged")
    expect(rating).to_contain_text("409")
    for sending in ("Try it out", "Authorize"):  # the page is for reading only
        expect(page.get_by_role("button", name=sending)).to_have_count(0)


def test_it_follows_the_theme(page, sign_in, alice):
    sign_in(alice).goto(reverse("api-docs"))
    expect(page.locator("html")).to_have_class(re.compile(r"\bdark-mode\b"))
    page.locator(".menu summary").click()
    page.get_by_role("button", name="Light theme").click()
    expect(page.locator("html")).not_to_have_class(re.compile(r"\bdark-mode\b"))
