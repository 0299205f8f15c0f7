"""The values of every epoch for TensorBoard, below the run directory."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

FOLDER = "tensorboard"
_NOT_CURVES = ("step", "max_steps", "epoch")


class Board(Protocol):
    def write(self, values: dict[str, Any]) -> None:
        """Note the values of an epoch, one of them "step"; what is None is left out."""


class _NoBoard:
    def write(self, values: dict[str, Any]) -> None:
        return None


class _TensorBoard:
    def __init__(self, writer):
        self._writer = writer

    def write(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if value is not None and name not in _NOT_CURVES:
                self._writer.add_scalar(name, value, values["step"])
        self._writer.flush()  # those who watch see every epoch, and a killed process has lost none


@contextlib.contextmanager
def open_board(run_folder: Path, *, is_wanted: bool, done: int) -> Iterator[Board]:
    """Where epochs are noted; of a resumed run, events after step ``done`` are struck out: they come again."""
    if not is_wanted:
        yield _NoBoard()
        return
    from torch.utils.tensorboard import SummaryWriter  # two seconds to import

    with SummaryWriter(run_folder / FOLDER, purge_step=done + 1 if done else None) as writer:
        yield _TensorBoard(writer)
