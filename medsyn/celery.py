"""The Celery application. Tasks are declared on it (``@app.task``), never with ``shared_task``."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "medsyn.settings")

app = Celery("medsyn")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["generation", "training"])
