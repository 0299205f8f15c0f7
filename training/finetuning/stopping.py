"""Asked to stop: by SIGTERM, or because the process that started this one is gone."""

import os
import signal
from types import FrameType, TracebackType
from typing import Self

EXIT_CODE = 128 + signal.SIGTERM  # 143, what shells report for it


class StopRequest:
    """Notes SIGTERM. Until ``defer`` it ends the process at once; from then on the training loop saves and leaves.

    Ending at once is safe while data is being prepared: everything written there appears whole or not at all.
    """

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._received = False
        self._deferred = False

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self._received = True
        if not self._deferred:
            raise SystemExit(EXIT_CODE)

    def defer(self) -> None:
        self._deferred = True

    @property
    def is_requested(self) -> bool:
        # An orphan gets a new parent. Under accelerate the parent is the launcher.
        return self._received or os.getppid() != self._parent
