"""kombu's broker of files, whose messages and bindings appear whole.

kombu writes both in place: a worker that looks at the folder in between reads half a message, or an empty one, and
ends with an unrecoverable error. Here a file has its name once it is complete, and bindings change under a lock.
"""

import fcntl
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kombu.exceptions import ChannelError
from kombu.transport import TRANSPORT_ALIASES, filesystem, virtual
from kombu.utils.encoding import str_to_bytes
from kombu.utils.json import dumps

from medsyn.artifacts import write_bytes

_LOCK_NAME = "bindings.lock"
Bindings = list[filesystem.exchange_queue_t]


def use_for_files() -> None:
    """Connections to ``filesystem://`` go through this transport from now on."""
    TRANSPORT_ALIASES["filesystem"] = f"{__name__}:Transport"


class Channel(filesystem.Channel):
    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:
        # Workers take messages by name: those sent first come first, after a restart of the machine too.
        name = f"{time.time_ns():020d}_{uuid.uuid4()}.{queue}.msg"
        path = Path(self.data_folder_out) / name
        try:
            write_bytes(path, str_to_bytes(dumps(payload)))
        except OSError as error:
            raise ChannelError(f"The message {path} cannot be written: {error}") from error

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        binding = filesystem.exchange_queue_t(routing_key or "", pattern or "", queue or "")
        self._change(exchange, lambda bindings: bindings if binding in bindings else [binding, *bindings])

    def _delete(self, queue: str, exchange: str, routing_key: str, pattern: str, *args: Any, **kwargs: Any) -> None:
        virtual.Channel._delete(self, queue, exchange, routing_key, pattern, *args, **kwargs)
        binding = filesystem.exchange_queue_t(routing_key or "", pattern or "", queue or "")
        self._change(exchange, lambda bindings: [each for each in bindings if each != binding])

    def _change(self, exchange: str, change: Callable[[Bindings], Bindings]) -> None:
        path = self._exchange_file(exchange)
        try:
            with self._only_writer():
                bindings = self.get_table(exchange)
                changed = change(bindings)
                if changed != bindings:
                    write_bytes(path, str_to_bytes(dumps(changed)))
        except OSError as error:
            raise ChannelError(f"The bindings {path} cannot be changed: {error}") from error

    @contextmanager
    def _only_writer(self) -> Iterator[None]:
        self.control_folder.mkdir(parents=True, exist_ok=True)
        with (self.control_folder / _LOCK_NAME).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed, also by a process that dies
            yield


class Transport(filesystem.Transport):
    Channel = Channel
