"""The page of releases: compared, activated, rolled back."""

import pytest
from django.urls import reverse

from generation.models import Release
from tests.generation.small_releases import make_release

pytestmark = pytest.mark.django_db


@pytest.fixture
def admin(signed_in, alice):
    return signed_in(alice)


def test_releases_are_compared_activated_and_rolled_back(admin):
    estimate = {"value": 0.7625, "low": 0.6, "high": 0.8, "images": 24}
    first = make_release(
        "first", active=True, report={"auc": 0.71, "pass_rate": 0.4, "new": estimate, "selector": {"brier": estimate}}
    )
    second = make_release("second", report={"auc": 0.83})
    page = admin.get("/releases/")
    comparison = page.context["comparison"]
    assert comparison.estimates == [  # named and rounded as on the page of the run, the half upwards
        ("Selector: Brier score", ["0.763 (0.600 to 0.800)", None]),
        ("new", ["0.763 (0.600 to 0.800)", None]),
    ]
    assert [release.name for release in comparison.releases] == ["first", "second"]
    assert dict(comparison.rows) == {"AUC": ["0.71", "0.83"], "pass rate": ["0.4", None]}
    assert "Activate second?" in page.content.decode()
    admin.post(reverse("generation:release-activate", args=[second.pk]))
    assert Release.objects.get(is_active=True) == second
    page = admin.get("/releases/").content.decode()
    assert "Roll back to first?" in page and "filter at 0.60, as before second" in page
    admin.post(reverse("generation:release-roll-back"))
    assert Release.objects.get(is_active=True) == first
    page = admin.get("/releases/").content.decode()
    assert "rolled back" in page and "Roll back to" not in page, "nothing was active before the first"
    history = page.split("What was active when")[1].split("<tbody>")[1]
    assert [line.count("alice") for line in history.split("</tr>")[:3]] == [1, 1, 0]
    refused = admin.post(reverse("generation:release-roll-back"), follow=True).content.decode()
    assert "nothing to roll back to" in refused


def test_a_damaged_release_stays_inactive_and_the_page_says_why(admin):
    first, second = make_release("first", active=True), make_release("second")
    (second.folder / "weights.safetensors").write_bytes(b"changed")
    page = admin.post(reverse("generation:release-activate", args=[second.pk]), follow=True).content.decode()
    assert "cannot be served" in page
    assert Release.objects.get(is_active=True) == first
