"""Gold phantoms, and simulated experts who meet them in training rounds, repeats and open pools."""

import io
from dataclasses import replace

import numpy as np
import pytest
from django.core.management import call_command

from generation.diffusion.phantoms import class_of_caption, combined_severity, draw
from generation.diffusion.presets import TEST, build_pipeline
from generation.models import GeneratedImage
from medsyn.modalities import KINDS
from ratings.models import Assignment, GoldGrade, Rating, Study
from ratings.services import create_study, enrol_reader, set_gold
from ratings.study_report import report_of
from tests.factories import GeneratedImageFactory, UserFactory
from training.management.commands.demo_study import CLINICIAN_STUDY, SIMULATED_STUDY
from training.simulation.experts import Expert, rate_known
from training.simulation.gold import draw_gold, gold_grade

STUDY = "Simulated"


def test_the_gold_function_falls_with_severity_and_has_three_grades():
    severities = np.linspace(0, 1, 101)
    grades = [gold_grade(severity) for severity in severities]
    assert sorted(grades, reverse=True) == grades and set(grades) == {1, 2, 3}
    assert (gold_grade(0), gold_grade(1)) == (3, 1)
    with pytest.raises(ValueError, match="outside"):
        gold_grade(1.2)


def test_gold_phantoms_are_of_every_kind_and_grade_and_reproducible():
    drawn = list(draw_gold(3, seed=80_000_000, size=32))
    assert {(each.phantom.phantom_class.kind, each.grade) for each in drawn} == {
        (k, g) for k in KINDS for g in (1, 2, 3)
    }
    for each in drawn:
        phantom = each.phantom
        assert class_of_caption(phantom.caption) == phantom.phantom_class
        assert phantom.severity == pytest.approx(combined_severity([s for _, s in phantom.defects]))
        # Away from the borders 0.15 and 0.65, and said in words.
        assert min(abs(phantom.severity - border) for border in (0.15, 0.65)) > 0.1
        assert all(name.replace("_", " ") in each.rationale for name, _ in phantom.defects)
    again = list(draw_gold(3, seed=80_000_000, size=32))
    assert all(np.array_equal(a.phantom.pixels, b.phantom.pixels) for a, b in zip(drawn, again, strict=True))
    spoilt = next(each.phantom for each in drawn if each.grade == 1)
    clean = draw(
        spoilt.phantom_class, seed=80_000_000 + drawn.index(next(e for e in drawn if e.phantom is spoilt)), size=32
    )
    assert not np.array_equal(spoilt.pixels, clean.pixels)


def test_experts_know_known_grades_the_better_the_higher_their_level():
    truth = np.tile([1, 2, 3], 2000)
    right = {
        level: (rate_known(truth, Expert(level, 0.0), np.random.default_rng(0)) == truth).mean()
        for level in (1, 2, 3)
    }
    assert right[3] > right[2] > right[1] > 0.45 and right[3] > 0.75
    # By the formula, an unbiased level 3 (noise 0.4, lapse 0.02) at the middle of the scale: |0.4 eps| < 0.5244.
    middle = truth == 2
    found = (rate_known(truth, Expert(3, 0.0), np.random.default_rng(1)) == truth)[middle].mean()
    assert found == pytest.approx(0.98 * 0.8102 + 0.02 / 3, abs=0.03)


@pytest.fixture
def simulated(db):
    """``simulated(protocol)``: 24 main images of known care, 20 gold ones beside them, two simulated experts."""

    def make(**protocol):
        care = [{"num_inference_steps": steps} for steps in (2, 4, 6, 12)]
        images = [GeneratedImageFactory(parameters=care[number % 4]) for number in range(24)]
        for number in range(20):
            image = GeneratedImageFactory(imported=True)
            set_gold(image=image, grade=1 + number % 3, set_by=None)
        study = create_study(name=STUDY, images=images, is_simulated=True, protocol=protocol, order_seed=3)
        for level in (1, 3):
            enrol_reader(study=study, reader=UserFactory(), expert_level=level, is_simulated=True)
        return study

    return make


def simulate() -> str:
    out = io.StringIO()
    call_command("simulate_ratings", study=STUDY, gold="sampler", stdout=out)
    return out.getvalue()


def grades() -> dict:
    rows = Rating.objects.values_list("assignment__reader", "assignment__image", "assignment__occurrence", "value")
    return {tuple(key): value for *key, value in rows}


def test_training_round_gold_images_and_repeats_are_all_answered(simulated):
    study = simulated(num_training_images=6, gold_share=0.2, repeat_share=0.25, repeat_distance=5)
    assert "simulated ratings by 2 experts" in simulate()
    assert not study.assignments.open().exists()
    kinds = {kind for (kind,) in study.assignments.values_list("kind")}
    assert kinds == {"training", "main", "gold", "repeat"}
    assert not Rating.objects.exclude(active_ms__gt=0).exists()
    # A second sight is drawn anew: neither always the same grade nor unrelated to the first.
    given = grades()
    pairs = [(given[reader, image, 1], value) for (reader, image, times), value in given.items() if times == 2]
    assert len(pairs) >= 12 and any(first != second for first, second in pairs)
    assert simulate() == "Every simulated expert has rated everything.\n"


def test_an_interrupted_run_gives_the_same_grades(simulated):
    simulated(gold_share=0.2, repeat_share=0.25, repeat_distance=5)
    simulate()
    before = grades()
    lost = Rating.objects.filter(assignment__position__gte=9)
    for rating in lost:
        rating.events.all().delete()
    lost.delete()
    simulate()
    assert grades() == before


def test_an_open_pool_is_read_until_nothing_is_left(simulated):
    study = simulated(overlap_target=1)
    simulate()
    assert {entry.num_readers for entry in study.study_images.all()} == {1}
    assert Rating.objects.count() == 24 and Assignment.objects.filter(rating=None).count() == 0
    assert GeneratedImage.objects.filter(assignments__isnull=False).distinct().count() == 24


@pytest.mark.django_db(transaction=True)
def test_the_demonstration_measures_its_readers(tmp_path):
    """On a tiny random model: gold images and repeats for simulated experts, a training round for the clinician."""
    preset = replace(TEST, draws_phantoms=True)
    build_pipeline(preset, captions_for_vocabulary=["Fundus: drusen"], seed=0).save_pretrained(tmp_path / "model")
    clinician = UserFactory(username="clinician")
    call_command("demo_study", model=str(tmp_path / "model"), num_images=40, stdout=io.StringIO())
    study, trial = (Study.objects.get(name=name) for name in (SIMULATED_STUDY, CLINICIAN_STUDY))
    assert study.study_images.filter(role="gold").count() == 2 and study.study_images.count() == 40
    assert trial.assignments.filter(reader=clinician, kind="training").count() == 6
    taught = GoldGrade.objects.filter(image__assignments__kind="training")
    assert all("planted" in gold.rationale.lower() for gold in taught)
    assert sorted(taught.values_list("grade", flat=True)) == [1, 1, 2, 2, 3, 3]
    out = io.StringIO()
    call_command("simulate_ratings", study=SIMULATED_STUDY, gold="sampler", stdout=out)
    assert "220 simulated ratings by 5 experts" in out.getvalue()  # 40 images and 4 repeats each
    report = report_of(study)
    assert len(report.gold) == len(report.repeats.readers) == 5 and report.num_gold == 2
    again = io.StringIO()
    call_command("demo_study", model=str(tmp_path / "model"), num_images=40, stdout=again)
    assert "is there already" in again.getvalue()


@pytest.mark.django_db(transaction=True)
def test_copies_of_training_images_are_left_out_of_the_demonstration(tmp_path):
    """A generator that has seen patients may give one back; the study is made of the others."""
    preset = replace(TEST, draws_phantoms=False)
    build_pipeline(preset, captions_for_vocabulary=["Fundus: drusen"], seed=0).save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("Fundus: drusen\nFundus: left eye\n")
    flags = {"model": str(tmp_path / "model"), "prompts_file": tmp_path / "prompts.txt", "num_images": 16}
    call_command("demo_study", **flags, stdout=io.StringIO())
    copy = GeneratedImage.objects.first()
    copy.verdict, copy.resembles = "blocked", {"similarity": 0.99}
    copy.save()
    errors = io.StringIO()
    call_command("demo_study", **flags, name="Without copies", stdout=io.StringIO(), stderr=errors)
    assert "1 of 4 images copy training images" in errors.getvalue()
    study = Study.objects.get(name="Without copies")
    assert study.study_images.count() == 15 and not study.study_images.filter(image=copy).exists()
