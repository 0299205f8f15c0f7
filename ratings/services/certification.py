"""The test of calibration ratings, and what the drift monitor is shown."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from django.db import transaction

from generation import certification
from generation.certificate import Calibration, Promise, calibrate_at, further_ratings_at, power_curve
from generation.models import Certificate, CertificateObservation
from medsyn.artifacts import digest_of
from medsyn.modalities import kind_from_name, kind_names
from ratings.calibration import Sample, drawn_images, panel_kappa, progress, sample_of, verdict_of
from ratings.models import CalibrationImage, CalibrationPlan
from ratings.services.calibration_plans import CertifyError, require_guards

START_RULE = "first share with 3 (2, 1) times the smallest sample, at most 0.8"


@transaction.atomic
def certify(*, plan: CalibrationPlan, kinds: Sequence[str] | None = None, created_by=None) -> list[Certificate]:
    """Test the calibration ratings of each kind, and record what they allow: certificates and refusals alike.

    kinds: slugs of the plan; None: all of them. Raises CertifyError where ratings are missing, where the set was
    used up by an earlier test, and for a kind that the plan does not claim.
    """
    plan = CalibrationPlan.objects.select_for_update(of=("self",)).select_related("study", "release").get(pk=plan.pk)
    wanted = list(plan.kinds) if kinds is None else [kind_from_name(kind).slug for kind in kinds]
    require_guards()
    for obstacle in obstacles(plan, wanted):
        raise CertifyError(obstacle)
    return [_tested(plan, kind, created_by) for kind in wanted]


def obstacles(plan: CalibrationPlan, kinds: Sequence[str]) -> list[str]:
    """Why a plan cannot be tested now, in sentences; they tell nothing of the grades."""
    if plan.purpose != CalibrationPlan.Purpose.CERTIFY:
        return [f"{plan.study} watches over {plan.certificate}; its ratings certify nothing."]
    found = [
        f"{plan.study} claims {kind_names(plan.kinds)}, not {kind_from_name(kind).prefix}."
        for kind in kinds
        if kind not in plan.kinds
    ]
    for kind, settled, drawn in progress(plan):
        name = kind_from_name(kind).prefix
        if kind in kinds and "device" not in plan.pipelines[kind]:  # planned before pipelines named it
            found.append(
                f"The calibration images of kind {name} do not say, or not all the same, in which precision and on "
                "which kind of device they were computed: what they would certify is unknown. Draw a new set."
            )
        if kind in kinds and settled < drawn:
            found.append(
                f"Of {drawn} calibration images of kind {name} {drawn - settled} are still to be rated by somebody. "
                "Wait, or close the study: what nobody graded then counts as poor."
            )
        if kind in kinds and not plan.is_reusable and next_version(plan, kind) > 1:
            found.append(
                f"The calibration set of {plan.study} was tested for {name} before: its delta is spent. Draw a new "
                "one; a set that is to be tested several times must be planned so."
            )
    return found


def next_version(plan: CalibrationPlan, kind: str) -> int:
    """Which test of a kind on the plan's calibration set the next one is, from 1."""
    return Certificate.objects.filter(calibration_set=plan.public_id, kind=kind).count() + 1


def promise_of(plan: CalibrationPlan, kind: str) -> Promise:
    """What the next test of a kind may spend."""
    version = next_version(plan, kind) if plan.is_reusable else None
    return Promise(alpha=plan.alpha, delta=plan.delta, num_kinds=len(plan.kinds), version=version)


def fixed_of(plan: CalibrationPlan, kind: str) -> dict[str, Any]:
    """What, besides the pipeline, was settled before the first rating: the other half of the certificate's hash."""
    images = CalibrationImage.objects.filter(plan=plan, image__prompt__kind=kind).order_by("position")
    keys = [str(key) for key in images.values_list("image__public_id", flat=True)]
    return {
        "kind": kind,
        "alpha": plan.alpha,
        "delta": plan.delta,
        "kinds": plan.kinds,
        "is_reusable": plan.is_reusable,
        "label_rule": plan.label_rule,
        "seed": plan.seed,
        "start": START_RULE,
        "thresholds": plan.thresholds[kind],
        "num_unrated": plan.num_unrated[kind],
        "calibration_images": digest_of(keys),
    }


def _tested(plan: CalibrationPlan, kind: str, created_by) -> Certificate:
    sample, promise = sample_of(drawn_images(plan, kind), plan), promise_of(plan, kind)
    thresholds = plan.thresholds[kind]
    found = calibrate_at(
        sample.scores,
        sample.is_poor,
        thresholds=thresholds,
        num_unrated=plan.num_unrated[kind],
        promise=promise,
    )
    measured = {"thresholds": thresholds, "promise": promise}
    further = None if found.is_certified else further_ratings_at(sample.scores, sample.is_poor, **measured)
    fixed = fixed_of(plan, kind)
    return Certificate.objects.create(
        release=plan.release,
        kind=kind,
        alpha=plan.alpha,
        delta=plan.delta,
        num_kinds=len(plan.kinds),
        calibration_set=plan.public_id,
        version=next_version(plan, kind),
        spent_delta=promise.spent_delta,
        num_images=len(sample.scores),
        num_poor=int(sample.is_poor.sum()),
        num_further=further,
        pipeline=plan.pipelines[kind],
        hash=certification.hash_of(plan.pipelines[kind], fixed),
        manifest=_manifest(plan, kind, sample, found)
        | {"fixed": fixed, "power": power_curve(sample.scores, sample.is_poor, **measured)},
        created_by=created_by,
        **_outcome(found),
    )


def _outcome(found: Calibration) -> dict[str, Any]:
    held = found.held
    if held is None:
        return {"status": Certificate.Status.REFUSED, "refusal": found.refusal}
    return {
        "status": Certificate.Status.ISSUED,
        "threshold": held.threshold,
        "served_share": held.served_share,
        "poor_bound": found.poor_bound,
    }


def _manifest(plan: CalibrationPlan, kind: str, sample: Sample, found: Calibration) -> dict[str, Any]:
    """What a reader of the certificate may want to check, as JSON."""
    kappa, num_readers, num_ratings = panel_kappa(plan, kind)
    served = sample.scores >= found.threshold if found.is_certified else np.ones(len(sample.scores), dtype=bool)
    tested = Counter(prompt for prompt, is_in in zip(sample.prompts, served, strict=True) if is_in)
    poor = Counter(
        prompt
        for prompt, is_in, is_poor in zip(sample.prompts, served, sample.is_poor, strict=True)
        if is_in and is_poor
    )
    return {
        "steps": [asdict(step) for step in found.steps],
        "by_prompt": [[prompt, tested[prompt], poor[prompt]] for prompt in sorted(tested)],
        "study": plan.study.name,
        "is_simulated": plan.study.is_simulated or plan.release.is_simulated,
        "readers": num_readers,
        "ratings": num_ratings,
        "ungraded": sample.num_ungraded,
        "kappa": {name: getattr(kappa, name) for name in ("estimate", "low", "high", "reason")},
        "own_size": plan.own_size,
    }


def observe_ratings(*, certificate: Certificate) -> list[CertificateObservation]:
    """Show the drift monitor what the panel has said since of the images that were drawn for it, in the order of the
    draw, up to the first that is still to be rated. Returns the new observations; may revoke the certificate."""
    verdicts: list[tuple[int, bool]] = []
    plans = certificate.monitoring_plans.select_related("study").order_by("pk")
    for plan in plans:
        images = drawn_images(plan)
        settled = next((place for place, drawn in enumerate(images) if not drawn.is_settled), len(images))
        verdicts += [(drawn.image, verdict_of(drawn, plan)) for drawn in images[:settled]]
        if settled < len(images):
            break
    return certification.observe(certificate=certificate, verdicts=verdicts)


def observe_all() -> list[Certificate]:
    """`observe_ratings` of every certificate that holds and is watched; returns these, those among them that were
    revoked included. Raises CertificationError for what could not be observed once all others were."""
    watched = list(Certificate.objects.valid().filter(monitoring_plans__isnull=False).distinct())
    faults = []
    for certificate in watched:
        try:
            observe_ratings(certificate=certificate)
        except certification.CertificationError as error:
            faults.append(str(error))
        certificate.refresh_from_db(fields=["revoked_at", "revocation"])
    if faults:
        raise certification.CertificationError(" ".join(faults))
    return watched
