"""Protocols: checked when made, changed in place until the first rating, by a new version afterwards."""

import pytest

from ratings.models import Assignment, Protocol, Study
from ratings.services import (
    StudyError,
    add_images,
    create_study,
    describe_study,
    draw_places,
    enrol_reader,
    revise_protocol,
    submit_rating,
)
from tests.factories import GeneratedImageFactory, UserFactory


@pytest.fixture
def anchors(db) -> dict:
    return dict(zip((1, 2, 3), GeneratedImageFactory.create_batch(3), strict=True))


def test_a_study_is_made_with_its_protocol_and_anchors(images, anchors, alice):
    study = create_study(
        name="Whole",
        images=images,
        created_by=alice,
        protocol={"scale_texts": {"1": " unusable "}, "defects": [("blur", "Blur"), ["tilt", "Tilted"]]},
        anchors=anchors,
    )
    assert study.protocol.scale_texts == {"1": "unusable", "2": "", "3": ""}
    assert study.protocol.defects == [["blur", "Blur"], ["tilt", "Tilted"]]
    assert {anchor.grade: anchor.image for anchor in study.protocol.anchors.all()} == anchors
    assert (study.protocol.created_by, study.protocol_version, study.frozen_at) == (alice, 1, None)


@pytest.mark.parametrize(
    "field, bad, said",
    [
        ("scale_texts", {"4": "x"}, "grades 1, 2 and 3"),
        ("scale_texts", "poor", "grades 1, 2 and 3"),
        ("scale_texts", {"1": "x" * 301}, "too long"),
        ("defects", ["blur"], "pairs"),
        ("defects", [["Blur", "Blur"]], "small letter"),
        ("defects", [["blur", ""]], "label"),
        ("defects", [["blur", "Blur"], ["blur", "Other"]], "twice"),
        ("defects", [[f"d{n}", "D"] for n in range(10)], "10 defects"),
        ("overlap_target", 0, "from 1"),
        ("overlap_target", True, "whole number"),
        ("repeat_share", 0.6, "from 0 to 0.5"),
        ("repeat_share", "0.1", "number"),
        ("repeat_distance", 0, "from 1"),
        ("gold_share", -0.1, "from 0"),
        ("real_share", float("nan"), "from 0"),
        ("calibration_share", 1.1, "from 0 to 1"),
        ("num_training_images", 2.0, "whole number"),
        ("repeats", 1, "no repeats"),
    ],
)
def test_what_is_no_protocol_is_refused(images, field, bad, said):
    with pytest.raises(StudyError, match=said):
        create_study(name="Bad", images=images, protocol={field: bad})
    assert not Study.objects.exists() and not Protocol.objects.exists()


def test_shares_that_leave_too_little_are_refused(images):
    with pytest.raises(StudyError, match="0.9 together"):
        create_study(name="Bad", images=images, protocol={"gold_share": 0.5, "real_share": 0.4})


def test_before_the_first_rating_the_version_itself_changes(study, alice, anchors):
    assert study.protocol.repeat_share == 0
    made = revise_protocol(study=study, created_by=alice, anchors={1: anchors[1]}, repeat_share=0.1)
    assert made.version == 1 and study.protocol.repeat_share == 0.1  # the cached one is forgotten
    revise_protocol(study=study, created_by=alice, anchors={1: None, 2: anchors[2]})
    assert [anchor.grade for anchor in study.protocol.anchors.all()] == [2]
    assert study.protocols.count() == 1


def test_after_the_first_rating_a_new_version_is_made(study, places, rate, alice, bob, anchors):
    revise_protocol(study=study, created_by=alice, anchors=anchors, scale_texts={"1": "bad"})
    first = rate(places[0], 2)
    study.refresh_from_db()
    assert study.frozen_at == first.submitted_at
    with pytest.raises(StudyError, match="new version"):
        revise_protocol(study=study, created_by=alice, repeat_share=0.2)
    with pytest.raises(StudyError, match="new version"):
        revise_protocol(study=study, created_by=alice, reason="  ", repeat_share=0.2)
    other = GeneratedImageFactory()
    made = revise_protocol(
        study=study, created_by=alice, reason="Repeats were forgotten", anchors={3: other}, repeat_share=0.2
    )
    assert (made.version, made.reason, made.created_by) == (2, "Repeats were forgotten", alice)
    assert (study.protocol_version, study.frozen_at, study.protocol) == (2, None, made)
    assert made.scale_texts["1"] == "bad"
    assert {anchor.grade: anchor.image for anchor in made.anchors.all()} == {**anchors, 3: other}
    old = study.protocols.get(version=1)
    assert old.repeat_share == 0 and old.anchors.get(grade=3).image == anchors[3]
    second = rate(places[1], 3)
    first.refresh_from_db()
    assert (first.protocol_version, second.protocol_version) == (1, 2)
    study.refresh_from_db()
    assert study.frozen_at == second.submitted_at


def test_an_anchor_is_no_image_of_the_study_whoever_asks(study, images, anchors, alice):
    with pytest.raises(StudyError, match=f"are to be its anchors: {images[0].public_id}"):
        revise_protocol(study=study, created_by=alice, anchors={1: images[0]})
    assert not study.protocol.anchors.exists()
    revise_protocol(study=study, created_by=alice, anchors={1: anchors[1], 2: anchors[2]})
    with pytest.raises(StudyError, match=f"among the images: {anchors[1].public_id}"):
        add_images(study=study, images=[GeneratedImageFactory(), anchors[1]])
    with pytest.raises(StudyError, match="among the images"):
        create_study(name="Both", images=images, anchors={1: images[0]})
    assert study.study_images.count() == len(images) and Study.objects.count() == 1


def test_what_was_an_anchor_stays_out_of_the_study(study, places, rate, anchors, alice):
    revise_protocol(study=study, created_by=alice, anchors=anchors)
    rate(places[0], 2)
    revise_protocol(study=study, created_by=alice, reason="A better one", anchors={1: None})
    with pytest.raises(StudyError, match=f"among the images: {anchors[1].public_id}"):
        add_images(study=study, images=[anchors[1]])


def test_the_name_freezes_with_the_first_rating_for_good(study, places, rate, alice):
    describe_study(study=study, name="Chest, first reading")
    rate(places[0], 2)
    revise_protocol(study=study, created_by=alice, reason="again", repeat_share=0.1)
    with pytest.raises(StudyError, match="exports"):
        describe_study(study=study, name="Another")
    describe_study(study=study, name=" Chest, first reading ", description="New", is_open=False)
    study.refresh_from_db()
    assert (study.name, study.description, study.is_open) == ("Chest, first reading", "New", False)


def test_defects_are_those_of_the_study(images, bob, rate, alice):
    study = create_study(
        name="Own list",
        images=images,
        readers=[(bob, 2)],
        protocol={"defects": [["tilt", "Tilted"], ["blur", "Blur"]]},
    )
    first, second, third, *_ = study.assignments.order_by("position")
    assert rate(first, 1, defects=["blur", "tilt"]).defects == ["tilt", "blur"]
    with pytest.raises(StudyError, match="Unknown defects: noise. Known are tilt, blur"):
        rate(second, 1, defects=["noise"])
    revise_protocol(study=study, created_by=alice, reason="shorter", defects=[["blur", "Soft"]])
    # A page that was open before may still send what it shows.
    assert rate(third, 1, defects=["tilt", "blur"]).defects == ["blur", "tilt"]


def test_a_new_overlap_target_never_falls_below_the_readers_there_are(study, images, alice):
    # bob and carol have all six images.
    revise_protocol(study=study, created_by=alice, overlap_target=1)
    assert {(each.num_readers, each.max_readers) for each in study.study_images.all()} == {(2, 2)}
    revise_protocol(study=study, created_by=alice, overlap_target=3)
    assert {(each.num_readers, each.max_readers) for each in study.study_images.all()} == {(2, 3)}


def test_without_a_target_every_reader_gets_every_image(alice, bob, carol, many_images):
    images = many_images(30)
    study = create_study(name="Pool", images=images, readers=[(bob, 2), (carol, 2)], protocol={"overlap_target": 1})
    assert draw_places(study=study, reader=bob) == 20
    before = list(study.assignments.filter(reader=bob).values_list("pk", "position"))
    revise_protocol(study=study, created_by=alice, overlap_target=None)
    for reader in (bob, carol):
        places = study.assignments.filter(reader=reader)
        assert places.count() == places.values("image").distinct().count() == 30
    assert list(study.assignments.filter(reader=bob, position__lt=20).values_list("pk", "position")) == before
    assert {(each.num_readers, each.max_readers) for each in study.study_images.all()} == {(2, None)}


def test_repeats_stand_in_the_stored_list(bob, carol, many_images):
    images = many_images(60)
    study = create_study(
        name="Repeats",
        images=images[:40],
        readers=[(bob, 2), (carol, 2)],
        protocol={"repeat_share": 0.2, "repeat_distance": 15},
    )
    assert study.assignments.filter(reader=bob, kind="repeat", occurrence=2).count() == 8
    add_images(study=study, images=images[40:])
    for reader in (bob, carol):
        places = list(study.assignments.filter(reader=reader).order_by("position"))
        assert [place.position for place in places] == list(range(72))
        first = {place.image_id: place.position for place in places if place.occurrence == 1}
        repeats = [place for place in places if place.occurrence == 2]
        assert len(first) == 60 and len(repeats) == 12
        assert all(place.position - first[place.image_id] >= 15 for place in repeats)
    assert {each.num_readers for each in study.study_images.all()} == {2}


def test_calibration_is_a_share_of_the_main_images(bob, many_images):
    study = create_study(
        name="Calibrated",
        images=many_images(20),
        readers=[(bob, 2)],
        order_seed=4,
        protocol={"calibration_share": 0.4},
    )
    roles = dict(study.study_images.values_list("image_id", "role"))
    assert sorted(roles.values()) == ["calibration"] * 8 + ["main"] * 12
    assert dict(study.assignments.values_list("image_id", "kind")) == roles
    place = study.assignments.filter(kind=Assignment.Kind.CALIBRATION).first()
    rating = submit_rating(assignment=place, reader=bob, value=2, client_uuid=place.public_id)
    assert rating in type(rating).objects.exportable(study=study)
    assert not type(rating).objects.exportable(study=study).trainable().exists()


def test_a_late_reader_gets_what_the_others_got(study, images):
    dora = UserFactory()
    assert len(enrol_reader(study=study, reader=dora, expert_level=1)) == 6
    assert {each.num_readers for each in study.study_images.all()} == {3}
