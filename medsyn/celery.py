"""The Celery application. Tasks are declared on it (``@app.task``), never with ``shared_task``."""

import os

from celery import Celery, worker

from medsyn import file_broker

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "medsyn.settings")

file_broker.use_for_files()
app = Celery("medsyn")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["generation", "ratings", "training"])


def worker_is_leaving() -> bool:
    """Whether this worker was told to shut down: long work then goes back to the queue and resumes later.

    Celery keeps an exit code in its flags, and 0 is one.
    """
    flags = (worker.state.should_stop, worker.state.should_terminate)
    return any(value is not None and value is not False for value in flags)
