"""Ratings to CSV and back: every field survives, nothing else is told."""

import csv
import tracemalloc
import uuid

import pytest
from django.core.management import CommandError, call_command
from PIL import Image

from generation.models import GeneratedImage
from medsyn.artifacts import file_sha256, verify_folder
from ratings.csv_schema import COLUMNS, RatingsCSVError, read_ratings_file
from ratings.export import TIDY_COLUMNS, formula_safe, pseudonym
from ratings.models import Export, Rating, Study
from ratings.services import StudyError, create_study, enrol_reader, freeze_export, import_ratings, undo
from tests.factories import UserFactory
from tests.ratings.many_ratings import fill

NASTY = 'Chest CT: nodule, 8 mm, "part-solid"; ü 肺'


def table(path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def rated(study, places, rate, images):
    """bob's first three places rated 1, 2, 3; one prompt is hard on a CSV."""
    images[0].prompt.__class__.objects.filter(pk=places[0].image.prompt_id).update(text=NASTY, kind="chest_ct")
    for place, value in zip(places[:3], (1, 2, 3), strict=True):
        rate(place, value, active_ms=1500)
    return study


def test_an_export_is_what_training_reads_where_it_lies(rated, places, artifact_root):
    export = freeze_export(study=rated)
    rows = read_ratings_file(export.path)
    assert export.path.parent.parent == artifact_root / "exports"
    assert [(row.rating, row.expert_level) for row in rows] == [(1, 3), (2, 3), (3, 3)]
    assert [row.prompt for row in rows] == [NASTY, *(place.image.prompt.text for place in places[1:3])]
    assert rows[0].modality == "CT"
    for row, place in zip(rows, places, strict=False):
        assert row.image_path.startswith("../../images/")
        assert file_sha256(row.resolve(export.path.parent)) == place.image.sha256
    assert (export.row_count, export.sha256) == (3, file_sha256(export.path))
    verify_folder(export.path.parent)


def test_only_what_stands_is_exported(rated, bob, rate, places):
    undo(study=rated, reader=bob, client_uuid=uuid.uuid4())
    rate(places[0], 3, revision=1)
    assert [row.rating for row in read_ratings_file(freeze_export(study=rated).path)] == [3, 2]


def test_the_tidy_table_explains_every_row_and_names_nobody(rated, places, bob):
    image = places[0].image
    export = freeze_export(study=rated)
    tidy = table(export.path_of("tidy"))
    first = tidy[0]
    assert len(tidy) == 3
    assert first["image_sha256"] == image.sha256 and first["seed"] == str(image.seed)
    assert (first["rating"], first["expert_level"], first["position"], first["occurrence"]) == ("1", "3", "0", "1")
    assert (first["active_ms"], first["revision"], first["simulated"]) == ("1500", "1", "0")
    assert (first["modality"], first["kind"], first["prompt"]) == ("CT", "Chest CT", NASTY)
    assert first["reader"].startswith("R-") and "bob" not in export.path_of("tidy").read_text()
    assert [row["column"] for row in table(export.path_of("dictionary"))] == [column.name for column in TIDY_COLUMNS]
    assert list(first) == [column.name for column in TIDY_COLUMNS]


def test_pseudonyms_are_stable_in_a_study_and_depend_on_the_secret_key(rated, bob, carol, settings):
    key = str(rated.public_id)
    assert pseudonym(key, bob.pk) == pseudonym(key, bob.pk)
    names = {pseudonym(key, bob.pk), pseudonym(key, carol.pk), pseudonym("another study", bob.pk)}
    settings.SECRET_KEY = "another key"
    assert len(names | {pseudonym(key, bob.pk)}) == 4


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_of_the_tidy_table_is_run_by_a_spreadsheet(text, images, bob, rate):
    assert formula_safe(text) == f"'{text}"
    study = create_study(name=f"{text} x", images=images[:1], readers=[(bob, 2)])
    rate(study.assignments.get(), 1)
    row = table(freeze_export(study=study).path_of("tidy"))[0]
    assert not row["study"].startswith(("=", "+", "-", "@", "\t", "\r"))


def test_modality_narrows_and_an_empty_export_is_refused(rated):
    assert freeze_export(study=rated, modality="Chest CT").row_count == 1
    assert freeze_export(study=rated, modality="cxr").row_count == 2
    before = Export.objects.count()
    with pytest.raises(StudyError, match="none match"):
        freeze_export(study=rated, modality="OCT")
    assert Export.objects.count() == before


def test_simulated_ratings_come_only_when_asked_for(rated, images, rate):
    expert = UserFactory()
    demo = create_study(name="Demo", images=images, is_simulated=True)
    for place in enrol_reader(study=demo, reader=expert, expert_level=3, is_simulated=True)[:2]:
        rate(place, 2)
    assert freeze_export().row_count == 3 and not freeze_export().has_simulated
    assert freeze_export(include_simulated=True).row_count == 5
    own = freeze_export(study=demo)
    assert own.row_count == 2 and own.has_simulated
    assert {row["simulated"] for row in table(own.path_of("tidy"))} == {"1"}
    with pytest.raises(StudyError, match="2 that match come from simulated experts"):
        freeze_export(study=demo, include_simulated=False)


def test_a_failing_write_leaves_the_old_files_and_no_row(rated, tmp_path, monkeypatch):
    target = tmp_path / "out.csv"
    freeze_export(study=rated, output=target)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ratings.export.streaming.CsvFile.write_query", full_disk)
    for output in (target, None):
        with pytest.raises(OSError, match="No space"):
            freeze_export(study=rated, output=output)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert Export.objects.count() == 1
    assert not list(rated.exports.get().path.parent.glob(".*.tmp"))


def test_the_command_writes_where_it_is_told(rated, tmp_path, capsys):
    call_command("export_ratings", study="Chest pilot", output=tmp_path / "some" / "r.csv", absolute_paths=True)
    assert "ratings: 3 rows, " in capsys.readouterr().out
    rows = read_ratings_file(tmp_path / "some" / "r.csv")
    assert all(row.image_path.startswith("/") for row in rows)
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == [
        "r.csv",
        "r_data_dictionary.csv",
        "r_tidy.csv",
    ]
    call_command("export_ratings", "--study", str(rated.public_id), "--output", str(tmp_path))
    assert read_ratings_file(tmp_path / "ratings.csv")[0].resolve(tmp_path).is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [(["--study", "No such"], "Studies: 'Chest pilot'"), (["--modality", "PET"], "Unknown modality 'PET'")],
)
def test_the_command_says_what_is_wrong(rated, arguments, message):
    with pytest.raises(CommandError, match=message):
        call_command("export_ratings", *arguments)


def test_a_round_trip_keeps_every_rating(rated, rate, carol, tmp_path, artifact_root, settings):
    rate(rated.assignments.filter(reader=carol).first(), 1)
    export = freeze_export(study=rated, output=tmp_path / "out.csv")
    rows = read_ratings_file(export.path)
    known = {image.sha256 for image in GeneratedImage.objects.all()}
    settings.ARTIFACT_ROOT = tmp_path / "elsewhere"
    GeneratedImage.objects.update(sha256="0" * 64)  # as in another database: no image is known
    study = import_ratings(path=export.path, study_name="Back again")
    again = read_ratings_file(freeze_export(study=study).path)
    assert [(row.rating, row.expert_level, row.prompt, row.modality) for row in again] == [
        (row.rating, row.expert_level, row.prompt, row.modality) for row in rows
    ]
    imported = study.images.all()
    assert {image.sha256 for image in imported} <= known
    assert all(image.path.is_file() and image.source == "imported" and image.width == 16 for image in imported)
    assert {member.reader.is_active for member in study.memberships.all()} == {False}
    assert Rating.objects.filter(assignment__study=study).count() == len(rows)


def test_an_image_that_is_known_keeps_its_provenance(rated, places):
    study = import_ratings(path=freeze_export(study=rated).path, study_name="Again")
    assert set(study.images.all()) == {place.image for place in places[:3]}


def write_csv(path, lines) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *lines])


@pytest.fixture
def picture(tmp_path):
    Image.new("L", (8, 8), 90).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:30])
    return "a.png"


def test_several_raters_of_an_image_become_several_readers(db, picture, tmp_path):
    prompt = "CXR: nodule, left,\nwith a line break"
    write_csv(tmp_path / "r.csv", [[picture, value, "CXR", 2, prompt] for value in (1, 3, 3)])
    call_command("import_ratings", tmp_path / "r.csv", study="Old", phantoms=True)
    study = Study.objects.get()
    assert study.memberships.count() == 3 and study.images.get().is_phantom
    assert study.images.get().prompt.text == "Chest X-ray: nodule, left, with a line break"
    assert sorted(Rating.objects.values_list("value", flat=True)) == [1, 3, 3]


def test_all_bad_rows_are_named_with_their_lines_and_nothing_is_stored(db, picture, tmp_path, artifact_root):
    good = [picture, 2, "Fundus", 2, "Fundus: normal"]
    bad = [
        ([picture, 0, "Fundus", 2, "Fundus: normal"], "rating is '0'"),
        ([picture, 4, "Fundus", 2, "Fundus: normal"], "rating is '4'"),
        ([picture, 2, "PET", 2, "Fundus: normal"], "Unknown modality 'PET'"),
        ([picture, 2, "OCT", 2, "Fundus: normal"], "modality is OCT but"),
        ([picture, 2, "Fundus", 9, "Fundus: normal"], "expert_level is '9'"),
        ([picture, 2, "Fundus", 2, "normal"], "has no prefix"),
        (["b.png", 2, "Fundus", 2, "Fundus: normal"], "b.png, which is not there"),
        (["broken.png", 2, "Fundus", 2, "Fundus: normal"], "broken.png: "),
        ([picture, 2], "fewer than 5 fields"),
        ([picture, 2, "Fundus", 2, "Fundus: normal", "disc"], "more than 5 fields"),
    ]
    write_csv(tmp_path / "r.csv", [good, *(line for line, _ in bad)])
    with pytest.raises(RatingsCSVError) as caught:
        import_ratings(path=tmp_path / "r.csv", study_name="Bad")
    assert len(caught.value.faults) == len(bad)
    for number, (fault, (_, message)) in enumerate(zip(caught.value.faults, bad, strict=True), start=3):
        assert fault.startswith(f"line {number}: ") and message in fault
    assert not Study.objects.exists() and not GeneratedImage.objects.exists() and not artifact_root.exists()


def test_a_missing_column_a_taken_name_and_an_empty_file_are_refused(study, picture, tmp_path):
    (tmp_path / "r.csv").write_text("image_path,rating,modality,prompt\na.png,2,OCT,OCT: x\n")
    with pytest.raises(CommandError, match="expert_level"):
        call_command("import_ratings", tmp_path / "r.csv", study="New")
    write_csv(tmp_path / "r.csv", [])
    with pytest.raises(CommandError, match="holds no ratings"):
        call_command("import_ratings", tmp_path / "r.csv", study="New")
    with pytest.raises(CommandError, match="Choose another name"):
        call_command("import_ratings", tmp_path / "r.csv", study="Chest pilot")
    with pytest.raises(CommandError, match="missing.csv"):
        call_command("import_ratings", tmp_path / "missing.csv", study="New")
    assert Study.objects.count() == 1


def test_a_failed_import_leaves_no_copies(db, picture, tmp_path, artifact_root, monkeypatch):
    write_csv(tmp_path / "r.csv", [[picture, 2, "Fundus", 2, "Fundus: normal"]])

    def refuse(*arguments, **options):
        raise RuntimeError("database gone")

    monkeypatch.setattr("ratings.importing.storing.Store.finish", refuse)
    with pytest.raises(RuntimeError):
        import_ratings(path=tmp_path / "r.csv", study_name="Gone")
    assert not [path for path in artifact_root.rglob("*") if path.is_file()]
    assert not Study.objects.exists()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_ratings(db):
    """The rows of 20 000 ratings alone are over 30 MiB."""
    study = Study.objects.create(name="Large", order_seed=1)
    fill(study, num_readers=40, num_images=500)
    tracemalloc.start()
    export = freeze_export(study=study)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert export.row_count == 20_000
    assert peak < 5 * 2**20, f"{peak / 2**20:.1f} MiB"
