"""The database behind a load test: ``python -m tests.benchmarks.load_study make|count``, in the environment of the
server that is measured. Writes JSON to standard output."""

import json
import os
import sys

import django


def make(num_images: int, num_readers: int, overlap_target: int) -> dict:
    """Two studies of images of 128 x 128 pixels that ``num_readers`` read: in "lists" each of them has all
    ``num_images``, in "pool" a quarter as many are drawn as readers go, until each image has ``overlap_target``.
    Returns the studies' public ids, the readers' names and their password."""
    from ratings.services import create_study
    from tests.factories import PASSWORD, GeneratedImageFactory, PromptFactory, UserFactory

    prompts = PromptFactory.create_batch(10)
    images = [
        GeneratedImageFactory(prompt=prompts[number % len(prompts)], width=128, height=128)
        for number in range(num_images)
    ]
    readers = UserFactory.create_batch(num_readers)
    levels = [(reader, 2) for reader in readers]
    lists = create_study(name="Lists", images=images, readers=levels, order_seed=1)
    protocol = {"overlap_target": overlap_target}
    pool = create_study(
        name="Pool", images=images[: num_images // 4], readers=levels, order_seed=2, protocol=protocol
    )
    return {
        "studies": {"lists": str(lists.public_id), "pool": str(pool.public_id)},
        "readers": [reader.get_username() for reader in readers],
        "password": PASSWORD,
    }


def count() -> dict:
    """What the database holds: place -> value of every rating that stands, and numbers that must agree with it."""
    from django.db.models import Count

    from ratings.models import Assignment, Rating, RatingEvent, StudyImage

    ratings = Rating.objects.submitted()
    in_pool = Assignment.objects.filter(study__name="Pool")
    readers = in_pool.filter(rating__isnull=False).values("image").annotate(number=Count("reader", distinct=True))
    return {
        "stored": {str(place): value for place, value in ratings.values_list("assignment__public_id", "value")},
        "ratings": Rating.objects.count(),
        "events": RatingEvent.objects.count(),
        "revised": Rating.objects.exclude(revision=1).count(),
        # Of the pool's images: readers who rated each, places handed out, and what the counters say.
        "pool_readers": [row["number"] for row in readers],
        "pool_places": in_pool.filter(released_at=None).count(),
        "pool_counters": list(StudyImage.objects.filter(study__name="Pool").values_list("num_readers", flat=True)),
    }


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "medsyn.settings")
    django.setup()
    action, *numbers = sys.argv[1:]
    json.dump({"make": make, "count": count}[action](*map(int, numbers)), sys.stdout)
