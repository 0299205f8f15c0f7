"""Where the time of a run goes, and how much of it is left."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator


class Timing:
    """Seconds by name of what they were spent on, in this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Add the seconds that the block takes to ``name``."""
        started = self._clock()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._clock() - started


class RemainingTime:
    """Seconds left, from the mean time of the last steps: what lies between steps is shared among them."""

    def __init__(self, *, window: int, clock: Callable[[], float] = time.monotonic):
        """``window``: steps over which the mean is taken; two epochs even out what happens once in each."""
        self._clock = clock
        self._marks: deque[tuple[int, float]] = deque([], maxlen=window + 1)

    def after(self, step: int, total: int) -> float | None:
        """Seconds until step ``total``, called after each step; None after the first, which tells no time yet."""
        self._marks.append((step, self._clock()))
        (first_step, first_time), (last_step, last_time) = self._marks[0], self._marks[-1]
        if last_step == first_step:
            return None
        return (last_time - first_time) / (last_step - first_step) * (total - step)
