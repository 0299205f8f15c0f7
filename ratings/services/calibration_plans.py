"""What is settled before the first rating: on which images calibration and the drift monitor rest, what is promised.

Images are drawn uniformly, with a seed that is stored, from jobs that nothing was chosen from.
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from django.db import connection, transaction
from django.db.models import Q
from django.db.models.functions import Least

from generation import certification
from generation.certificate import Promise, thresholds_of
from generation.models import Certificate, GeneratedImage, GenerationJob, Release
from generation.parameters import Parameters
from medsyn.modalities import kind_from_name, kind_names
from ratings import calibration_guards
from ratings.calibration import LABEL_RULE
from ratings.models import Anchor, Assignment, CalibrationImage, CalibrationPlan, GoldGrade, Study, StudyImage
from ratings.reading_list import rank
from ratings.services.errors import StudyError
from ratings.services.studies import add_images, create_study, enrol_reader

MIN_UNRATED = 500  # images of a kind that thresholds come from; METHOD 4 asks for 4000 where they are cheap
_CERTIFY, _MONITOR = CalibrationPlan.Purpose.CERTIFY, CalibrationPlan.Purpose.MONITOR


class CertifyError(StudyError):
    """A certificate cannot be planned or tested; the text says why and what to do."""


# --- the draw, before any rating ---


@transaction.atomic
def plan_calibration(
    *,
    name: str,
    release: Release,
    jobs: Sequence[GenerationJob],
    num_images: int,
    kinds: Sequence[str] | None = None,
    alpha: float = 0.10,
    delta: float = 0.10,
    is_reusable: bool = False,
    readers: Iterable[tuple[Any, int]] = (),
    seed: int | None = None,
    protocol: Mapping[str, Any] | None = None,
    is_simulated: bool = False,
    created_by=None,
) -> CalibrationPlan:
    """Settle everything a certificate rests on and make the study that its images are rated in.

    jobs: finished RLHF jobs of the release at threshold 0, all with the same parameters, whose images stand in no
    study: ``num_images`` of each kind are drawn uniformly with ``seed``, the others set the thresholds. kinds: slugs
    that are claimed together; None: every kind of the jobs. readers: pairs of person and level. protocol: as for
    create_study; all of its images are for calibration whatever it says.

    Raises CertifyError, and what create_study raises.
    """
    require_guards()
    promise_kinds = _kinds_of(jobs, kinds)
    Promise(alpha=alpha, delta=delta, num_kinds=len(promise_kinds))  # raises where they are none
    _require_jobs(release, jobs)
    pipelines = {kind: _pipeline_of(release, jobs, kind) for kind in promise_kinds}
    seed = secrets.randbelow(2**31) if seed is None else seed
    drawn: list[GeneratedImage] = []
    thresholds, num_unrated = {}, {}
    for kind in promise_kinds:
        chosen, scores = _draw(jobs, kind, num_images, seed)
        drawn += chosen
        thresholds[kind], num_unrated[kind] = thresholds_of(scores).tolist(), len(scores)
    return _planned(
        CalibrationPlan(
            purpose=_CERTIFY,
            release=release,
            kinds=promise_kinds,
            alpha=alpha,
            delta=delta,
            is_reusable=is_reusable,
            seed=seed,
            label_rule=LABEL_RULE,
            pipelines=pipelines,
            thresholds=thresholds,
            num_unrated=num_unrated,
            own_size={"height": drawn[0].height, "width": drawn[0].width},
            created_by=created_by,
        ),
        name=name,
        jobs=jobs,
        images=drawn,
        readers=readers,
        protocol=protocol,
        is_simulated=is_simulated,
    )


def require_guards() -> None:
    """Raise CertifyError where the database would let calibration images be mixed with others."""
    gone = calibration_guards.missing(connection)
    if gone:
        raise CertifyError(
            f"The database lacks {', '.join(gone)}: triggers that keep calibration images apart. A migration has "
            "rebuilt their table; have it call ratings.calibration_guards.install."
        )


def _planned(
    plan: CalibrationPlan,
    *,
    name: str,
    jobs: Sequence[GenerationJob],
    images: Sequence[GeneratedImage],
    readers: Iterable[tuple[Any, int]],
    protocol: Mapping[str, Any] | None,
    is_simulated: bool,
) -> CalibrationPlan:
    """Store a plan with its images and its study."""
    # Locked, so that no study that is being made at the same time takes one of them (a new row there waits).
    list(GeneratedImage.objects.select_for_update().filter(pk__in=[image.pk for image in images]).order_by("pk"))
    _require_unseen(images)
    plan.study = create_study(
        name=name,
        images=(),
        description="Rated blind, as any study. Its images are a random draw and train nothing.",
        is_simulated=is_simulated,
        created_by=plan.created_by,
        protocol={**(protocol or {}), "calibration_share": 1.0},
    )
    plan.save()
    plan.jobs.set(jobs)
    CalibrationImage.objects.bulk_create(
        [
            CalibrationImage(plan=plan, study=plan.study, image=image, position=position)
            for position, image in enumerate(images)
        ],
        batch_size=500,
    )
    add_images(study=plan.study, images=images)
    for reader, expert_level in readers:
        enrol_reader(study=plan.study, reader=reader, expert_level=expert_level, is_simulated=is_simulated)
    return plan


def _kinds_of(jobs: Sequence[GenerationJob], kinds: Sequence[str] | None) -> list[str]:
    rows = GenerationJob.objects.filter(pk__in=[job.pk for job in jobs]).values_list("prompts__kind", flat=True)
    known = sorted(kind for kind in set(rows) if kind)
    wanted = known if kinds is None else list(dict.fromkeys(kind_from_name(kind).slug for kind in kinds))
    unknown = [kind for kind in wanted if kind not in known]
    if unknown or not wanted:
        raise CertifyError(
            f"The jobs drew no images of kind {kind_names(unknown) or 'any'}; they drew "
            f"{kind_names(known) or 'nothing'}. Generate images of it first."
        )
    return wanted


def _require_jobs(release: Release, jobs: Sequence[GenerationJob]) -> None:
    """Every image of the jobs is a draw of the release that nothing was chosen from."""
    for job in jobs:
        drawn, there = _drawn_by(job), job.images.count()
        faults = {
            f"it drew with {job.release or 'no release'}, not with {release}": job.release_id != release.pk,
            "it filtered nothing, so its images have no scores; generate in rlhf mode at threshold 0": job.mode
            != GenerationJob.Mode.RLHF,
            "it has not finished": job.state != GenerationJob.State.SUCCEEDED,
            "it chose images by their score: its threshold is not 0": job.parameters.get("quality_threshold") != 0,
            f"it judged {drawn} images by its own account and {there} are there, so what is left may be chosen": drawn
            != there,
        }
        fault = next((text for text, holds in faults.items() if holds), None)
        if fault:
            raise CertifyError(f"Job {job.pk} cannot be calibrated with: {fault}.")
    images = GeneratedImage.objects.unblocked().filter(job__in=jobs)
    taken = images.filter(Q(study_images__isnull=False) | Q(assignments__isnull=False), calibration__isnull=True)
    first = taken.distinct().first()
    if first is not None:
        where = Study.objects.filter(study_images__image=first).first() or "a training round"
        raise CertifyError(
            f"{taken.distinct().count()} images of the jobs are in studies already ({first.public_id} in {where}): "
            "what is left is no random draw. Generate images for calibration alone."
        )


def _drawn_by(job: GenerationJob) -> int:
    """Candidates that an rlhf job judged, and so stored, by what it wrote down as it drew them."""
    return job.spent.get("candidates", 0) - job.spent.get("stopped", 0) - job.spent.get("dropped", 0)


def _pipeline_of(release: Release, jobs: Sequence[GenerationJob], kind: str) -> dict[str, Any]:
    """The frozen pipeline of one kind, which all jobs that drew it share."""
    found: dict[str, Any] = {}
    for job in jobs:
        prompts = list(job.prompts.filter(kind=kind).values_list("text", flat=True))
        if not prompts:
            continue
        parameters = Parameters().as_dict() | job.parameters
        try:
            arithmetic = certification.one_arithmetic_of(job.images.filter(prompt__kind=kind))
        except certification.CertificationError as error:
            raise CertifyError(f"Job {job.pk} cannot be calibrated with. {error} Leave it out.") from error
        frozen = {"release": release, "parameters": parameters, "prompts": prompts, "arithmetic": arithmetic}
        pipeline = certification.frozen_pipeline(**frozen)
        blocked = GeneratedImage.objects.blocked().filter(job=job, prompt__kind=kind)
        is_filtered = bool(pipeline["gates"]) or blocked.exists()  # at threshold 0 nothing else rejects
        bent = certification.attempts_fault(pipeline, parameters, is_filtered=is_filtered)
        if bent:
            raise CertifyError(f"Job {job.pk} draws {bent}. Generate with one attempt of one candidate.")
        other = [part for part in pipeline if found and found[part] != pipeline[part]]
        if other:
            raise CertifyError(
                f"Job {job.pk} differs from the jobs before it in {', '.join(other)}: calibration images come from "
                "one frozen pipeline. Leave it out."
            )
        found = pipeline
    return found


def _draw(
    jobs: Sequence[GenerationJob], kind: str, num_images: int, seed: int
) -> tuple[list[GeneratedImage], np.ndarray]:
    """``num_images`` images of a kind, a uniform draw that follows from ``seed``, and the scores of all others."""
    pool = GeneratedImage.objects.unblocked().filter(
        job__in=jobs,
        prompt__kind=kind,
        selector_score__isnull=False,
        policy_score__isnull=False,
        calibration__isnull=True,
    )
    scored = pool.order_by().annotate(score=Least("selector_score", "policy_score"))
    rows = sorted(scored.values_list("public_id", "pk", "score"), key=lambda row: rank(seed, "calibration", row[0]))
    if num_images < 1 or len(rows) < num_images + MIN_UNRATED:
        name = kind_from_name(kind).prefix
        raise CertifyError(
            f"The jobs have {len(rows)} images of kind {name}; {num_images} are to be rated and "
            f"{MIN_UNRATED} others set the thresholds. Generate more, or have fewer rated (at least 1)."
        )
    by_key = GeneratedImage.objects.in_bulk([pk for _, pk, _ in rows[:num_images]])
    return [by_key[pk] for _, pk, _ in rows[:num_images]], np.array([score for _, _, score in rows[num_images:]])


def _require_unseen(images: Sequence[GeneratedImage]) -> None:
    """Nobody may know the images, nor anything have learnt from them: they are in no study, have no known grade, and
    no image with the same pixels, or the same prompt, seed and weights, is in a study that trains."""
    keys = [image.pk for image in images]
    if GoldGrade.objects.filter(image__in=keys).exists() or Anchor.objects.filter(image__in=keys).exists():
        raise CertifyError(
            "Some of the drawn images have a known grade, or are examples of one. Generate images for calibration "
            "alone."
        )
    used = StudyImage.objects.filter(image__calibration__isnull=True)
    taught = Assignment.objects.filter(image__calibration__isnull=True)
    for start in range(0, len(images), 200):
        few = images[start : start + 200]
        alike = Q()
        for image in few:
            alike |= Q(prompt=image.prompt_id, seed=image.seed, weights_sha256=image.weights_sha256)
        same = GeneratedImage.objects.filter(alike | Q(sha256__in=[image.sha256 for image in few]))
        known = same.filter(Q(study_images__in=used) | Q(assignments__in=taught)).first()
        if known is not None:
            raise CertifyError(
                f"Image {known.public_id} is in a study and has the pixels, or prompt and seed, of one that was "
                "drawn for calibration: a selector may have learnt from it. Generate with seeds that were never used."
            )


# --- watching over what is served ---


@transaction.atomic
def plan_monitoring(
    *,
    name: str,
    certificate: Certificate,
    num_images: int,
    readers: Iterable[tuple[Any, int]] = (),
    seed: int | None = None,
    protocol: Mapping[str, Any] | None = None,
    is_simulated: bool = False,
    created_by=None,
) -> CalibrationPlan:
    """Draw ``num_images`` uniformly from what was served under a certificate, to be rated blind: these ratings, and
    no others, are what the drift monitor sees.

    Jobs of which an image was put into another study are left out whole: what is left of them is no random draw.
    Raises CertifyError where the certificate holds no more or too few images are left.
    """
    require_guards()
    if not certificate.is_valid:
        raise CertifyError(f"{certificate} holds no more: there is nothing to watch over.")
    seed = secrets.randbelow(2**31) if seed is None else seed
    jobs = _monitored_jobs(certificate)
    served = GeneratedImage.objects.accepted().filter(job__in=jobs, calibration__isnull=True)
    rows = sorted(served.values_list("public_id", "pk"), key=lambda row: rank(seed, "monitor", row[0]))
    if not 1 <= num_images <= len(rows):
        raise CertifyError(
            f"{num_images} images are to be watched and {len(rows)} that were served under the certificate can be "
            "drawn. Serve more first, or draw fewer (at least 1)."
        )
    by_key = GeneratedImage.objects.in_bulk([pk for _, pk in rows[:num_images]])
    plan = CalibrationPlan(
        purpose=_MONITOR,
        certificate=certificate,
        release=certificate.release,
        kinds=[certificate.kind],
        alpha=certificate.alpha,
        delta=certificate.delta,
        seed=seed,
        label_rule=LABEL_RULE,
        created_by=created_by,
    )
    images = [by_key[pk] for _, pk in rows[:num_images]]
    study = {"readers": readers, "protocol": protocol, "is_simulated": is_simulated}
    return _planned(plan, name=name, jobs=jobs, images=images, **study)


def _monitored_jobs(certificate: Certificate) -> list[GenerationJob]:
    """Finished jobs under the certificate, computed as it says (workers did not always refuse others), none of whose
    images anybody chose for a study."""
    finished = GenerationJob.objects.filter(certified__certificate=certificate, state=GenerationJob.State.SUCCEEDED)
    chosen = GeneratedImage.objects.filter(calibration__isnull=True).filter(
        Q(study_images__isnull=False) | Q(assignments__isnull=False)
    )
    jobs = finished.exclude(pk__in=chosen.filter(job__isnull=False).values("job"))
    return [
        job
        for job in jobs
        if not any(
            certification.arithmetic_fault(certificate, each) for each in certification.arithmetics_of(job.images)
        )
    ]
