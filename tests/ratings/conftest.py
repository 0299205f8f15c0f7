"""A study of six images that bob (level 3) and carol (level 1) read."""

import uuid
from collections.abc import Callable

import pytest

from generation.models import GeneratedImage
from ratings.models import Assignment, Rating, Study
from ratings.services import create_study, enrol_reader, submit_rating
from tests.factories import GeneratedImageFactory, PromptFactory


@pytest.fixture
def images(db) -> list:
    return GeneratedImageFactory.create_batch(6)


@pytest.fixture
def many_images(db) -> Callable[..., list[GeneratedImage]]:
    """``many_images(100, kind="OCT", is_real=True)``: imported images of one prompt, rows without files."""

    def make(number: int, *, kind: str = "Chest X-ray", **fields) -> list[GeneratedImage]:
        prompt = PromptFactory(text=f"{kind}: one of many")
        given = {"source": GeneratedImage.Source.IMPORTED, "sha256": "0" * 64, "width": 16, "height": 16, **fields}
        rows = [GeneratedImage(prompt=prompt, file=f"images/none/{index}.png", **given) for index in range(number)]
        return GeneratedImage.objects.bulk_create(rows)

    return make


@pytest.fixture
def study(images, bob, carol) -> Study:
    made = create_study(name="Chest pilot", images=images, order_seed=7)
    enrol_reader(study=made, reader=bob, expert_level=3)
    enrol_reader(study=made, reader=carol, expert_level=1)
    return made


@pytest.fixture
def places(study, bob) -> list[Assignment]:
    """bob's reading list."""
    return list(study.assignments.filter(reader=bob).order_by("position"))


@pytest.fixture
def rate() -> Callable[..., Rating]:
    """``rate(place, 2)``: the place's reader rates it."""

    def give(place: Assignment, value: int, **given) -> Rating:
        given.setdefault("client_uuid", uuid.uuid4())
        return submit_rating(assignment=place, reader=place.reader, value=value, **given)

    return give
