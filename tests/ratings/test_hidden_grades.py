"""Whoever has images of a study left to rate is told no grade of others, on any page, before asking for it once."""

import pytest
from django.urls import reverse
from rest_framework.authtoken.models import Token

from ratings.models import Rating, Study
from ratings.services import create_study, draw_places, freeze_export
from tests.factories import GeneratedImageFactory, UserFactory

QUESTION = "Rate your images first"


@pytest.fixture
def both(alice, carol, rate):
    """Two images; carol rated the first, alice, who runs it, none."""
    study = create_study(name="Both", images=GeneratedImageFactory.create_batch(2), readers=[(alice, 3), (carol, 1)])
    rate(study.assignments.filter(reader=carol).first(), 3, comment="Carol said so")
    return study


@pytest.fixture
def pages(both) -> dict[str, str]:
    """By address, what tells carol's grade there."""
    rating = Rating.objects.get()
    key, export = both.public_id, freeze_export(study=both)
    return {
        reverse("ratings:study", args=[key]): "excellent 1",
        reverse("ratings:study-agreement", args=[key]): "data-summary",
        reverse("ratings:study-images", args=[key]): "1 excellent",
        reverse("ratings:study-table", args=[key, "readers.csv"]): "excellent",
        reverse("ratings:study-table", args=[key, "all.json"]): "excellent",
        reverse("ratings:study-image-grades", args=[key]): ",1,0,0,1,3.0",  # one reader: excellent
        reverse("ratings:export-file", args=[export.pk, "ratings"]): ",3,",
        reverse("ratings:export-file", args=[freeze_export().pk, "tidy"]): "Carol said so",  # of all studies
        reverse("ratings:data"): f"/data/{rating.pk}/",
        reverse("ratings:rating", args=[rating.pk]): "Carol said so",
    }


def text_at(client, address: str, **query) -> str:
    reply = client.get(address, query)
    return b"".join(reply.streaming_content).decode() if reply.streaming else reply.content.decode()


def test_no_page_tells_before_it_is_asked_to(pages, signed_in, alice):
    for address, grade in pages.items():
        text = text_at(signed_in(alice), address)
        assert QUESTION in text and grade not in text, address
        assert QUESTION not in (text := text_at(signed_in(alice), address, show="1")), address
        assert grade in text, address


def test_a_table_that_is_kept_back_is_no_file(pages, signed_in, alice):
    for address in pages:
        if "/tables/" in address or address.endswith(".csv") or "/exports/" in address:
            reply = signed_in(alice).get(address)
            assert reply.status_code == 403 and "Content-Disposition" not in reply, address


def test_the_question_is_asked_once_a_session_and_of_each_study(pages, both, signed_in, alice, carol, rate):
    client = signed_in(alice)
    client.get(both.get_absolute_url(), {"show": "1"})
    for address in pages:
        assert QUESTION not in text_at(client, address), address
    other = create_study(name="Other", images=GeneratedImageFactory.create_batch(1), readers=[(alice, 3), (carol, 1)])
    rate(other.assignments.get(reader=carol), 2)
    assert QUESTION in text_at(client, other.get_absolute_url())
    listed = text_at(client, reverse("ratings:data"))
    assert "images of Other left" in listed and other.get_absolute_url() not in listed
    assert QUESTION in text_at(signed_in(alice), both.get_absolute_url())


def test_nobody_is_asked_who_has_nothing_left_to_rate(pages, both, signed_in, alice, rate):
    for place in both.assignments.filter(reader=alice):
        rate(place, 1)
    for address in pages:
        assert QUESTION not in text_at(signed_in(alice), address), address


def test_ones_own_ratings_are_listed_and_shown(both, signed_in, alice, rate):
    own = rate(both.assignments.filter(reader=alice).first(), 1, comment="Mine")
    client = signed_in(alice)
    assert f"/data/{own.pk}/" in text_at(client, reverse("ratings:data"))
    assert "Mine" in text_at(client, reverse("ratings:rating", args=[own.pk]))


def test_a_rating_that_is_kept_back_is_not_declared_void_unseen(both, signed_in, alice):
    rating = Rating.objects.get()
    reply = signed_in(alice).post(reverse("ratings:rating-void", args=[rating.pk]), {"reason": "Guessed"})
    assert reply["Location"] == reverse("ratings:rating", args=[rating.pk])
    rating.refresh_from_db()
    assert rating.state == Rating.State.SUBMITTED


def test_the_api_leaves_the_grades_out_until_asked_for_them(both, api, alice, rate):
    rating = Rating.objects.get()
    own = rate(both.assignments.filter(reader=alice).first(), 1)
    client = api()
    client.credentials(HTTP_AUTHORIZATION=f"Token {Token.objects.create(user=alice)}")
    address, void = reverse("ratings_api:ratings"), reverse("ratings_api:rating-void", args=[rating.pk])
    assert [row["value"] for row in client.get(address).data["results"]] == [own.value]
    assert client.post(void, {"reason": "Guessed"}, format="json").status_code == 404
    told = client.get(address, {"show": "1"})
    assert {row["value"] for row in told.data["results"]} == {1, 3} and not told.cookies
    assert len(client.get(address).data["results"]) == 1
    assert client.post(f"{void}?show=1", {"reason": "Seen"}, format="json").status_code == 200


def test_the_api_gives_no_file_of_an_export_until_asked(both, api, alice):
    export = freeze_export(study=both)
    client = api(alice)
    address = reverse("ratings_api:export-file", args=[export.pk, "ratings"])
    refused = client.get(address)
    assert refused.status_code == 403 and "images of Both left" in refused.data["detail"]
    assert ",3," in b"".join(client.get(address, {"show": "1"}).streaming_content).decode()


def test_administration_lists_none_of_them_either(both, signed_in, alice, rate):
    own, client = rate(both.assignments.filter(reader=alice).first(), 1), signed_in(alice)
    listed, history = reverse("admin:ratings_rating_changelist"), reverse("admin:ratings_ratingevent_changelist")

    def keys(address: str) -> set[int]:
        return {getattr(row, "rating_id", row.pk) for row in client.get(address).context["cl"].result_list}

    assert keys(listed) == keys(history) == {own.pk}
    client.get(both.get_absolute_url(), {"show": "1"})
    assert keys(listed) == keys(history) == {own.pk, Rating.objects.get(value=3).pk}


def test_the_page_of_an_image_leaves_them_out_until_all_is_rated(both, signed_in, alice, carol, rate):
    image = both.assignments.get(reader=carol, rating__value=3).image
    address, client = image.get_absolute_url(), signed_in(alice)
    assert client.get(address).context["ratings"] == {}
    own, other = (
        both.assignments.get(reader=alice, image=image),
        both.assignments.exclude(image=image).get(reader=alice),
    )
    rate(own, 1)
    assert client.get(address).context["ratings"] == {"Poor": 1, "Acceptable": 0, "Excellent": 0}
    rate(other, 2)
    assert client.get(address).context["ratings"] == {"Poor": 1, "Acceptable": 0, "Excellent": 1}


def test_an_open_pool_is_not_told_as_long_as_it_has_images_for_the_person(alice, carol, signed_in, rate):
    """Between two batches, and before the first, the person holds no place: the images are still to come."""
    pool = create_study(
        name="Pool",
        images=GeneratedImageFactory.create_batch(2),
        readers=[(alice, 3), (carol, 1)],
        protocol={"overlap_target": 2},
    )
    assert not pool.assignments.filter(reader=alice).open().exists()
    assert list(Study.objects.left_to_rate_by(alice)) == [pool]
    assert QUESTION in text_at(signed_in(alice), pool.get_absolute_url())
    assert not Study.objects.left_to_rate_by(UserFactory()).exists()  # no reader of it
    draw_places(study=pool, reader=alice)
    for place in pool.assignments.filter(reader=alice):
        rate(place, 2)
    assert not Study.objects.left_to_rate_by(alice).exists()
    assert QUESTION not in text_at(signed_in(alice), pool.get_absolute_url())
