"""From calibration ratings to certificates and refusals, and from later ratings to a revocation."""

import numpy as np
import pytest
from scipy.stats import binom

from generation import certification
from generation.certificate import Promise, calibrate_at
from generation.models import Certificate, CertifiedJob, GeneratedImage, GenerationJob
from ratings.calibration import drawn_images
from ratings.models import CalibrationPlan
from ratings.services.calibration_plans import CertifyError, plan_monitoring
from ratings.services.certification import certify, observe_all, observe_ratings, obstacles
from tests.factories import UserFactory
from tests.ratings.calibration_world import (
    draw_job,
    gates_of,
    make_certificate,
    make_release,
    plan_for,
    rate_all,
    scores_and_truth,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def drawn():
    return draw_job(make_release(), number=720, auc=0.97)


@pytest.fixture
def plan(drawn):
    plan = plan_for(drawn, num_images=220)
    rate_all(plan, drawn.truth)
    return plan


@pytest.fixture
def certificate(plan) -> Certificate:
    (certificate,) = certify(plan=plan)
    return certificate


def test_a_certificate_holds_what_the_test_found(drawn, plan, certificate):
    images = drawn_images(plan)
    scores = np.array([each.score for each in images])
    is_poor = np.array([drawn.truth[each.image] for each in images])
    found = calibrate_at(scores, is_poor, thresholds=plan.thresholds["fundus"], num_unrated=500, promise=Promise())
    assert certificate.status == "issued" and certificate.threshold == found.threshold
    above, poor = int((scores >= found.threshold).sum()), int(is_poor[scores >= found.threshold].sum())
    held = certificate.manifest["steps"][-2 if len(found.steps) > 1 and found.steps[-1].p_value > 0.1 else -1]
    assert (held["num_above"], held["num_poor"]) == (above, poor)
    assert binom.cdf(poor, above, 0.10) <= 0.10 and certificate.poor_bound <= 0.10
    assert (certificate.num_images, certificate.num_poor) == (220, int(is_poor.sum()))
    assert "at most 10\u00a0% of the Fundus images served" in certificate.sentence
    assert certificate.batch_statements[0] == (100, 15) and certificate.batch_confidence == pytest.approx(0.85)
    certificate.spent_delta = 0.1 / 3  # three kinds together: rounded down, for it is a promise
    assert certificate.batch_confidence == 0.9166
    certificate.refresh_from_db()
    assert certificate.manifest["readers"] == 1 and certificate.manifest["ratings"] == 220
    assert certificate.hash == certification.hash_of(certificate.pipeline, certificate.manifest["fixed"])


def test_the_hash_covers_everything_that_was_fixed(certificate):
    fixed = certificate.manifest["fixed"]
    for part, value in certificate.pipeline.items():
        assert certification.hash_of(certificate.pipeline | {part: [value]}, fixed) != certificate.hash, part
    for name, value in fixed.items():
        assert certification.hash_of(certificate.pipeline, fixed | {name: [value]}) != certificate.hash, name


def test_an_unfinished_set_is_not_tested(drawn):
    plan = plan_for(drawn, num_images=100)
    rate_all(plan, drawn.truth, number=90)
    with pytest.raises(CertifyError, match="Of 100 calibration images of kind Fundus 10 are still to be rated"):
        certify(plan=plan)
    assert not Certificate.objects.exists()


def test_a_set_is_tested_once_unless_it_was_planned_otherwise(plan, certificate):
    with pytest.raises(CertifyError, match="its delta is spent"):
        certify(plan=plan)
    assert Certificate.objects.count() == 1


def test_a_reusable_set_spends_delta_in_shares(drawn):
    plan = plan_for(drawn, num_images=220, is_reusable=True)
    rate_all(plan, drawn.truth)
    spent = [certify(plan=plan)[0].spent_delta for _ in range(3)]
    assert spent == pytest.approx([0.6 / np.pi**2 / v**2 for v in (1, 2, 3)])
    assert list(Certificate.objects.order_by("version").values_list("version", flat=True)) == [1, 2, 3]


def test_kinds_claimed_together_share_delta_and_have_thresholds_of_their_own():
    prompts = ("Fundus: no abnormality", "OCT: drusen")
    drawn = draw_job(make_release(), number=1440, prompts=prompts, auc=0.97)
    plan = plan_for(drawn, num_images=220)
    rate_all(plan, drawn.truth)
    fundus, oct_scan = certify(plan=plan)
    assert (fundus.kind, oct_scan.kind) == ("fundus", "oct") and fundus.num_kinds == 2
    assert fundus.spent_delta == oct_scan.spent_delta == pytest.approx(0.05)
    assert fundus.pipeline["prompts"] == [prompts[0]] and fundus.threshold != oct_scan.threshold
    assert "for all 2 kinds claimed together" in fundus.sentence
    with pytest.raises(CertifyError, match="claims Fundus, OCT, not Brain MRI"):
        certify(plan=plan, kinds=["Brain MRI"])


def test_a_refusal_is_stored_with_the_ratings_that_are_missing(drawn):
    plan = plan_for(drawn, num_images=20)
    rate_all(plan, dict.fromkeys(drawn.truth, False))  # which twenty are drawn is chance: too few in any case
    (refused,) = certify(plan=plan)
    assert refused.status == "refused" and refused.threshold is None and "it takes 22" in refused.refusal
    assert refused.num_further > 0
    numbers, powers = zip(*refused.manifest["power"], strict=True)
    assert list(numbers) == sorted(numbers) and max(powers) >= 0.8
    standing = certification.status(refused.release, "fundus")
    assert not standing.is_certified and "was refused: 20 calibration images" in standing.sentence


def test_obstacles_tell_nothing_of_the_grades(drawn):
    plan = plan_for(drawn, num_images=40)
    before = obstacles(plan, ["fundus"])
    rate_all(plan, dict.fromkeys(drawn.truth, True), number=5)
    after = obstacles(plan, ["fundus"])
    assert [text.replace("35 are", "40 are") for text in after] == before


# --- a call ---


def judge(certificate, *, prompts=None, mode="rlhf", release=None, **changes):
    parameters = {
        **GenerationJob.objects.filter(release=certificate.release).earliest("pk").parameters,
        "quality_threshold": certificate.threshold,
        **changes,
    }
    return certification.standing_of_call(
        release=release or certificate.release,
        mode=mode,
        prompts=prompts or certificate.pipeline["prompts"],
        parameters=parameters,
    )


def test_the_call_that_was_certified_is_certified(certificate):
    assert judge(certificate).is_certified and judge(certificate).certificate == certificate
    assert judge(certificate, batch_size=9, max_attempts=50).is_certified
    assert judge(certificate, height=128, width=128).is_certified  # the model's own size, named


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_inference_steps": 7}, "Other than certified: steps"),
        ({"guidance_scale": 2.0}, "Other than certified: guidance."),
        ({"guidance_interval": [0.2, 0.8]}, "guidance interval"),
        ({"scheduler": "ddim"}, "sampler"),
        ({"negative_prompt": "blur"}, "negative prompt"),
        ({"height": 64, "width": 64}, "height, width"),
        ({"precision": "bfloat16"}, "precision"),
        ({"quality_threshold": 0.01}, "the threshold is 0.01, the certified one"),
        ({"mode": "baseline"}, "Nothing is filtered"),
        ({"prompts": ["Fundus: drusen"]}, "'Fundus: drusen' is outside the calibrated ones"),
        ({"prompts": ["OCT: drusen"]}, "has no certificate for OCT"),
        ({"prompts": ["Fundus: no abnormality", "OCT: drusen"]}, "several kinds"),
    ],
)
def test_any_other_call_is_not_and_says_why(certificate, changes, reason):
    standing = judge(certificate, **changes)
    assert not standing.is_certified and reason.lower() in standing.sentence.lower()


@pytest.mark.parametrize("part", ["pipeline_sha256", "selector_sha256", "policy_sha256"])
def test_other_weights_void_it(certificate, part):
    setattr(certificate.release, part, "e" * 64)
    certificate.release.save()
    assert not certification.status(certificate.release, "fundus").is_certified
    assert not judge(certificate).is_certified


def test_another_release_has_none(certificate):
    other = make_release("second")
    assert "second (ssssssss) has no certificate for Fundus" in judge(certificate, release=other).sentence


def test_other_preprocessing_voids_it(certificate, monkeypatch):
    monkeypatch.setattr(certification, "PREPROCESSING_VERSION", 2)
    assert not judge(certificate).is_certified


def test_gates_count_where_they_are_at_work_and_nowhere_else(drawn):
    """They serve at the threshold that they were trained for alone: calibration, at 0, goes without them."""
    release = drawn.job.release
    release.gates_sha256, release.manifest = "f" * 64, {"gates": gates_of(drawn.job, quality_threshold=0.31)}
    release.save()
    plan = plan_for(drawn, num_images=220)
    rate_all(plan, drawn.truth)
    (certificate,) = certify(plan=plan)
    assert certificate.pipeline["gates"] == "" and judge(certificate).is_certified
    release.manifest["gates"]["sampling"]["quality_threshold"] = certificate.threshold
    release.save()
    certificate.refresh_from_db()
    assert "other than certified: gates" in judge(certificate).sentence.lower()
    assert judge(certificate, use_gates=False).is_certified


def test_several_attempts_bend_a_mix_of_prompts():
    prompts = ("Fundus: drusen", "Fundus: no abnormality")
    drawn = draw_job(make_release(), number=720, prompts=prompts, auc=0.97)
    plan = plan_for(drawn, num_images=220)
    rate_all(plan, drawn.truth)
    (certificate,) = certify(plan=plan)
    assert judge(certificate, max_attempts=1, num_candidates=1).is_certified
    standing = judge(certificate, max_attempts=2, num_candidates=1)
    assert not standing.is_certified and "prompts that pass seldom" in standing.sentence
    alone = judge(certificate, prompts=prompts[:1], max_attempts=1, num_candidates=1)
    assert not alone.is_certified and "mix of prompts differs" in alone.sentence


def test_copies_that_were_drawn_again_bend_a_mix_of_prompts():
    """A blocked candidate fills no place: with attempts left its prompt is drawn again, in service it is not."""
    drawn = draw_job(make_release(), number=720, prompts=("Fundus: drusen", "Fundus: no abnormality"), auc=0.97)
    copy = drawn.job.images.latest("pk")
    copy.verdict, copy.resembles = "blocked", {"name": "patient_7.png"}
    copy.save()
    with pytest.raises(CertifyError, match="prompts that pass seldom"):
        plan_for(drawn)
    GenerationJob.objects.update(parameters=drawn.job.parameters | {"max_attempts": 1, "num_candidates": 1})
    drawn.job.refresh_from_db()
    plan = plan_for(drawn)
    assert not plan.calibration_images.filter(image=copy).exists() and plan.num_unrated["fundus"] == 719 - 150


# --- drift ---


def serve(certificate: Certificate, number: int, *, poor: float) -> dict[int, bool]:
    """A job under the certificate whose images are poor with that probability; the truth by image."""
    number_of_jobs = GenerationJob.objects.count()
    drawn = draw_job(
        certificate.release, number=number, seed=number_of_jobs + 7, quality_threshold=certificate.threshold
    )
    certification.note_job(job=drawn.job, certificate=certificate)
    is_poor = np.random.default_rng(1).random(number) < poor
    keys = GeneratedImage.objects.filter(job=drawn.job).order_by("pk").values_list("pk", flat=True)
    return dict(zip(keys, is_poor.tolist(), strict=True))


def monitor(certificate: Certificate, number: int) -> CalibrationPlan:
    name = f"Watching {CalibrationPlan.objects.count()}"
    return plan_monitoring(
        name=name, certificate=certificate, num_images=number, readers=[(UserFactory(), 2)], seed=2
    )


def test_ratings_of_served_images_are_observed_in_the_order_of_the_draw(certificate):
    truth = serve(certificate, 60, poor=0.05)
    plan = monitor(certificate, 40)
    rate_all(plan, truth, number=25)
    settled = [each.is_settled for each in drawn_images(plan)]
    first_gap = settled.index(False)
    assert len(observe_ratings(certificate=certificate)) == first_gap
    rate_all(plan, truth)
    assert len(observe_ratings(certificate=certificate)) == 40 - first_gap
    rows = certificate.observations.order_by("position")
    assert [row.image_id for row in rows] == [each.image for each in drawn_images(plan)]
    assert [row.is_poor for row in rows] == [truth[row.image_id] for row in rows]
    capital = 1.0
    for row in rows:
        capital *= 1 + 0.5 / 0.9 * (row.is_poor - 0.1)
        assert row.capital == pytest.approx(capital)
    assert observe_ratings(certificate=certificate) == [] and observe_all() == [certificate] and certificate.is_valid


def test_where_more_is_poor_the_certificate_is_revoked(certificate):
    truth = serve(certificate, 120, poor=0.6)
    rate_all(monitor(certificate, 100), truth)
    assert observe_all() == [certificate]
    certificate.refresh_from_db()
    assert not certificate.is_valid and "drawn at random from those served" in certificate.revocation
    last = certificate.observations.last()
    assert last.capital >= 20 and certificate.observations.count() < 100
    assert "was revoked: Of" in judge(certificate).sentence
    with pytest.raises(CertifyError, match="holds no more"):
        monitor(certificate, 5)


def test_nothing_but_a_random_draw_of_served_images_is_observed(certificate):
    with pytest.raises(CertifyError, match="0 that were served"):
        monitor(certificate, 5)
    truth = serve(certificate, 20, poor=0.1)
    from ratings.services import create_study

    create_study(name="Chosen by somebody", images=[GeneratedImage.objects.get(pk=next(iter(truth)))])
    with pytest.raises(CertifyError, match="0 that were served"):
        monitor(certificate, 5)


def test_a_job_that_serves_something_else_is_not_noted(certificate):
    other = draw_job(certificate.release, number=2, seed=50, quality_threshold=0.99)
    with pytest.raises(certification.CertificationError, match="the threshold is 0.99|The threshold is 0.99"):
        certification.note_job(job=other.job, certificate=certificate)


def test_another_order_is_refused(certificate):
    keys = list(serve(certificate, 3, poor=0.1))
    certification.observe(certificate=certificate, verdicts=[(keys[0], False), (keys[1], True)])
    with pytest.raises(certification.CertificationError, match="do not come in the order"):
        certification.observe(certificate=certificate, verdicts=[(keys[1], True), (keys[0], False)])


def test_one_that_cannot_be_observed_does_not_keep_the_others_from_it(certificate):
    truth = serve(certificate, 20, poor=0.1)
    rate_all(monitor(certificate, 10), truth)
    broken = make_certificate(certificate.release)
    truth = serve(certificate, 20, poor=0.1)
    CertifiedJob.objects.filter(job=GenerationJob.objects.latest("pk")).update(certificate=broken)
    rate_all(monitor(broken, 10), truth)
    stray = GeneratedImage.objects.earliest("pk")
    broken.observations.create(position=0, image=stray, is_poor=False, capital=1.0)
    with pytest.raises(certification.CertificationError, match=f"Certificate {broken.pk}: .* saw them before"):
        observe_all()
    assert certificate.observations.count() == 10 and broken.observations.count() == 1


def test_a_certificate_is_revoked_by_hand_once_and_with_a_reason(certificate):
    with pytest.raises(certification.CertificationError, match="Say why"):
        certification.revoke(certificate=certificate, reason=" ")
    first = certification.revoke(certificate=certificate, reason="The scanner changed.")
    again = certification.revoke(certificate=certificate, reason="Another reason.")
    assert again.revocation == "The scanner changed." and again.revoked_at == first.revoked_at


def test_scores_of_the_world_are_what_they_say():
    scores, is_poor = scores_and_truth(4000, auc=0.9, base=0.3)
    pairs = scores[~is_poor][:, None] > scores[is_poor]
    assert pairs.mean() == pytest.approx(0.9, abs=0.02) and is_poor.mean() == pytest.approx(0.3, abs=0.03)
