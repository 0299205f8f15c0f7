"""The database behind a load test: ``python -m tests.benchmarks.load_study make|count``, in the environment of the
server that is measured. Writes JSON to standard output."""

import json
import os
import sys

import django


def make(num_images: int, num_readers: int) -> dict:
    """A study whose ``num_readers`` each have ``num_images`` to rate, 128 x 128 pixels each; returns its public id,
    the readers' names and their password."""
    from ratings.services import create_study
    from tests.factories import PASSWORD, GeneratedImageFactory, PromptFactory, UserFactory

    prompts = PromptFactory.create_batch(10)
    images = [
        GeneratedImageFactory(prompt=prompts[number % len(prompts)], width=128, height=128)
        for number in range(num_images)
    ]
    readers = UserFactory.create_batch(num_readers)
    study = create_study(name="Load", images=images, readers=[(reader, 2) for reader in readers], order_seed=1)
    return {
        "study": str(study.public_id),
        "readers": [reader.get_username() for reader in readers],
        "password": PASSWORD,
    }


def count() -> dict:
    """What the database holds: place -> value of every rating that stands, and numbers that must agree with it."""
    from ratings.models import Rating, RatingEvent

    ratings = Rating.objects.submitted()
    return {
        "stored": {str(place): value for place, value in ratings.values_list("assignment__public_id", "value")},
        "ratings": Rating.objects.count(),
        "events": RatingEvent.objects.count(),
        "revised": Rating.objects.exclude(revision=1).count(),
    }


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "medsyn.settings")
    django.setup()
    action, *numbers = sys.argv[1:]
    json.dump({"make": make, "count": count}[action](*map(int, numbers)), sys.stdout)
