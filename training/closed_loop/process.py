"""The environment of a seed's process: what keeps its database, files and settings apart from the user's."""

import hashlib
import os
from collections.abc import Mapping

from training import lifeline
from training.simulation.loop.settings import LoopFolder

_THREADS = "OMP_NUM_THREADS"


def environment(folder: LoopFolder, seed: int, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """``given`` without any setting of the application, but for those of the seed."""
    kept = {name: value for name, value in given.items() if not name.startswith("MEDSYN_")}
    threads = given.get(_THREADS, "1")
    return kept | {
        "DJANGO_SETTINGS_MODULE": "medsyn.settings",
        "MEDSYN_MODE": "embedded",
        # Readers' pseudonyms come from it. It keeps no secret: nobody but the loop itself is let in.
        "MEDSYN_SECRET_KEY": hashlib.sha256(f"closed loop, seed {seed}".encode()).hexdigest(),
        "MEDSYN_VAR_DIR": str(folder.var_dir(seed).resolve()),
        lifeline.VARIABLE: "stdin",
        _THREADS: threads,
    }
