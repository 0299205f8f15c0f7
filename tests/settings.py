"""Settings of the tests: a state folder of their own, cheap password hashes; all else as in production code."""

import os
import tempfile

os.environ.setdefault("MEDSYN_VAR_DIR", tempfile.mkdtemp(prefix="medsyn-tests-"))

from medsyn.settings import *  # noqa: F403

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
if DATABASES["default"]["ENGINE"] == "medsyn.sqlite":  # noqa: F405
    # A file, as in production code: a memory database is one connection shared by all threads, whose
    # transactions would run into each other under the live server.
    DATABASES["default"]["TEST"] = {"NAME": str(VAR_DIR / "tests.sqlite3")}  # noqa: F405
