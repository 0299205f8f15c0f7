"""The web server, for start.sh and for production: `gunicorn medsyn.wsgi` in this folder reads this file.

MEDSYN_WEB_PROCESSES processes (one per usable core, at most four) of MEDSYN_WEB_THREADS threads (4) each; flags such
as --bind override what stands here. docs/performance.md says how to choose, and what was measured.
"""

import gc
import os

from medsyn import environment

bind = f"127.0.0.1:{environment.integer('PORT', 8000, minimum=1, maximum=65535)}"
workers = environment.integer("MEDSYN_WEB_PROCESSES", min(4, len(os.sched_getaffinity(0))), minimum=1, maximum=256)
worker_class = "gthread"
threads = environment.integer("MEDSYN_WEB_THREADS", 4, minimum=1, maximum=256)
keepalive = 75  # seconds a reader's connection stays open between two requests
loglevel = "warning"
# Loaded once, before the processes part: they share its memory, and are there at once.
preload_app = True


def when_ready(server):
    """What is loaded stays: the collector need not walk through it again, nor copy its pages."""
    from django.db import connections

    connections.close_all()  # a connection must not be shared by two processes
    gc.collect()
    gc.freeze()
