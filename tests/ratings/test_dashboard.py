"""A study's figures for its owner: progress, agreement, downloads, in a fixed number of queries and never stale."""

import csv
import io
import uuid
from datetime import timedelta

import numpy as np
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from ratings.agreement.coefficients import krippendorff_alpha
from ratings.agreement.rater_model import fit_table
from ratings.agreement.table import RatingTable
from ratings.dashboard import figures_of
from ratings.export import pseudonym
from ratings.export.images import IMAGE_COLUMNS
from ratings.models import Assignment, Rating
from ratings.report_page import agreement_page, verdict
from ratings.services import create_study, draw_places, enrol_reader, set_gold, submit_rating, undo, void_rating
from ratings.study_report import report_of, resamples_for
from tests.factories import GeneratedImageFactory, UserFactory

LEVELS = (3, 1, 2, 2)


def grades_of(num_images: int, num_readers: int, seed: int = 0) -> np.ndarray:
    """(N, J) grades 1 to 3 of readers who see the same quality with noise of their own."""
    random = np.random.default_rng(seed)
    seen = random.normal(size=(num_images, 1)) + 0.6 * random.normal(size=(num_images, num_readers))
    return np.digitize(seen, [-0.5, 0.6]) + 1


def rate_all(study, readers, images, grades) -> None:
    """Store the (N, J) grades directly, each answered in 4 s."""
    image = {each.pk: number for number, each in enumerate(images)}
    reader = {each.pk: number for number, each in enumerate(readers)}
    places = study.assignments.filter(occurrence=1, rating=None)
    Rating.objects.bulk_create(
        Rating(
            assignment=place,
            value=int(grades[image[place.image_id], reader[place.reader_id]]),
            expert_level=LEVELS[reader[place.reader_id] % len(LEVELS)],
            protocol_version=1,
            is_simulated=study.is_simulated,
            active_ms=4000,
            submitted_at=timezone.now(),
        )
        for place in places
    )


@pytest.fixture
def filled(db):
    """``filled(images, num_readers)``: a study that its readers have rated through, their names and the grades."""

    def make(images, num_readers=4, *, is_simulated=False, seed=0):
        readers = UserFactory.create_batch(num_readers)
        study = create_study(name=f"Filled {uuid.uuid4()}", images=images, is_simulated=is_simulated)
        for number, reader in enumerate(readers):
            level = LEVELS[number % len(LEVELS)]
            enrol_reader(study=study, reader=reader, expert_level=level, is_simulated=is_simulated)
        grades = grades_of(len(images), num_readers, seed)
        rate_all(study, readers, images, grades)
        return study, readers, grades

    return make


def code(study, reader) -> str:
    return pseudonym(str(study.public_id), reader.pk)


def downloaded(client, study, name) -> list[dict]:
    reply = client.get(reverse("ratings:study-table", args=[study.public_id, name]))
    assert reply.status_code == 200 and "attachment" in reply["Content-Disposition"]
    return list(csv.DictReader(io.StringIO(reply.content.decode()))) if name.endswith(".csv") else reply.json()


# Progress ---------------------------------------------------------------------------------------------------


def test_time_left_is_what_is_open_at_the_readers_own_pace_or_the_studys(study, places, rate):
    for place in places[:2]:
        rate(place, 2, active_ms=6000)
    bob, carol = figures_of(study).readers
    assert (bob.seconds_left, carol.seconds_left) == (4 * 6.0, 6 * 6.0)
    assert bob.images_per_hour == 600 and carol.images_per_hour is None
    assert figures_of(study).images_per_hour == 600


def test_nobody_rated_means_no_time_is_named(study):
    assert [row.seconds_left for row in figures_of(study).readers] == [None, None]


def test_answers_are_counted_by_day(study, places, rate):
    for back, place in zip((0, 0, 3, 13, 14), places, strict=False):
        Rating.objects.filter(pk=rate(place, 1).pk).update(submitted_at=timezone.now() - timedelta(days=back))
    per_day = figures_of(study).readers[0].per_day
    assert (per_day[-1], per_day[-4], per_day[0], sum(per_day)) == (2, 1, 1, 4)  # the fifth is too long ago


def test_what_could_not_be_judged_is_progress_and_no_grade(study, places, rate):
    rate(places[0], None, cannot_judge="display")
    bob = figures_of(study).readers[0]
    assert (bob.done, sum(bob.grades)) == (1, 0)


def test_the_training_round_is_progress_of_its_own(study, places, rate):
    Assignment.objects.filter(pk=places[0].pk).update(kind=Assignment.Kind.TRAINING)
    for place in study.assignments.filter(reader=places[0].reader).order_by("position")[:3]:
        rate(place, 2, active_ms=5000)
    figures = figures_of(study)
    bob = figures.readers[0]
    assert (bob.done, bob.total, bob.training_done, bob.training_total) == (2, 5, 1, 1)
    assert sum(bob.grades) == 2 and sum(bob.per_day) == 2 and figures.done == 2
    assert sum(bar.count for bar in figures.bars) == 2


def test_a_void_rating_is_neither_progress_nor_a_figure(study, places, rate, alice):
    for place in places[:3]:
        rate(place, 2)
    void_rating(rating=places[0].rating, actor=alice, reason="Wrong window")
    figures = figures_of(study)
    assert (figures.readers[0].done, figures.readers[0].total) == (2, 5)  # nobody will rate that place any more
    assert report_of(study).agreement.histogram == (0, 2, 0)


def test_an_open_pool_counts_what_it_can_still_give(images, bob, carol, rate):
    """Six images for three readers each, but there are two: twelve places at most. Bob has drawn his six."""
    pool = create_study(name="Pool", images=images, protocol={"overlap_target": 3})
    for reader in (bob, carol):
        enrol_reader(study=pool, reader=reader, expert_level=2)
    draw_places(study=pool, reader=bob)
    for place in pool.assignments.filter(reader=bob):
        rate(place, 3, active_ms=2000)
    figures = figures_of(pool)
    assert (figures.done, figures.total, figures.pool_room) == (6, 12, 6) and not figures.all_given
    assert [(row.done, row.total) for row in figures.readers] == [(6, 6), (0, 0)]
    draw_places(study=pool, reader=carol)
    figures = figures_of(pool)
    assert (figures.total, figures.pool_room) == (12, 0) and figures.readers[1].seconds_left == 12


def test_a_pool_expects_the_repeats_that_come_with_its_images(bob):
    images = GeneratedImageFactory.create_batch(40)
    pool = create_study(name="Pool", images=images, protocol={"overlap_target": 1, "repeat_share": 0.1})
    enrol_reader(study=pool, reader=bob, expert_level=2)
    assert figures_of(pool).total == 44


def test_the_end_is_told_once_answers_lie_a_day_back(study, places, rate):
    """Six of twelve places in two days: the other six take two more."""
    for place in places:
        rate(place, 2)
    assert figures_of(study).finish_at is None  # all within this minute: nobody reads on through the night
    first = Rating.objects.order_by("pk").first()
    Rating.objects.filter(pk=first.pk).update(submitted_at=timezone.now() - timedelta(days=2))
    left = figures_of(study).finish_at - timezone.now()
    assert left.total_seconds() == pytest.approx(2 * 86400, rel=0.01)
    study.is_open = False
    assert figures_of(study).finish_at is None


# Agreement --------------------------------------------------------------------------------------------------


def test_the_report_is_that_of_the_grades(filled):
    images = GeneratedImageFactory.create_batch(40)
    study, readers, grades = filled(images)
    report = report_of(study)
    table = RatingTable.from_matrix(grades)
    assert report.agreement.alpha_ordinal.estimate == pytest.approx(krippendorff_alpha(table).estimate, abs=1e-12)
    assert report.agreement.histogram == tuple(int((grades == grade).sum()) for grade in (1, 2, 3))
    assert (report.num_ratings, report.num_images, report.num_left_out) == (160, 40, 0)
    expected = fit_table(table, LEVELS).confusion
    found = {each.reader: each for each in report.confusion}
    for number, reader in enumerate(readers):
        each = found[code(study, reader)]
        assert each.shares == pytest.approx(expected[number]) and each.expert_level == LEVELS[number]
    # Bias by hand: own grade less the mean of the three others.
    bias = {each.reader: each.bias.estimate for each in report.panel}
    others = (grades.sum(1) - grades[:, 1]) / 3
    assert bias[code(study, readers[1])] == pytest.approx((grades[:, 1] - others).mean())


def test_repeats_compare_a_reader_with_themselves_and_stay_out_of_the_rest(study, places, rate, bob):
    for number, place in enumerate(places):
        rate(place, 1 + number % 3)
        again = Assignment.objects.create(
            study=study,
            reader=bob,
            image=place.image,
            occurrence=2,
            position=100 + number,
            kind=Assignment.Kind.REPEAT,
        )
        rate(again, 1 + number % 3 if number else 3)  # the first one differs by two grades
    report = report_of(study)
    (own,) = report.repeats.readers
    assert own.reader == code(study, bob)
    assert own.exact.estimate == pytest.approx(5 / 6)
    # Squared distances: observed 4 / 6, by chance (14 / 6 + 4 / 6 + 6 / 6) / 3 = 4 / 3.
    assert own.kappa.estimate == pytest.approx(1 - (4 / 6) / (4 / 3))
    assert report.agreement.histogram == (2, 2, 2) and report.num_ratings == 12


def test_the_training_round_does_not_enter(study, places, rate):
    Assignment.objects.filter(pk=places[0].pk).update(kind=Assignment.Kind.TRAINING)
    for place in places[:3]:
        rate(place, 2)
    assert report_of(study).num_ratings == 2


def test_simulated_readers_are_left_out_of_a_study_of_people(study, places, rate, carol):
    study.memberships.filter(reader=carol).update(is_simulated=True)
    rate(places[0], 1)
    rate(study.assignments.filter(reader=carol).first(), 2)
    report = report_of(study)
    assert (report.num_ratings, report.num_left_out) == (1, 1)


def test_images_of_two_origins_are_compared(filled):
    drawn, brought = GeneratedImageFactory.create_batch(12), GeneratedImageFactory.create_batch(6, imported=True)
    study, *_ = filled(drawn + brought)
    assert report_of(study).groups == ("medsyn-tiny (55555555)", "imported images")
    (compared,) = report_of(study).comparisons
    assert (compared.first, compared.second) == ("medsyn-tiny (55555555)", "imported images")
    assert sum(compared.result.first.histogram) == 48 and sum(compared.result.second.histogram) == 24
    assert 0 < compared.result.p_value <= 1


def test_figures_follow_every_event(study, places, rate, bob):
    """Rated, changed, taken back: the next look shows it."""
    assert report_of(study) is None
    first = rate(places[0], 1)
    rate(places[1], 2)
    assert report_of(study).agreement.histogram == (1, 1, 0)
    rate(places[0], 3, revision=first.revision)
    assert report_of(study).agreement.histogram == (0, 1, 1)
    undo(study=study, reader=bob, client_uuid=uuid.uuid4())
    assert report_of(study).agreement.histogram == (0, 1, 0)


def test_unchanged_figures_are_not_computed_again(study, places, rate, monkeypatch):
    rate(places[0], 1)
    first = report_of(study)
    monkeypatch.setattr("ratings.study_report.agreement_report", lambda *_: pytest.fail("computed again"))
    assert report_of(study) == first


def test_the_level_is_that_of_most_ratings_when_they_were_given(study, places, rate, bob):
    """A new level of the membership changes nothing of what is rated already."""
    for place in places[:3]:
        rate(place, 1)
    before = report_of(study).confusion[0]
    assert (before.expert_level, before.ratings_by_level) == (3, (0, 0, 3))
    study.memberships.filter(reader=bob).update(expert_level=1)
    assert report_of(study).confusion[0] == before
    for place in places[3:]:
        rate(place, 1)
    tie = report_of(study).confusion[0]
    assert (tie.expert_level, tie.ratings_by_level) == (1, (3, 0, 3))  # as many: the lower level
    assert tie.shares[0][0] < before.shares[0][0]  # nothing is shared yet: the prior of level 1


def test_who_graded_nothing_but_a_second_showing_upsets_no_report(study, places, carol):
    others = list(study.assignments.filter(reader=carol))
    submit_rating(assignment=others[0], reader=carol, value=2, client_uuid=uuid.uuid4())
    before = report_of(study).confusion
    Assignment.objects.filter(pk=places[0].pk).update(kind="repeat", occurrence=2)
    submit_rating(assignment=places[0], reader=places[0].reader, value=1, client_uuid=uuid.uuid4())
    assert report_of(study).confusion == before


@pytest.mark.parametrize(
    "num_images, num_readers, expected", [(200, 5, 1000), (20_000, 5, 1000), (2000, 50, 200), (100_000, 5, 200)]
)
def test_large_studies_get_fewer_resamples(num_images, num_readers, expected):
    assert resamples_for(num_images, num_readers) == expected


def test_queries_grow_neither_with_the_readers_nor_with_the_images(filled, signed_in, alice):
    images, client, counts = GeneratedImageFactory.create_batch(40), signed_in(alice), []
    for image in images[::5]:
        set_gold(image=image, grade=2, set_by=alice)
    for num_readers, num_images in ((2, 12), (9, 12), (2, 40)):
        study, *_ = filled(images[:num_images], num_readers)
        for name in ("ratings:study", "ratings:study-agreement"):
            with CaptureQueriesContext(connection) as captured:
                assert client.get(reverse(name, args=[study.public_id])).status_code == 200
            counts.append(len(captured))
    assert counts[:2] == counts[2:4] == counts[4:] and max(counts) <= 24, counts


# The page ---------------------------------------------------------------------------------------------------


def test_the_page_names_readers_and_gives_reasons_in_words(study, places, rate, signed_in, alice):
    for place in places:
        rate(place, 2)
    page = signed_in(alice).get(reverse("ratings:study-agreement", args=[study.public_id])).content.decode()
    assert "Only one reader has rated: agreement takes two." in page
    assert "Reader bob has rated no image" in page and "R-" not in page.split("<main", 1)[1].split("Downloads")[0]
    assert "all rated synthetic images come from one source" in page.lower()


def test_a_study_without_ratings_says_what_to_do(study, signed_in, alice):
    page = signed_in(alice).get(reverse("ratings:study-agreement", args=[study.public_id])).content.decode()
    assert "Nothing is rated yet" in page


def test_a_simulated_study_is_marked_on_the_page(filled, signed_in, alice):
    study, *_ = filled(GeneratedImageFactory.create_batch(12), is_simulated=True)
    page = signed_in(alice).get(reverse("ratings:study-agreement", args=[study.public_id])).content.decode()
    assert "no clinical evidence" in page and page.count('class="badge simulated"') >= 9  # study, panel, rater model


@pytest.mark.parametrize(
    "noise, expected", [(0.0, "stand in for another"), (0.28, "tentative"), (3.0, "too little to conclude")]
)
def test_the_verdict_follows_the_interval(noise, expected):
    random = np.random.default_rng(1)
    quality = random.normal(size=(400, 1))
    grades = np.digitize(quality + noise * random.normal(size=(400, 3)), [-0.5, 0.6]) + 1
    grades[0, 0] = 1 if grades[0, 0] != 1 else 2  # never perfect: perfect agreement has no interval
    assert expected in verdict(krippendorff_alpha(RatingTable.from_matrix(grades)))


def test_one_grade_that_prevails_is_said(filled):
    study, readers, _ = filled(GeneratedImageFactory.create_batch(20))
    assert agreement_page(study, report_of(study))["prevails"] == ""
    Rating.objects.exclude(pk=Rating.objects.first().pk).update(value=2, revision=2)
    assert "Gwet's AC2" in agreement_page(study, report_of(study))["prevails"]


def test_an_administrator_who_still_has_to_rate_is_asked_first(study, places, rate, signed_in, alice):
    rate(places[0], 2)
    enrol_reader(study=study, reader=alice, expert_level=2)
    url, client = reverse("ratings:study-agreement", args=[study.public_id]), signed_in(alice)
    page = client.get(url).content.decode()
    assert "Rate your images first" in page and "data-summary" not in page and "Krippendorff" not in page
    assert "data-summary" in client.get(url, {"show": "1"}).content.decode()
    for place in study.assignments.filter(reader=alice):
        rate(place, 2)
    assert "data-summary" in client.get(url).content.decode()


# Downloads --------------------------------------------------------------------------------------------------


def test_every_table_comes_as_csv_and_json_and_all_at_once(filled, signed_in, alice):
    study, readers, grades = filled(GeneratedImageFactory.create_batch(12))
    client = signed_in(alice)
    together = downloaded(client, study, "all.json")
    assert len(together) == 17
    for name, records in together.items():
        assert downloaded(client, study, f"{name}.json") == records
        rows = downloaded(client, study, f"{name}.csv")
        assert len(rows) == len(records)
        if rows:
            assert list(rows[0]) == list(records[0])
    alpha = next(row for row in together["agreement"] if row["measure"] == "Krippendorff's alpha, ordinal")
    assert alpha["estimate"] == pytest.approx(krippendorff_alpha(RatingTable.from_matrix(grades)).estimate)
    assert {row["reader"] for row in together["panel"]} == {code(study, reader) for reader in readers}
    assert not any(reader.username in str(together) for reader in readers)


def test_an_unknown_table_is_not_found(study, signed_in, alice):
    for name in ("grades.xml", "nothing.csv", "panel.csv", ".csv"):  # no panel before there are ratings
        reply = signed_in(alice).get(reverse("ratings:study-table", args=[study.public_id, name]))
        assert reply.status_code == 404, name


def test_images_come_with_histogram_mean_majority_and_posterior(study, places, rate, images, carol, signed_in, alice):
    rate(places[0], 1)
    second = study.assignments.get(reader=carol, image=places[0].image)
    rate(second, 2)
    rate(places[1], 3)
    reply = signed_in(alice).get(reverse("ratings:study-image-grades", args=[study.public_id]))
    assert reply.streaming
    rows = list(csv.DictReader(io.StringIO(reply.getvalue().decode())))
    assert list(rows[0]) == list(IMAGE_COLUMNS)
    by_image = {row["image_uuid"]: row for row in rows}
    assert list(by_image) == [str(image.public_id) for image in images]
    split, single, unrated = (by_image[str(places[number].image.public_id)] for number in range(3))
    assert [split[key] for key in ("n", "poor", "acceptable", "excellent", "mean", "majority")] == [
        *("2", "1", "1", "0", "1.500000", "")
    ]
    assert (single["mean"], single["majority"]) == ("3.000000", "3")
    assert (unrated["n"], unrated["mean"], unrated["p_poor"]) == ("0", "", "")
    # bob's level 3 outweighs carol's level 1; one rating alone is the prior's word.
    assert float(split["p_poor"]) > float(split["p_acceptable"]) > float(split["p_excellent"])
    for row in (split, single):
        assert sum(float(row[name]) for name in ("p_poor", "p_acceptable", "p_excellent")) == pytest.approx(
            1, abs=3e-6
        )


def test_the_aggregate_is_streamed_in_one_pass(filled, signed_in, alice, django_assert_max_num_queries):
    study, *_ = filled(GeneratedImageFactory.create_batch(30))
    client = signed_in(alice)
    with django_assert_max_num_queries(8):
        reply = client.get(reverse("ratings:study-image-grades", args=[study.public_id]))
        assert reply.getvalue().count(b"\n") == 31
