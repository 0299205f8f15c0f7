"""Calibration images are a fixed random draw that nothing learns from: whoever tries, the database says no."""

import uuid
from datetime import timedelta
from functools import partial
from importlib import import_module
from types import SimpleNamespace

import pytest
from django.apps import apps
from django.db import IntegrityError, connection, transaction

from generation.certificate import thresholds_of
from generation.certification import note_job, revoke
from generation.models import Certificate, GeneratedImage
from ratings import calibration_guards
from ratings.calibration import drawn_images, progress, verdict_of
from ratings.forms import ImageChoiceForm
from ratings.models import Anchor, Assignment, CalibrationImage, GoldGrade, Rating, StudyImage
from ratings.services import StudyError, create_study, set_gold, submit_rating
from ratings.services.calibration_plans import CertifyError
from ratings.services.certification import certify
from tests.factories import GeneratedImageFactory, StudyFactory, UserFactory
from tests.ratings.calibration_world import PROMPT, draw_job, make_certificate, make_release, plan_for, rate_all

pytestmark = pytest.mark.django_db


@pytest.fixture
def drawn():
    return draw_job(make_release())


@pytest.fixture
def plan(drawn):
    return plan_for(drawn)


# --- the draw ---


def test_the_draw_is_uniform_replayable_and_settles_everything(drawn, plan):
    keys = list(plan.calibration_images.order_by("position").values_list("image_id", flat=True))
    assert len(keys) == 150 and plan.study.study_images.filter(role="calibration").count() == 150
    assert set(plan.study.assignments.values_list("kind", flat=True)) == {"calibration"}
    rest = GeneratedImage.objects.filter(job=drawn.job).exclude(pk__in=keys)
    scores = [min(image.selector_score, image.policy_score) for image in rest]
    assert plan.thresholds["fundus"] == pytest.approx(thresholds_of(scores).tolist()) and len(scores) == 550
    assert plan.pipelines["fundus"]["prompts"] == [PROMPT] and plan.pipelines["fundus"]["steps"] == 6
    everything = [min(i.selector_score, i.policy_score) for i in GeneratedImage.objects.filter(job=drawn.job)]
    chosen = [each.score for each in drawn_images(plan)]
    assert abs(sum(chosen) / 150 - sum(everything) / 700) < 0.06  # three standard errors


def test_the_same_seed_draws_the_same_images(drawn):
    with transaction.atomic():
        first = [each.public_id for each in drawn_images(plan_for(drawn, seed=8))]
        transaction.set_rollback(True)
    assert [each.public_id for each in drawn_images(plan_for(drawn, seed=8))] == first


def test_a_second_plan_draws_from_what_the_first_left(drawn, plan):
    second = plan_for(drawn, num_images=40)
    assert not {each.image for each in drawn_images(second)} & {each.image for each in drawn_images(plan)}


@pytest.mark.parametrize(
    ("parameters", "said"), [({"quality_threshold": 0.4}, "its threshold is not 0"), ({}, "it has not finished")]
)
def test_jobs_that_chose_or_are_unfinished_are_refused(parameters, said):
    drawn = draw_job(make_release(), number=2, **parameters)
    if not parameters:
        drawn.job.state = "running"
        drawn.job.save()
    with pytest.raises(CertifyError, match=said):
        plan_for(drawn)


def test_a_baseline_job_has_no_scores():
    drawn = draw_job(make_release(), number=2)
    drawn.job.mode = "baseline"
    drawn.job.save()
    with pytest.raises(CertifyError, match="no scores"):
        plan_for(drawn)


def test_images_of_two_releases_or_parameter_sets_are_not_mixed(drawn):
    other = draw_job(make_release("second"), number=2, seed=1)
    from ratings.services.calibration_plans import plan_calibration

    given = {"name": "x", "release": drawn.job.release, "num_images": 10}
    with pytest.raises(CertifyError, match="drew with second"):
        plan_calibration(jobs=[drawn.job, other.job], **given)
    more_steps = draw_job(drawn.job.release, number=2, seed=2, num_inference_steps=7)
    with pytest.raises(CertifyError, match="differs from the jobs before it in steps"):
        plan_calibration(jobs=[drawn.job, more_steps.job], **given)
    other_prompt = draw_job(drawn.job.release, number=2, seed=3, prompts=("Fundus: drusen",))
    with pytest.raises(CertifyError, match="in prompts"):
        plan_calibration(jobs=[drawn.job, other_prompt.job], **given)


def test_too_few_images_and_kinds_that_were_not_drawn_are_refused(drawn):
    with pytest.raises(CertifyError, match="700 images of kind Fundus; 201 are to be rated and 500 others"):
        plan_for(drawn, num_images=201)
    with pytest.raises(CertifyError, match="no images of kind OCT"):
        plan_for(drawn, kinds=["OCT"])


def test_a_job_of_which_images_were_chosen_is_no_random_draw_any_more(drawn):
    image = GeneratedImage.objects.filter(job=drawn.job).first()
    create_study(name="Training ratings", images=[image])
    with pytest.raises(CertifyError, match="what is left is no random draw"):
        plan_for(drawn)


def test_a_job_of_which_images_were_deleted_is_none_either(drawn):
    drawn.job.images.filter(selector_score__lt=0.1).delete()
    left = drawn.job.images.count()
    assert 600 < left < 700
    with pytest.raises(CertifyError, match=f"judged 700 images by its own account and {left} are there"):
        plan_for(drawn, num_images=50)


@pytest.mark.parametrize("same", ["pixels", "prompt and seed"])
def test_an_image_that_a_selector_may_have_learnt_from_is_refused_under_another_row(drawn, same):
    with transaction.atomic():
        chosen = GeneratedImage.objects.get(pk=drawn_images(plan_for(drawn))[7].image)
        transaction.set_rollback(True)
    fields = {"sha256": chosen.sha256} if same == "pixels" else {"sha256": "0" * 64, "weights_sha256": "d" * 64}
    other_job = draw_job(drawn.job.release, number=1, seed=5).job
    twin = GeneratedImage.objects.get(job=other_job)
    GeneratedImage.objects.filter(pk=twin.pk).update(seed=chosen.seed if same != "pixels" else 1, **fields)
    create_study(name="Training ratings", images=[twin])
    with pytest.raises(CertifyError, match="a selector may have learnt from it"):
        plan_for(drawn)


# --- the database's own guards ---


def test_every_guard_is_there_after_all_migrations():
    assert calibration_guards.missing(connection) == []


def test_no_plan_is_made_without_guards(drawn):
    calibration_guards.remove(connection)
    with pytest.raises(CertifyError, match="have it call ratings.calibration_guards.install"):
        plan_for(drawn)
    calibration_guards.install(connection)
    assert calibration_guards.missing(connection) == []


def _attempts(plan, image, other):
    study, reader = StudyFactory(), plan.study.memberships.first().reader
    place = plan.study.assignments.get(image=image)
    entry = plan.study.study_images.get(image=image)
    new_place = {"study": study, "reader": reader, "image": image, "position": 1}
    own_place = new_place | {"study": plan.study, "position": 9999, "occurrence": 2}
    return {
        "another study": lambda: StudyImage.objects.create(study=study, image=image),
        "another study, for calibration": lambda: StudyImage.objects.create(
            study=study, image=image, role="calibration"
        ),
        "another role": lambda: StudyImage.objects.filter(pk=entry.pk).update(role="main"),
        "another image's entry": lambda: StudyImage.objects.filter(
            pk=StudyImage.objects.create(study=study, image=other).pk
        ).update(image=image),
        "a place to learn from": lambda: Assignment.objects.create(**own_place, kind="main"),
        "a place elsewhere": lambda: Assignment.objects.create(**new_place, kind="calibration"),
        "a training round": lambda: Assignment.objects.create(**own_place, kind="training"),
        "its place made one to learn from": lambda: Assignment.objects.filter(pk=place.pk).update(kind="main"),
        "gold": lambda: GoldGrade.objects.create(image=image, grade=1),
        "an example": lambda: Anchor.objects.create(image=image, grade=1, protocol=plan.study.protocol),
        "another draw": lambda: CalibrationImage.objects.filter(image=image).update(image=other),
        "another order": lambda: CalibrationImage.objects.filter(image=image).update(position=9999),
    }


NAMES = (
    "another study",
    "another study, for calibration",
    "another role",
    "another image's entry",
    "a place to learn from",
    "a place elsewhere",
    "a training round",
    "its place made one to learn from",
    "gold",
    "an example",
    "another draw",
    "another order",
)


def _try_all(drawn, plan):
    image = plan.calibration_images.first().image
    other = GeneratedImage.objects.filter(job=drawn.job, calibration=None).first()
    attempts = _attempts(plan, image, other)
    assert tuple(attempts) == NAMES
    for name, attempt in attempts.items():
        with pytest.raises(IntegrityError, match="calibration"), transaction.atomic():
            attempt()
            pytest.fail(f"{name} went through")
    # What is no mixing goes on: hidden repeats, and other images anywhere.
    reader = plan.study.memberships.first().reader
    Assignment.objects.create(
        study=plan.study, reader=reader, image=image, position=9999, occurrence=2, kind=Assignment.Kind.REPEAT
    )
    StudyImage.objects.create(study=StudyFactory(), image=other)


def test_calibration_images_can_be_nothing_else_at_all(drawn, plan):
    _try_all(drawn, plan)


@pytest.mark.postgres
@pytest.mark.slow
def test_calibration_images_can_be_nothing_else_in_postgresql_either(run_on_postgres):
    kept = "nothing_that_a_certificate_rests_on or every_guard or everything_else_is_deleted or revocation"
    run_on_postgres(__file__, "-k", f"test_calibration_images_can_be_nothing_else_at_all or {kept}")


def _place(study, image) -> Assignment:
    return Assignment.objects.create(study=study, image=image, reader=UserFactory(), position=0)


def _gone_or_moved(certificate, plan, served):
    """By name: rows that somebody might want to have out of the way, in a shell."""
    place = plan.study.assignments.earliest("pk")
    rating = Rating.objects.get(assignment=place)
    elsewhere = _place(plan.study, GeneratedImageFactory())
    return {
        "the draw": CalibrationImage.objects.filter(plan=plan),
        "one drawn image": CalibrationImage.objects.filter(plan=plan, position=3),
        "its entry": plan.study.study_images.filter(image=place.image),
        "an open place": Assignment.objects.filter(pk=plan.study.assignments.open().latest("position").pk),
        "a grade": Rating.objects.filter(pk=rating.pk),
        "every grade": Rating.objects.all(),
        "a test": Certificate.objects.filter(pk=certificate.pk),
        "what the monitor saw": certificate.observations.all(),
        "what was served": certificate.jobs.filter(job=served),
        "entry moved": lambda: plan.study.study_images.filter(image=place.image).update(image=elsewhere.image),
        "place moved": lambda: Assignment.objects.filter(pk=place.pk).update(image=elsewhere.image),
        "grade moved": lambda: Rating.objects.filter(pk=rating.pk).update(assignment=elsewhere),
    }


def test_nothing_that_a_certificate_rests_on_is_deleted_or_moved_away(drawn):
    plan = plan_for(drawn, num_images=30)
    rate_all(plan, drawn.truth, number=20)
    certificate = make_certificate(drawn.job.release)
    served = draw_job(drawn.job.release, number=4, seed=4, quality_threshold=certificate.threshold).job
    note_job(job=served, certificate=certificate)
    seen = {"position": 0, "image": served.images.earliest("pk"), "is_poor": True, "capital": 1.5}
    certificate.observations.create(**seen)
    for name, rows in _gone_or_moved(certificate, plan, served).items():
        # _raw_delete: what the database is asked, without Django's own PROTECT before it.
        act = rows if callable(rows) else partial(rows._raw_delete, "default")
        with pytest.raises(IntegrityError, match="A certificate rests on this row"), transaction.atomic():
            act()
            pytest.fail(f"{name} went through")
    assert plan.calibration_images.count() == 30 and Rating.objects.count() == 20
    with pytest.raises(IntegrityError, match="A certificate rests"), transaction.atomic():
        CalibrationImage.objects.filter(plan=plan).delete()  # and as a shell would


def _revive(certificate):
    """By name: what a shell might try so that a revoked certificate holds, or ended otherwise."""
    row, later = Certificate.objects.filter(pk=certificate.pk), certificate.revoked_at + timedelta(days=1)
    certificate.revoked_at, certificate.revocation = None, ""
    return {
        "revived": lambda: row.update(revoked_at=None, revocation=""),
        "saved as before": certificate.save,
        "ended later": lambda: row.update(revoked_at=later),
        "for another reason": lambda: row.update(revocation="The scanner was replaced."),
    }


def test_a_database_of_before_gets_what_keeps_revocations():
    with connection.cursor() as cursor:
        on_table = " ON generation_certificate" if connection.vendor == "postgresql" else ""
        cursor.execute(f"DROP TRIGGER calibration_revocation_change{on_table}")
    assert calibration_guards.missing(connection) == ["calibration_revocation_change"]
    (operation,) = import_module("ratings.migrations.0010_final_revocations").Migration.operations
    operation.code(apps, SimpleNamespace(connection=connection))
    assert calibration_guards.missing(connection) == []


def test_a_revocation_is_final():
    certificate, other = make_certificate(make_release()), make_certificate(make_release("second"))
    ended = revoke(certificate=certificate, reason="Readers no longer agree.")
    for name, attempt in _revive(Certificate.objects.get(pk=ended.pk)).items():
        with pytest.raises(IntegrityError, match="A revocation is final"), transaction.atomic():
            attempt()
            pytest.fail(f"{name} went through")
    kept = Certificate.objects.get(pk=ended.pk)
    assert (kept.revoked_at, kept.revocation) == (ended.revoked_at, "Readers no longer agree.")
    kept.manifest |= {"by_prompt": {}}
    kept.save()  # what says nothing of its end is written as before, and others end as before
    assert not revoke(certificate=other, reason="Drift.").is_valid


def test_a_refusal_cannot_be_deleted_to_test_again(drawn):
    plan = plan_for(drawn, num_images=30)
    rate_all(plan, dict.fromkeys(drawn.truth, True))
    (refusal,) = certify(plan=plan)
    assert refusal.status == "refused"
    with pytest.raises(IntegrityError, match="A certificate rests"), transaction.atomic():
        refusal.delete()
    with pytest.raises(CertifyError, match="its delta is spent"):
        certify(plan=plan)


@pytest.mark.skipif(connection.vendor != "sqlite", reason="other databases have no INSERT OR REPLACE")
def test_a_row_that_is_replaced_is_a_row_deleted(drawn, plan):
    again = "INSERT OR REPLACE INTO ratings_calibrationimage SELECT * FROM ratings_calibrationimage"
    with pytest.raises(IntegrityError, match="A certificate rests"), transaction.atomic():
        connection.cursor().execute(again)


def test_everything_else_is_deleted_as_before(drawn, plan):
    """PostgreSQL drops a deletion without a word where its trigger returns nothing."""
    study = create_study(name="Training ratings", images=[GeneratedImageFactory()])
    place = _place(study, study.study_images.get().image)
    given = {"value": 3, "expert_level": 2, "protocol_version": 1, "submitted_at": study.created_at}
    rating = Rating.objects.create(assignment=place, **given)
    other = GeneratedImage.objects.filter(job=drawn.job, calibration=None).first()
    for row in (rating, place, study.study_images.get(), other):
        rows = type(row).objects.filter(pk=row.pk)
        rows.delete()
        assert not rows.exists()


def test_services_refuse_drawn_images_in_words_before_the_database_does(plan, alice):
    image = plan.calibration_images.first().image
    with pytest.raises(StudyError, match=f"drawn for calibration, in {plan.study}"):
        create_study(name="Another", images=[image])
    with pytest.raises(StudyError, match="drawn for calibration"):
        set_gold(image=image, grade=1, set_by=alice)
    with pytest.raises(StudyError, match="drawn for calibration"):
        create_study(name="Another", images=[], anchors={1: image})
    form = ImageChoiceForm({"max_images": 10_000, "with_rejected": True})
    assert form.is_valid() and image not in form.images() and len(form.images()) == 550


def test_calibration_ratings_are_never_trainable(drawn, plan):
    rate_all(plan, drawn.truth)
    assert Rating.objects.submitted().count() == 150 and not Rating.objects.trainable().exists()


# --- what the panel says ---


def test_images_are_settled_when_nobody_has_them_left(drawn):
    plan = plan_for(drawn, num_readers=2, num_images=30)
    assert progress(plan) == [("fundus", 0, 30)]
    first, second = plan.study.memberships.order_by("pk")
    for place in plan.study.assignments.filter(reader=first.reader):
        submit_rating(assignment=place, reader=first.reader, value=2, client_uuid=uuid.uuid4())
    assert progress(plan) == [("fundus", 0, 30)]
    for place in plan.study.assignments.filter(reader=second.reader)[:4]:
        submit_rating(assignment=place, reader=second.reader, value=1, client_uuid=uuid.uuid4())
    assert progress(plan) == [("fundus", 4, 30)]
    plan.study.is_open = False
    plan.study.save()
    assert progress(plan) == [("fundus", 30, 30)]


def test_the_label_rule(drawn):
    plan = plan_for(drawn, num_readers=3, num_images=4)
    places = {}
    for place in plan.study.assignments.order_by("reader_id"):
        places.setdefault(place.image_id, []).append(place)
    answers = ([1, 1, 3], [1, 3, 3], [None, None, None], [2, None, None])
    for key, values in zip(places, answers, strict=True):
        for place, value in zip(places[key], values, strict=True):
            said = {"value": value} if value else {"cannot_judge": "display"}
            submit_rating(assignment=place, reader=place.reader, client_uuid=uuid.uuid4(), **said)
    verdicts = {each.image: verdict_of(each, plan) for each in drawn_images(plan)}
    assert [verdicts[key] for key in places] == [True, False, True, False]  # nobody graded the third: poor
    assert progress(plan) == [("fundus", 4, 4)]
