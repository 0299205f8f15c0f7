"""Releases compared: the fixed prompts, the verbs, and the figures of a comparison.

Both generators draw the same prompts from the same seeds with the same sampling, unfiltered: a baseline job of each,
in the normal queue, or the one that exists already. Then the filter of every release among them judges all images
(generation.engine.run_comparison): scores of two filters mean different things, those of one filter can be compared.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from django.db import transaction
from scipy.special import stdtrit

from generation import tasks
from generation.models import GeneratedImage, GenerationJob, ImageScore, Release, ReleaseComparison
from generation.parameters import ParameterError, Parameters
from generation.services import canonical_prompts, retry_generation, start_generation

# Three of each kind that medsyn-tiny has learnt: one normal, one finding, one finding with a side or a view. They
# stay as they are, so that comparisons of different days can be laid side by side; a comparison may name others.
STANDARD_PROMPTS = (
    "Chest X-ray: normal lung fields without infiltrates",
    "Chest X-ray: cardiomegaly",
    "Chest X-ray: left pleural effusion, frontal view",
    "Chest CT: clear lungs, axial slice",
    "Chest CT: nodule in the right lung",
    "Chest CT: left pleural effusion",
    "Brain MRI: axial T1 weighted image, normal findings",
    "Brain MRI: left mass, T2 weighted axial slice",
    "Brain MRI: right mass, axial T1 weighted image",
    "Breast MRI: normal findings, axial image after contrast",
    "Breast MRI: mass in the left breast",
    "Breast MRI: mass in the right breast",
    "Fundus: no abnormality, right eye",
    "Fundus: hard exudates, left eye",
    "Fundus: glaucoma with a large cup, right eye",
    "OCT: no abnormality, macular scan",
    "OCT: drusen under the retina",
    "OCT: full thickness macular hole",
)
STANDARD_SEED = 2026  # image k of either side is drawn from this + k
STANDARD_NUM_IMAGES = 2  # of each prompt, on each side
MAX_PAIRS = 2_000
EMBEDDED_NAME = "medsyn-tiny"
ORDERS = {
    "": "Prompts in their order",
    "behind": "Right furthest behind first",
    "ahead": "Right furthest ahead first",
}
_CONFIDENCE = 0.95


# --- verbs ---


@transaction.atomic
def start_comparison(
    *,
    left: Release | None,
    right: Release | None,
    user,
    prompts: Sequence[str] = STANDARD_PROMPTS,
    num_images: int = STANDARD_NUM_IMAGES,
    seed: int = STANDARD_SEED,
    parameters: Parameters | None = None,
) -> ReleaseComparison:
    """Queue what is missing of a comparison of two releases (None: medsyn-tiny) and return its row.

    A job of the same release, prompts, seed and parameters that exists is used, and so is a comparison of the same
    two jobs. Raises ParameterError whose ``key`` names the argument at fault.
    """
    if left == right:
        raise ParameterError("right", "A release compared with itself shows nothing: choose another one.")
    if len(prompts) * num_images > MAX_PAIRS:
        raise ParameterError(
            "num_images", f"{len(prompts) * num_images} pairs; a comparison has {MAX_PAIRS} at most."
        )
    call = {
        "prompts": canonical_prompts(prompts),
        "num_images": num_images,
        "seed": seed,
        "parameters": parameters or Parameters(),
    }
    jobs = [_job_of(release, user=user, **call) for release in (left, right)]
    comparison = ReleaseComparison.objects.filter(left=jobs[0], right=jobs[1]).first()
    if comparison is None:
        comparison = ReleaseComparison.objects.create(
            left=jobs[0], right=jobs[1], created_by=user, progress_unit="scores"
        )
        _enqueue_on_commit(comparison)
    elif comparison.state in (comparison.State.FAILED, comparison.State.CANCELLED):
        comparison.requeue()
        _enqueue_on_commit(comparison)
    return comparison


def retry_comparison(*, comparison: ReleaseComparison) -> None:
    """Put a failed or cancelled comparison back into the queue, its failed or cancelled jobs with it."""
    with transaction.atomic():
        comparison = ReleaseComparison.objects.select_for_update().get(pk=comparison.pk)
        if comparison.state not in (comparison.State.FAILED, comparison.State.CANCELLED):
            raise ParameterError(
                "state", f"Only a failed or cancelled comparison can go on; this one is {comparison.state}."
            )
        for job in comparison.sides:
            if job.state in (job.State.FAILED, job.State.CANCELLED):
                retry_generation(job=job)
        comparison.requeue()
        _enqueue_on_commit(comparison)


def cancel_comparison(*, comparison: ReleaseComparison) -> None:
    """End the comparison and the jobs that it waits for, as far as no other comparison waits for them too."""
    comparison.request_cancel()
    waiting = ReleaseComparison.objects.exclude(pk=comparison.pk).exclude(
        state__in=("succeeded", "failed", "cancelled")
    )
    wanted = {pk for pair in waiting.values_list("left", "right") for pk in pair}
    for job in comparison.sides:
        if not job.is_finished and job.pk not in wanted:
            job.request_cancel()


def _job_of(
    release: Release | None, *, user, prompts: list[str], num_images: int, seed: int, parameters: Parameters
) -> GenerationJob:
    """The baseline job of that release with these settings: one that exists, else a new one."""
    found = GenerationJob.objects.filter(
        release=release,
        pretrained_model="",
        mode=GenerationJob.Mode.BASELINE,
        num_images=num_images,
        seed=seed,
    ).exclude(state__in=(GenerationJob.State.FAILED, GenerationJob.State.CANCELLED))
    for job in found.prefetch_related("job_prompts__prompt").order_by("-pk"):
        texts = [one.prompt.text for one in job.job_prompts.all()]
        if texts == prompts and Parameters.from_mapping(job.parameters) == parameters:
            return job
    return start_generation(
        prompts=prompts,
        user=user,
        num_images=num_images,
        seed=seed,
        parameters=parameters,
        release=release,
        is_embedded=release is None,
    )


def _enqueue_on_commit(comparison: ReleaseComparison) -> None:
    # robust: the row is stored; where the broker cannot be reached the sweep rings again.
    transaction.on_commit(lambda: tasks.run_comparison.delay(comparison.pk), robust=True)


# --- figures ---


@dataclass(frozen=True)
class Scored:
    """An image of a comparison with what one filter says of it."""

    image: GeneratedImage
    selector: float  # 0..1
    policy: float  # 0..1
    passes: bool  # both reach the judge's threshold


@dataclass(frozen=True)
class SideFigures:
    """One side of a comparison, judged by one filter."""

    number: int  # images judged
    selector: float  # mean score
    policy: float  # mean score
    passing: float  # share of the images, 0..1
    unet_evaluations: float | None  # mean per image; None where they were not counted


@dataclass(frozen=True)
class PairedDifference:
    """Right minus left over the same prompts and seeds, with a 95 % interval."""

    name: str
    mean: float
    low: float | None  # None: a single prompt says nothing about others
    high: float | None
    prompts: int

    @property
    def signed_mean(self) -> str:
        return _signed(self.mean)

    @property
    def signed_low(self) -> str:
        return _signed(self.low)

    @property
    def signed_high(self) -> str:
        return _signed(self.high)


@dataclass(frozen=True)
class Judgement:
    """A comparison as one filter sees it."""

    judge: Release
    left: SideFigures
    right: SideFigures
    differences: list[PairedDifference]
    scores: dict[int, Scored] = field(repr=False)  # by the image's primary key

    @property
    def sides(self) -> tuple[SideFigures, SideFigures]:
        return self.left, self.right

    @property
    def lines(self) -> list[dict]:
        """Each figure with its value on either side and the paired difference."""
        values = ((side.selector, side.policy, side.passing) for side in self.sides)
        rows = zip(self.differences, *values, strict=True)
        return [
            {"name": difference.name, "left": left, "right": right, "difference": difference}
            for difference, left, right in rows
        ]


def _signed(value: float) -> str:
    """With its sign, a true minus, and none where it rounds to zero."""
    text = f"{value:+.3f}"
    return "0.000" if text.strip("+-0.") == "" else text.replace("-", "\u2212")


def name_of(job: GenerationJob) -> str:
    """What people call the generator of one side."""
    return str(job.release) if job.release else job.pretrained_model or EMBEDDED_NAME


def judgements(comparison: ReleaseComparison) -> list[Judgement]:
    """What each filter says so far, of the pairs that it has judged on both sides; [] before the first."""
    images = {image.pk: image for image in _images(comparison)}
    scores: dict[int, dict[int, tuple[float, float]]] = {}
    rows = ImageScore.objects.filter(image__in=images, release__in=comparison.judges)
    for image, release, selector, policy in rows.values_list("image", "release", "selector_score", "policy_score"):
        scores.setdefault(release, {})[image] = selector, policy
    made = (_judgement(comparison, judge, images, scores.get(judge.pk, {})) for judge in comparison.judges)
    return [judgement for judgement in made if judgement is not None]


def _judgement(
    comparison: ReleaseComparison, judge: Release, images: Mapping[int, GeneratedImage], scores: Mapping[int, tuple]
) -> Judgement | None:
    scored = {pk: _scored(images[pk], judge, *pair) for pk, pair in scores.items()}
    pairs = list(_pairs(comparison, scored.values()))
    if not pairs:
        return None
    left, right = (_figures(side) for side in zip(*pairs, strict=True))
    values = {
        "Selector score": lambda one: one.selector,
        "Policy score": lambda one: one.policy,
        f"Share passing at {judge.quality_threshold:.2f}": lambda one: float(one.passes),
    }
    differences = [paired_difference(name, value, pairs) for name, value in values.items()]
    return Judgement(judge, left, right, differences, scored)


def _scored(image: GeneratedImage, judge: Release, selector: float, policy: float) -> Scored:
    return Scored(image, selector, policy, min(selector, policy) >= judge.quality_threshold)


def _pairs(comparison: ReleaseComparison, scored) -> Iterator[tuple[Scored, Scored]]:
    """Images of the same place, left and right."""
    by_place = {(one.image.job_id, one.image.position): one for one in scored}
    for (job, position), one in by_place.items():
        other = by_place.get((comparison.right_id, position))
        if job == comparison.left_id and other is not None:
            yield one, other


def _figures(side: Sequence[Scored]) -> SideFigures:
    counted = [one.image.unet_evaluations for one in side if one.image.unet_evaluations is not None]
    number = len(side)
    return SideFigures(
        number=number,
        selector=math.fsum(one.selector for one in side) / number,
        policy=math.fsum(one.policy for one in side) / number,
        passing=sum(one.passes for one in side) / number,
        unet_evaluations=sum(counted) / len(counted) if counted else None,
    )


def paired_difference(name: str, value, pairs: Sequence[tuple[Scored, Scored]]) -> PairedDifference:
    """Mean of right minus left with Student's interval over P prompts: mean +- t s / sqrt(P), P - 1 degrees of
    freedom.

    Images of one prompt are alike, so it is prompts that are counted as independent: each gives its mean difference.
    All prompts have the same number of images, so the mean over prompts is the mean over pairs.
    """
    by_prompt: dict[int, list[float]] = {}
    for left, right in pairs:
        by_prompt.setdefault(left.image.prompt_id, []).append(value(right) - value(left))
    means = [math.fsum(found) / len(found) for found in by_prompt.values()]
    count = len(means)
    mean = math.fsum(means) / count
    if count == 1:
        return PairedDifference(name, mean, None, None, count)
    deviation = math.sqrt(math.fsum((one - mean) ** 2 for one in means) / (count - 1))
    reach = float(stdtrit(count - 1, 0.5 + _CONFIDENCE / 2)) * deviation / math.sqrt(count)
    return PairedDifference(name, mean, mean - reach, mean + reach, count)


def _images(comparison: ReleaseComparison):
    """The images of both sides by position; their parameters, which name whole batches, stay in the database."""
    images = GeneratedImage.objects.filter(job__in=(comparison.left_id, comparison.right_id))
    return images.select_related("prompt").defer("parameters").order_by("position")


@dataclass(frozen=True)
class Pair:
    """The images of one prompt and seed, left and right, with what the chosen filter says of each."""

    images: tuple[GeneratedImage, GeneratedImage]
    scores: tuple[Scored | None, Scored | None]

    @property
    def advance(self) -> float:
        """How far the right one is ahead in the score that decides, min(selector, policy): -1..1."""
        left, right = (min(one.selector, one.policy) if one else 0.0 for one in self.scores)
        return right - left

    @property
    def sides(self) -> list[tuple[GeneratedImage, Scored | None]]:
        return list(zip(self.images, self.scores, strict=True))


def ordered_pairs(comparison: ReleaseComparison, judgement: Judgement | None, order: str) -> list[Pair]:
    """Every pair drawn so far, in an order of ORDERS."""
    left: dict[int, GeneratedImage] = {}
    right: dict[int, GeneratedImage] = {}
    for image in _images(comparison):
        (left if image.job_id == comparison.left_id else right)[image.position] = image
    scores = judgement.scores if judgement else {}
    pairs = [
        Pair((image, right[k]), (scores.get(image.pk), scores.get(right[k].pk)))
        for k, image in left.items()
        if k in right
    ]
    if order:
        pairs.sort(key=lambda pair: pair.advance, reverse=order == "ahead")
    return pairs
