"""Tidy tables read back: who, when, what; a verdict on every row; memory that does not grow with them."""

import csv
import shutil
import tracemalloc
import uuid
from datetime import UTC, datetime

import pytest
from django.core.management import CommandError, call_command

from generation.models import GeneratedImage
from ratings.csv_schema import RatingsCSVError
from ratings.export import TIDY_COLUMNS
from ratings.models import Assignment, Export, GoldGrade, Rating, RatingEvent, Study, StudyImage
from ratings.services import StudyError, freeze_export, import_ratings, remark, submit_rating
from tests.ratings.many_ratings import fill

# What a table does not bring back: names that are made anew, and where files lie.
OF_THE_PLACE = {"study", "study_uuid", "reader", "image_path", "source", "release"}
AT = datetime(2026, 5, 4, 3, 2, 1, 987000, tzinfo=UTC)


def rows_of(path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path, rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def tidy(study, places, bob, carol, rate):
    """The tidy table of a study in which every kind of answer was given."""
    Assignment.objects.filter(pk=places[4].pk).update(kind="repeat", occurrence=2, block=1)
    GoldGrade.objects.create(image=places[1].image, grade=2)
    Assignment.objects.filter(pk=places[1].pk).update(kind="gold")
    display = {
        "viewport_width": 1440,
        "viewport_height": 900,
        "device_pixel_ratio": 1.5,
        "zoom": 2.0,
        "inverted": True,
    }
    seen = {"shown_at": AT, "first_input_at": AT, "active_ms": 1234, "display": display, "client_time": AT}
    rate(places[0], 1, comment="=late, but true", **seen)
    remark(assignment=places[0], reader=bob, client_uuid=uuid.uuid4(), revision=1, defects=["noise"], comment="-x")
    rate(places[1], 2)
    rate(places[4], 3)
    submit_rating(
        assignment=places[2],
        reader=bob,
        client_uuid=uuid.uuid4(),
        value=None,
        cannot_judge="views",
        comment="two\nlines",
    )
    rate(study.assignments.filter(reader=carol).first(), 3)
    return freeze_export(study=study).path_of("tidy")


@pytest.fixture
def elsewhere(tidy, artifact_root, settings, tmp_path):
    """The same table and its images, in an empty database."""
    shutil.copytree(artifact_root, tmp_path / "brought")
    table = tmp_path / "brought" / tidy.relative_to(artifact_root)
    for model in (RatingEvent, Rating, Assignment, StudyImage, GoldGrade, Export):
        model.objects.all().delete()
    Study.objects.all().update(name="the old one")
    GeneratedImage.objects.all().delete()
    settings.ARTIFACT_ROOT = tmp_path / "new"
    return table


def test_a_round_trip_brings_back_all_but_what_belongs_to_the_place(elsewhere, tmp_path):
    before = rows_of(elsewhere)
    study = import_ratings(path=elsewhere, study_name="Back", report=tmp_path / "report.csv")
    after = rows_of(freeze_export(study=study).path_of("tidy"))
    assert len(after) == len(before) == 5
    for name in (column.name for column in TIDY_COLUMNS if column.name not in OF_THE_PLACE):
        assert [row[name] for row in after] == [row[name] for row in before], name
    pairs = {(old["reader"], new["reader"]) for old, new in zip(before, after, strict=True)}
    assert len(pairs) == len({old for old, _ in pairs}) == len({new for _, new in pairs}) == 2
    assert {row["source"] for row in after} == {"imported"}
    assert [row["status"] for row in rows_of(tmp_path / "report.csv")] == ["imported"] * 5


def test_what_was_brought_back_is_a_study_like_any_other(elsewhere):
    study = import_ratings(path=elsewhere, study_name="Back")
    assert study.frozen_at is not None and study.memberships.count() == 2
    assert {member.reader.is_active for member in study.memberships.all()} == {False}
    assert {entry.role for entry in study.study_images.all()} >= {"gold", "main"}
    assert sum(study.study_images.values_list("num_readers", flat=True)) == 5
    rating = Rating.objects.get(assignment__study=study, comment="-x")
    event = rating.events.get()
    assert (rating.revision, event.revision, event.action) == (2, 2, "submit")
    assert (rating.shown_at, rating.active_ms, rating.display["zoom"]) == (AT, 1234, 2.0)
    assert rating.defects == event.defects == ["noise"] and event.comment == "-x"
    assert GoldGrade.objects.get().grade == 2
    assert all(image.path.is_file() for image in study.images.all())


def test_versions_and_codes_that_the_table_names_are_there_afterwards(tidy):
    rows = rows_of(tidy)
    rows[0] |= {"protocol_version": "3", "defects": "streaks"}
    write_rows(tidy, rows)
    study = import_ratings(path=tidy, study_name="Versions")
    assert list(study.protocols.values_list("version", flat=True)) == [1, 2, 3] and study.protocol_version == 3
    assert ["streaks", "streaks"] in study.protocol.defects


def test_images_that_are_known_need_no_file(tidy, study):
    for image in GeneratedImage.objects.all():
        image.path.unlink()
    again = import_ratings(path=tidy, study_name="Known")
    assert set(again.images.all()) < set(study.images.all())


def test_a_table_brings_no_copy_of_a_training_image_before_readers(tidy, study):
    known = GeneratedImage.objects.filter(public_id=rows_of(tidy)[0]["image_uuid"])
    assert known.update(verdict="blocked", resembles={"name": "patient_7.png"}) == 1
    with pytest.raises(RatingsCSVError, match="blocked here"):
        import_ratings(path=tidy, study_name="Again")
    assert not Study.objects.filter(name="Again").exists()


def test_every_row_has_a_verdict(tidy, tmp_path):
    good = rows_of(tidy)
    changes = [
        ({"rating": "4"}, "rating is 4, not one of 1 to 3"),
        ({"rating": ""}, "one of them must stand"),
        ({"cannot_judge": "tired"}, "one of them must stand"),
        ({"state": "void"}, "state is 'void'"),
        ({"reader": ""}, "reader is empty"),
        ({"expert_level": ""}, "expert_level is empty"),
        ({"prompt": "normal"}, "has no prefix"),
        ({"modality": "OCT"}, "modality is OCT but"),
        ({"modality": "PET"}, "Unknown modality"),
        ({"image_sha256": "1" * 63}, "not 64 hexadecimal digits"),
        ({"image_uuid": "x"}, "image_uuid is 'x'"),
        ({"image_uuid": str(uuid.uuid4()), "image_sha256": "1" * 64}, "not image_sha256"),
        ({"image_uuid": str(uuid.uuid4()), "image_sha256": "1" * 64, "image_path": "gone.png"}, "which is not there"),
        ({"study_uuid": str(uuid.uuid4())}, "import one study at a time"),
        ({"assignment_kind": "best"}, "assignment_kind is 'best'"),
        ({"occurrence": "0"}, "occurrence is 0"),
        ({"shown_at": "yesterday"}, "shown_at is 'yesterday'"),
        ({"zoom": "near"}, "zoom is 'near'"),
        ({"zoom": "nan"}, "zoom is 'nan'"),
        ({"window_width": "inf"}, "window_width is 'inf'"),
        ({"seed": str(2**63)}, "seed is 9223372036854775808"),
        ({"patient": "P" * 101}, "patient has 101 characters"),
        ({"inverted": "yes"}, "inverted is 'yes'"),
        ({"defects": "Noise!"}, "defects: 'Noise!'"),
        ({"rating": "3"}, "line 2 has another answer"),
        ({"occurrence": "2"}, "is taken by an earlier line"),
        ({}, "known already"),
    ]
    write_rows(tidy, [*good, *(good[0] | change for change, _ in changes)])
    report = tmp_path / "report.csv"
    with pytest.raises(RatingsCSVError, match="rating is 4") as caught:
        import_ratings(path=tidy, study_name="Bad", report=report)
    assert len(caught.value.faults) == len(changes) - 1 and not Study.objects.filter(name="Bad").exists()
    told = rows_of(report)
    assert [row["status"] for row in told[:5]] == ["not imported"] * 5 and len(told) == len(good) + len(changes)
    for row, (change, reason) in zip(told[5:], changes, strict=True):
        assert reason in (row["reason"] or row["status"]), change
    call_command("import_ratings", tidy, "--study", "Good ones", "--skip-bad-rows", "--report", report)
    told = rows_of(report)
    assert [row["status"] for row in told] == ["imported"] * 5 + ["refused"] * (len(changes) - 1) + ["known already"]
    assert Rating.objects.filter(assignment__study__name="Good ones").count() == 5
    assert [int(row["line"]) for row in told] == sorted(int(row["line"]) for row in told)


def test_five_columns_are_reported_on_too(study, places, rate, tmp_path):
    rate(places[0], 2)
    path = freeze_export(study=study).path
    path.write_bytes(path.read_bytes() + b"gone.png,1,X-Ray,2,Chest X-ray: none\r\n")
    report = tmp_path / "r.csv"
    import_ratings(path=path, study_name="Five", skip_bad_rows=True, report=report)
    assert [(row["line"], row["status"]) for row in rows_of(report)] == [("2", "imported"), ("3", "refused")]
    path.write_bytes(b"image_path,rating,modality,expert_level,prompt\r\ngone.png,1,X-Ray,2,Chest X-ray: none\r\n")
    with pytest.raises(RatingsCSVError, match="which is not there"):
        import_ratings(path=path, study_name="None left", skip_bad_rows=True)


def test_a_table_without_what_is_needed_is_refused_by_its_columns(tidy):
    rows = rows_of(tidy)
    for row in rows:
        del row["position"]
        row["mood"] = "good"
    write_rows(tidy, rows)
    with pytest.raises(CommandError, match="missing: position; unknown or double: mood"):
        call_command("import_ratings", tidy, study="New")
    with pytest.raises(StudyError, match="Choose another name"):
        import_ratings(path=tidy, study_name="Chest pilot")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows_of_a_table(db, monkeypatch):
    """Ten times the rows, over the same images; rows, places, ratings and events of all of them are over 5 MiB,
    garbage that waits for its collector about 2."""
    monkeypatch.setattr("ratings.importing.storing._BATCH_ROWS", 50)
    peaks = []
    for name, readers in (("Few", 3), ("Many", 30)):
        study = Study.objects.create(name=name, order_seed=1)
        fill(study, num_readers=readers, num_images=40)
        tidy = freeze_export(study=study).path_of("tidy")
        tracemalloc.start()
        made = import_ratings(path=tidy, study_name=f"{name} again")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert Rating.objects.filter(assignment__study=made).count() == readers * 40
    assert peaks[1] < peaks[0] + 2.5 * 2**20, [f"{peak / 2**20:.2f} MiB" for peak in peaks]
