"""The training round: before the first study, with feedback, and counted in nothing."""

import uuid
from collections import Counter

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from ratings.models import Assignment, GoldGrade, Rating
from ratings.services import (
    StudyError,
    add_images,
    create_study,
    draw_places,
    enrol_reader,
    progress_of,
    revise_protocol,
    set_gold,
    submit_rating,
    undo,
)
from tests.factories import UserFactory

TRAINING = Assignment.Kind.TRAINING


@pytest.fixture
def gold(many_images) -> list:
    """Twelve images of known grade: six poor, four acceptable, two excellent."""
    images = many_images(12)
    grades = [1] * 6 + [2] * 4 + [3] * 2
    GoldGrade.objects.bulk_create(
        GoldGrade(image=image, grade=grade, rationale=f"because it is a {grade}")
        for image, grade in zip(images, grades, strict=True)
    )
    return images


@pytest.fixture
def make_study(many_images):
    """``make_study("First", num_training_images=6)``: eight main images."""

    def make(name: str = "First", *, readers=(), **protocol):
        return create_study(name=name, images=many_images(8), readers=readers, order_seed=9, protocol=protocol)

    return make


def training_places(study, reader) -> list[Assignment]:
    return list(study.assignments.filter(reader=reader).in_training().order_by("position"))


def answer(place, value=2) -> Rating:
    return submit_rating(assignment=place, reader=place.reader, value=value, client_uuid=uuid.uuid4())


def post(client, place_id, value=2, **given):
    body = {"value": value, "client_uuid": str(uuid.uuid4()), **given}
    return client.post(f"/api/assignments/{place_id}/rating/", body, "json")


def test_the_list_begins_with_gold_images_balanced_over_the_grades(make_study, gold, bob, carol):
    study = make_study(readers=[(bob, 2), (carol, 3)], num_training_images=6)
    rounds = [training_places(study, reader) for reader in (bob, carol)]
    for places in rounds:
        assert [place.position for place in places] == list(range(6))
        assert Counter(place.image.gold.grade for place in places) == {1: 2, 2: 2, 3: 2}
    assert {place.image_id for place in rounds[0]} == {place.image_id for place in rounds[1]}
    assert [place.image_id for place in rounds[0]] != [place.image_id for place in rounds[1]]
    positions = study.assignments.filter(reader=bob).exclude(kind=TRAINING).values_list("position", flat=True)
    assert sorted(positions) == list(range(6, 14))


def test_where_a_grade_runs_out_the_others_fill_up(make_study, gold, bob):
    study = make_study(readers=[(bob, 2)], num_training_images=10)
    grades = Counter(place.image.gold.grade for place in training_places(study, bob))
    assert grades == {1: 4, 2: 4, 3: 2}


def test_as_many_as_there_are_but_not_fewer_than_three(make_study, gold, many_images, bob, carol):
    study = make_study("Many wanted", readers=[(bob, 2)], num_training_images=50)
    assert len(training_places(study, bob)) == 12
    of_another_kind = create_study(
        name="OCT", images=many_images(3, kind="OCT"), readers=[(carol, 2)], protocol={"num_training_images": 20}
    )
    assert not training_places(of_another_kind, carol)  # the gold images are chest X-rays
    for image in many_images(2, kind="OCT"):
        set_gold(image=image, grade=1, set_by=None)
    dora, emil = UserFactory.create_batch(2)
    assert len(enrol_reader(study=of_another_kind, reader=dora, expert_level=1)) == 3
    set_gold(image=many_images(1, kind="OCT")[0], grade=3, set_by=None)
    assert len(enrol_reader(study=of_another_kind, reader=emil, expert_level=1)) == 6


def test_images_of_the_study_teach_nobody_in_it(many_images, gold, bob):
    study = create_study(
        name="With gold",
        images=[*many_images(4), *gold[:8]],
        readers=[(bob, 2)],
        protocol={"num_training_images": 20},
    )
    assert {place.image for place in training_places(study, bob)} == set(gold[8:])


def test_anchors_of_the_study_teach_nobody_in_it(many_images, gold, bob):
    study = create_study(
        name="Anchored",
        images=many_images(4),
        readers=[(bob, 2)],
        protocol={"num_training_images": 20},
        anchors={1: gold[0], 3: gold[11]},
    )
    assert {place.image for place in training_places(study, bob)} == set(gold[1:11])


def test_images_of_another_study_of_the_reader_teach_nothing(make_study, many_images, gold, bob, carol):
    create_study(name="Rated elsewhere", images=[*many_images(2), *gold[:6]], readers=[(bob, 2)])
    study = make_study(readers=[(bob, 2), (carol, 2)], num_training_images=12)
    assert {place.image for place in training_places(study, bob)} == set(gold[6:])
    assert {place.image for place in training_places(study, carol)} == set(gold)


def test_who_was_taught_with_an_image_does_not_get_it_in_another_study(make_study, many_images, gold, bob, carol):
    make_study(readers=[(bob, 2)], num_training_images=12)
    other = create_study(name="Other", images=[*many_images(2), *gold[:4]], readers=[(bob, 2), (carol, 2)])
    assert add_images(study=other, images=gold[4:6]) == 2
    rated = {
        reader: set(other.assignments.filter(reader=reader).values_list("image", flat=True))
        for reader in (bob, carol)
    }
    taught = {image.pk for image in gold[:6]}
    assert not rated[bob] & taught and len(rated[bob]) == 2 and taught < rated[carol] and len(rated[carol]) == 8
    assert {entry.num_readers for entry in other.study_images.filter(image__in=gold)} == {1}


def test_a_pool_gives_nobody_what_they_were_taught_with(make_study, many_images, gold, bob):
    make_study(readers=[(bob, 2)], num_training_images=12)
    pool = create_study(
        name="Pool", images=[*many_images(2), *gold[:4]], readers=[(bob, 2)], protocol={"overlap_target": 1}
    )
    assert draw_places(study=pool, reader=bob) == 2
    assert progress_of([pool], bob)[pool.pk]["total"] == 2 and progress_of([pool])[pool.pk]["total"] == 6


def test_who_finished_a_round_has_no_other(make_study, gold, bob):
    first = make_study("First", readers=[(bob, 2)], num_training_images=4)
    places = training_places(first, bob)
    for place in places[:3]:
        answer(place)
    second = make_study("Second", readers=[(bob, 2)], num_training_images=4)
    assert len(training_places(second, bob)) == 4  # the first was never finished
    answer(places[3])
    third = make_study("Third", readers=[(bob, 2)], num_training_images=4)
    assert not training_places(third, bob)


def test_the_queue_holds_the_round_alone_until_it_is_answered(make_study, gold, bob, api):
    study = make_study(readers=[(bob, 2)], num_training_images=4)
    client, url = api(bob), f"/api/studies/{study.public_id}/queue/"
    queue = client.get(url, {"limit": 50}).json()
    assert len(queue) == 4 and all(place["is_training"] for place in queue)
    for place in queue:
        post(client, place["id"])
    queue = client.get(url, {"limit": 50}).json()
    assert len(queue) == 8 and not any(place["is_training"] for place in queue)
    client.post(f"/api/studies/{study.public_id}/undo/", {"client_uuid": str(uuid.uuid4())}, "json")
    assert len(client.get(url, {"limit": 50}).json()) == 1  # taken back: to be answered before the rest


def test_a_pool_gives_nothing_before_the_round_is_answered(many_images, gold, bob):
    study = create_study(
        name="Pool",
        images=many_images(8),
        readers=[(bob, 2)],
        protocol={"overlap_target": 1, "num_training_images": 4},
    )
    assert draw_places(study=study, reader=bob) == 0
    for place in training_places(study, bob):
        answer(place)
    assert draw_places(study=study, reader=bob) == 8
    assert {entry.num_readers for entry in study.study_images.all()} == {1}


def test_only_the_round_tells_the_grade(make_study, gold, bob, api):
    study = make_study(readers=[(bob, 2)], num_training_images=4)
    client = api(bob)
    place = training_places(study, bob)[0]
    reply = post(client, place.public_id, 3).json()
    assert reply["feedback"] == {"gold": place.image.gold.grade, "rationale": place.image.gold.rationale}
    unjudged = post(client, training_places(study, bob)[1].public_id, None, cannot_judge="other").json()
    assert unjudged["feedback"]["gold"] in (1, 2, 3)
    main = study.assignments.filter(reader=bob, kind="main").first()
    set_gold(image=main.image, grade=1, set_by=None)  # known, but no part of a round
    reply = post(client, main.public_id, 3)
    assert reply.json()["feedback"] is None and b"gold" not in reply.content
    refused = post(client, place.public_id, 3)
    assert refused.status_code == 409 and b"rationale" not in refused.content


def test_the_round_freezes_nothing_and_counts_nowhere(make_study, gold, bob, alice):
    study = make_study(readers=[(bob, 2)], num_training_images=4)
    ratings = [answer(place) for place in training_places(study, bob)]
    study.refresh_from_db()
    assert study.frozen_at is None and not study.has_begun
    assert revise_protocol(study=study, created_by=alice, repeat_share=0.1).version == 1
    progress = progress_of([study], bob)[study.pk]
    counts = {name: progress[name] for name in ("done", "total", "training_done", "training_total", "first_at")}
    assert counts == {"done": 0, "total": 8, "training_done": 4, "training_total": 4, "first_at": None}
    exportable = Rating.objects.exportable(study=study)
    assert set(exportable) == set(ratings)  # the tidy table has them
    assert not exportable.trainable().exists() and not exportable.without_training_round().exists()


def test_what_was_taught_is_not_tested(make_study, gold, many_images, bob):
    study = make_study(readers=[(bob, 2)], num_training_images=4)
    taught = training_places(study, bob)[0].image
    with pytest.raises(StudyError, match="1 of the images were shown in the study's training round"):
        add_images(study=study, images=[taught, *many_images(2)])
    other = create_study(name="Mixed", images=many_images(8), protocol={"gold_share": 0.5})
    mixed = set(other.study_images.filter(role="gold").values_list("image", flat=True))
    assert len(mixed) == 8 and not mixed & {place.image_id for place in training_places(study, bob)}
    with pytest.raises(StudyError, match="in use"):
        set_gold(image=taught, grade=1 + taught.gold.grade % 3, set_by=None)


def test_real_images_that_were_taught_are_not_mixed_in(many_images, bob):
    """A real image may have a known grade and teach; in the study it would be shown a second time."""
    taught, free = many_images(3, is_real=True), many_images(4, is_real=True)
    for image in taught:
        set_gold(image=image, grade=2, set_by=None)
    study = create_study(
        name="Real ones",
        images=[],
        readers=[(bob, 2)],
        protocol={"num_training_images": 3, "real_share": 0.5},
    )
    assert {place.image for place in training_places(study, bob)} == set(taught)
    assert add_images(study=study, images=many_images(4)) == 8
    assert set(study.study_images.filter(role="real").values_list("image", flat=True)) == {each.pk for each in free}


def test_an_answer_in_the_round_takes_one_query_more_than_another(make_study, gold, bob, api):
    study = make_study(readers=[(bob, 2)], num_training_images=4)
    client, numbers = api(bob), []
    answer(study.assignments.filter(reader=bob, kind="main").first())  # freezes the protocol
    for place in (study.assignments.filter(reader=bob, kind="main").last(), training_places(study, bob)[0]):
        with CaptureQueriesContext(connection) as captured:
            assert post(client, place.public_id).status_code == 200
        numbers.append(len(captured))
    assert numbers[1] == numbers[0] + 1


def test_later_rounds_teach_with_the_same_images(make_study, gold, bob, carol):
    first = make_study("First", readers=[(bob, 2)], num_training_images=3)
    second = make_study("Second", readers=[(carol, 2)], num_training_images=3)
    images = [{place.image_id for place in training_places(*each)} for each in ((first, bob), (second, carol))]
    assert images[0] == images[1]


def test_undo_reaches_back_into_the_round(make_study, gold, bob):
    study = make_study(readers=[(bob, 2)], num_training_images=3)
    places = training_places(study, bob)
    for place in places:
        answer(place)
    assert undo(study=study, reader=bob, client_uuid=uuid.uuid4()) == places[2]
    assert progress_of([study], bob)[study.pk]["training_done"] == 2
