"""Writers of SQLite take turns, and a turn ends with its transaction, its connection or its process."""

import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from django.db import connection, connections, transaction
from django.db.utils import OperationalError

HOLDER = """
import sys, time
from medsyn.sqlite.base import _Turn
turn = _Turn(sys.argv[1], 5)
print("held", flush=True)
time.sleep(60)
"""

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def sqlite_only(db):
    if connection.vendor != "sqlite":
        pytest.skip("another database")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "timeout", 0.2)


def in_thread(work) -> threading.Thread:
    def run():
        try:
            work()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_transaction_waits_until_the_one_before_has_ended():
    story, began = [], threading.Event()

    def first():
        with transaction.atomic():
            began.set()
            time.sleep(0.2)
            story.append("first ends")

    thread = in_thread(first)
    assert began.wait(60)
    with transaction.atomic():
        story.append("second begins")
    thread.join()
    assert story == ["first ends", "second begins"]


@pytest.mark.parametrize("how", ["commits", "fails", "closes"])
def test_a_turn_ends_with_its_transaction(how, impatient):
    if how == "closes":
        with pytest.raises(ValueError, match="wrong"), transaction.atomic():
            connection.close()
            raise ValueError("wrong")
    elif how == "fails":
        with pytest.raises(ValueError, match="wrong"), transaction.atomic():
            raise ValueError("wrong")
    else:
        with transaction.atomic(), transaction.atomic():
            pass
    done = []

    def other():
        with transaction.atomic():
            done.append(True)

    in_thread(other).join()
    assert done == [True]


def test_who_waits_too_long_is_told_as_by_sqlite(impatient):
    refused = []

    def other():
        connections["default"].settings_dict["OPTIONS"]["timeout"] = 0.2
        try:
            with transaction.atomic():
                pass
        except OperationalError as error:
            refused.append(str(error))

    with transaction.atomic():
        in_thread(other).join()
    assert refused == ["database is locked"]


def test_a_process_that_dies_gives_its_turn_back(impatient):
    path = str(connection.settings_dict["NAME"])
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(OperationalError, match="database is locked"), transaction.atomic():
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with transaction.atomic():
        pass


def test_programs_outside_the_queue_are_kept_apart_by_sqlite_itself(impatient):
    connection.close()
    with sqlite3.connect(connection.settings_dict["NAME"], isolation_level=None) as stranger:
        stranger.execute("BEGIN IMMEDIATE")
        with pytest.raises(OperationalError, match="locked"), transaction.atomic():
            pass
        stranger.execute("ROLLBACK")
    stranger.close()
    with transaction.atomic():
        pass
