"""A release, images of it with scores, and a panel that rates them: everything a certificate is made from."""

import uuid
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from generation.certification import frozen_pipeline, hash_of
from generation.models import Certificate, GeneratedImage, GenerationJob, Release
from generation.parameters import Arithmetic, Parameters
from generation.scoring.gate_plan import SAMPLING_KEYS
from ratings.calibration import LABEL_RULE
from ratings.models import Assignment, CalibrationPlan, Rating, Study
from ratings.services.calibration_plans import plan_calibration
from tests.factories import GenerationJobFactory, PromptFactory, UserFactory

PROMPT = "Fundus: no abnormality"
SAMPLING = {"num_inference_steps": 6, "guidance_scale": 3.0}
ARITHMETIC = Arithmetic("float32", "cpu")


def make_release(name: str = "first", **fields) -> Release:
    digits = {"pipeline_sha256": "a" * 64, "selector_sha256": "b" * 64, "policy_sha256": "c" * 64}
    return Release.objects.create(
        digest=name[0] * 64, name=name, quality_threshold=0.6, manifest={}, **digits | fields
    )


def make_certificate(release: Release, **fields) -> Certificate:
    """A row as a test would leave it, for what only looks at certificates."""
    pipeline = frozen_pipeline(release=release, parameters=SAMPLING, prompts=[PROMPT], arithmetic=ARITHMETIC)
    fixed = {"label_rule": LABEL_RULE, "num_unrated": 500}
    manifest = {
        "steps": [{"served_share": 0.5, "threshold": 0.4, "num_above": 100, "num_poor": 3, "p_value": 0.008}],
        "power": [[22, 0.1], [200, 0.7], [800, 0.95]],
        "kappa": {"estimate": 0.4, "low": 0.3, "high": 0.5, "reason": ""},
        "by_prompt": [[PROMPT, 100, 3]],
        "fixed": fixed,
        "study": "Drawn",
        "is_simulated": True,
        "readers": 3,
        "ratings": 600,
        "ungraded": 0,
        "own_size": {"height": 128, "width": 128},
    }
    found = {"threshold": 0.4, "served_share": 0.5, "poor_bound": 0.07, "num_images": 200, "num_poor": 50}
    given = {"kind": "fundus", "status": "issued", "alpha": 0.1, "delta": 0.1, "spent_delta": 0.1, **found, **fields}
    made = {
        "calibration_set": uuid.uuid4(),
        "pipeline": pipeline,
        "manifest": manifest,
        "hash": hash_of(pipeline, fixed),
    }
    return Certificate.objects.create(release=release, **made, **given)


def make_plan(release: Release, study: Study, **fields) -> CalibrationPlan:
    """A row without images, for what only looks at plans."""
    settled = {"kinds": ["fundus"], "alpha": 0.1, "delta": 0.1, "seed": 1, "label_rule": LABEL_RULE}
    by_kind = {
        "thresholds": {"fundus": np.linspace(0.98, 0, 50).tolist()},
        "num_unrated": {"fundus": 500},
        "pipelines": {
            "fundus": frozen_pipeline(release=release, parameters=SAMPLING, prompts=[PROMPT], arithmetic=ARITHMETIC)
        },
    }
    return CalibrationPlan.objects.create(release=release, study=study, **settled, **by_kind, **fields)


def gates_of(job: GenerationJob, *, quality_threshold: float) -> dict:
    """Gates that a job's sampling was trained for, at another threshold: as a release's manifest holds them."""
    sampling = {key: job.parameters[key] for key in SAMPLING_KEYS}
    estimate = {"value": 0.9, "low": 0.85, "high": 0.95}
    return {
        "sampling": sampling | {"quality_threshold": quality_threshold},
        "gates": [{"step": 2, "threshold": 0.5}],
        "promised_recall": 0.8,
        "recall": estimate,
        "gain": estimate,
        "recall_by_kind": {"fundus": 0.9},
        "rank_correlation": [0.1, 0.7],
        "trajectories": 100,
    }


def scores_and_truth(number: int, *, auc: float = 0.95, base: float = 0.3, seed: int = 0):
    """(number,) scores in 0..1, and whether each image is truly poor."""
    random = np.random.default_rng(seed)
    is_poor = random.random(number) < base
    raw = random.standard_normal(number) - np.sqrt(2) * norm.ppf(auc) * is_poor
    return norm.cdf(raw / 2), is_poor


@dataclass
class Drawn:
    job: GenerationJob
    truth: dict[int, bool]  # by image key: truly poor


def draw_job(
    release: Release,
    *,
    number: int = 700,
    seed: int = 0,
    prompts=(PROMPT,),
    auc=0.95,
    arithmetic: Arithmetic = ARITHMETIC,
    **parameters,
) -> Drawn:
    """A finished rlhf job at threshold 0: ``number`` images, alternating among the prompts; rows without files."""
    values = Parameters(**{**SAMPLING, "quality_threshold": 0, **parameters}).as_dict()
    job = GenerationJobFactory(
        mode="rlhf", num_images=number, seed=100_000 * (seed + 1), release=release, parameters=values
    )
    rows = [PromptFactory(text=text) for text in prompts]
    for position, prompt in enumerate(rows):
        job.job_prompts.create(prompt=prompt, position=position)
    scores, is_poor = scores_and_truth(number, auc=auc, seed=seed)
    world = GenerationJob.objects.count()  # a calibration draws by public_id: the same images in every run of a test
    images = GeneratedImage.objects.bulk_create(
        GeneratedImage(
            job=job,
            public_id=uuid.uuid5(uuid.NAMESPACE_OID, f"{world} {position}"),
            prompt=rows[position % len(rows)],
            release=release,
            position=position,
            seed=job.seed + position,
            parameters=arithmetic.as_dict(),
            weights_sha256="d" * 64,
            sha256=f"{job.pk:032x}{position:032x}",
            file=f"images/none/{job.pk}-{position}.png",
            width=128,
            height=128,
            verdict="accepted",
            selector_score=float(score),
            policy_score=float(min(1, score + 0.1 * (position % 3))),
        )
        for position, score in enumerate(scores)
    )
    GenerationJob.objects.filter(pk=job.pk).update(
        state="succeeded", spent={"candidates": number, "stopped": 0, "dropped": 0}
    )
    job.refresh_from_db()
    return Drawn(job, {image.pk: bool(poor) for image, poor in zip(images, is_poor, strict=True)})


def plan_for(drawn: Drawn, *, num_readers: int = 1, **given) -> CalibrationPlan:
    readers = given.pop("readers", [(UserFactory(), 2) for _ in range(num_readers)])
    arguments = {"name": f"Calibration {uuid.uuid4().hex[:6]}", "num_images": 150, "seed": 3, **given}
    return plan_calibration(release=drawn.job.release, jobs=[drawn.job], readers=readers, **arguments)


def rate_all(plan: CalibrationPlan, truth: dict[int, bool], *, number: int | None = None) -> None:
    """Every reader grades what it has left by the truth: 1 where the image is poor, else 3. Rows as the service
    stores them."""
    places = list(plan.study.assignments.open().filter(kind=Assignment.Kind.CALIBRATION).order_by("position"))[
        :number
    ]
    Rating.objects.bulk_create(
        Rating(
            assignment=place,
            value=1 if truth[place.image_id] else 3,
            expert_level=2,
            protocol_version=1,
            submitted_at=place.study.created_at,
        )
        for place in places
    )
