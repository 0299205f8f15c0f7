"""Which images are served with a promise: what a certificate freezes, whether a call is what was certified, and when
a certificate ends.

The certified score of an image is min(selector, policy), so that "serve iff the score reaches the threshold" and the
filter's rule, both scores reach the threshold, are one rule (docs/decisions/0010). Ratings arrive from above:
``ratings`` collects the panel's verdicts and hands them down.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from generation.certificate_models import Certificate, CertificateObservation, CertifiedJob
from generation.gate_standing import gate_standing
from generation.models import GeneratedImage, GenerationJob, Release
from generation.parameters import AUTO, Arithmetic, ParameterError, Parameters
from generation.scoring.gate_plan import GatePlan
from medsyn.artifacts import digest_of
from medsyn.modalities import kind_from_name, parse_prompt

# Of what selector and policy are shown, and of how copies of training images are told (the index itself lies in the
# generator's folder and is hashed with it); tests/generation/test_certification.py holds both to it.
PREPROCESSING_VERSION = 1
SCORE = "min(selector, policy)"
_SAMPLING = {  # part of the frozen pipeline: parameter
    "sampler": "scheduler",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "guidance interval": "guidance_interval",
    "negative prompt": "negative_prompt",
    "height": "height",
    "width": "width",
}
_UNRECORDED = "unrecorded"


class CertificationError(ValueError):
    """A certificate cannot be made or changed; the text says why and what to do."""


@dataclass(frozen=True)
class Standing:
    """Whether what is served is what a certificate speaks of."""

    is_certified: bool
    sentence: str  # the promise, or why there is none
    certificate: Certificate | None = None  # the one that holds, else the one that came nearest


# --- what is frozen ---


def gates_in_use(release: Release, parameters: Mapping[str, Any]) -> str:
    """SHA-256 of the gates that a call (all of its parameters) draws with; "": none, as wherever they are switched
    off or were trained for something else."""
    if not release.gates_sha256 or GatePlan.from_dict(release.manifest["gates"]).why_not(parameters):
        return ""
    return release.gates_sha256 if gate_standing(release).is_on else ""


def arithmetics_of(images: QuerySet[GeneratedImage]) -> list[Arithmetic]:
    """In what the images were computed, by their rows, each once; rows that do not say it are "unrecorded"."""
    rows = images.order_by().values_list("parameters__precision", "parameters__device").distinct()
    return sorted({Arithmetic(*(value or _UNRECORDED for value in row)) for row in rows})


def one_arithmetic_of(images: QuerySet[GeneratedImage]) -> Arithmetic:
    """In what all of the images were computed; raises CertificationError where they differ or do not say it."""
    found = arithmetics_of(images)
    if len(found) != 1 or _UNRECORDED in (found[0].precision, found[0].device):
        raise CertificationError(
            f"Its images were computed in {', '.join(map(str, found)) or 'nothing'}: a certificate speaks of one "
            "precision on one kind of device."
        )
    return found[0]


def frozen_pipeline(
    *, release: Release, parameters: Mapping[str, Any], prompts: Iterable[str], arithmetic: Arithmetic
) -> dict[str, Any]:
    """Everything that decides what an image of one kind is and how it scores, part by part, as JSON.

    parameters: of the call, as a job stores them. prompts: the mix of that kind, each prompt as often as the others.
    arithmetic: what images were computed in, whatever precision was asked for (docs/decisions/0012). Batch size is no
    part: it changes the last digits. Attempts and candidates are none either: candidates are independent draws
    (`attempts_fault` says where that is not enough).
    """
    complete = Parameters().as_dict() | dict(parameters)
    sampling = {part: complete[name] for part, name in _SAMPLING.items()}
    sampling["guidance interval"] = list(sampling["guidance interval"])
    return {
        "generator": release.pipeline_sha256,
        "selector": release.selector_sha256,
        "policy": release.policy_sha256,
        "gates": gates_in_use(release, complete),
        **sampling,
        **arithmetic.as_dict(),
        "preprocessing": PREPROCESSING_VERSION,
        "score": SCORE,
        "prompts": sorted(prompts),
    }


def attempts_fault(pipeline: Mapping[str, Any], parameters: Mapping[str, Any], *, is_filtered: bool) -> str:
    """Why attempts would bend the mix of prompts, "" where they do not.

    Where a place draws until something passes, a prompt that passes seldom gets more images than its share of the
    candidates that pass, which is what calibration knows. With one prompt there is nothing to bend.
    is_filtered: whether anything can be rejected: by the threshold, by gates, or as a copy of a training image.
    """
    candidates = parameters["max_attempts"] * parameters["num_candidates"]
    if not is_filtered or candidates == 1 or len(pipeline["prompts"]) == 1:
        return ""
    return "several candidates for a place give prompts that pass seldom more weight than they had in calibration"


def hash_of(pipeline: Mapping[str, Any], fixed: Mapping[str, Any]) -> str:
    """The certificate's hash: of the pipeline and of what else was fixed before the first rating."""
    return digest_of({"pipeline": dict(pipeline), "fixed": dict(fixed)})


def changed_parts(certificate: Certificate, pipeline: Mapping[str, Any]) -> list[str]:
    """Names of the parts in which a pipeline is not the certified one. A size that is named in full is the model's
    own where the model's own was certified and has that size."""
    own_size = certificate.manifest.get("own_size", {})
    return [
        part
        for part, certified in certificate.frozen.items()
        if pipeline.get(part) != certified and not (certified is None and pipeline.get(part) == own_size.get(part))
    ]


# --- where a release and a call stand ---


def status(release: Release | None, kind: str) -> Standing:
    """Whether a release has a certificate for a kind (slug) that holds. Raises nothing; the sentence says why not. Of
    releases with their certificates prefetched it takes no query."""
    name = kind_from_name(kind).prefix
    if release is None:
        return Standing(False, "There is no release: only what selector and policy filter can be certified.")
    of_kind = [each for each in release.certificates.all() if each.kind == kind]  # the newest first
    valid = next((each for each in of_kind if each.is_valid and _fits(each, release)), None)
    if valid is not None:
        return Standing(True, valid.sentence, valid)
    if not of_kind:
        return Standing(False, f"{release} has no certificate for {name}.")
    newest = of_kind[0]
    if newest.status == Certificate.Status.REFUSED:
        return Standing(False, f"A certificate for {name} was refused: {newest.refusal}", newest)
    if newest.revoked_at is not None:
        return Standing(False, f"The certificate for {name} was revoked: {newest.revocation}", newest)
    return Standing(False, f"The release is not the one that was certified for {name}.", newest)


def _fits(certificate: Certificate, release: Release) -> bool:
    """Whether code and files are still those of the certificate; everything else is up to the call."""
    now = {
        "generator": release.pipeline_sha256,
        "selector": release.selector_sha256,
        "policy": release.policy_sha256,
        "preprocessing": PREPROCESSING_VERSION,
        "score": SCORE,
    }
    return all(certificate.pipeline[part] == value for part, value in now.items())


def standing_of_call(
    *,
    release: Release | None,
    mode: str,
    prompts: Sequence[str],
    parameters: Parameters | Mapping[str, Any],
    drawn: Sequence[Arithmetic] = (),
) -> Standing:
    """Whether what a call would serve is certified: its kind has a certificate that holds, and sampling, gates,
    threshold and mix of prompts are the certified ones. prompts: texts as `parse_prompt` takes them. drawn: what the
    call's images were computed in, as far as there are some."""
    given = parameters.as_dict() if isinstance(parameters, Parameters) else dict(parameters)
    values = Parameters().as_dict() | given
    if mode != GenerationJob.Mode.RLHF:
        return Standing(False, "Nothing is filtered: every image is kept.")
    parsed = [parse_prompt(text) for text in prompts]
    kinds = sorted({prompt.kind.slug for prompt in parsed})
    if len(kinds) != 1:
        return Standing(
            False, "The prompts are of several kinds; each kind has a certificate and threshold of its own."
        )
    standing = status(release, kinds[0])
    if not standing.is_certified:
        return standing
    texts = [prompt.text for prompt in parsed]
    valid = release.certificates.valid().filter(kind=kinds[0])
    call = {"release": release, "prompts": texts, "parameters": values, "drawn": drawn}
    judged = [(each, why_not(each, **call)) for each in valid]
    certificate, reason = min(judged, key=lambda pair: len(pair[1]))
    if reason:
        return Standing(False, reason, certificate)
    return Standing(True, certificate.sentence, certificate)


def arithmetic_fault(certificate: Certificate, arithmetic: Arithmetic) -> str:
    """In what images that are computed so differ from those of a certificate, "" where they do not."""
    faults = []
    for part, name in (("precision", "precision"), ("device", "kind of device")):
        value, certified = getattr(arithmetic, part), certificate.frozen.get(part, _UNRECORDED)
        if value != certified or value in (AUTO, _UNRECORDED):
            meaning = ", which each device reads in its own way" if value == AUTO else ""
            faults.append(f"the {name} is {value}{meaning}; the certified one is {certified}")
    return "; ".join(faults)


def why_not(
    certificate: Certificate,
    *,
    release: Release,
    prompts: Sequence[str],
    parameters: Mapping[str, Any],
    drawn: Sequence[Arithmetic] = (),
) -> str:
    """Why a filtered call serves something else than a certificate speaks of, in a sentence; "": it does not.

    drawn: what its images were computed in. Before there are any, the precision is the one asked for, and the device
    is left to the worker, which refuses a job under a certificate on another kind (generation.engine).
    """
    asked = Arithmetic(parameters["precision"], certificate.frozen.get("device", _UNRECORDED))
    computed = next((each for each in drawn if arithmetic_fault(certificate, each)), drawn[0] if drawn else asked)
    pipeline = frozen_pipeline(release=release, parameters=parameters, prompts=prompts, arithmetic=computed)
    changed = [part for part in changed_parts(certificate, pipeline) if part not in computed.as_dict()]
    faults = []
    if "prompts" in changed:
        changed.remove("prompts")
        outside = [text for text in prompts if text not in certificate.pipeline["prompts"]]
        faults.append(
            f"the prompt {outside[0]!r} is outside the calibrated ones" if outside else "the mix of prompts differs"
        )
    if changed:
        faults.append(f"other than certified: {', '.join(changed)}")
    if parameters["quality_threshold"] != certificate.threshold:
        faults.append(
            f"the threshold is {parameters['quality_threshold']:.4g}, the certified one {certificate.threshold:.4g}"
        )
    if bent := attempts_fault(pipeline, parameters, is_filtered=True):
        faults.append(bent)
    if other := arithmetic_fault(certificate, computed):
        faults.append(other)
    sentence = "; ".join(faults)
    return sentence and f"{sentence[0].upper()}{sentence[1:]}."


def standing_of_job(job: GenerationJob) -> Standing:
    """Whether what a job serves is certified, as of now: a certificate that was revoked since holds no more."""
    prompts = list(job.job_prompts.values_list("prompt__text", flat=True))
    certified = CertifiedJob.objects.filter(job=job).select_related("certificate").first()
    if certified is not None and certified.certificate.revoked_at is not None:
        reason = f"The certificate was revoked since: {certified.certificate.revocation}"
        return Standing(False, reason, certified.certificate)
    return standing_of_call(
        release=job.release,
        mode=job.mode,
        prompts=prompts,
        parameters=job.parameters,
        drawn=arithmetics_of(job.images),
    )


# --- serving under a certificate ---


def certified_call(
    *, release: Release | None, prompts: Sequence[str], parameters: Parameters
) -> tuple[Parameters, Certificate]:
    """The parameters under which a call of these prompts is certified: sampling, gates and threshold are the
    certificate's, and for a mix of several prompts each place has one candidate; the rest is as given.

    Raises ParameterError of "certified" that says why none is.
    """
    parsed = [parse_prompt(text) for text in prompts]
    kinds = {prompt.kind.slug for prompt in parsed}
    if len(kinds) != 1:
        raise ParameterError("certified", "the prompts are of several kinds. Ask for one kind at a time.")
    (kind,) = kinds
    prompts = [prompt.text for prompt in parsed]
    reasons = [status(release, kind).sentence]
    for certificate in release.certificates.valid().filter(kind=kind) if release else ():
        wanted = certified_parameters(certificate, parameters)
        reason = why_not(certificate, release=release, prompts=prompts, parameters=wanted.as_dict())
        if not reason:
            return wanted, certificate
        reasons.append(reason)
    raise ParameterError("certified", reasons[-1])


def certificate_for(release: Release | None, prompts: Sequence[str]) -> Certificate | None:
    """The newest certificate that holds for exactly these prompts (canonical texts); None: none does."""
    certificates = release.certificates.valid() if release else ()
    wanted = sorted(prompts)
    return next((each for each in certificates if each.pipeline["prompts"] == wanted and _fits(each, release)), None)


def certified_parameters(certificate: Certificate, parameters: Parameters) -> Parameters:
    """``parameters`` with everything that the certificate settles."""
    settled = {name: certificate.pipeline[part] for part, name in _SAMPLING.items()}
    settled["precision"] = certificate.frozen["precision"]
    settled["guidance_interval"] = tuple(settled["guidance_interval"])
    settled["quality_threshold"] = certificate.threshold
    settled["use_gates"] = bool(certificate.pipeline["gates"])
    if len(certificate.pipeline["prompts"]) > 1:
        settled |= {"max_attempts": 1, "num_candidates": 1}
    return replace(parameters, **settled)


def note_job(*, job: GenerationJob, certificate: Certificate) -> CertifiedJob:
    """Record that a job serves under a certificate: later images for the drift monitor are drawn from it. Raises
    CertificationError where what it serves is not what the certificate speaks of."""
    standing = standing_of_job(job)
    if not certificate.is_valid or standing.certificate != certificate or not standing.is_certified:
        raise CertificationError(f"Job {job.pk} does not serve under {certificate}: {standing.sentence}")
    return CertifiedJob.objects.create(job=job, certificate=certificate)


# --- the end of a certificate ---


@transaction.atomic
def revoke(*, certificate: Certificate, reason: str) -> Certificate:
    """End a certificate for good; one that ended before keeps its first reason. Raises CertificationError without a
    reason, and for a refusal, which never held."""
    if not reason.strip():
        raise CertificationError("Say why the certificate is revoked: whoever served under it will ask.")
    row = Certificate.objects.select_for_update().get(pk=certificate.pk)
    if row.status == Certificate.Status.REFUSED:
        raise CertificationError(f"{row} was refused: there is nothing to revoke.")
    if row.revoked_at is None:
        row.revoked_at, row.revocation = timezone.now(), reason.strip()
        row.save(update_fields=["revoked_at", "revocation"])
    return row


@transaction.atomic
def observe(*, certificate: Certificate, verdicts: Sequence[tuple[int, bool]]) -> list[CertificateObservation]:
    """Let the drift monitor see verdicts (image key, poor?) of randomly drawn served images, all so far in the order
    of the draw; those stored before stay as they are. Revokes where the bet says that the promise is broken.

    Returns the new rows. Raises CertificationError where the order is not the one that was stored before.
    """
    certificate = Certificate.objects.select_for_update().get(pk=certificate.pk)
    known = list(certificate.observations.order_by("position").values_list("image_id", flat=True))
    if [image for image, _ in verdicts[: len(known)]] != known[: len(verdicts)]:
        raise CertificationError(
            f"The images do not come in the order in which {certificate} saw them before: the order is fixed when "
            "they are drawn. Restore the monitoring study from a backup."
        )
    drift = certificate.drift
    added = []
    for position, (image, is_poor) in enumerate(verdicts[len(known) :], start=len(known)):
        if drift.is_revoked:
            break
        drift = drift.after(is_poor)
        values = {"position": position, "image_id": image, "is_poor": is_poor, "capital": drift.capital}
        added.append(CertificateObservation.objects.create(certificate=certificate, **values))
    if drift.is_revoked and certificate.revoked_at is None:
        poor = certificate.observations.filter(is_poor=True).count()
        revoke(
            certificate=certificate,
            reason=f"Of {certificate.observations.count()} images drawn at random from those served, the panel calls "
            f"{poor} poor: more than {certificate.percent_poor} allows (evidence {drift.capital:.0f}, limit 20).",
        )
    return added
