"""Known grades: recorded from a file, and what they say of each reader."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse
from django.utils import timezone

from ratings.agreement.estimate import share_estimate
from ratings.agreement.rater_model import fit_table
from ratings.agreement.table import RatingTable
from ratings.export import pseudonym
from ratings.models import Assignment, GoldGrade, Rating, StudyImage
from ratings.report_page import agreement_page
from ratings.services import create_study, enrol_reader, set_gold, void_rating
from ratings.study_report import report_of
from tests.factories import GeneratedImageFactory, UserFactory, png_bytes

# The command ------------------------------------------------------------------------------------------------


def gold_file(folder: Path, *rows, header=("image", "grade", "rationale")) -> Path:
    path = folder / "gold.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def recorded(path: Path, **options) -> str:
    out = io.StringIO()
    call_command("set_gold", path, stdout=out, **options)
    return out.getvalue()


def test_an_image_is_named_by_id_sha256_or_file(images, alice, tmp_path):
    folder = tmp_path / "eyes"
    folder.mkdir()
    (folder / "eye.png").write_bytes(png_bytes(900))
    call_command("import_images", folder, "--real", "--name=Eyes", "--prompt=Fundus: normal", stdout=io.StringIO())
    rows = [
        (images[0].public_id, 1, "Blurred, all of it"),
        (images[1].sha256.upper(), 2, ""),
        ("eyes/eye.png", 3, "Sharp to the rim"),
    ]
    assert recorded(gold_file(tmp_path, *rows), by="alice").startswith("3 images have a known grade")
    found = {gold.image_id: (gold.grade, gold.rationale, gold.set_by) for gold in GoldGrade.objects.all()}
    assert found[images[0].pk] == (1, "Blurred, all of it", alice) and found[images[1].pk] == (2, "", alice)
    real = GoldGrade.objects.get(grade=3)
    assert real.image.is_real and real.rationale == "Sharp to the rim"


def test_every_bad_row_is_told_and_nothing_is_recorded(images, tmp_path):
    rows = [
        (images[0].public_id, 1, ""),
        (images[1].public_id, 4, ""),
        ("0" * 64, 2, ""),
        ("missing.png", 2, ""),
        (images[2].public_id, 2, "one", "too many"),
    ]
    with pytest.raises(CommandError) as caught:
        recorded(gold_file(tmp_path, *rows))
    told = str(caught.value)
    assert all(f"line {line}: " in told for line in (3, 4, 5, 6)) and "line 2" not in told
    assert "manage.py import_images" in told and not GoldGrade.objects.exists()
    for header in (("image", "rating"), ("image", "grade", "note")):
        with pytest.raises(CommandError, match="the first line must be"):
            recorded(gold_file(tmp_path, header=header))
    with pytest.raises(CommandError, match="no account 'nobody'"):
        recorded(gold_file(tmp_path, rows[0]), by="nobody")


def test_a_grade_in_use_is_not_replaced_and_takes_the_others_back(images, alice, tmp_path):
    set_gold(image=images[0], grade=1, set_by=alice)
    create_study(name="Measures", images=images[:1])
    with pytest.raises(CommandError, match="line 3: .* is in use in Measures"):
        recorded(gold_file(tmp_path, (images[1].public_id, 2, ""), (images[0].public_id, 3, "")))
    assert list(GoldGrade.objects.values_list("image", "grade")) == [(images[0].pk, 1)]


# What they say ----------------------------------------------------------------------------------------------


@pytest.fixture
def measured(db):
    """24 main images and 12 of known grade, read by ann, who is right in 9 of 12, and ben, in 4, always too mild."""
    main, gold = GeneratedImageFactory.create_batch(24), GeneratedImageFactory.create_batch(12)
    truth = {image.pk: 1 + number % 2 for number, image in enumerate(gold)}
    for image in gold:
        set_gold(image=image, grade=truth[image.pk], set_by=None, rationale="Planted")
    study = create_study(name="Measured", images=[*main, *gold])
    number_of = {image.pk: number for number, image in enumerate([*gold, *main])}
    for name, num_right, level in (("ann", 9, 3), ("ben", 4, 1)):
        reader = UserFactory(username=name)
        enrol_reader(study=study, reader=reader, expert_level=level)
        given = []
        for place in study.assignments.filter(reader=reader):
            number = number_of[place.image_id]
            grade = truth[place.image_id] + (number >= num_right) if place.image_id in truth else 1 + number % 3
            now = timezone.now()
            given.append(
                Rating(assignment=place, value=grade, expert_level=level, protocol_version=1, submitted_at=now)
            )
        Rating.objects.bulk_create(given)
    return study


def of_reader(study, rows, name):
    code = pseudonym(str(study.public_id), UserFactory._meta.model.objects.get(username=name).pk)
    return next(row for row in rows if row.reader == code)


def test_gold_accuracy_is_the_share_of_known_grades_with_wilsons_interval(measured):
    report = report_of(measured)
    for name, num_right in (("ann", 9), ("ben", 4)):
        row = of_reader(measured, report.gold, name)
        assert row.exact == share_estimate(num_right, 12, n_ratings=12, undefined="")
        assert row.bias.estimate == pytest.approx((12 - num_right) / 12)
    # Rows: known 1, 2, 3; ann's three errors are images 9 to 11, known 2, 1, 2, each called one grade more.
    assert of_reader(measured, report.gold, "ann").confusion == ((5, 1, 0), (0, 4, 2), (0, 0, 0))
    assert report.num_gold == 12


def test_agreement_is_of_the_images_that_were_not_put_in_for_their_grade(measured):
    """Both readers grade the main images alike; on the gold ones they differ."""
    report = report_of(measured)
    assert measured.study_images.filter(role=StudyImage.Role.GOLD).count() == 12
    assert report.agreement.exact.estimate == 1 and report.num_agreement_images == 24 and report.num_images == 36
    assert of_reader(measured, report.panel, "ann").exact.estimate is None  # two readers: no panel of two others


def test_the_rater_model_takes_known_grades_for_certain(measured):
    report, rows = report_of(measured), []
    for place in measured.assignments.select_related("rating", "image"):
        rows.append((place.image_id, place.reader_id, place.rating.value))
    images, readers, grades = zip(*rows, strict=True)
    table = RatingTable.from_ratings(images, readers, grades)
    known = dict(GoldGrade.objects.values_list("image_id", "grade"))
    truth = np.array([known.get(int(image), 0) for image in table.images])
    levels = [measured.memberships.get(reader_id=int(reader)).expert_level for reader in table.readers]
    expected = fit_table(table, levels, truth=truth)
    without = fit_table(table, levels)
    found = np.array([of_reader(measured, report.confusion, name).shares for name in ("ann", "ben")])
    assert found == pytest.approx(expected.confusion) and np.abs(found - without.confusion).max() > 0.01


def test_a_void_rating_is_no_longer_measured_and_a_new_known_grade_is(measured, alice):
    before = of_reader(measured, report_of(measured).gold, "ann").exact
    place = measured.assignments.filter(reader__username="ann", kind=Assignment.Kind.GOLD).first()
    void_rating(rating=place.rating, actor=alice, reason="The screen was dark")
    assert of_reader(measured, report_of(measured).gold, "ann").exact.n_images == before.n_images - 1
    main = measured.study_images.filter(role=StudyImage.Role.MAIN).first()
    set_gold(image=main.image, grade=2, set_by=alice)
    assert of_reader(measured, report_of(measured).gold, "ben").exact.n_images == 13


def test_the_training_round_is_shown_by_itself_and_its_images_measure_nobody_it_told(measured, rate):
    """Told in another study's training round: ann is measured on the other eleven gold images only."""
    ann = UserFactory._meta.model.objects.get(username="ann")
    told = measured.study_images.filter(role=StudyImage.Role.GOLD).first().image
    course = create_study(name="Course", images=GeneratedImageFactory.create_batch(2))
    enrol_reader(study=course, reader=ann, expert_level=3)
    place = Assignment.objects.create(
        study=course, reader=ann, image=told, position=99, kind=Assignment.Kind.TRAINING
    )
    rate(place, 3)
    measured.study_images.filter(pk=0).exists()
    report = report_of(course)
    assert report is None  # nothing but the training round is rated
    rate(course.assignments.filter(kind=Assignment.Kind.MAIN).first(), 2)
    report = report_of(course)
    (row,) = report.training
    assert row.exact.n_images == 1 and row.exact.estimate == 0 and report.num_ratings == 1 and report.gold == ()
    set_gold(image=measured.study_images.filter(role=StudyImage.Role.MAIN).first().image, grade=1, set_by=None)
    assert of_reader(measured, report_of(measured).gold, "ann").exact.n_images == 12  # 11 gold and the new one
    assert of_reader(measured, report_of(measured).gold, "ben").exact.n_images == 13


def test_the_page_shows_each_reader_against_known_grades(measured, signed_in, alice):
    client = signed_in(alice)
    page = client.get(reverse("ratings:study-agreement", args=[measured.public_id])).content.decode()
    assert "Each reader against known grades" in page and 'id="training"' not in page
    assert "rest on 24 of the images, without the gold ones" in page
    shown = agreement_page(measured, report_of(measured))["gold"]
    assert [row["reader"]["name"] for row in shown] == ["ann", "ben"]
    assert shown[0]["rows"][0][1][0].count == 5 and shown[0]["rows"][0][1][0].shade == 8  # 5 of 6
    table = client.get(reverse("ratings:study-table", args=[measured.public_id, "gold_confusion.csv"]))
    rows = list(csv.DictReader(io.StringIO(table.content.decode())))
    ann = of_reader(measured, report_of(measured).gold, "ann").reader
    assert [row["poor"] for row in rows if row["reader"] == ann and row["known"] == "poor"] == ["5"]


def test_without_known_grades_the_page_says_what_cannot_be_told(study, places, rate, signed_in, alice):
    rate(places[0], 2)
    page = signed_in(alice).get(reverse("ratings:study-agreement", args=[study.public_id])).content.decode()
    assert "No rated image has a known grade" in page
