"""In which order a reader sees images, and which of them are shown a second time [pure].

Everything here follows from a recorded seed, the reader's key, a block's number and the images' keys: nothing depends
on the order in which a database returns rows, on other readers, or on a library's random generator.
"""

import hashlib
import heapq
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

REPEAT = "repeat"  # kind of a second showing


@dataclass(frozen=True)
class Showing:
    """One place of a reading list, in order."""

    image: uuid.UUID
    kind: str  # as it was given for the image; REPEAT for a second showing
    occurrence: int  # 1, or 2 for a second showing


def rank(*parts: object) -> bytes:
    """A place in a uniformly random order that depends on nothing but ``parts``: sort or choose by it."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).digest()


def proportional_quotas(number: int, kinds: Mapping[str, int]) -> dict[str, int]:
    """``number`` shared among kinds in proportion, by largest remainder; equal ones by name."""
    total = sum(kinds.values())
    exact = {kind: number * count / total for kind, count in kinds.items()}
    quotas = {kind: int(share) for kind, share in exact.items()}
    by_remainder = sorted(kinds, key=lambda kind: (quotas[kind] - exact[kind], kind))
    for kind in by_remainder[: number - sum(quotas.values())]:
        quotas[kind] += 1
    return quotas


def reading_order(order_seed: int, reader_key: int, block: int, image_keys: Iterable[uuid.UUID]) -> list[uuid.UUID]:
    """The order in which a reader sees the images of a block for the first time: by sha256 of (seed, reader, block,
    image)."""
    return sorted(image_keys, key=lambda image_key: rank(order_seed, reader_key, block, image_key))


def extension(
    *,
    order_seed: int,
    reader_key: int,
    block: int,
    kinds: Mapping[uuid.UUID, str],
    begins_at: int = 0,
    unrepeated: Mapping[uuid.UUID, int] | None = None,
    num_repeated: int = 0,
    repeat_share: float = 0.0,
    repeat_distance: int = 30,
) -> list[Showing]:
    """What is put behind a reader's list: every image of ``kinds`` once, in an order of the reader's own, and hidden
    repeats among them.

    kinds: kind by image key, of images that the reader has not been given before; may be empty.
    begins_at: how many showings the list holds already.
    unrepeated: images given before and not shown twice -> their place in the list, 0 to begins_at - 1.
    num_repeated: images given before that were shown twice.
    repeat_share: second showings as a share of all first ones, 0 to 1.
    repeat_distance: least difference between the places of an image's two showings, at least 1.

    The list owes round(share x first showings) repeats, those given before included. Which images are repeated is
    drawn from those that enough first showings follow for the distance; where these are too few, the rest stays owed
    and comes with a later extension. When it comes is drawn too, so that repeats lie spread over the list.
    """
    before = dict(unrepeated or {})
    order = reading_order(order_seed, reader_key, block, kinds)
    nominal = before | {key: begins_at + index for index, key in enumerate(order)}  # repeats only move places back
    ends_at = begins_at + len(order)
    owed = round(repeat_share * (len(nominal) + num_repeated)) - num_repeated
    able = [key for key, place in nominal.items() if place + repeat_distance <= ends_at]
    seed = (order_seed, reader_key, block, REPEAT)
    chosen = sorted(able, key=lambda key: rank(*seed, key))[: max(owed, 0)]
    waits = {
        key: _drawn_wait(rank(*seed, "wait", key), nominal[key], begins_at, ends_at, repeat_distance)
        for key in chosen
    }
    firsts = [(key, kinds[key]) for key in order]
    return _interleaved(firsts, before, waits, begins_at)


def _drawn_wait(drawn: bytes, place: int, begins_at: int, ends_at: int, repeat_distance: int) -> int:
    """Places between the two showings, each as likely: of an image of this extension the distance to twice the
    distance, of an earlier one wherever the extension has room; never past ``ends_at``."""
    earliest = max(begins_at, place + repeat_distance)
    latest = ends_at if place < begins_at else min(ends_at, earliest + repeat_distance)
    return earliest - place + int.from_bytes(drawn[:8], "big") % (latest - earliest + 1)


def _interleaved(
    firsts: list[tuple[uuid.UUID, str]],
    before: Mapping[uuid.UUID, int],
    waits: dict[uuid.UUID, int],
    begins_at: int,
) -> list[Showing]:
    """First showings in their order; a repeat goes before the next of them as soon as its wait is over, at most one
    at a time. What is left follows at the end, the earliest seen first, which keeps the distance too: every first
    showing after an image that may be repeated lies before the end."""
    shown = {key: before[key] for key in waits if key in before}
    due = [(place + waits[key], key) for key, place in shown.items()]
    heapq.heapify(due)
    showings: list[Showing] = []
    was_repeat = False
    for key, kind in firsts:
        was_repeat = not was_repeat and bool(due) and due[0][0] <= begins_at + len(showings)
        if was_repeat:
            _, soonest = heapq.heappop(due)
            showings.append(Showing(soonest, REPEAT, 2))
            del shown[soonest]
        if key in waits:
            shown[key] = begins_at + len(showings)
            heapq.heappush(due, (shown[key] + waits[key], key))
        showings.append(Showing(key, kind, 1))
    showings += [Showing(key, REPEAT, 2) for key in sorted(shown, key=lambda other: shown[other])]
    return showings
