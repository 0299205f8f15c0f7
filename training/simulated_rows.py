"""Rows of the application for what is simulated: accounts of experts, phantoms as images, and jobs that are drawn in
the process that wants their images."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from django.contrib.auth import get_user_model
from PIL import Image

from generation.importing import import_images
from generation.models import GeneratedImage, GenerationJob
from medsyn.dataset_csv import Row
from medsyn.jobs import execute
from medsyn.modalities import parse_prompt


class JobUnfinished(RuntimeError):
    """A generation job ended in another way than well; the message says how, and what to do."""


def expert_account(number: int):
    """The account of a simulated expert, made where it is not there yet; nobody can sign in to it."""
    person, is_new = get_user_model().objects.get_or_create(username=f"simulated-{number}")
    if is_new:
        person.set_unusable_password()
        person.save()
    return person


def import_phantoms(phantoms: Iterable[tuple[np.ndarray, str]], *, batch: str) -> list[GeneratedImage]:
    """Images of phantoms, (H, W, 3) uint8 each with its prompt, in their order; one that is known is not made again.
    ``batch`` is kept with the new ones."""
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for line, (pixels, prompt) in enumerate(phantoms, start=1):
            path = Path(folder) / f"{line}.png"
            Image.fromarray(pixels).save(path)
            rows.append(Row(line, path, parse_prompt(prompt)))
        done = import_images(rows=rows, is_real=False, is_phantom=True, batch=batch)
    return [image for _, image in done.images]


def draw_now(job: GenerationJob) -> None:
    """Draw the images that a job lacks, in this process; ``job`` is read again. Raises JobUnfinished, and whatever
    else went wrong while it drew."""
    from generation import engine  # torch: only once there is something to draw

    if job.state in (job.State.FAILED, job.State.CANCELLED):
        job.requeue()
    execute(GenerationJob, job.pk, engine.run)
    job.refresh_from_db()
    if job.state != job.State.SUCCEEDED:
        raise JobUnfinished(f"Generation job {job.pk} is {job.state}. {job.error} Run the command again.")
