"""What a planned study comes to: images, places in a reading list, minutes, how sure the figures will be [pure].

Half-widths of the interval of a reader's agreement with themselves: simulated with quadratic weights and three
grades; between the simulated points the width falls with a power of the number of repeats.
"""

import math
from dataclasses import dataclass

SECONDS_PER_IMAGE = 6  # published reader applications take 6 to 7 s a case
_KAPPA_HALF_WIDTHS = ((20, 0.29), (50, 0.15), (100, 0.10))  # repeats of a reader, half-width of the 95 % interval


def kappa_half_width(num_repeats: int) -> float | None:
    """Half-width of the 95 % interval of intra-reader kappa; None below 20 repeats, where it says nothing."""
    if num_repeats < _KAPPA_HALF_WIDTHS[0][0]:
        return None
    last_count, last_width = _KAPPA_HALF_WIDTHS[-1]
    if num_repeats >= last_count:
        return last_width * math.sqrt(last_count / num_repeats)
    pairs = zip(_KAPPA_HALF_WIDTHS, _KAPPA_HALF_WIDTHS[1:], strict=False)
    (low, wide), (high, narrow) = next(pair for pair in pairs if num_repeats < pair[1][0])
    share = math.log(num_repeats / low) / math.log(high / low)
    return wide * (narrow / wide) ** share


@dataclass(frozen=True)
class StudyPlan:
    """A study before it is made."""

    num_main: int  # images of the study's own
    num_gold: int  # of known grade, chosen or mixed in
    num_real: int  # of patients, chosen or mixed in
    num_readers: int  # 0: not yet known
    overlap_target: int | None  # readers per image; None: all
    repeat_share: float  # of a reader's first showings, 0 to 0.5
    num_training: int  # images of the training round

    @property
    def num_images(self) -> int:
        return self.num_main + self.num_gold + self.num_real

    @property
    def first_showings(self) -> int:
        """Of each reader, on average where an open pool hands the work out."""
        if self.overlap_target is None or not self.num_readers:
            return self.num_images
        return math.ceil(self.num_images * min(self.overlap_target, self.num_readers) / self.num_readers)

    @property
    def num_repeats(self) -> int:
        """Hidden second showings of each reader."""
        return round(self.repeat_share * self.first_showings)

    @property
    def places(self) -> int:
        """Images that each reader reads, repeats included and the training round not."""
        return self.first_showings + self.num_repeats

    @property
    def minutes(self) -> int:
        """Reading time of each reader, training round included."""
        return max(1, round((self.places + self.num_training) * SECONDS_PER_IMAGE / 60))

    @property
    def kappa_half_width(self) -> float | None:
        return kappa_half_width(self.num_repeats)


def mixed_in(num_main: int, gold_share: float, real_share: float) -> tuple[int, int]:
    """Gold and real images that make up their shares of all images, beside ``num_main`` others: as
    services.add_images mixes them. (0, 0) for shares that leave the others no room."""
    shares = gold_share + real_share
    if not 0 < shares < 1:
        return 0, 0
    mixed = round(num_main / (1 - shares)) - num_main
    num_gold = round(mixed * gold_share / shares)
    return num_gold, mixed - num_gold


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def plan_in_words(plan: StudyPlan) -> list[str]:
    """The plan in one line, then what it means for the hidden repeats."""
    images = _counted(plan.num_images, "image")
    mixed = [f"{number} {kind}" for number, kind in ((plan.num_gold, "gold"), (plan.num_real, "real")) if number]
    if mixed:
        images = f"{images} ({' and '.join(mixed)})"
    readers = _counted(plan.num_readers, "reader") if plan.num_readers else "no reader yet"
    about = "about " if plan.overlap_target and plan.num_readers > plan.overlap_target else ""
    training = f" after {plan.num_training} of training" if plan.num_training else ""
    first = (
        f"{images}, {readers}: each reads {about}{plan.places}{training}, about {duration(plan.minutes)} "
        f"at {SECONDS_PER_IMAGE} s"
    )
    return [first, repeats_in_words(plan.num_repeats)]


def duration(minutes: int) -> str:
    """As people say it: 45 minutes, 2 h 10 min."""
    if minutes < 60:
        return _counted(minutes, "minute")
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def repeats_in_words(num_repeats: int) -> str:
    """What a number of hidden repeats can show of a reader."""
    if not num_repeats:
        return "No hidden repeats: how steadily a reader grades will not be known."
    width = kappa_half_width(num_repeats)
    repeats = _counted(num_repeats, "hidden repeat")
    if width is None:
        return f"{repeats} per reader: too few to say how steadily one reader grades (20 give kappa ±0.29)."
    return f"{repeats} per reader: a reader's own kappa will be known to about ±{width:.2f}."
