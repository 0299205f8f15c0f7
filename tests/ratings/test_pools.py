"""Open pools: portions, given back places, late answers; the overlap target is never exceeded."""

import uuid

import pytest
from django.db import IntegrityError, transaction

from ratings.models import Assignment, Rating, StudyImage
from ratings.services import (
    PlaceGivenAway,
    StudyClosed,
    StudyError,
    add_images,
    create_study,
    draw_places,
    enrol_reader,
    progress_of,
    release_places,
    submit_rating,
    undo,
)
from ratings.services.pools import take_back
from tests.factories import UserFactory


def answer(place, value=2, **given):
    return submit_rating(assignment=place, reader=place.reader, value=value, client_uuid=uuid.uuid4(), **given)


def open_places(study, reader) -> list[Assignment]:
    return list(study.assignments.filter(reader=reader).open().order_by("position"))


@pytest.fixture
def make_pool(many_images):
    """``make_pool(30, target=2, num_readers=3)`` -> (study, readers)."""

    def make(num_images: int, *, target: int, num_readers: int = 3, **protocol):
        readers = UserFactory.create_batch(num_readers)
        study = create_study(
            name="Pool",
            images=many_images(num_images),
            readers=[(reader, 2) for reader in readers],
            order_seed=1,
            protocol={"overlap_target": target, **protocol},
        )
        return study, readers

    return make


def test_a_list_is_drawn_in_portions_when_it_runs_short(make_pool):
    study, (ann, *_) = make_pool(50, target=2)
    assert not study.assignments.exists()
    assert draw_places(study=study, reader=ann) == 20
    assert draw_places(study=study, reader=ann) == 0
    for place in open_places(study, ann)[:10]:
        answer(place)
    assert draw_places(study=study, reader=ann) == 0  # ten are open
    answer(open_places(study, ann)[0])
    assert draw_places(study=study, reader=ann) == 11
    positions = study.assignments.filter(reader=ann).order_by("position").values_list("position", flat=True)
    assert list(positions) == list(range(31))
    assert len(open_places(study, ann)) == 20


def test_images_begun_are_completed_before_new_ones(make_pool):
    study, (ann, ben, cat) = make_pool(60, target=2)
    draw_places(study=study, reader=ann)
    draw_places(study=study, reader=ben)
    images = [set(study.assignments.filter(reader=reader).values_list("image", flat=True)) for reader in (ann, ben)]
    assert images[0] == images[1]
    orders = [[place.image_id for place in open_places(study, reader)] for reader in (ann, ben)]
    assert orders[0] != orders[1]
    draw_places(study=study, reader=cat)
    third = set(study.assignments.filter(reader=cat).values_list("image", flat=True))
    assert not third & images[0]
    full = study.study_images.filter(num_readers=2).count()
    assert (full, study.study_images.filter(num_readers=1).count()) == (20, 20)


def test_new_images_begin_in_a_drawn_order_not_in_that_of_the_list(make_pool):
    study, (ann, *_) = make_pool(100, target=1)
    draw_places(study=study, reader=ann)
    first = sorted(study.images.order_by("pk").values_list("pk", flat=True))[:20]
    assert len(set(first) & set(study.assignments.values_list("image", flat=True))) < 12


def test_every_image_reaches_its_target_and_none_exceeds_it(make_pool):
    study, readers = make_pool(45, target=3, num_readers=4)
    while any([draw_places(study=study, reader=reader) for reader in readers]):
        for reader in readers:
            for place in open_places(study, reader)[:15]:
                answer(place)
    assert {(each.num_readers, each.max_readers) for each in study.study_images.all()} == {(3, 3)}
    assert study.assignments.count() == 45 * 3
    with pytest.raises(IntegrityError), transaction.atomic():
        StudyImage.objects.filter(study=study).update(num_readers=4)


def test_added_images_come_into_the_pool(make_pool, many_images):
    study, (ann, *_) = make_pool(5, target=2)
    assert draw_places(study=study, reader=ann) == 5
    assert draw_places(study=study, reader=ann) == 0
    assert add_images(study=study, images=many_images(4)) == 4
    assert draw_places(study=study, reader=ann) == 4
    assert set(study.assignments.values_list("block", flat=True)) == {0, 1}


def test_repeats_keep_their_distance_over_portions(make_pool):
    study, (ann, *_) = make_pool(100, target=1, repeat_share=0.1, repeat_distance=30)
    while draw_places(study=study, reader=ann):
        for place in open_places(study, ann):
            answer(place)
    places = list(study.assignments.order_by("position"))
    first = {place.image_id: place.position for place in places if place.occurrence == 1}
    repeats = [place for place in places if place.occurrence == 2]
    assert len(first) == 100 and len(repeats) == 10
    assert all(place.position - first[place.image_id] >= 30 for place in repeats)
    assert {place.kind for place in repeats} == {"repeat"}
    assert {each.num_readers for each in study.study_images.all()} == {1}  # a second showing is no second reader


def test_places_given_back_go_to_others_or_are_drawn_again(make_pool):
    study, (ann, ben, _) = make_pool(20, target=1)
    draw_places(study=study, reader=ann)
    for place in open_places(study, ann)[:5]:
        answer(place)
    assert draw_places(study=study, reader=ben) == 0
    assert release_places(study=study, reader=ann) == 15
    assert not open_places(study, ann)
    assert progress_of([study], ann)[study.pk] | {"total": 20, "done": 5} == progress_of([study], ann)[study.pk]
    assert draw_places(study=study, reader=ann) == 15
    assert [place.position for place in open_places(study, ann)] == list(range(20, 35))
    assert study.assignments.filter(reader=ann).count() == 20  # the rows are taken up again
    release_places(study=study, reader=ann)
    assert draw_places(study=study, reader=ben) == 15
    assert {each.num_readers for each in study.study_images.all()} == {1}


def test_a_late_answer_is_taken_while_there_is_room(make_pool):
    study, (ann, ben, _) = make_pool(20, target=1)
    draw_places(study=study, reader=ann)
    place = open_places(study, ann)[3]
    release_places(study=study, reader=ann)
    assert answer(place, 3).value == 3
    place.refresh_from_db()
    assert place.released_at is None
    assert study.study_images.get(image=place.image_id).num_readers == 1
    assert draw_places(study=study, reader=ben) == 19


def test_a_late_answer_to_a_place_drawn_again_meanwhile_counts_its_reader_once(make_pool):
    study, (ann, *_) = make_pool(20, target=2)
    draw_places(study=study, reader=ann)
    release_places(study=study, reader=ann)
    as_answered = study.assignments.filter(reader=ann).first()
    draw_places(study=study, reader=ann)  # in another window, before the answer gets its turn
    take_back(as_answered)
    assert {each.num_readers for each in study.study_images.all()} == {1}


def test_a_late_answer_without_room_is_refused_and_the_client_told(make_pool, api):
    study, (ann, ben, _) = make_pool(20, target=1)
    draw_places(study=study, reader=ann)
    place = open_places(study, ann)[3]
    release_places(study=study, reader=ann)
    draw_places(study=study, reader=ben)
    with pytest.raises(PlaceGivenAway):
        answer(place)
    reply = api(ann).post(
        f"/api/assignments/{place.public_id}/rating/", {"value": 1, "client_uuid": str(uuid.uuid4())}, "json"
    )
    assert reply.status_code == 409
    assert reply.json()["code"] == "place_given_away" and "other readers" in reply.json()["detail"]
    assert not Rating.objects.exists()


def test_a_replay_of_an_answer_that_was_stored_stays_one_after_the_release(make_pool):
    study, (ann, *_) = make_pool(20, target=1)
    draw_places(study=study, reader=ann)
    place, key = open_places(study, ann)[0], uuid.uuid4()
    submit_rating(assignment=place, reader=ann, value=1, client_uuid=key)
    release_places(study=study, reader=ann)
    assert submit_rating(assignment=place, reader=ann, value=1, client_uuid=key).revision == 1


def test_nothing_is_given_back_where_there_is_no_pool(study, bob):
    with pytest.raises(StudyError, match="no open pool"):
        release_places(study=study, reader=bob)
    assert draw_places(study=study, reader=bob) == 0


def test_a_closed_study_gives_nothing_out(make_pool):
    study, (ann, *_) = make_pool(20, target=1)
    study.is_open = False
    study.save()
    with pytest.raises(StudyClosed):
        draw_places(study=study, reader=ann)


def test_the_queue_draws_but_only_when_it_is_read(make_pool, api):
    study, (ann, *_) = make_pool(30, target=1)
    client, url = api(ann), f"/api/studies/{study.public_id}/queue/"
    client.head(url)
    client.options(url)
    assert not study.assignments.exists()
    first = client.get(url, {"limit": 50}).json()
    assert len(first) == 20 and client.get(url, {"limit": 50}).json() == first
    for place in first[:11]:
        client.post(f"/api/assignments/{place['id']}/rating/", {"value": 1, "client_uuid": place["id"]}, "json")
    assert len(client.get(url, {"limit": 50}).json()) == 19  # nine that were open, and the pool's last ten


def test_a_queue_that_is_long_enough_costs_no_draw(make_pool, api, django_assert_num_queries):
    study, (ann, *_) = make_pool(30, target=1)
    client, url = api(ann), f"/api/studies/{study.public_id}/queue/"
    client.get(url)
    with django_assert_num_queries(2):  # the study and the places; the person is known here
        client.get(url)


def test_progress_says_what_a_reader_can_still_get(make_pool, api):
    study, (ann, ben, _) = make_pool(30, target=1)
    assert progress_of([study], ann)[study.pk]["total"] == 30  # before anything is given
    draw_places(study=study, reader=ann)
    answer(open_places(study, ann)[0])
    draw_places(study=study, reader=ben)
    row = api(ann).get(f"/api/studies/{study.public_id}/progress/").json()
    assert (row["done"], row["total"], row["left_in_pool"]) == (1, 20, 0)
    assert [(each["done"], each["total"]) for each in study.reader_progress()] == [(1, 20), (0, 10), (0, 0)]
    both = progress_of([study])[study.pk]
    assert (both["done"], both["total"], both["left_in_pool"]) == (1, 30, 0)


def test_who_joins_later_draws_too(make_pool):
    study, (ann, *_) = make_pool(10, target=2, num_readers=1)
    dora = UserFactory()
    assert enrol_reader(study=study, reader=dora, expert_level=1) == []
    assert draw_places(study=study, reader=dora) == 10


def test_a_first_showing_given_back_while_its_repeat_stands_breaks_no_list(make_pool):
    study, (ann, ben, _) = make_pool(30, target=1, repeat_share=0.5, repeat_distance=1)
    draw_places(study=study, reader=ann)
    for place in open_places(study, ann):
        answer(place)
    repeat = study.assignments.filter(reader=ann, occurrence=2).first()
    first = study.assignments.get(reader=ann, image=repeat.image_id, occurrence=1)
    undo(study=study, reader=ann, client_uuid=uuid.uuid4(), assignment=first.public_id, revision=1)
    release_places(study=study, reader=ann)
    while draw_places(study=study, reader=ann):
        for place in open_places(study, ann):
            answer(place)
    keys = list(study.assignments.filter(reader=ann, released_at=None).values_list("image", "occurrence"))
    assert len(keys) == len(set(keys)) and (first.image_id, 1) not in keys and (first.image_id, 2) in keys
    assert draw_places(study=study, reader=ben) == 1  # the image goes to somebody else
    assert {each.num_readers for each in study.study_images.all()} == {1}
