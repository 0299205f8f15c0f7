"""Sides for learning from a study elsewhere: images that resemble each other stay on one side.

Images of one patient, and images drawn from one prompt, are near-copies of each other as far as a test is concerned;
who is both chains groups together. MedSyn's own training draws its own sides (training.rlhf.dataset).
"""

import hashlib
from collections.abc import Iterable, Iterator
from uuid import UUID

SPLIT_COLUMNS = {
    "image_uuid": "Identity of the image, as in the tidy table",
    "group": "Images of one patient or one prompt, directly or by way of others: the identity of their first image",
    "split": "train, validation or test: drawn for whole groups, with the study's seed; 70, 15 and 15 % to expect. "
    "For work elsewhere: MedSyn's own training draws its own sides",
}
_UP_TO = {"train": 0.70, "validation": 0.85, "test": 1.0}  # of a group's draw, uniform on [0, 1)


def split_rows(images: Iterable[tuple[UUID, str, int]], *, seed: int) -> Iterator[tuple[UUID, UUID, str]]:
    """SPLIT_COLUMNS of images given as (identity, patient or "", key of the prompt), in their order.

    A group's side follows from ``seed`` and the group alone.
    """
    images = list(images)
    group_of = _groups(images)
    for identity, _, _ in images:
        yield identity, group_of[identity], side_of(group_of[identity], seed)


def side_of(group: UUID, seed: int) -> str:
    """The side of a group."""
    digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
    draw = int.from_bytes(digest[:8], "big") / 2**64
    return next(side for side, limit in _UP_TO.items() if draw < limit)


def _groups(images: list[tuple[UUID, str, int]]) -> dict[UUID, UUID]:
    """By identity, the first image of the group: connected components over shared patients and prompts."""
    parent = {identity: identity for identity, _, _ in images}

    def root(identity: UUID) -> UUID:
        while parent[identity] != identity:
            parent[identity] = parent[parent[identity]]
            identity = parent[identity]
        return identity

    place = {identity: number for number, (identity, _, _) in enumerate(images)}
    first_with: dict[tuple[str, str | int], UUID] = {}
    for identity, patient, prompt in images:
        for shared in [("prompt", prompt)] + ([("patient", patient)] if patient else []):
            first, second = root(first_with.setdefault(shared, identity)), root(identity)
            earlier, later = sorted((first, second), key=place.__getitem__)
            parent[later] = earlier
    return {identity: root(identity) for identity in parent}
