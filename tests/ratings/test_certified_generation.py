"""From real images to a certificate and back to real images: drawn, scored and served by the engine."""

import re
import uuid

import pytest

from generation import certification, engine
from generation.models import Certificate, GeneratedImage
from generation.parameters import Parameters
from generation.services import start_generation
from medsyn.jobs import JobError
from ratings.services import calibration_plans, submit_rating
from ratings.services.certification import certify
from tests.factories import UserFactory
from tests.generation.conftest import tiny_files, tiny_release  # noqa: F401  fixtures of generation
from tests.ratings.calibration_world import make_certificate

PROMPT = "Fundus: no abnormality"
SAMPLING = {"num_inference_steps": 1, "guidance_scale": 1.0, "batch_size": 16}


def run(job):
    job.state = job.State.RUNNING
    job.save()
    engine.run(job)
    type(job).objects.filter(pk=job.pk).update(state="succeeded")
    job.refresh_from_db()
    return job


@pytest.mark.slow
@pytest.mark.django_db
def test_what_is_served_under_a_certificate_reaches_its_threshold(tiny_release, alice, monkeypatch):  # noqa: F811
    monkeypatch.setattr(calibration_plans, "MIN_UNRATED", 20)
    monkeypatch.setattr("generation.tasks.run_generation_job.delay", lambda key: None)
    drawing = Parameters(**SAMPLING, quality_threshold=0, max_attempts=1, num_candidates=1)
    asked = {"prompts": [PROMPT], "user": alice, "mode": "rlhf"}
    job = run(start_generation(**asked, num_images=40, seed=1000, parameters=drawing))
    assert job.images.filter(selector_score__isnull=False).count() == 40
    for position, key in job.images.values_list("position", "pk"):  # the draw goes by these: the same in every run
        job.images.filter(pk=key).update(public_id=uuid.UUID(int=position))
    reader = UserFactory()
    plan = calibration_plans.plan_calibration(
        name="Drawn",
        release=tiny_release,
        jobs=[job],
        num_images=20,
        alpha=0.4,
        delta=0.4,
        readers=[(reader, 2)],
        seed=2,
    )
    for place in plan.study.assignments.all():
        good = min(place.image.selector_score, place.image.policy_score) >= plan.thresholds["fundus"][24]
        submit_rating(assignment=place, reader=reader, value=3 if good else 1, client_uuid=uuid.uuid4())
    (certificate,) = certify(plan=plan)
    assert certificate.status == Certificate.Status.ISSUED and certificate.served_share < 1
    served = start_generation(**asked, num_images=6, seed=9000, parameters=Parameters(batch_size=16), certified=True)
    assert served.parameters["num_inference_steps"] == 1 and served.certified.certificate == certificate
    run(served)
    assert certification.standing_of_job(served).is_certified
    for image in GeneratedImage.objects.filter(job=served):
        passes = min(image.selector_score, image.policy_score) >= certificate.threshold
        assert passes == (image.verdict == GeneratedImage.Verdict.ACCEPTED)
    assert served.images.accepted().exists()


@pytest.mark.slow
@pytest.mark.django_db
@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"device": "cuda"}, "the kind of device is cpu; the certified one is cuda"),
        # No processor draws in it.
        ({"precision": "float16"}, "the precision is float32; the certified one is float16"),
    ],
)
def test_other_arithmetic_draws_nothing(tiny_release, alice, monkeypatch, settings, changes, fault):  # noqa: F811
    settings.DEVICE = "cpu"
    monkeypatch.setattr("generation.tasks.run_generation_job.delay", lambda key: None)
    certificate = make_certificate(tiny_release)
    certificate.pipeline |= changes
    certificate.save()
    job = start_generation(prompts=[PROMPT], user=alice, mode="rlhf", num_images=1, certified=True)
    assert certification.standing_of_job(job).is_certified  # nobody knows yet where it will be drawn
    with pytest.raises(JobError, match=re.escape(f"The job is under {certificate}, but here {fault}")):
        run(job)
    assert not job.images.exists()
