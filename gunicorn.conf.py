"""The web server, for start.sh and for production: `gunicorn medsyn.wsgi` in this folder reads this file.

MEDSYN_WEB_PROCESSES processes (one per usable core, at most four) of MEDSYN_WEB_THREADS threads (4) each; flags such
as --bind override what stands here. docs/performance.md says how to choose, and what was measured.
"""

import gc
import os

from medsyn import environment

bind = f"127.0.0.1:{environment.integer('PORT', 8000, minimum=1, maximum=65535)}"
_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
workers = environment.integer("MEDSYN_WEB_PROCESSES", min(4, _cores), minimum=1, maximum=256)
worker_class = "gthread"
threads = environment.integer("MEDSYN_WEB_THREADS", 4, minimum=1, maximum=256)
keepalive = 75  # seconds a reader's connection stays open between two requests
loglevel = "warning"
# Loaded once, before the processes part: they share its memory, and are there at once.
preload_app = True


def when_ready(server):
    """Import what the first page and the first picture would, and hand it to the processes as it lies: the collector
    need neither walk through it again nor copy its pages."""
    from django.db import connections
    from django.urls import get_resolver

    import medsyn.imaging  # noqa: F401

    get_resolver().url_patterns  # noqa: B018  each view with its modules
    connections.close_all()  # no connection may be shared by two processes
    gc.collect()
    gc.freeze()
