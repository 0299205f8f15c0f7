"""What a calibration study has found so far: which images are still to be rated, and what the panel says of the
others. Reads only; the verbs are in ratings.services.certification."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from django.db.models import Exists, OuterRef

from generation.certificate import panel_says_poor
from ratings.agreement.coefficients import mean_pairwise_kappa
from ratings.agreement.estimate import Bootstrap, Estimate
from ratings.agreement.table import RatingTable
from ratings.models import Assignment, CalibrationImage, CalibrationPlan, Rating, StudyImage

LABEL_RULE = (
    "An image is poor where at least half of three or more readers grade it 1 (poor); of one or two readers one "
    "decides, drawn by sha256 of the plan's seed and the image's id. First showings only. What nobody graded counts "
    "as poor."
)
_BOOTSTRAP = Bootstrap(num_resamples=400)


@dataclass(frozen=True)
class Drawn:
    """One image of a plan, in the order of the draw."""

    image: int  # primary key
    public_id: str
    kind: str  # slug
    prompt: str
    score: float  # certified score, 0..1
    grades: tuple[int, ...]  # of first showings, by reader
    is_settled: bool  # nobody has it left to rate


@dataclass(frozen=True)
class Sample:
    """The panel's verdicts of the calibration images of one kind."""

    scores: np.ndarray  # (n,) certified scores, 0..1
    is_poor: np.ndarray  # (n,) bool
    prompts: tuple[str, ...]  # (n,)
    num_ungraded: int  # images without any grade, which count as poor


def drawn_images(plan: CalibrationPlan, kind: str | None = None) -> list[Drawn]:
    """The plan's images, of one kind or all, with what was said of them so far; five queries."""
    grades, unsettled = _grades(plan), _unsettled([plan])
    rows = CalibrationImage.objects.filter(plan=plan).order_by("position").select_related("image__prompt")
    return [
        Drawn(
            image=row.image_id,
            public_id=str(row.image.public_id),
            kind=row.image.prompt.kind,
            prompt=row.image.prompt.text,
            score=min(row.image.selector_score, row.image.policy_score),
            grades=tuple(grades.get(row.image_id, ())),
            is_settled=row.image_id not in unsettled,
        )
        for row in rows
        if kind is None or row.image.prompt.kind == kind
    ]


def _counted(plan: CalibrationPlan):
    """Grades that count: of simulated readers only where the study is a simulated one."""
    ratings = Rating.objects.exportable(study=plan.study, include_simulated=plan.study.is_simulated)
    return ratings.filter(
        assignment__kind=Assignment.Kind.CALIBRATION,
        assignment__occurrence=1,
        assignment__image__calibration__plan=plan,
    )


def _grades(plan: CalibrationPlan) -> dict[int, list[int]]:
    grades = defaultdict(list)
    rows = _counted(plan).order_by("assignment__reader_id")  # so that the drawn reader is the same every time
    for image, value in rows.values_list("assignment__image_id", "value"):
        grades[image].append(value)
    return grades


def _unsettled(plans: Sequence[CalibrationPlan]) -> set[int]:
    """Images of the plans that somebody still has to rate; none once their study is closed. Three queries at most."""
    studies = [plan.study_id for plan in plans if plan.study.is_open]
    places = Assignment.objects.open().filter(study__in=studies, kind=Assignment.Kind.CALIBRATION)
    entries = StudyImage.objects.filter(study__in=studies)
    nobody_yet = entries.filter(~Exists(Assignment.objects.filter(study=OuterRef("study"))))
    return {
        *places.values_list("image_id", flat=True),
        *entries.with_room().values_list("image_id", flat=True),
        *nobody_yet.values_list("image_id", flat=True),
    }


def verdict_of(drawn: Drawn, plan: CalibrationPlan) -> bool:
    """Whether the panel calls the image poor, by LABEL_RULE."""
    return not drawn.grades or panel_says_poor(drawn.grades, image_key=drawn.public_id, seed=plan.seed)


def sample_of(images: Sequence[Drawn], plan: CalibrationPlan) -> Sample:
    """The verdicts of settled images."""
    return Sample(
        scores=np.array([drawn.score for drawn in images], dtype=float),
        is_poor=np.array([verdict_of(drawn, plan) for drawn in images], dtype=bool),
        prompts=tuple(drawn.prompt for drawn in images),
        num_ungraded=sum(not drawn.grades for drawn in images),
    )


def progress(plan: CalibrationPlan) -> list[tuple[str, int, int]]:
    """(kind, images settled, images drawn) by kind: counts alone, which tell nothing of the grades."""
    return progress_of([plan])[plan.pk]


def progress_of(plans: Sequence[CalibrationPlan]) -> dict[int, list[tuple[str, int, int]]]:
    """`progress` of each plan by its key; four queries, however many plans."""
    unsettled = _unsettled(plans)
    images = CalibrationImage.objects.filter(plan__in=plans).order_by()
    drawn, settled = Counter(), Counter()
    for plan, image, kind in images.values_list("plan_id", "image_id", "image__prompt__kind"):
        drawn[plan, kind] += 1
        settled[plan, kind] += image not in unsettled
    return {plan.pk: [(kind, settled[plan.pk, kind], drawn[plan.pk, kind]) for kind in plan.kinds] for plan in plans}


def panel_kappa(plan: CalibrationPlan, kind: str) -> tuple[Estimate, int, int]:
    """Mean pairwise weighted kappa of the calibration images of a kind, with the number of readers and ratings."""
    rows = _counted(plan).filter(assignment__image__prompt__kind=kind).order_by("pk")
    rows = list(rows.values_list("assignment__image_id", "assignment__reader_id", "value"))
    if not rows:
        return Estimate.undefined("Nobody rated any of the images."), 0, 0
    images, readers, grades = zip(*rows, strict=True)
    kappa = mean_pairwise_kappa(RatingTable.from_ratings(images, readers, grades), bootstrap=_BOOTSTRAP)
    return kappa, len(set(readers)), len(rows)
