"""Real against synthetic images by the readers' blind grades."""

import numpy as np
import pytest
from django.utils import timezone
from scipy.stats import mannwhitneyu

from ratings.agreement.comparison import compare_within_readers
from ratings.agreement.estimate import Bootstrap
from ratings.agreement.table import RatingTable
from ratings.export import pseudonym
from ratings.models import Rating
from ratings.report_page import agreement_page, turing_in_words
from ratings.report_tables import report_tables
from ratings.services import create_study, enrol_reader, set_gold
from ratings.study_report import report_of
from tests.factories import GeneratedImageFactory, PromptFactory, UserFactory

NUM_REAL, NUM_SYNTHETIC = 20, 30
CUTS = [-0.5, 0.6]


@pytest.fixture
def judged(db):
    """``judged(shift)``: three readers, the second half as fine as the first; real images ``shift`` grades better."""

    def make(shift: float, *, extra=(), seed: int = 0):
        fundus = PromptFactory(text="Fundus: drusen")
        real = GeneratedImageFactory.create_batch(NUM_REAL, imported=True, is_real=True, prompt=fundus)
        drawn = GeneratedImageFactory.create_batch(NUM_SYNTHETIC, prompt=fundus)
        study = create_study(name=f"Turing {shift}", images=[*real, *drawn, *extra])
        random = np.random.default_rng(seed)
        readers = UserFactory.create_batch(3)
        for reader in readers:
            enrol_reader(study=study, reader=reader, expert_level=2)
        milder = {reader.pk: 0.2 * number for number, reader in enumerate(readers)}
        given = [
            Rating(
                assignment=place,
                value=int(np.digitize(random.normal() + shift * place.image.is_real + milder[place.reader_id], CUTS))
                + 1,
                expert_level=2,
                protocol_version=1,
                submitted_at=timezone.now(),
            )
            for place in study.assignments.select_related("image").order_by("reader", "image")
        ]
        Rating.objects.bulk_create(given)
        return study

    return make


def grades_of(study, *, is_real: bool, reader=None) -> np.ndarray:
    found = Rating.objects.filter(assignment__study=study, assignment__image__is_real=is_real)
    found = found.filter(assignment__image__gold=None)
    if reader is not None:
        found = found.filter(assignment__reader=reader)
    return np.array(found.values_list("value", flat=True))


def test_each_readers_area_is_mann_whitneys_u_over_all_pairs(judged):
    study = judged(1.5)
    turing = report_of(study).turing
    for member in study.memberships.all():
        code = pseudonym(str(study.public_id), member.reader_id)
        found = next(each for each in turing.readers if each.reader == code)
        real, drawn = (grades_of(study, is_real=kind, reader=member.reader) for kind in (True, False))
        assert found.superiority.estimate == pytest.approx(mannwhitneyu(real, drawn).statistic / (20 * 30))
        assert found.superiority.low < found.superiority.estimate < found.superiority.high
        assert (found.n_first, found.n_second) == (NUM_REAL, NUM_SYNTHETIC) and found.superiority.reason == ""
    # Everybody has graded everything: van Elteren's weights are equal, and the pooled area is the readers' mean.
    pooled = turing.groups.result.superiority
    assert pooled.estimate == pytest.approx(np.mean([each.superiority.estimate for each in turing.readers]))
    assert pooled.low > 0.5 and "readers" in pooled.method


def test_the_share_of_each_grade_of_real_and_synthetic_images(judged):
    study = judged(0.8)
    result = report_of(study).turing.groups.result
    for side, is_real in ((result.first, True), (result.second, False)):
        given = grades_of(study, is_real=is_real)
        assert [share.estimate for share in side.shares] == pytest.approx([(given == g).mean() for g in (1, 2, 3)])


@pytest.mark.parametrize(
    "shift, expected",
    [(1.5, "Real images are graded higher"), (-1.5, "Synthetic images are graded"), (0, "do not tell real images")],
)
def test_the_sentence_follows_the_interval(judged, shift, expected):
    turing = report_of(judged(shift)).turing
    assert expected in turing_in_words(turing)
    area = turing.groups.result.superiority
    assert min(abs(area.low - 0.5), abs(area.high - 0.5)) > 0.04  # not by a hair


def test_gold_images_and_kinds_of_one_side_alone_do_not_enter(judged):
    """Else the area would speak of planted defects, or of a fundus against a chest."""
    plain = report_of(judged(0.5)).turing.groups
    planted = GeneratedImageFactory.create_batch(6, imported=True, prompt=PromptFactory(text="Fundus: drusen"))
    for image in planted:
        set_gold(image=image, grade=1, set_by=None)
    chests = GeneratedImageFactory.create_batch(5, prompt=PromptFactory(text="Chest X-ray: normal"))
    study = judged(0.51, extra=[*planted, *chests])
    turing = report_of(study).turing
    assert (plain.num_left_out, turing.groups.num_left_out) == (0, 5)
    assert sum(turing.groups.result.second.histogram) == 3 * NUM_SYNTHETIC
    assert {(each.n_first, each.n_second) for each in turing.readers} == {(NUM_REAL, NUM_SYNTHETIC)}


def test_generators_are_compared_without_real_and_gold_images(judged):
    other = GeneratedImageFactory.create_batch(
        8, imported=True, batch="MINIM", prompt=PromptFactory(text="Fundus: drusen")
    )
    planted = GeneratedImageFactory.create_batch(4, imported=True, batch="Gold", prompt=other[0].prompt)
    for image in planted:
        set_gold(image=image, grade=1, set_by=None)
    report = report_of(judged(0.5, extra=[*other, *planted]))
    assert report.groups == ("medsyn-tiny (55555555)", "imported: MINIM")
    (compared,) = report.comparisons
    assert sum(compared.result.second.histogram) == 3 * 8


def test_without_real_images_there_is_nothing_to_tell(study, places, rate, signed_in, alice):
    rate(places[0], 2)
    report = report_of(study)
    assert report.turing is None and agreement_page(study, report)["turing"] is None
    tables = {table.name: table for table in report_tables(report)}
    assert tables["real_synthetic"].rows == () == tables["real_synthetic_readers"].rows


def test_the_page_shows_every_reader_and_all_together(judged):
    study = judged(0.8)
    shown = agreement_page(study, report_of(study))["turing"]
    assert len(shown["rows"]) == 3 and [label for label, *_ in shown["shares"]] == ["Poor", "Acceptable", "Excellent"]
    assert shown["pooled"]["superiority"].x_mark == "160.0"  # 0.5, in the middle of the plot


def test_a_reader_of_one_kind_alone_has_no_area():
    table = RatingTable.from_matrix(np.array([[1, 2], [2, 0], [3, 0], [2, 0]]))
    found = compare_within_readers(table, np.array([True, True, False, False]), bootstrap=Bootstrap(50))
    assert found[0].superiority.estimate == pytest.approx((0 + 0 + 0 + 0.5) / 4)
    assert found[1].superiority.estimate is None and "Reader 1" in found[1].superiority.reason
