"""The verbs of reading batches: ask for one, make its choice part of the study. The same for pages, API and command.

Nothing here imports torch: the images are scored in a worker (training.reading.choice).
"""

import secrets
from collections.abc import Sequence

from django.db import IntegrityError, transaction
from django.db.models import QuerySet

from generation.models import GeneratedImage, GenerationJob, Release
from generation.services import active_release
from medsyn.jobs import JobError
from medsyn.percent import percent
from ratings.models import Anchor, CalibrationPlan, Study
from ratings.services import StudyError, add_images
from training import tasks
from training.models import ReadingBatch, ReadingPick
from training.rlhf.reading_list import Mix, Reason

LARGEST_POOL = 20_000  # images
# All: in simulation the mix took no fewer ratings, docs/reading-lists.md (tests/benchmarks/test_active_reading.py).
DEFAULT_RANDOM_SHARE = 1.0


def candidates(
    *, study: Study, jobs: Sequence[GenerationJob], with_rejected: bool = True
) -> QuerySet[GeneratedImage]:
    """The pool: images of ``jobs`` that nobody was ever to rate, whose grade is not known, and that are no examples;
    in the order in which they were made."""
    images = GeneratedImage.objects.synthetic().unblocked().filter(job__in=jobs, gold=None, calibration=None)
    images = images.filter(study_images=None, assignments=None)
    images = images.exclude(pk__in=Anchor.objects.values("image"))
    verdict = GeneratedImage.Verdict
    shown = [verdict.UNFILTERED, verdict.ACCEPTED, *([verdict.REJECTED] if with_rejected else [])]
    return images.filter(verdict__in=shown).order_by("pk")


def plan_batch(
    *,
    study: Study,
    jobs: Sequence[GenerationJob],
    num_images: int,
    release: Release | None = None,
    random_share: float | None = None,
    with_rejected: bool = True,
    seed: int | None = None,
    user=None,
) -> ReadingBatch:
    """Queue the choice of ``num_images`` images for a study from those of ``jobs``.

    release: whose selector chooses what is not drawn at random; None: the active one. random_share: None takes the
    default. What the study's protocol keeps for calibration is drawn from the random images alone.

    Raises StudyError where the study takes none, the pool is too small, a batch is being chosen already, or there is
    no model to choose by.
    """
    mix = _mix(num_images, random_share)
    _require_study(study, mix)
    release = _release_for(release, mix)
    number = candidates(study=study, jobs=jobs, with_rejected=with_rejected).count()
    if number < num_images:
        raise StudyError(
            f"The chosen jobs have {number} images that nobody was to rate yet; {num_images} are to be chosen. "
            "Choose more jobs, generate more, or ask for fewer."
        )
    if number > LARGEST_POOL:
        raise StudyError(
            f"The pool has {number} images; at most {LARGEST_POOL} are scored at once. Choose fewer jobs."
        )
    batch = ReadingBatch(
        study=study,
        release=release,
        num_images=num_images,
        random_share=mix.random_share,
        exploring_share=mix.exploring_share,
        shortlist_share=mix.shortlist_share,
        with_rejected=with_rejected,
        seed=secrets.randbelow(2**31) if seed is None else seed,
        progress_total=number,
        progress_unit="images",
        created_by=user,
    )
    return _stored(batch, jobs)


def _mix(num_images: int, random_share: float | None) -> Mix:
    try:
        return Mix(num_images, DEFAULT_RANDOM_SHARE if random_share is None else float(random_share))
    except ValueError as error:
        raise StudyError(str(error)) from error


def _require_study(study: Study, mix: Mix) -> None:
    if not study.is_open:
        raise StudyError(f"{study.name} is closed: nobody would read the images. Open it first.")
    if CalibrationPlan.objects.filter(study=study).exists():
        raise StudyError(
            f"{study.name} is a calibration study: its images were drawn before the first rating, and no others come "
            "in. Choose another study."
        )
    share = study.protocol.calibration_share
    if round(share * mix.num_images) > mix.num_random:
        raise StudyError(
            f"The protocol keeps {percent(share)} of new images for calibration, and calibration images must be a "
            f"random draw: let at least {percent(share)} of the batch be chosen at random."
        )


def _release_for(release: Release | None, mix: Mix) -> Release | None:
    if mix.random_share == 1:
        return None
    release = release or active_release()
    if release is None:
        raise StudyError(
            "No release is active, so no selector can choose. Choose a release, or all images at random."
        )
    return release


@transaction.atomic
def _stored(batch: ReadingBatch, jobs: Sequence[GenerationJob]) -> ReadingBatch:
    try:
        with transaction.atomic():
            batch.save()
    except IntegrityError as error:
        if not ReadingBatch.objects.unfinished().filter(study=batch.study).exists():
            raise
        raise StudyError(f"A batch is being chosen for {batch.study} already. Wait for it, or cancel it.") from error
    batch.jobs.set(jobs)
    # robust: the row is stored; where the broker cannot be reached the sweep rings again.
    transaction.on_commit(lambda: tasks.choose_reading_batch.delay(batch.pk), robust=True)
    return batch


def mix_of(batch: ReadingBatch) -> Mix:
    return Mix(batch.num_images, batch.random_share, batch.exploring_share, batch.shortlist_share)


@transaction.atomic
def put_into_study(*, batch: ReadingBatch, pool: Sequence[int], picks: Sequence[ReadingPick]) -> int:
    """Store the choice and make its images a block of the study; returns how many images were added, mixed-in ones
    included. ``pool``: keys of the images chosen from. Raises JobError, and JobLost for a worker that lost its claim.
    """
    batch.heartbeat()
    study = Study.objects.select_for_update().get(pk=batch.study_id)
    keys = [pick.image_id for pick in picks]
    images = GeneratedImage.objects.select_for_update().in_bulk(keys)  # no other study takes them meanwhile
    free = candidates(study=study, jobs=list(batch.jobs.all()), with_rejected=batch.with_rejected)
    gone = set(keys) - set(free.filter(pk__in=keys).values_list("pk", flat=True))
    if gone:
        raise JobError(f"{len(gone)} of the chosen images came into use meanwhile. Ask for the batch again.")
    random = [images[pick.image_id] for pick in picks if pick.reason == Reason.RANDOM]
    try:
        _require_study(study, mix_of(batch))  # it may have been closed, or its protocol changed
        added = add_images(study=study, images=[images[key] for key in keys], calibrate_from=random)
    except StudyError as error:
        raise JobError(str(error)) from error
    ReadingPick.objects.bulk_create(picks)
    block = study.study_images.get(image=keys[0]).block
    ReadingBatch.objects.filter(pk=batch.pk).update(pool=list(pool), block=block)
    return added
