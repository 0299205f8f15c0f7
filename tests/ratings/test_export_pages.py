"""Exports by page and API: whose they are, how often, and what is told of a repetition."""

import pytest
from django.core.cache import cache
from django.urls import reverse

from ratings.export_api import ExportThrottle
from ratings.models import Export, Study
from ratings.services import create_study, freeze_export, freeze_images
from tests.factories import StudyOwnerFactory


@pytest.fixture(autouse=True)
def nobody_has_exported_yet(db):
    cache.clear()


@pytest.fixture
def olga(db):
    """A study owner."""
    return StudyOwnerFactory(username="olga")


@pytest.fixture
def own(study, places, rate, olga) -> Study:
    """olga's study, with one rating."""
    Study.objects.filter(pk=study.pk).update(created_by=olga)
    rate(places[0], 2)
    study.refresh_from_db()
    return study


@pytest.fixture
def foreign(images, carol, rate):
    """An export of somebody else's study."""
    other = create_study(name="Other", images=images, readers=[(carol, 2)])
    rate(other.assignments.first(), 1)
    return freeze_export(study=other)


def test_an_owner_exports_downloads_and_repeats_own_studies_only(own, foreign, olga, signed_in):
    browser = signed_in(olga)
    assert browser.post("/data/exports/", {"study": str(own.public_id)}).status_code == 302
    assert browser.post("/data/exports/", {"study": str(own.public_id), "content": "images"}).status_code == 302
    images, ratings = Export.objects.filter(created_by=olga)
    text = browser.get("/data/exports/").content.decode()
    assert ratings.sha256 in text and images.sha256 in text and foreign.sha256 not in text and "Other" not in text
    assert browser.get(f"/data/exports/{images.pk}/images/").getvalue().startswith(b"image_uuid,")
    again = browser.post(f"/data/exports/{ratings.pk}/rerun/", follow=True).content.decode()
    assert f"has the same bytes as export {ratings.pk}" in again and f"same bytes as {ratings.pk}" in again
    for refused in ({}, {"study": str(foreign.study.public_id)}, {"content": "images"}):
        assert browser.post("/data/exports/", refused).status_code == 422
    for url in (f"/data/exports/{foreign.pk}/ratings/", f"/data/exports/{foreign.pk}/dictionary/"):
        assert browser.get(url).status_code == 404
    assert browser.post(f"/data/exports/{foreign.pk}/rerun/").status_code == 404


def test_an_owner_s_api_knows_own_studies_only(own, foreign, olga, api):
    client = api(olga)
    made = client.post("/api/exports/", {"study": str(own.public_id)}, "json")
    assert made.status_code == 201 and made.json()["created_by"] == "olga"
    assert set(made.json()["files"]) == {"ratings", "tidy", "dictionary"}
    assert client.post("/api/exports/", {"study": str(own.public_id), "content": "images"}, "json").status_code == 201
    for refused in ({}, {"study": str(foreign.study.public_id)}, {"content": "images"}):
        assert client.post("/api/exports/", refused, "json").status_code == 400
    assert [row["id"] for row in client.get("/api/exports/").json()["results"]] == [
        export.pk for export in Export.objects.filter(study=own)
    ]
    again = client.post(f"/api/exports/{made.json()['id']}/rerun/").json()
    assert (again["rerun_of"], again["differing_files"]) == (made.json()["id"], [])
    assert client.get(again["files"]["tidy"]["url"]).getvalue().startswith(b"study,")
    for url in (f"/api/exports/{foreign.pk}/", f"/api/exports/{foreign.pk}/tidy/"):
        assert client.get(url).status_code == 404
    assert client.post(f"/api/exports/{foreign.pk}/rerun/").status_code == 404


def test_readers_export_nothing(own, bob, signed_in, api):
    export = freeze_export(study=own)
    for name in ("exports", "export-rerun", "export-file"):
        arguments = {"exports": [], "export-rerun": [export.pk], "export-file": [export.pk, "tidy"]}[name]
        assert signed_in(bob).post(reverse(f"ratings:{name}", args=arguments)).status_code == 404
        assert signed_in(bob).get(reverse(f"ratings:{name}", args=arguments)).status_code == 404
        assert api(bob).post(reverse(f"ratings_api:{name}", args=arguments)).status_code == 403
    assert Export.objects.count() == 1


def test_too_many_exports_in_an_hour_have_to_wait(own, alice, api, signed_in, monkeypatch):
    monkeypatch.setattr(ExportThrottle, "rate", "2/hour")
    for status in (201, 201, 429):
        assert api(alice).post("/api/exports/", {"study": str(own.public_id)}, "json").status_code == status
    assert api(alice).get("/api/exports/").status_code == 200
    refused = signed_in(alice).post("/data/exports/", {"study": str(own.public_id)})
    assert refused.status_code == 429 and "Too many exports" in refused.content.decode()


def test_a_difference_is_told_on_the_page(own, alice, signed_in, settings):
    export = freeze_images(study=own)
    Export.objects.filter(pk=export.pk).update(code_version="0.0.1+older")
    export.study.images.update(sha256="1" * 64)
    text = signed_in(alice).post(f"/data/exports/{export.pk}/rerun/", follow=True).content.decode()
    assert f"differs from export {export.pk} in: images" in text and "0.0.1+older" in text


def test_a_lost_file_is_said_to_be_lost(own, alice, api):
    export = freeze_export(study=own)
    export.path_of("tidy").unlink()
    for name in ("tidy", "images", "path"):
        assert api(alice).get(f"/api/exports/{export.pk}/{name}/").status_code == 404


def test_a_table_of_images_as_they_stand_is_the_one_that_is_recorded(own, olga, signed_in):
    live = signed_in(olga).get(reverse("ratings:study-image-grades", args=[own.public_id])).getvalue()
    assert live == freeze_images(study=own).path.read_bytes()
