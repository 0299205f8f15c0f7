"""An export while others write: what a transaction stores that is still open belongs either to the export and all its
repetitions, or to none. Runs on PostgreSQL from test_export_bytes."""

import importlib
import threading
import time
import uuid

import pytest
from django.apps import apps
from django.db import connection, connections, transaction

from ratings.export import watermark
from ratings.models import Export, RatingEvent
from ratings.services import StudyError, freeze_export, rerun_export, submit_rating


@pytest.fixture
def open_save():
    """``open_save(place)``: starts a save whose transaction stays open until ``finish()`` is called."""
    running = []

    def start(place, reader):
        stored, may_end = threading.Event(), threading.Event()

        def work() -> None:
            try:
                with transaction.atomic():
                    submit_rating(assignment=place, reader=reader, value=1, client_uuid=uuid.uuid4())
                    stored.set()
                    may_end.wait(60)
            finally:
                connections.close_all()

        thread = threading.Thread(target=work)
        thread.start()
        assert stored.wait(60)

        def finish() -> None:
            may_end.set()
            thread.join()

        running.append(finish)
        return finish

    yield start
    for finish in running:
        finish()


@pytest.fixture
def begun(study, places, rate):
    """The study, whose protocol is frozen: the first rating of all would hold the study's row."""
    rate(places[5], 2)
    return study


@pytest.mark.django_db(transaction=True)
class TestWhileOthersWrite:
    def test_a_save_that_ends_later_is_in_the_export(self, begun, places, bob, carol, rate, open_save):
        if connection.vendor != "postgresql":
            pytest.skip("SQLite has one writer at a time")
        late = open_save(places[0], bob)  # has the smaller key, and is not to be seen yet
        rate(begun.assignments.filter(reader=carol).first(), 3)
        assert RatingEvent.objects.count() == 2
        timer = threading.Timer(0.5, late)
        started = time.monotonic()
        timer.start()
        export = freeze_export(study=begun)
        timer.join()
        assert time.monotonic() - started > 0.4
        assert export.row_count == 3 and export.last_event == RatingEvent.objects.order_by("pk").last().pk
        assert not rerun_export(export=export).differing_files

    def test_a_save_that_begins_meanwhile_is_waited_for_by_nobody(
        self, begun, places, bob, rate, open_save, monkeypatch
    ):
        rate(places[1], 2)
        settled = watermark._writers
        began = []

        def begin_another() -> set[str]:
            found = settled()
            if not began:
                began.append(open_save(places[0], bob))
            return found

        monkeypatch.setattr(watermark, "_writers", begin_another)
        export = freeze_export(study=begun)
        if began:
            began[0]()
        assert export.row_count == 2 and not rerun_export(export=export).differing_files

    def test_patience_ends_with_a_sentence(self, begun, places, bob, carol, rate, open_save, monkeypatch):
        if connection.vendor != "postgresql":
            pytest.skip("SQLite has one writer at a time")
        rate(begun.assignments.filter(reader=carol).first(), 3)
        open_save(places[0], bob)
        monkeypatch.setattr(watermark, "PATIENCE_SECONDS", 0.2)
        with pytest.raises(StudyError, match="Export again when that is done"):
            freeze_export(study=begun)


def test_exports_from_before_can_still_be_downloaded(study):
    migration = importlib.import_module("ratings.migrations.0005_files_of_old_exports")
    old = [
        Export.objects.create(study=study, file=file, sha256="0" * 64, row_count=1)
        for file in ("exports/old/ratings.csv", "/elsewhere/mine.csv")
    ]
    migration.name_files(apps, None)
    named = [Export.objects.get(pk=export.pk) for export in old]
    assert [[export.files[name]["file"] for name in export.file_names] for export in named] == [
        ["exports/old/ratings.csv", "exports/old/ratings_tidy.csv", "exports/old/data_dictionary.csv"],
        ["/elsewhere/mine.csv", "/elsewhere/mine_tidy.csv", "/elsewhere/mine_data_dictionary.csv"],
    ]
