"""What all readers together say of each image of a study: counts, mean, majority, posterior of the rater model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from django.db.models import Max, QuerySet

from generation.models import GeneratedImage
from medsyn.modalities import kind_from_name
from ratings.agreement.rater_model import NUM_LEVELS, fit_table, usual_levels
from ratings.agreement.table import RatingTable
from ratings.export.cells import formula_safe
from ratings.export.selection import Selection
from ratings.models import Assignment, Grade, RatingEvent, Study

_CHUNK_ROWS = 500

# Column and what it means; the rows come from image_rows in this order.
IMAGE_COLUMNS = {
    "image_uuid": "Identity of the image, as in the tidy table",
    "image_sha256": "sha256 of the image file's bytes",
    "kind": "Kind of image",
    "prompt": "What the image was to show",
    "source": "generated or imported",
    "is_real": "1: an image of a patient, not synthetic",
    "patient": "Pseudonym that keeps a patient's images together; or empty",
    "phantom": "1: a procedural phantom, not a medical image",
    "release": "Release that made the image; empty: none",
    "seed": "Seed of the image; empty: imported",
    "n": "Ratings of first showings, outside the training round; simulated experts only in a simulated study",
    "poor": "of these: 1",
    "acceptable": "of these: 2",
    "excellent": "of these: 3",
    "mean": "Mean grade, 1 to 3; empty: not rated",
    "majority": "The grade that most gave; empty: not rated, or no single grade has most",
    "p_poor": "Probability of each grade after Dawid and Skene with a prior by expertise; empty: not rated",
    "p_acceptable": "the same",
    "p_excellent": "the same",
}
_FIELDS = (
    "public_id", "sha256", "prompt__kind", "prompt__text", "source", "is_real", "patient", "is_phantom",
    "release__digest", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class _Judgement:
    """What the readers of one image said together."""

    counts: tuple[int, ...]  # ratings by grade, poor first
    posterior: tuple[float, ...]  # probability of each grade


def image_rows(study: Study, events: QuerySet, newest_image: int) -> Iterator[tuple]:
    """IMAGE_COLUMNS of the study's images in the order of their making, row by row.

    events: the newest event of every rating that counts, as Selection.answered has them.
    newest_image: key of the newest StudyImage that counts; images that joined later are left out.
    """
    judged = _judgements(events)
    for key, *facts in _images(study, newest_image).values_list("pk", *_FIELDS).iterator(_CHUNK_ROWS):
        yield (*_facts(*facts), *_grades_of(judged.get(key)))


def _images(study: Study, newest_image: int) -> QuerySet:
    """The study's images up to that StudyImage, in the order of their making."""
    images = GeneratedImage.objects.filter(study_images__study=study, study_images__pk__lte=newest_image)
    return images.order_by("pk")


def split_facts(study: Study, newest_image: int) -> QuerySet:
    """What ratings.export.splits groups the same images by: identity, patient, key of the prompt."""
    return _images(study, newest_image).values_list("public_id", "patient", "prompt_id")


def last_study_image(study: Study) -> int:
    """Key of the newest entry of the study's images, 0 where it has none. Entries are added under a lock on the
    study, one batch after the other: none appears later below this key."""
    return study.study_images.aggregate(newest=Max("pk"))["newest"] or 0


def current_image_rows(study: Study) -> Iterator[tuple]:
    """``image_rows`` as the ratings stand at the moment."""
    newest = RatingEvent.objects.aggregate(newest=Max("pk"))["newest"] or 0
    selection = Selection.of_images(study, last_event=newest)
    return image_rows(study, selection.answered(), last_study_image(study))


def _judgements(events: QuerySet) -> dict[int, _Judgement]:
    """By image key, rated images only. A reader's level is that of most of these ratings, as they were given: it
    does not follow later changes of the membership. Known grades do not enter: they are no events, and a file is
    what stood after one."""
    place = "rating__assignment"
    graded = events.filter(value__isnull=False, **{f"{place}__occurrence": 1})
    graded = graded.exclude(**{f"{place}__kind": Assignment.Kind.TRAINING}).order_by("pk")
    rows = list(graded.values_list(f"{place}__image_id", f"{place}__reader_id", "value", "expert_level"))
    if not rows:
        return {}
    images, readers, grades, levels = np.array(rows, dtype=np.int64).T
    table = RatingTable.from_ratings(images, readers, grades)
    column = np.unique(readers, return_inverse=True)[1]  # the table's
    by_level = np.bincount(column * NUM_LEVELS + levels - 1, minlength=NUM_LEVELS * len(table.readers))
    posterior = fit_table(table, usual_levels(by_level.reshape(-1, NUM_LEVELS)).tolist()).posterior
    return {
        int(image): _Judgement(tuple(counts), tuple(row))
        for image, counts, row in zip(table.images, table.grade_counts.tolist(), posterior.tolist(), strict=True)
    }


def _facts(public_id, sha256, kind, prompt, source, is_real, patient, is_phantom, release, seed) -> tuple:
    """The cells before "n"."""
    flags = (int(is_real), formula_safe(patient), int(is_phantom))
    known = (public_id, sha256, kind_from_name(kind).prefix, formula_safe(prompt), source, *flags)
    return (*known, release or "", "" if seed is None else seed)


def _grades_of(rated: _Judgement | None) -> tuple[Any, ...]:
    """The cells from "n" on."""
    if rated is None:
        return (0, *(0 for _ in Grade), *("" for _ in range(2 + len(Grade))))
    number, most = sum(rated.counts), max(rated.counts)
    mean = sum(grade * count for grade, count in zip(Grade.values, rated.counts, strict=True)) / number
    majority = Grade.values[rated.counts.index(most)] if rated.counts.count(most) == 1 else ""
    return (number, *rated.counts, f"{mean:.6f}", majority, *(f"{share:.6f}" for share in rated.posterior))
