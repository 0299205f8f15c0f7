"""Settings of the tests: a state folder of their own, cheap password hashes; all else as in production code."""

import os
import tempfile

os.environ.setdefault("MEDSYN_VAR_DIR", tempfile.mkdtemp(prefix="medsyn-tests-"))

from medsyn.settings import *  # noqa: F403

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
