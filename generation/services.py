"""The verbs of generation: start and retry a job, publish and activate a release.

Called alike by pages, API and commands, and by training, which hands its finished runs down to `publish_release`.
Nothing here imports torch: the work itself is done in a worker (generation.tasks).
"""

import dataclasses
import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from generation import tasks
from generation.certification import certified_call, note_job
from generation.embedded_model import EMBEDDED_MODEL_DIR
from generation.filtering import FilterRule, Ledger, Verdict
from generation.models import GeneratedImage, GenerationJob, JobPrompt, Prompt, Release, ReleaseActivation
from generation.parameters import MODES, ParameterError, Parameters, recommended_in
from generation.scoring.gate_plan import GATES_NAME, GatesFileError, read_plan
from medsyn.artifacts import (
    MANIFEST_NAME,
    ArtifactError,
    atomic_folder,
    digest_of,
    file_sha256,
    folder_files,
    read_manifest,
    verify_folder,
)
from medsyn.modalities import PromptError, parse_prompt

MAX_SEED = 2**32 - 1
MAX_IMAGES_PER_PROMPT = 10_000
MAX_PROMPTS = 1_000
PIPELINE_NAME = "pipeline"
SELECTOR_NAME = "selector_checkpoint.safetensors"
POLICY_NAME = "policy_checkpoint.safetensors"


class ReleaseError(RuntimeError):
    """A release cannot be published or activated; the text says why and what to do."""


def active_release() -> Release | None:
    return Release.objects.filter(is_active=True).first()


def recommended_sampling(release: Release | None) -> dict[str, Any]:
    """Steps and guidance that the maker of a release's generator (None: medsyn-tiny) measured to be best.

    The pipeline folder's model_index.json holds them; what it does not name is left to the defaults.
    """
    folder = release.folder / PIPELINE_NAME if release else EMBEDDED_MODEL_DIR
    try:
        index = json.loads((folder / "model_index.json").read_text())
    except FileNotFoundError:
        return {}  # a job says what is missing; a form need not
    return recommended_in(index)


# --- jobs ---


@transaction.atomic
def start_generation(
    *,
    prompts: Sequence[str],
    user,
    mode: str = GenerationJob.Mode.BASELINE,
    num_images: int = 3,
    seed: int | None = None,
    parameters: Parameters | None = None,
    release: Release | None = None,
    pretrained_model: str = "",
    is_embedded: bool = False,
    certified: bool = False,
) -> GenerationJob:
    """Queue a job that makes ``num_images`` images of each prompt; returns its row.

    The model is settled here: ``release``, else ``pretrained_model`` (a folder or hub id), else the release that is
    active now, else medsyn-tiny. ``is_embedded``: medsyn-tiny, though a release be active. ``certified``: serve under
    a certificate, whose threshold and sampling replace those in ``parameters`` (rlhf). Raises ParameterError whose
    ``key`` names the argument at fault.
    """
    texts = canonical_prompts(prompts)
    _check_whole("num_images", num_images, 1, MAX_IMAGES_PER_PROMPT)
    if seed is None:
        seed = secrets.randbelow(MAX_SEED + 1)
    _check_whole("seed", seed, 0, MAX_SEED)
    if mode not in MODES:
        raise ParameterError("mode", f"{mode!r} is not one of {', '.join(MODES)}.")
    if not is_embedded:
        release = _settle_release(mode, release, pretrained_model)
    if parameters is None:
        parameters = Parameters(quality_threshold=release.quality_threshold) if release else Parameters()
    certificate = None
    if certified:
        if mode != GenerationJob.Mode.RLHF:
            raise ParameterError("certified", "only filtered images can be certified. Choose rlhf.")
        parameters, certificate = certified_call(release=release, prompts=texts, parameters=parameters)
    job = GenerationJob.objects.create(
        mode=mode,
        num_images=num_images,
        seed=seed,
        release=release,
        pretrained_model=pretrained_model,
        parameters=parameters.as_dict(),
        progress_total=num_images * len(texts),
        progress_unit="images",
        created_by=user,
    )
    for position, text in enumerate(texts):
        prompt, _ = Prompt.objects.get_or_create(text=text, defaults={"kind": parse_prompt(text).kind.slug})
        JobPrompt.objects.create(job=job, prompt=prompt, position=position)
    if certificate is not None:
        note_job(job=job, certificate=certificate)
    _enqueue_on_commit(job)
    return job


def ledger_of(job: GenerationJob) -> Ledger:
    """What the filter has recorded for an rlhf job so far, from its stored images."""
    parameters = Parameters.from_mapping(job.parameters)
    rule = FilterRule(parameters.quality_threshold, parameters.max_attempts, parameters.num_candidates)
    ledger = Ledger(rule, job.seed, job.num_images * job.job_prompts.count())
    rows = job.images.values_list("position", "selector_score", "policy_score", "verdict")
    for position, selector_score, policy_score, verdict in rows:
        accepted, blocked = (
            verdict == each for each in (GeneratedImage.Verdict.ACCEPTED, GeneratedImage.Verdict.BLOCKED)
        )
        ledger.record(Verdict(position, selector_score, policy_score, accepted, blocked))
    ledger.restore_spent(job.spent)
    return ledger


def retry_generation(*, job: GenerationJob) -> None:
    """Put a failed or cancelled job back into the queue; it goes on after what it has stored."""
    with transaction.atomic():
        job = GenerationJob.objects.select_for_update().get(pk=job.pk)
        if job.state not in (job.State.FAILED, job.State.CANCELLED):
            raise ParameterError("state", f"Only a failed or cancelled job can be retried; this one is {job.state}.")
        job.requeue()
        _enqueue_on_commit(job)


def _enqueue_on_commit(job: GenerationJob) -> None:
    # robust: the row is stored; where the broker cannot be reached the sweep rings again.
    transaction.on_commit(lambda: tasks.run_generation_job.delay(job.pk), robust=True)


def canonical_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts as they are stored; raises ParameterError where one cannot be read, or stands there twice."""
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise ParameterError("prompts", f"{len(prompts)} prompts given; a job takes 1 to {MAX_PROMPTS}.")
    try:
        texts = [parse_prompt(text).text for text in prompts]
    except PromptError as error:
        raise ParameterError("prompts", str(error)) from None
    repeated = next((text for text in texts if texts.count(text) > 1), None)
    if repeated:
        raise ParameterError("prompts", f"{repeated!r} is given twice. Ask for more images of it instead.")
    return texts


def _check_whole(key: str, value: Any, smallest: int, largest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
        raise ParameterError(key, f"{value!r} is out of range: a whole number from {smallest} to {largest}.")


def _settle_release(mode: str, release: Release | None, pretrained_model: str) -> Release | None:
    if release and pretrained_model:
        raise ParameterError("pretrained_model", "a release brings its own generator: choose one or the other.")
    if release is None and not pretrained_model:
        release = active_release()
    if mode == GenerationJob.Mode.RLHF and release is None:
        raise ParameterError(
            "mode",
            "rlhf needs the selector and policy of a release, and none is active. Train and release them "
            "(Training), or generate in baseline mode.",
        )
    return release


# --- releases ---


def publish_release(
    *,
    pipeline_folder: Path,
    selector_file: Path,
    policy_file: Path,
    quality_threshold: float,
    name: str,
    manifest: Mapping[str, Any],
    is_simulated: bool,
    gates_file: Path | None = None,
) -> Release:
    """Copy the pieces into ``<artifact root>/releases/<digest>/`` and record them as a release, not yet active.

    The digest covers every file and the threshold: the same pieces are the same release, whose row is returned.
    Pieces that come with a manifest are compared with it first, and the copy with the digest. ``manifest`` holds
    parents, training figures and code version, as JSON; what gates promise joins it under "gates". Raises
    ReleaseError; nothing half-copied stays behind.
    """
    _check_pieces(pipeline_folder, selector_file, policy_file, quality_threshold)
    pieces = {SELECTOR_NAME: selector_file, POLICY_NAME: policy_file}
    files = {f"{PIPELINE_NAME}/{path}": sha256 for path, sha256 in folder_files(pipeline_folder).items()}
    files |= {name: file_sha256(path) for name, path in pieces.items()}
    if gates_file is not None:
        manifest = {**manifest, "gates": _checked_gates(gates_file, files)}
        pieces[GATES_NAME] = gates_file
        files[GATES_NAME] = file_sha256(gates_file)
    digest = digest_of({"files": files, "quality_threshold": float(quality_threshold)})
    full_manifest = {
        **manifest,
        "name": name,
        "quality_threshold": float(quality_threshold),
        "is_simulated": is_simulated,
        "digest": digest,
    }
    folder = settings.ARTIFACT_ROOT / "releases" / digest
    if not _is_whole(folder):
        _copy_pieces(folder, full_manifest, files, pipeline_folder, pieces)
    release, _ = Release.objects.get_or_create(
        digest=digest,
        defaults={
            "name": name,
            "pipeline_sha256": digest_of(folder_files(folder / PIPELINE_NAME)),
            "selector_sha256": files[SELECTOR_NAME],
            "policy_sha256": files[POLICY_NAME],
            "gates_sha256": files.get(GATES_NAME, ""),
            "quality_threshold": quality_threshold,
            "manifest": read_manifest(folder),
            "is_simulated": is_simulated,
        },
    )
    return release


def _check_pieces(pipeline_folder: Path, selector_file: Path, policy_file: Path, quality_threshold: float) -> None:
    if not 0 <= quality_threshold <= 1:
        raise ReleaseError(f"quality_threshold is {quality_threshold}; it must lie in 0..1.")
    if not (pipeline_folder / "model_index.json").is_file():
        raise ReleaseError(
            f"{pipeline_folder} is no pipeline folder: it has no model_index.json. "
            "Name the folder that save_pretrained wrote."
        )
    for path in (selector_file, policy_file):
        if not path.is_file():
            raise ReleaseError(f"{path} is not there. Name the checkpoint file that training wrote.")
    try:
        if (pipeline_folder / MANIFEST_NAME).exists():
            verify_folder(pipeline_folder)
        for path in (selector_file, policy_file):
            _check_against_manifest(path)
    except ArtifactError as error:
        raise ReleaseError(str(error)) from error


def _check_against_manifest(path: Path) -> None:
    """A checkpoint file must be what the manifest of its folder says, where there is one."""
    if not (path.parent / MANIFEST_NAME).exists():
        return
    expected = read_manifest(path.parent)["files"].get(path.name)
    if expected != file_sha256(path):
        raise ReleaseError(f"{path} is not the file that its {MANIFEST_NAME} describes. Restore it from its source.")


def _checked_gates(path: Path, files: Mapping[str, str]) -> dict[str, Any]:
    """The plan of a gates file as JSON; it must have been trained with this very selector and policy."""
    try:
        plan = read_plan(path)
    except GatesFileError as error:
        raise ReleaseError(str(error)) from error
    for role, name in (("selector", SELECTOR_NAME), ("policy", POLICY_NAME)):
        if plan.weights_sha256.get(role) != files[name]:
            raise ReleaseError(f"{path} was trained with another {role}. Train gates for this one.")
    return dataclasses.asdict(plan)


def attach_gates(*, release: Release, gates_file: Path, name: str = "") -> Release:
    """The release with these gates: a release of its own, with its own digest, not yet active.

    What people know of the old one stays true of the old one. Raises ReleaseError.
    """
    manifest = {key: value for key, value in release.manifest.items() if key not in ("files", "digest", "gates")}
    return publish_release(
        pipeline_folder=release.folder / PIPELINE_NAME,
        selector_file=release.folder / SELECTOR_NAME,
        policy_file=release.folder / POLICY_NAME,
        quality_threshold=release.quality_threshold,
        name=name or release.name,
        manifest={**manifest, "without_gates": release.digest},
        is_simulated=release.is_simulated,
        gates_file=gates_file,
    )


def _is_whole(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        verify_folder(folder)
    except ArtifactError:
        return False
    return True


def _copy_pieces(
    folder: Path,
    manifest: Mapping[str, Any],
    files: Mapping[str, str],
    pipeline_folder: Path,
    pieces: Mapping[str, Path],
) -> None:
    try:
        with atomic_folder(folder, **manifest) as temporary:
            shutil.copytree(pipeline_folder, temporary / PIPELINE_NAME)
            # Its own manifest has done its work and is part of no digest: the release has one for everything.
            (temporary / PIPELINE_NAME / MANIFEST_NAME).unlink(missing_ok=True)
            for name, path in pieces.items():
                shutil.copyfile(path, temporary / name)
            if folder_files(temporary) != files:
                raise ReleaseError(
                    "The copy differs from its source: the files changed meanwhile, or the disk is faulty. "
                    "Wait until training has finished and publish again."
                )
    except OSError as error:
        raise ReleaseError(f"The release could not be written: {error}. Make room and publish again.") from error


def activate_release(*, release: Release, by=None, is_rollback: bool = False) -> Release:
    """Make this the release that is served, and note it in the history with the person; see `roll_back_release`.

    Files are compared with their hashes first. Raises ReleaseError, and what was active stays active. A release that
    is active already is left as it is.
    """
    try:
        manifest = verify_folder(release.folder)
    except ArtifactError as error:
        raise ReleaseError(f"Release {release} cannot be served: {error}") from error
    if manifest.get("digest") != release.digest:
        raise ReleaseError(f"{release.folder} holds another release. Restore it from its source.")
    with transaction.atomic():
        _put_into_service(release, by=by, is_rollback=is_rollback)
    release.refresh_from_db()
    return release


def _put_into_service(release: Release, *, by, is_rollback: bool) -> None:
    # All rows are locked in one order: of two people who activate at once, the later one wins whole.
    list(Release.objects.select_for_update().order_by("pk"))
    if Release.objects.filter(pk=release.pk, is_active=True).exists():
        return
    now = timezone.now()
    Release.objects.filter(is_active=True).update(is_active=False)
    Release.objects.filter(pk=release.pk).update(is_active=True, activated_at=now)
    ReleaseActivation.objects.create(release=release, activated_by=by, activated_at=now, is_rollback=is_rollback)


def release_before() -> Release | None:
    """What was active before the active release, as the history has it: a rollback takes back one activation."""
    in_service: list[Release] = []
    for activation in ReleaseActivation.objects.select_related("release"):
        if activation.is_rollback and len(in_service) > 1:
            in_service.pop()
        else:
            in_service.append(activation.release)
    return in_service[-2] if len(in_service) > 1 else None


def roll_back_release(*, by=None) -> Release:
    """Activate what was active before the active release; raises ReleaseError where nothing was."""
    before = release_before()
    if before is None:
        raise ReleaseError(
            "No other release was active before: there is nothing to roll back to. Activate one by name."
        )
    return activate_release(release=before, by=by, is_rollback=True)
