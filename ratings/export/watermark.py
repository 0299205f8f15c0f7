"""The newest event below which history is finished: what an export may rest on and find again later.

Keys of events are given out in order, but on PostgreSQL a transaction that got an earlier key may commit after one
with a later key: an event would then appear afterwards below a key that an export has recorded, and its re-run would
hold it. So an export notes the newest key it sees, then waits until every transaction that was writing events at that
moment has ended; whoever begins later gets a later key. Nobody waits for the export. SQLite has one writer at a time,
whose keys are in the order of commits.
"""

import time

from django.db import connection
from django.db.models import Max

from ratings.models import RatingEvent

PATIENCE_SECONDS = 60.0
_PAUSE_SECONDS = 0.01
_WRITERS = """
    SELECT virtualtransaction FROM pg_locks
    WHERE locktype = 'relation' AND relation = %s::regclass AND mode = 'RowExclusiveLock'
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND pid <> pg_backend_pid()
"""


class HistoryInFlight(RuntimeError):
    """Somebody has been writing ratings in one transaction for longer than an export waits."""

    def __init__(self):
        super().__init__(
            f"Ratings have been written in one piece for more than {PATIENCE_SECONDS:.0f} s (by an import, say), and "
            "an export cannot tell yet which. Export again when that is done."
        )


def last_settled_event() -> int | None:
    """Key of an event such that no event with a smaller key can appear any more; None: there is no event.

    Raises HistoryInFlight after PATIENCE_SECONDS.
    """
    newest = RatingEvent.objects.aggregate(newest=Max("pk"))["newest"]
    if newest is not None and connection.vendor == "postgresql":
        _wait_for(_writers())
    return newest


def _writers() -> set[str]:
    """The other transactions that have written, or are about to write, events."""
    with connection.cursor() as cursor:
        cursor.execute(_WRITERS, [RatingEvent._meta.db_table])
        return {transaction for (transaction,) in cursor.fetchall()}


def _wait_for(transactions: set[str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while transactions := transactions & _writers():
        if time.monotonic() > deadline:
            raise HistoryInFlight
        time.sleep(_PAUSE_SECONDS)
