"""Django's SQLite backend, with a queue before the one place for writers.

SQLite lets one transaction write at a time. Who comes meanwhile sleeps and tries again, up to a tenth of a second
at a time, in no order: with fifty readers most of the time of a save is such sleep. Here a transaction first waits
for its turn: threads of a process at a lock, the first of each process at a lock on the file <database>.turns,
which falls to the next when a process dies. It waits as long as SQLite would (``timeout``), then fails as SQLite
does. Statements outside a transaction, and programs that know nothing of the queue, are still kept apart by SQLite
itself.
"""

import fcntl
import os
import threading
import time
from collections import defaultdict

from django.db.backends.sqlite3 import base
from django.db.utils import OperationalError

_POLL_SECONDS = 0.0005  # between two looks at another process's turn; one thread of a process looks
_TIMEOUT_SECONDS = 5.0  # sqlite3's own default

_in_process: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # by path of the database
os.register_at_fork(after_in_child=_in_process.clear)  # a turn that the parent held is not the child's to wait for


class _Turn:
    """The right to write to a database, held until ``end``."""

    def __init__(self, path: str, seconds: float):
        deadline = time.monotonic() + seconds
        self._lock = _in_process[path]
        if not self._lock.acquire(timeout=seconds):
            raise OperationalError("database is locked")
        try:
            self._file = os.open(f"{path}.turns", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._wait_for_other_processes(deadline)
        except BaseException:
            self.end()
            raise

    def _wait_for_other_processes(self, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OperationalError("database is locked") from None
                time.sleep(_POLL_SECONDS)

    def end(self) -> None:
        if (file := getattr(self, "_file", None)) is not None:  # 0 is a file too
            os.close(file)  # which releases it
        self._lock.release()


class DatabaseWrapper(base.DatabaseWrapper):
    """A connection whose transactions take turns."""

    _turn: _Turn | None = None

    def _start_transaction_under_autocommit(self) -> None:
        if not self.is_in_memory_db():
            seconds = self.settings_dict["OPTIONS"].get("timeout", _TIMEOUT_SECONDS)
            self._turn = _Turn(str(self.settings_dict["NAME"]), seconds)
        try:
            super()._start_transaction_under_autocommit()
        except BaseException:
            self._end_turn()
            raise

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.end()
            self._turn = None

    def _commit(self) -> None:
        super()._commit()  # where it fails, a rollback follows
        self._end_turn()

    def _rollback(self) -> None:
        try:
            super()._rollback()
        finally:
            self._end_turn()

    def _close(self) -> None:
        try:
            super()._close()
        finally:
            self._end_turn()
