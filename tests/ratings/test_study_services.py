"""Reading lists: stored once, reproducible, independent, and never reordered."""

import pytest

from ratings.models import Assignment
from ratings.services import StudyError, add_images, create_study, enrol_reader, progress_of, reading_order
from tests.factories import GeneratedImageFactory, UserFactory


def read_list(study, reader) -> list:
    places = Assignment.objects.filter(study=study, reader=reader).order_by("position")
    assert [place.position for place in places] == list(range(len(places)))
    return [place.image_id for place in places]


def test_a_reader_gets_every_image_once(study, images, bob, carol):
    assert sorted(read_list(study, bob)) == sorted(read_list(study, carol)) == sorted(image.pk for image in images)


def test_added_images_come_last_and_move_nothing(study, images, bob, carol):
    before = {reader: read_list(study, reader) for reader in (bob, carol)}
    more = GeneratedImageFactory.create_batch(5)
    assert add_images(study=study, images=[*images[:2], *more, more[0]]) == 5
    for reader in (bob, carol):
        after = read_list(study, reader)
        assert after[:6] == before[reader]
        assert sorted(after[6:]) == sorted(image.pk for image in more)
    assert add_images(study=study, images=more) == 0


def test_who_joins_late_reads_block_by_block_in_the_order_of_the_seed(study, images):
    more = GeneratedImageFactory.create_batch(5)
    add_images(study=study, images=more)
    dora = UserFactory()
    places = enrol_reader(study=study, reader=dora, expert_level=2)
    key_of = {image.pk: image.public_id for image in [*images, *more]}
    expected = [
        *reading_order(7, dora.pk, 0, [image.public_id for image in images]),
        *reading_order(7, dora.pk, 1, [image.public_id for image in more]),
    ]
    assert [key_of[pk] for pk in read_list(study, dora)] == expected == [place.image.public_id for place in places]


def test_nobody_joins_twice(study, bob):
    with pytest.raises(StudyError, match="reads 'Chest pilot' already"):
        enrol_reader(study=study, reader=bob, expert_level=2)
    assert len(read_list(study, bob)) == 6


@pytest.mark.parametrize("level", [0, 4, None])
def test_levels_are_one_to_three(study, level):
    with pytest.raises(StudyError, match="expert_level"):
        enrol_reader(study=study, reader=UserFactory(), expert_level=level)


@pytest.mark.parametrize("name", ["", "   ", "Chest pilot"])
def test_a_study_needs_a_name_of_its_own(study, images, name):
    with pytest.raises(StudyError, match="name"):
        create_study(name=name, images=images)


def test_a_seed_is_drawn_and_recorded(images):
    seeds = {create_study(name=f"Drawn {n}", images=[]).order_seed for n in range(3)}
    assert len(seeds) == 3


def test_progress_is_two_queries_however_many_readers(study, places, bob, rate, django_assert_num_queries):
    other = create_study(name="Empty", images=[])
    rate(places[0], 1, active_ms=1000)
    rate(places[1], 1, active_ms=3000)
    with django_assert_num_queries(2):
        progress = progress_of([study, other])
    assert progress[study.pk] == progress[study.pk] | {"total": 12, "done": 2, "mean_active_ms": 2000}
    assert other.pk not in progress
    assert progress_of([study], bob)[study.pk]["total"] == 6
    with django_assert_num_queries(2):
        rows = study.reader_progress()
    assert [(row["reader"], row["done"], row["total"]) for row in rows] == [("bob", 2, 6), ("carol", 0, 6)]
