"""The bytes of an export: the same from PostgreSQL and SQLite, the same again later, and found again by what was
recorded."""

import csv
import io
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from generation.models import GeneratedImage
from medsyn.artifacts import file_sha256, read_manifest
from ratings.csv_schema import formula_unsafe, read_ratings_file, write_ratings
from ratings.export.cells import formula_safe
from ratings.export.code_version import code_version
from ratings.models import Assignment, Export, GoldGrade, Membership, Rating, RatingEvent, Study, StudyImage
from ratings.services import (
    StudyError,
    add_images,
    enrol_reader,
    freeze_export,
    freeze_images,
    remark,
    rerun_export,
    restore_rating,
    undo,
    verify_level,
    void_rating,
)
from tests.factories import GeneratedImageFactory, PromptFactory, UserFactory

AT = datetime(2026, 3, 1, 8, 30, 5, 123999, tzinfo=UTC)
# Texts that are hard on a CSV, a spreadsheet or one of the two writers.
COMMENTS = [
    "", "plain", "a, b", 'say "ah"', "two\nlines", "carriage\rreturn", "both\r\nends", " leading", "trailing ",
    "\\.", "=1+1", "+x", "-x", "@x", "\tx", "'quoted", "'=x", '"', ",", "\\N", "NULL", "ü 肺 \u2028 🫁", "a;b",
    "%s %(x)s {0}",
]  # fmt: skip
# What the file holds of these rows, whichever database wrote it: see test_the_bytes_are_those_of_either_database.
GOLDEN_SHA256 = {
    "ratings": "6d6dc8cfe298043820e3a1b7d12de8d9772e485eb4ff47b373a7cb1a7ac201ce",
    "tidy": "688c350743e026413375a7bf03d6eeca31c4f1da35eee5504caa7639532875b1",
}


@pytest.fixture
def hard_study(db, settings) -> Study:
    """Rows with fixed keys and values, in which nothing depends on the moment or on chance."""
    settings.SECRET_KEY = "of the golden file"
    study = Study.objects.create(public_id=uuid.UUID(int=1), name="=Study, one", order_seed=1)
    readers = [UserFactory(pk=900 + number, username=f"golden{number}") for number in range(3)]
    for reader in readers:
        Membership.objects.create(study=study, reader=reader, expert_level=2)
    prompts = [PromptFactory(text=text, kind=kind) for text, kind in (("OCT: =x, y", "oct"), ("CT: -5 HU", "ct"))]
    for number, comment in enumerate(COMMENTS):
        image = GeneratedImage.objects.create(
            public_id=uuid.UUID(int=100 + number),
            source="imported",
            prompt=prompts[number % 2],
            patient="-p" * (number % 2),
            is_real=number % 3 == 0,
            model_name="@m" * (number % 2),
            file=f"images/{number}, x.png",
            sha256=f"{number:064x}",
            width=1,
            height=1,
            seed=number - 5 if number % 4 else None,
        )
        if number % 5 == 0:
            GoldGrade.objects.create(image=image, grade=1 + number % 3)
        kind = "main" if number % 5 else "gold"
        place = Assignment.objects.create(
            study=study, reader=readers[number % 3], image=image, position=number, kind=kind
        )
        _store(place, number, comment)
    return study


def _store(place: Assignment, number: int, comment: str) -> None:
    """A rating and its one event."""
    judged = number % 6 != 5
    answer = {
        "value": 1 + number % 3 if judged else None,
        "cannot_judge": "" if judged else "views",
        "defects": [[], ["noise"], ["blur", "anatomy", "artefact"]][number % 3],
        "comment": comment,
        "expert_level": 1 + number % 3,
        "protocol_version": 1,
        "shown_at": AT.replace(microsecond=0) if number % 2 else AT,
        "first_input_at": None,
        "answered_at": AT + timedelta(milliseconds=number),
        "active_ms": None if number % 4 == 0 else 1000 + number,
        "display": [
            {},
            {"viewport_width": 390, "device_pixel_ratio": 1.5, "zoom": 2.0, "inverted": True, "window_unit": "%"},
            {
                "window_width": 1500.25,
                "window_center": -600.0,
                "zoom": 0.0625,
                "inverted": False,
                "zoom_touched": True,
            },
        ][number % 3],
        "submitted_at": AT + timedelta(seconds=number),
        "state": "submitted" if judged else "cannot_judge",
        "revision": 1,
    }
    rating = Rating.objects.create(assignment=place, **answer)
    RatingEvent.objects.create(
        rating=rating, action="submit", actor=place.reader, client_uuid=uuid.UUID(int=number), **answer
    )


def rows_of(path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_text_comes_back_as_it_was_said(hard_study):
    rows = rows_of(freeze_export(study=hard_study).path_of("tidy"))
    assert [row["comment"] for row in rows] == [formula_safe(comment) for comment in COMMENTS]
    assert [formula_unsafe(row["comment"]) for row in rows if row["comment"] != "'=x"] == [
        comment for comment in COMMENTS if comment != "'=x"
    ]
    assert rows[2]["defects"] == "blur;anatomy;artefact"
    assert (rows[0]["shown_at"], rows[1]["shown_at"]) == (
        "2026-03-01T08:30:05.123+00:00",
        "2026-03-01T08:30:05.000+00:00",
    )
    assert rows[0]["shown_at"] == AT.isoformat(timespec="milliseconds")
    shown = [(row["device_pixel_ratio"], row["window_center"], row["zoom"], row["inverted"]) for row in rows[:3]]
    assert shown == [("", "", "", ""), ("1.5", "", "2.0", "1"), ("", "-600.0", "0.0625", "0")]
    assert [row["gold_grade"] for row in rows[:6]] == ["1", "", "", "", "", "3"]
    assert rows[0]["image_uuid"] == str(uuid.UUID(int=100)) and rows[0]["study"] == "'=Study, one"
    assert (rows[5]["state"], rows[5]["rating"], rows[5]["cannot_judge"]) == ("cannot_judge", "", "views")
    assert (rows[0]["is_real"], rows[1]["patient"], rows[1]["checkpoint"]) == ("1", "'-p", "'@m")
    assert (rows[0]["kind"], rows[1]["modality"]) == ("OCT", "CT")


def test_the_quoting_is_that_of_the_csv_module(hard_study):
    export = freeze_export(study=hard_study)
    for name in ("ratings", "tidy"):
        path = export.path_of(name)
        with path.open(newline="", encoding="utf-8") as file:
            again = io.StringIO(newline="")
            csv.writer(again).writerows(csv.reader(file))
        assert path.read_bytes() == again.getvalue().encode()
    again = io.StringIO(newline="")
    assert write_ratings(again, read_ratings_file(export.path)) == export.row_count
    assert export.path.read_bytes() == again.getvalue().encode()


def test_the_bytes_are_those_of_either_database(hard_study):
    export = freeze_export(study=hard_study)
    assert {name: export.files[name]["sha256"] for name in GOLDEN_SHA256} == GOLDEN_SHA256, connection.vendor


@pytest.mark.postgres
def test_everything_of_exports_and_imports_holds_on_postgresql(run_on_postgres):
    others = [str(Path(__file__).with_name(name)) for name in ("test_export_history.py", "test_import_tidy.py")]
    run_on_postgres(__file__, *others, "-m", "not postgres and not slow", "-n0")


def test_what_is_recorded_is_what_lies_on_the_disk(study, places, rate, alice):
    rate(places[0], 2)
    export = freeze_export(study=study, created_by=alice)
    for name, file in export.files.items():
        path = export.path_of(name)
        assert file["sha256"] == file_sha256(path) and file["row_count"] == len(rows_of(path))
    assert (export.sha256, export.row_count) == (export.files["ratings"]["sha256"], 1)
    assert export.last_event == RatingEvent.objects.get().pk and export.code_version == code_version()
    manifest = read_manifest(export.path.parent)
    assert manifest["files"] == {export.path_of(name).name: file["sha256"] for name, file in export.files.items()}
    assert (manifest["last_event"], manifest["filters"]) == (export.last_event, export.filters)


def test_only_what_may_train_is_in_the_five_columns(study, places, rate, bob):
    for place, kind, occurrence in zip(
        places, ("main", "calibration", "gold", "real", "training", "repeat"), (1, 1, 1, 1, 1, 2), strict=True
    ):
        Assignment.objects.filter(pk=place.pk).update(kind=kind, occurrence=occurrence)
        rate(place, 2)
    export = freeze_export(study=study)
    assert export.row_count == 2 and export.files["tidy"]["row_count"] == 6
    kinds = [(row["assignment_kind"], row["occurrence"]) for row in rows_of(export.path_of("tidy"))]
    assert kinds[0] == ("main", "1") and kinds[-1] == ("repeat", "2")
    image_of = {row["image_path"]: row["assignment_kind"] for row in rows_of(export.path_of("tidy"))}
    assert [image_of[row.image_path] for row in read_ratings_file(export.path)] == ["main", "gold"]


def test_void_ratings_are_left_out_until_they_count_again(study, places, rate, alice):
    rating = rate(places[0], 2)
    rate(places[1], 3)
    void_rating(rating=rating, actor=alice, reason="wrong study")
    export = freeze_export(study=study)
    assert [row["rating"] for row in rows_of(export.path_of("tidy"))] == ["3"]
    restore_rating(rating=rating, actor=alice, reason="it was not")
    assert freeze_export(study=study).row_count == 2
    assert not rerun_export(export=export).differing_files


@pytest.fixture
def lived_on(study, places, rate, alice, bob, carol):
    """An export, and a study that went on afterwards in every way it can."""
    first, *_ = [rate(place, value) for place, value in zip(places[:4], (1, 2, 3, 1), strict=True)]
    rate(study.assignments.filter(reader=carol).first(), 2)
    exports = {"ratings": freeze_export(study=study), "images": freeze_images(study=study)}
    rate(places[4], 2)
    rate(places[0], 3, revision=1)
    remark(assignment=places[1], reader=bob, client_uuid=uuid.uuid4(), revision=1, defects=["blur"], comment="late")
    undo(study=study, reader=bob, client_uuid=uuid.uuid4())
    void_rating(rating=Rating.objects.get(assignment=places[2]), actor=alice, reason="double")
    verify_level(person=bob, expert_level=1, verified_by=alice)
    newcomer = UserFactory()
    enrol_reader(study=study, reader=newcomer, expert_level=2)
    add_images(study=study, images=GeneratedImageFactory.create_batch(2))
    rate(study.assignments.filter(reader=newcomer).first(), 1)
    GoldGrade.objects.create(image=places[0].image, grade=3)
    return exports


@pytest.mark.parametrize("content", ["ratings", "images"])
def test_a_rerun_has_the_same_bytes_whatever_happened_since(lived_on, alice, content):
    export = lived_on[content]
    again = rerun_export(export=export, created_by=alice)
    assert again.rerun_of == export and again.differing_files == () and again.path != export.path
    assert {name: file["sha256"] for name, file in again.files.items()} == {
        name: file["sha256"] for name, file in export.files.items()
    }
    assert again.path.read_bytes() == export.path.read_bytes()
    fresh = freeze_export(study=export.study) if content == "ratings" else freeze_images(study=export.study)
    assert fresh.sha256 != export.sha256
    assert rerun_export(export=again).rerun_of == export


def test_a_rerun_does_not_need_the_old_files_and_ends_up_where_it_is_told(lived_on, tmp_path):
    export = lived_on["ratings"]
    for name in export.files:
        export.path_of(name).unlink()
    again = rerun_export(export=export, output=tmp_path / "again.csv")
    assert again.path == tmp_path / "again.csv" and not again.differing_files
    assert again.filters["image_root"] == export.filters["image_root"]


def test_other_bytes_are_told_by_file(lived_on, settings, capsys):
    export = lived_on["ratings"]
    settings.SECRET_KEY = "another"
    again = rerun_export(export=export)
    assert again.differing_files == ("tidy",)
    with pytest.raises(CommandError, match=f"tidy: other bytes than export {export.pk} had"):
        call_command("export_ratings", rerun=export.pk)
    Study.objects.update(name="Renamed by hand")
    GeneratedImage.objects.update(file="elsewhere.png")
    assert rerun_export(export=export).differing_files == ("ratings", "tidy")


def test_the_command_repeats_an_export(lived_on, capsys):
    export = lived_on["images"]
    call_command("export_ratings", rerun=export.pk)
    assert f"The same bytes as export {export.pk}." in capsys.readouterr().out
    for wrong, message in (
        ({"rerun": export.pk, "modality": "OCT"}, "leave out --modality"),
        ({"rerun": 12345}, "There is no export 12345"),
        ({"images": True}, "--images goes with --study"),
    ):
        with pytest.raises(CommandError, match=message):
            call_command("export_ratings", **wrong)


def test_an_export_from_before_cannot_be_repeated(study):
    old = Export.objects.create(study=study, file="exports/old/ratings.csv", sha256="0" * 64, row_count=1)
    with pytest.raises(StudyError, match="before exports could be repeated"):
        rerun_export(export=old)


def test_all_studies_name_each_reader_by_study(study, places, rate, bob, images):
    other = Study.objects.create(name="Second", order_seed=2)
    StudyImage.objects.create(study=other, image=images[0])
    rate(places[0], 2)
    Membership.objects.create(study=other, reader=bob, expert_level=2)
    rate(Assignment.objects.create(study=other, reader=bob, image=images[0], position=0), 1)
    rows = rows_of(freeze_export().path_of("tidy"))
    assert len({row["reader"] for row in rows}) == len(rows) == 2
    alone = rows_of(freeze_export(study=other).path_of("tidy"))
    assert alone[0]["reader"] == next(row["reader"] for row in rows if row["study"] == "Second")


def test_measured_figures_come_in_with_digits_that_all_databases_write_alike(study, places, api, bob):
    display = {
        "viewport_width": 1440,
        "viewport_height": 900,
        "device_pixel_ratio": 1.100000023841858,
        "window_width": 0.00001,
        "window_center": -0.00001,
        "zoom": 1 / 3,
    }
    said = {"value": 2, "revision": 0, "client_uuid": str(uuid.uuid4()), "display": display}
    assert api(bob).post(f"/api/assignments/{places[0].public_id}/rating/", said, "json").status_code == 200
    row = rows_of(freeze_export(study=study).path_of("tidy"))[0]
    figures = [row[name] for name in ("device_pixel_ratio", "window_width", "window_center", "zoom")]
    assert figures == ["1.1", "0.0", "0.0", "0.3333"]
