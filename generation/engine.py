"""The one door from Django to torch: does a generation job's work in a worker. Imported inside tasks only."""

import hashlib
import threading
import time
from collections import OrderedDict
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from django.conf import settings
from django.db import transaction
from PIL import Image

from generation.certification import arithmetic_fault
from generation.diffusion.loading import ModelNotFound, ModelSource
from generation.embedded_model import EMBEDDED_MODEL_DIR, draws_phantoms
from generation.filtering import Ledger, Verdict
from generation.gate_standing import gates_file_of
from generation.memorisation import Resemblance
from generation.models import (
    CertifiedJob,
    GeneratedImage,
    GenerationJob,
    ImageScore,
    Prompt,
    Redrawing,
    Release,
    ReleaseComparison,
)
from generation.parameters import Parameters
from generation.production import (
    Call,
    DrawnImage,
    ModelChoice,
    Models,
    draw_baseline,
    draw_filtered,
    judge,
    load_models,
    redraw,
)
from generation.records import png_bytes, recorded_parameters, sidecar
from generation.scoring.network_file import NetworkFileError
from generation.services import PIPELINE_NAME, POLICY_NAME, SELECTOR_NAME, ledger_of
from medsyn.artifacts import ArtifactError, file_sha256, verify_folder, write_bytes, write_json
from medsyn.jobs import JobError, JobInterrupted

_KEPT_MODELS = 2  # the release before and the one after an activation
_SECONDS_BETWEEN_REPORTS = 2.0
_JUDGED_TOGETHER = 16  # images, in a comparison of releases

_loaded: OrderedDict[tuple, Models] = OrderedDict()
# Pipelines are not made for two threads at once, and two loads would cost twice the memory.
_lock = threading.RLock()


# --- models ---


def _fingerprint(folder: Path) -> tuple[int, int]:
    """Changes when a file below the folder does; a hub id has none."""
    files = [path.stat() for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return max((file.st_mtime_ns for file in files), default=0), sum(file.st_size for file in files)


def loaded(choice: ModelChoice) -> Models:
    """The models of a choice, from memory where they are still there and their files unchanged."""
    with _lock:
        key = (choice, _fingerprint(Path(choice.source.pretrained_model or EMBEDDED_MODEL_DIR)))
        if key not in _loaded:
            torch.set_num_threads(settings.TORCH_NUM_THREADS)
            if choice.selector_file is not None:
                verify_folder(choice.selector_file.parent)  # the release's folder, against its manifest
            while len(_loaded) >= _KEPT_MODELS:
                _loaded.popitem(last=False)
            _loaded[key] = load_models(choice)
        _loaded.move_to_end(key)
        return _loaded[key]


def choice_for(release: Release | None, pretrained_model: str, precision: str) -> ModelChoice:
    """Which files a job draws and judges with: the release's, else the named model's, else medsyn-tiny's."""
    if release is None:
        source = ModelSource(pretrained_model=pretrained_model or None, model_used=None)
        return ModelChoice(source, None, None, device=settings.DEVICE, precision=precision)
    return ModelChoice(
        ModelSource(pretrained_model=str(release.folder / PIPELINE_NAME), model_used=None),
        selector_file=release.folder / SELECTOR_NAME,
        policy_file=release.folder / POLICY_NAME,
        device=settings.DEVICE,
        precision=precision,
        name=str(release),
        gates_file=gates_file_of(release),
    )


def models_for(release: Release | None, pretrained_model: str, precision: str) -> Models:
    """Loaded models; raises JobError that says what is missing or wrong, and what to do."""
    try:
        return loaded(choice_for(release, pretrained_model, precision))
    except (ModelNotFound, NetworkFileError, ArtifactError, ValueError) as error:
        raise JobError(str(error)) from error


# --- a job ---


def call_of(job: GenerationJob) -> Call:
    prompts = tuple(job.job_prompts.values_list("prompt__text", flat=True))
    return Call(prompts, job.num_images, job.seed, job.mode, Parameters.from_mapping(job.parameters))


def run(job: GenerationJob) -> None:
    """Draw what the job asks for and has not stored yet; raises JobError, and what ``job.report`` raises."""
    with _lock:
        call = call_of(job)
        models = models_for(job.release, job.pretrained_model, call.parameters.precision)
        _require_certified_arithmetic(job, models)
        work = _Work(job, call, models)
        try:
            work.baseline() if call.mode == job.Mode.BASELINE else work.filtered()
        except torch.cuda.OutOfMemoryError as error:
            raise JobError("The GPU's memory is full. Start the job again with a smaller batch_size.") from error
        except ValueError as error:  # a size or modality that this model was not built for
            raise JobError(str(error)) from error


def _require_certified_arithmetic(job: GenerationJob, models: Models) -> None:
    """A job under a certificate draws what was certified or nothing: only here is known what this device makes of the
    precision. Raises JobError."""
    certified = CertifiedJob.objects.filter(job=job).select_related("certificate").first()
    fault = arithmetic_fault(certified.certificate, models.arithmetic) if certified else ""
    if fault:
        raise JobError(
            f"The job is under {certified.certificate}, but here {fault}. Have a worker on the certified kind of "
            "device draw it, or start one without a certificate."
        )


class _Work:
    """One run of a job: what it has done so far, and where its images go."""

    def __init__(self, job: GenerationJob, call: Call, models: Models):
        self.job, self.call, self.models = job, call, models
        self.prompt_rows: dict[str, Prompt] = {row.text: row for row in job.prompts.all()}
        self.is_phantom = draws_phantoms(models.generator.folder)
        self.done = 0  # places settled
        self.last_report = time.monotonic()  # seconds

    def baseline(self) -> None:
        stored = set(self.job.images.values_list("position", flat=True))
        self.done = len(stored)
        for batch in draw_baseline(self.models, self.call, stored=stored, on_step=self.on_step):
            self.store(batch)
            self.done += len(batch)
            self.report()

    def filtered(self) -> None:
        ledger = ledger_of(self.job)
        self.done = self.call.num_places - len(ledger.open_places)
        for batch in draw_filtered(self.models, self.call, ledger, on_step=self.on_step):
            self.store(batch, ledger)
            self.done = self.call.num_places - len(ledger.open_places)
            self.report()
        if not ledger.filled_places:
            raise JobError(ledger.explain_empty())

    def report(self) -> None:
        self.last_report = time.monotonic()
        self.job.report(self.done, self.call.num_places, "images")

    def on_step(self, step: int, total: int) -> None:
        """Between denoiser steps: hear of a cancellation without waiting for a slow batch to end."""
        if time.monotonic() - self.last_report >= _SECONDS_BETWEEN_REPORTS:
            self.report()

    def store(self, batch: list[DrawnImage], ledger: Ledger | None = None) -> None:
        """Files first, then all rows of the batch at once: an interruption leaves whole batches or nothing."""
        written: list[Path] = []
        try:
            rows = [self._write(drawn, ledger, written) for drawn in batch]
            with transaction.atomic():
                self.job.heartbeat()  # raises JobLost where another worker has taken over
                GeneratedImage.objects.bulk_create(rows)
                if ledger is not None:
                    GenerationJob.objects.filter(pk=self.job.pk).update(spent=ledger.as_record())
        except BaseException as error:
            for path in written:
                path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise JobError(
                    f"An image could not be written: {error.strerror}. Nothing half-written stays; make room on "
                    "the disk and retry: the job goes on after what it has stored."
                ) from error
            raise

    def _write(self, drawn: DrawnImage, ledger: Ledger | None, written: list[Path]) -> GeneratedImage:
        public_id = uuid4()
        name = f"images/{public_id.hex[:2]}/{public_id}.png"
        path = settings.ARTIFACT_ROOT / name
        written += [path, path.with_suffix(".json")]
        png = png_bytes(drawn.picture, prompt=drawn.prompt, seed=drawn.seed, is_phantom=self.is_phantom)
        attempts = ledger.drawn_for(drawn.place) if ledger else ()
        facts = sidecar(drawn, self.models, self.call, png=png, is_phantom=self.is_phantom, attempts=attempts)
        write_bytes(path, png)
        write_json(path.with_suffix(".json"), facts)
        return GeneratedImage(
            public_id=public_id,
            job=self.job,
            prompt=self.prompt_rows[drawn.prompt],
            release=self.job.release,
            model_name=self.models.name,
            weights_sha256=self.models.generator.weights_sha256,
            is_phantom=self.is_phantom,
            seed=drawn.seed,
            position=drawn.position,
            parameters=recorded_parameters(drawn, self.models, self.call),
            file=name,
            sha256=facts["sha256"],
            width=drawn.picture.width,
            height=drawn.picture.height,
            attempt=drawn.attempt,
            unet_evaluations=drawn.unet_evaluations,
            gates_would_stop=drawn.gates_would_stop,
            verdict=GeneratedImage.Verdict(drawn.outcome),
            resembles=self._resembles(drawn.resemblance),
            **_scores(drawn.verdict),
        )

    def _resembles(self, found: Resemblance | None) -> dict[str, str | float | None] | None:
        if found is None:
            return None
        names = ("dataset", "name", "sha256", "similarity", "p_value")
        return {name: getattr(found, name) for name in names}


def _scores(verdict: Verdict | None) -> dict[str, float]:
    if verdict is None:
        return {}
    return {"selector_score": verdict.selector_score, "policy_score": verdict.policy_score}


# --- the same image again ---


def regenerate(image: GeneratedImage) -> Image.Image:
    """The image drawn again from its row: the same pixels, on the same kind of device.

    Raises JobError where it was imported, or where its model is gone or has other weights now.
    """
    if image.job is None:
        raise JobError("This image was imported: there is no model and seed to draw it from.")
    with _lock:
        models = models_for(image.release, image.job.pretrained_model, image.parameters["precision"])
        if models.generator.weights_sha256 != image.weights_sha256:
            raise JobError(
                f"{models.name} has other weights now ({models.generator.weights_sha256[:8]}) than when "
                f"the image was made ({image.weights_sha256[:8]}). Restore those weights to draw it again."
            )
        return redraw(models.generator, image.parameters, seed=image.seed)


def run_redrawing(row: Redrawing) -> None:
    """Draw an image again and note how far it came out the same; where it did not, the new picture is kept.

    Raises JobError where the image cannot be drawn again, or its file is not the one that its row describes.
    """
    image = row.image
    _check_file(image)
    row.report(0, 1, "images")
    with _lock:
        picture = regenerate(image)
        device = models_for(image.release, image.job.pretrained_model, image.parameters["precision"])
    png = png_bytes(picture, prompt=image.prompt.text, seed=image.seed, is_phantom=image.is_phantom)
    with Image.open(image.path) as before:
        different, largest = _difference(before, picture)
    row.file = f"redrawn/{row.pk}.png" if different else ""
    if different:
        write_bytes(settings.ARTIFACT_ROOT / row.file, png)
    row.sha256, row.device = hashlib.sha256(png).hexdigest(), device.generator.pipeline.device.type
    row.different_pixels, row.largest_difference = different, largest
    row.save(update_fields=["sha256", "device", "different_pixels", "largest_difference", "file"])
    row.report(1, 1, "images")


def _check_file(image: GeneratedImage) -> None:
    try:
        found = file_sha256(image.path)
    except FileNotFoundError:
        raise JobError("The image's file is gone. Restore the artifact folder from a backup.") from None
    if found != image.sha256:
        raise JobError(
            f"The image's file has changed since it was made: its SHA-256 is {found[:8]}, recorded is "
            f"{image.sha256[:8]}. Restore the artifact folder from a backup."
        )


def _difference(one: Image.Image, other: Image.Image) -> tuple[int, int]:
    """Pixels that differ, and the largest difference of a channel in grey levels (0..255)."""
    first, second = (np.asarray(picture.convert("RGB"), dtype=np.int16) for picture in (one, other))
    if first.shape != second.shape:
        return first.shape[0] * first.shape[1], 255
    distance = np.abs(first - second).max(axis=-1)
    return int((distance > 0).sum()), int(distance.max())


# --- releases compared ---


def run_comparison(comparison: ReleaseComparison) -> None:
    """Judge what both jobs have drawn with the filter of each release among them; scores there already are kept.

    Raises JobInterrupted while a job is still at work (the sweep comes back), JobError where one has failed.
    """
    for job in comparison.sides:
        if not job.is_finished:
            raise JobInterrupted
        if job.state != job.State.SUCCEEDED:
            raise JobError(f"{job} {job.state}, so there is nothing to compare. Let it go on, then this comparison.")
    images = GeneratedImage.objects.filter(job__in=comparison.sides).select_related("prompt")
    images = list(images.order_by("job", "position"))
    total, done = len(images) * len(comparison.judges), 0
    for release in comparison.judges:
        known = set(ImageScore.objects.filter(release=release, image__in=images).values_list("image", flat=True))
        missing = [image for image in images if image.pk not in known]
        done += len(known)
        comparison.report(done, total, "scores")
        for start in range(0, len(missing), _JUDGED_TOGETHER):
            batch = missing[start : start + _JUDGED_TOGETHER]
            ImageScore.objects.bulk_create(judge_images(release, batch), ignore_conflicts=True)
            done += len(batch)
            comparison.report(done, total, "scores")


def judge_images(release: Release, images: list[GeneratedImage]) -> list[ImageScore]:
    """What the release's filter says of images that are on the disk: unsaved rows, in their order."""
    pictures = []
    for image in images:
        _check_file(image)
        with Image.open(image.path) as picture:
            pictures.append(picture.convert("RGB"))
    with _lock:
        models = models_for(release, "", "float32")
        scores: dict[int, ImageScore] = {}
        # A batch has one size: two generators may draw different ones.
        for size in {picture.size for picture in pictures}:
            group = [k for k, picture in enumerate(pictures) if picture.size == size]
            prompts = [images[k].prompt.text for k in group]
            found = judge(models, prompts, [pictures[k] for k in group])
            for k, selector, policy in zip(group, *found, strict=True):
                scores[k] = ImageScore(image=images[k], release=release, selector_score=selector, policy_score=policy)
    return [scores[k] for k in range(len(images))]
