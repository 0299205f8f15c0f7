"""A certificate speaks of one precision on one kind of device: of what its images were computed in, not of the word
that was asked for."""

import importlib

import pytest
from django.apps import apps
from django.db import connection

from generation import certification
from generation.models import Certificate, GeneratedImage, Release
from generation.parameters import Arithmetic, Parameters
from ratings import calibration_guards
from ratings.models import CalibrationPlan
from ratings.services.calibration_plans import CertifyError, plan_calibration, plan_monitoring
from ratings.services.certification import certify, obstacles
from tests.ratings.calibration_world import PROMPT, draw_job, make_release, plan_for, rate_all

pytestmark = pytest.mark.django_db
ON_GPU = Arithmetic("bfloat16", "cuda")


def certified(drawn) -> Certificate:
    plan = plan_for(drawn, num_images=200)
    rate_all(plan, drawn.truth)
    (certificate,) = certify(plan=plan)
    assert certificate.is_valid
    return certificate


def served(certificate: Certificate, arithmetic: Arithmetic | None, **parameters) -> certification.Standing:
    """Where a job stands that served two images, computed like that; None: it has drawn nothing yet."""
    given = {"quality_threshold": certificate.threshold, **parameters}
    drawn = draw_job(certificate.release, number=2, seed=9, arithmetic=arithmetic or ON_GPU, **given)
    if arithmetic is None:
        drawn.job.images.all().delete()
    return certification.standing_of_job(drawn.job)


def test_auto_is_certified_as_what_it_became():
    plan = plan_for(draw_job(make_release(), precision="auto", arithmetic=ON_GPU))
    assert (plan.pipelines["fundus"]["precision"], plan.pipelines["fundus"]["device"]) == ("bfloat16", "cuda")


def test_float16_that_a_processor_made_float32_is_certified_as_float32():
    plan = plan_for(draw_job(make_release(), precision="float16"))
    assert (plan.pipelines["fundus"]["precision"], plan.pipelines["fundus"]["device"]) == ("float32", "cpu")


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (ON_GPU.as_dict(), "bfloat16 on cuda, float32 on cpu"),
        ({"precision": "float32", "device": "cuda"}, "float32 on cpu, float32 on cuda"),
        ({"precision": "float32"}, "float32 on cpu, float32 on unrecorded"),
    ],
)
def test_a_job_that_was_resumed_on_another_device_is_not_calibrated_with(parameters, said):
    drawn = draw_job(make_release(), precision="auto")
    drawn.job.images.filter(position__lt=100).update(parameters=parameters)
    with pytest.raises(CertifyError, match=f"computed in {said}: a certificate speaks of one"):
        plan_for(drawn)


def test_jobs_of_two_devices_are_not_mixed():
    first = draw_job(make_release(), precision="auto")
    second = draw_job(first.job.release, number=2, seed=1, precision="auto", arithmetic=ON_GPU)
    with pytest.raises(CertifyError, match="in precision, device"):
        plan_calibration(name="x", release=first.job.release, jobs=[first.job, second.job], num_images=10)


@pytest.mark.parametrize(
    ("asked", "arithmetic", "reason"),
    [
        ("auto", Arithmetic("float32", "cpu"), ""),
        ("float32", Arithmetic("float32", "cpu"), ""),
        ("float16", Arithmetic("float32", "cpu"), ""),  # what it became counts
        ("float32", None, ""),  # a worker on another device refuses it
        (
            "auto",
            None,
            "The precision is auto, which each device reads in its own way; the certified one is float32.",
        ),
        ("auto", Arithmetic("bfloat16", "cpu"), "The precision is bfloat16; the certified one is float32."),
        ("float32", Arithmetic("float32", "cuda"), "The kind of device is cuda; the certified one is cpu."),
    ],
)
def test_what_is_served_is_certified_by_what_it_was_computed_in(asked, arithmetic, reason):
    standing = served(certified(draw_job(make_release(), precision="auto")), arithmetic, precision=asked)
    assert (standing.is_certified, reason) == (not reason, "" if standing.is_certified else standing.sentence)


def test_one_image_of_another_precision_is_enough():
    certificate = certified(draw_job(make_release()))
    job = draw_job(certificate.release, number=3, seed=9, quality_threshold=certificate.threshold).job
    assert certification.standing_of_job(job).is_certified
    job.images.filter(position=1).update(parameters=ON_GPU.as_dict())
    assert "The precision is bfloat16" in certification.standing_of_job(job).sentence


def test_a_call_under_it_names_the_precision():
    certificate = certified(draw_job(make_release(), precision="auto", arithmetic=ON_GPU))
    call = {"release": certificate.release, "prompts": [PROMPT]}
    wanted, found = certification.certified_call(**call, parameters=Parameters(precision="auto"))
    assert (wanted.precision, found) == ("bfloat16", certificate)


def test_only_what_was_computed_as_certified_is_watched():
    certificate = certified(draw_job(make_release()))
    for seed in (7, 8):
        job = draw_job(certificate.release, number=3, seed=seed, quality_threshold=certificate.threshold).job
        certification.note_job(job=job, certificate=certificate)
    job.images.update(parameters=ON_GPU.as_dict())  # before workers refused it
    with pytest.raises(CertifyError, match="4 images are to be watched and 3"):
        plan_monitoring(name="Watching", certificate=certificate, num_images=4)


# --- certificates and plans of before ---


def as_before(certificate: Certificate) -> CalibrationPlan:
    """The certificate and its plan as they were stored when pipelines named the precision that was asked for."""
    plan = CalibrationPlan.objects.get(public_id=certificate.calibration_set)
    for row, pipeline in ((certificate, certificate.pipeline), (plan, plan.pipelines["fundus"])):
        del pipeline["device"]
        pipeline["precision"] = "auto"
        row.save()
    return plan


def migrate() -> None:
    migration = importlib.import_module("ratings.migrations.0009_kept_calibrations")
    migration.settle_arithmetic(apps, None)
    calibration_guards.install(connection)  # in the same transaction, as the migration does


def judged(release: Release, arithmetic: Arithmetic) -> certification.Standing:
    certificate = Certificate.objects.get()
    parameters = {**draw_job(release, number=1, seed=9).job.parameters, "quality_threshold": certificate.threshold}
    call = {"release": release, "mode": "rlhf", "prompts": [PROMPT], "parameters": parameters | {"precision": "auto"}}
    return certification.standing_of_call(**call, drawn=[arithmetic])


def test_an_old_certificate_is_never_valid_by_its_word():
    """Between the update of the code and the migration, too."""
    drawn = draw_job(make_release(), precision="auto")
    certificate = certified(drawn)
    as_before(certificate)
    for arithmetic in (Arithmetic("float32", "cpu"), ON_GPU):
        assert "the certified one is auto" in judged(drawn.job.release, arithmetic).sentence
    with pytest.raises(certification.ParameterError, match="the certified one is auto"):
        certification.certified_call(release=drawn.job.release, prompts=[PROMPT], parameters=Parameters())


def test_an_old_certificate_speaks_of_what_its_images_were_computed_in():
    drawn = draw_job(make_release(), precision="auto", arithmetic=ON_GPU)
    certificate = certified(drawn)
    as_before(certificate)
    digest = certificate.hash
    migrate()
    certificate.refresh_from_db()
    assert certificate.is_valid and certificate.hash == digest and certificate.pipeline["precision"] == "auto"
    assert judged(drawn.job.release, ON_GPU).is_certified
    assert "The precision is float32" in judged(drawn.job.release, Arithmetic("float32", "cpu")).sentence
    wanted, _ = certification.certified_call(
        release=drawn.job.release, prompts=[PROMPT], parameters=Parameters(precision="auto")
    )
    assert wanted.precision == "bfloat16"


def test_an_old_certificate_whose_images_disagree_is_revoked():
    drawn = draw_job(make_release(), precision="auto")
    certificate = certified(drawn)
    plan = as_before(certificate)
    first = plan.calibration_images.first().image
    GeneratedImage.objects.filter(pk=first.pk).update(parameters=ON_GPU.as_dict())
    migrate()
    certificate.refresh_from_db()
    assert not certificate.is_valid and "nobody can tell what it speaks of" in certificate.revocation
    assert "was revoked" in judged(drawn.job.release, Arithmetic("float32", "cpu")).sentence


@pytest.mark.parametrize("do_agree", [True, False])
def test_a_plan_of_before_is_tested_for_what_its_images_say_or_not_at_all(do_agree):
    drawn = draw_job(make_release(), precision="auto")
    plan = plan_for(drawn, num_images=200)
    rate_all(plan, drawn.truth)
    plan.pipelines["fundus"].pop("device")
    plan.pipelines["fundus"]["precision"] = "auto"
    plan.save()
    if not do_agree:
        first = plan.calibration_images.first().image
        GeneratedImage.objects.filter(pk=first.pk).update(parameters=ON_GPU.as_dict())
    migrate()
    plan.refresh_from_db()
    if do_agree:
        (certificate,) = certify(plan=plan)
        assert (certificate.pipeline["precision"], certificate.pipeline["device"]) == ("float32", "cpu")
    else:
        assert ["Draw a new set" in text for text in obstacles(plan, ["fundus"])] == [True]


@pytest.mark.postgres
@pytest.mark.slow
def test_rows_of_postgresql_say_it_as_well(run_on_postgres):
    run_on_postgres(__file__, "-k", "test_an_old or resumed or one_image or becam")
