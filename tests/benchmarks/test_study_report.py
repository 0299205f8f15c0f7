"""How long an owner waits for the figures of 100,000 ratings:

.venv/bin/python -m pytest tests/benchmarks/test_study_report.py -m benchmark -s -n0
"""

import time

import numpy as np
import pytest
from django.urls import reverse
from django.utils import timezone

from generation.models import GeneratedImage
from ratings.models import Assignment, Membership, Rating, Study, StudyImage
from tests.factories import GenerationJobFactory, PromptFactory, UserFactory

pytestmark = pytest.mark.benchmark

ROWS = 1000
MOST_SECONDS = {"study": 4, "study-agreement": 15, "study-image-grades": 12}


def full_study(num_images: int, num_readers: int) -> Study:
    """Every reader has rated every image; half of the images come from another model. No files."""
    prompt, job, random = PromptFactory(), GenerationJobFactory(), np.random.default_rng(0)
    GeneratedImage.objects.bulk_create(
        [
            GeneratedImage(
                prompt=prompt, job=job, position=number, seed=number, model_name=f"model {number % 2}",
                file=f"{number}.png", sha256=f"{number:064d}", width=8, height=8,
            )
            for number in range(num_images)
        ],
        batch_size=ROWS,
    )  # fmt: skip
    images = list(GeneratedImage.objects.order_by("pk"))
    study = Study.objects.create(name="Large", order_seed=1)
    StudyImage.objects.bulk_create([StudyImage(study=study, image=image) for image in images], batch_size=ROWS)
    quality = random.normal(size=num_images)
    for reader in UserFactory.create_batch(num_readers):
        Membership.objects.create(study=study, reader=reader, expert_level=2)
        seen = quality + 0.8 * random.normal(size=num_images) + 0.3 * random.normal()
        _rate(study, reader, images, np.digitize(seen, [-0.5, 0.7]) + 1)
    return study


def _rate(study: Study, reader, images: list[GeneratedImage], grades: np.ndarray) -> None:
    places = [
        Assignment(study=study, reader=reader, image=image, position=number) for number, image in enumerate(images)
    ]
    places = Assignment.objects.bulk_create(places, batch_size=ROWS)
    now = timezone.now()
    ratings = [
        Rating(assignment=place, value=grade, expert_level=2, protocol_version=1, active_ms=4000, submitted_at=now)
        for place, grade in zip(places, grades.tolist(), strict=True)
    ]
    Rating.objects.bulk_create(ratings, batch_size=ROWS)


@pytest.mark.parametrize("num_images, num_readers", [(20_000, 5), (10_000, 10), (2000, 50)])
def test_a_hundred_thousand_ratings(db, alice, signed_in, num_images, num_readers):
    study, client = full_study(num_images, num_readers), signed_in(alice)
    for name, most in MOST_SECONDS.items():
        for turn in ("first", "again"):
            started = time.perf_counter()
            reply = client.get(reverse(f"ratings:{name}", args=[study.public_id]))
            size = len(reply.getvalue())
            seconds = time.perf_counter() - started
            print(f"{num_images} images x {num_readers} readers: {name}, {turn}: {seconds:.2f} s, {size} bytes")
            assert reply.status_code == 200 and seconds < most
