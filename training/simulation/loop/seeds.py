"""Which seeds the images of a simulated loop are drawn from: two uses of two generators never share one. Pure.

All repetitions of a loop (--seeds) lie one after the other; in a repetition its generators, the first and those that
updates made of it; in a generator its streams. A stream is a row of seeds for one use: the images that releases are
measured on, those that thresholds come from, and in every round random draws and candidates for a filter. An image
of a stream drawn again, by another arm too, is the same image.
"""

from training.simulation.loop.settings import PHANTOMS, LoopError, LoopSettings

FRESH, UNRATED = 0, 1  # streams that every generator has once
MOST_CANDIDATES = 6000  # of a round, that a filter may refuse before the loop gives up

_FIRST = 200_000_000  # beyond all seeds that weights of the project have seen
_END = 2**31
_END_WITH_UPDATES = 1_000_000_000  # from here on updates draw what they learn from and decide by
# Seeds that each has at least; where more rounds or images need more, there are more.
_STREAM, _GENERATOR, _REPETITION = 50_000, 500_000, 2_000_000


def random_stream(number: int) -> int:
    """The stream of a round's random draws."""
    return 2 + 2 * number


def candidate_stream(number: int) -> int:
    """The stream that filters choose a round's other images from."""
    return 3 + 2 * number


def first_seed(settings: LoopSettings, repetition: int, *, updated_after: int = 0, stream: int = 0) -> int:
    """The seed of a stream's first image; the k-th is drawn from it + k.

    ``repetition`` from 0; ``updated_after``: the round after which the generator was updated, 0: it never was.
    """
    start = _FIRST + repetition * _per_repetition(settings)
    return start + updated_after * _per_generator(settings) + stream * _per_stream(settings)


def update_seed(settings: LoopSettings, repetition: int, *, after: int) -> int:
    """The seed of the update after a round (from 1): of all that it draws. No two updates of a loop share one.

    There are 2000 (training.rlhf.generator_update), more than repetitions that `check_repetitions` allows take.
    """
    return repetition * (settings.rounds - 1) + after - 1


def check_repetitions(settings: LoopSettings, number: int) -> None:
    """Raises LoopError where there are not seeds enough for so many repetitions. Phantoms take a seed of any size."""
    if settings.generator == PHANTOMS:
        return
    end = _END_WITH_UPDATES if settings.update_generator else _END
    most = (end - _FIRST) // _per_repetition(settings)
    if number > most:
        raise LoopError(
            f"There are not seeds enough for images that differ: {settings.rounds} rounds"
            f"{' with updates' if settings.update_generator else ''} can be repeated {most} times, not {number}. Ask "
            "for fewer rounds or seeds."
        )


def _per_stream(settings: LoopSettings) -> int:
    return max(_STREAM, MOST_CANDIDATES, settings.images, settings.fresh, settings.unrated)


def _per_generator(settings: LoopSettings) -> int:
    return max(_GENERATOR, (candidate_stream(settings.rounds) + 1) * _per_stream(settings))


def _per_repetition(settings: LoopSettings) -> int:
    num_generators = settings.rounds if settings.update_generator else 1  # nothing is updated after the last round
    return max(_REPETITION, num_generators * _per_generator(settings))
