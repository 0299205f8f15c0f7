"""Which side of the split each image is on: what resembles each other stays together.

Two files with equal bytes, two images of one patient, two images drawn from one prompt with one seed: directly or by
way of others, they form a group, and a group is on one side only.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

HELD_OUT_SHARE = 0.2  # of the images: never trained on, only measured on
CALIBRATION_SHARE = 0.125  # of the rest: temperature and choice of the epoch
SIDES = ("train", "calibration", "held_out")


class SplitError(ValueError):
    """The images cannot be split; the text says why and what to do."""


@dataclass(frozen=True)
class Split:
    """Positions of items; items of one group are on one side only."""

    train: Tensor
    calibration: Tensor
    held_out: Tensor


def connected_groups(keys: Sequence[Sequence[Hashable]]) -> np.ndarray:
    """(N,) number of each item's group: items that share a key, directly or by way of others, have the same."""
    parent = list(range(len(keys)))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    first_with: dict[Hashable, int] = {}
    for item, shared in enumerate(keys):
        for key in shared:
            one, other = sorted((root(first_with.setdefault(key, item)), root(item)))
            parent[other] = one
    roots = [root(item) for item in range(len(keys))]
    return np.unique(roots, return_inverse=True)[1]


def split_groups(groups: np.ndarray, kinds: Sequence[str], names: Sequence[str], *, seed: int) -> Split:
    """A seeded split by group, drawn within each kind so that none is missing from a side by bad luck.

    ``groups``, ``kinds`` and ``names`` (N,): of each item; groups are drawn in an order that follows from the names,
    not from the items' order. A group of several kinds counts for the kind of its first item. A side takes a group
    only where it still has room, so a side is never larger than its share. Raises SplitError where all items are one
    or two groups.
    """
    members: dict[int, list[int]] = {}
    for item, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(item)
    if len(members) < len(SIDES):
        raise SplitError(
            f"All images belong to {len(members)} groups of one patient, or of one prompt and seed: at least "
            f"{len(SIDES)} are needed. Rate images of other patients, prompts or seeds."
        )
    by_kind: dict[str, list[tuple[str, list[int]]]] = {}
    for items in members.values():
        by_kind.setdefault(kinds[items[0]], []).append((min(names[item] for item in items), items))
    generator = torch.Generator().manual_seed(seed)
    sides: dict[str, list[list[int]]] = {side: [] for side in SIDES}
    for kind in sorted(by_kind):
        for side, drawn in _draw([items for _, items in sorted(by_kind[kind])], generator).items():
            sides[side] += drawn
    for side in SIDES:  # tiny sets: rounding may leave a side empty
        if not sides[side]:
            largest = max(sides.values(), key=len)
            sides[side].append(largest.pop(min(range(len(largest)), key=lambda place: len(largest[place]))))
    return Split(**{side: torch.tensor(sorted(sum(drawn, []))) for side, drawn in sides.items()})


def _draw(groups: list[list[int]], generator: torch.Generator) -> dict[str, list[list[int]]]:
    """The groups of one kind by side; room left by rounding is drawn, so that shares hold over many kinds."""
    count = sum(map(len, groups))
    order = torch.randperm(len(groups), generator=generator).tolist()
    held_out = math.floor(HELD_OUT_SHARE * count + torch.rand((), generator=generator).item())
    calibration = math.floor(CALIBRATION_SHARE * (count - held_out) + torch.rand((), generator=generator).item())
    room = {"held_out": held_out, "calibration": calibration, "train": count}
    sides: dict[str, list[list[int]]] = {side: [] for side in room}
    for place in order:
        side = next(side for side in room if len(groups[place]) <= room[side])
        room[side] -= len(groups[place])
        sides[side].append(groups[place])
    return sides
