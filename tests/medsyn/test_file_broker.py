"""The broker of files: what a reader finds is whole, whoever writes meanwhile."""

import threading
from queue import Empty

import pytest
from kombu.exceptions import ChannelError

from medsyn import celery, file_broker


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "messages").mkdir()
    return tmp_path


def channel_in(folder) -> file_broker.Channel:
    options = {
        "data_folder_in": str(folder / "messages"),
        "data_folder_out": str(folder / "messages"),
        "control_folder": str(folder / "control"),
    }
    return celery.app.connection_for_write(url="filesystem://localhost", transport_options=options).channel()


def queues_of(channel, exchange: str) -> set[str]:
    return {binding.queue for binding in channel.get_table(exchange)}


def test_the_application_sends_through_it(folder):
    assert isinstance(channel_in(folder), file_broker.Channel)


def test_messages_arrive_in_the_order_they_were_sent_each_in_its_queue(folder):
    channel = channel_in(folder)
    for number in range(5):
        channel._put("training", {"number": number})
    channel._put("generation", {"number": 9})
    assert [channel._get("training")["number"] for _ in range(5)] == list(range(5))
    with pytest.raises(Empty):
        channel._get("training")
    assert channel._size("generation") == 1


def test_a_message_half_written_is_not_there_yet(folder, monkeypatch):
    channel, seen = channel_in(folder), []

    def look(descriptor: int) -> None:
        """Called when the content is on the disk, and before it has its name."""
        seen.append((len(list((folder / "messages").iterdir())), channel._size("training")))
        with pytest.raises(Empty):
            channel._get("training")

    monkeypatch.setattr("medsyn.artifacts.os.fsync", look)
    channel._put("training", {"number": 1})
    assert seen == [(1, 0)]
    assert channel._get("training") == {"number": 1}


def test_bindings_made_at_once_are_all_kept_and_every_reader_finds_whole_ones(folder):
    done, faults = threading.Event(), []

    def read() -> None:
        channel = channel_in(folder)
        while not done.is_set():
            try:
                channel.get_table("celery")
            except ValueError as error:  # half a table
                faults.append(error)

    def bind(writer: int) -> None:
        channel = channel_in(folder)
        for number in range(10):
            channel._queue_bind("celery", "key", "", f"queue-{writer}-{number}")

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=bind, args=(writer,)) for writer in range(6)]
    for thread in [reader, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert not faults
    expected = {f"queue-{writer}-{number}" for writer in range(6) for number in range(10)}
    assert queues_of(channel_in(folder), "celery") == expected


def test_a_binding_stands_once_and_goes_with_its_queue(folder):
    channel = channel_in(folder)
    for queue in ("a", "b", "a"):
        channel._queue_bind("celery", "key", "", queue)
    assert len(channel.get_table("celery")) == 2
    channel._delete("a", "celery", "key", "")
    assert queues_of(channel, "celery") == {"b"}


def test_a_folder_that_cannot_be_written_is_named(folder):
    channel = channel_in(folder)
    (folder / "messages").rmdir()
    (folder / "messages").write_text("a file")
    with pytest.raises(ChannelError, match="messages"):
        channel._put("training", {})
