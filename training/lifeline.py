"""A training process ends with the worker that started it, however the worker dies. Standard library only.

The runner gives the process a pipe as standard input and never writes to it. When the worker is gone, even by
SIGKILL, the kernel closes the pipe; the process reads the end of it and stops at once. Whoever resumes the run
then finds the directory free and continues from the last complete checkpoint. The pipe is inherited through
``accelerate launch``, where a parent's process id would be the launcher's.
"""

import os
import threading

VARIABLE = "MEDSYN_LIFELINE"
_STDIN = 0
EXIT_CODE = 75  # EX_TEMPFAIL: try again, nothing is wrong with the run


def _wait_for_end() -> None:
    # The descriptor itself: a thread that waits inside sys.stdin's buffer holds its lock, and the interpreter, which
    # wants that lock when it shuts down, would abort a run that has ended well.
    while os.read(_STDIN, 4096):
        pass
    os._exit(EXIT_CODE)  # the main thread may sit in a long computation; there is nothing to clean up


def follow_parent() -> None:
    """Start watching, where the runner asked for it; a run started by hand is left alone."""
    if os.environ.get(VARIABLE) == "stdin":
        threading.Thread(target=_wait_for_end, daemon=True, name="lifeline").start()
