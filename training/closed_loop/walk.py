"""One seed of a simulated loop, in a process and a database of its own.

    python -m training.closed_loop.walk --directory DIR --seed N       (manage.py closed_loop starts it)

Every round: each arm's images are drawn and rated through the API, the ratings exported, selector and policy trained
and released, the release tested on the calibration images and measured on fresh ones. Each result is a file; what has
its file is not done again, and what a round has stored already is taken up.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from training import lifeline
from training.simulation.loop.settings import LoopFolder, LoopSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 impossible."""
    parser = argparse.ArgumentParser(prog="python -m training.closed_loop.walk", description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("django.request").setLevel(logging.ERROR)
    lifeline.follow_parent()
    folder = LoopFolder(given.directory)
    _set_up(folder, given.seed)
    settings = LoopSettings.from_dict(json.loads(folder.settings_file.read_text(encoding="utf-8")))
    from training.closed_loop.rounds import Rounds  # models: only now that Django is set up

    Rounds(folder, settings, given.seed).run()
    return 0


def _set_up(folder: LoopFolder, seed: int) -> None:
    """Django on the seed's own database; refuses any other."""
    import django
    from django.conf import settings
    from django.core.management import call_command

    django.setup()
    if Path(settings.VAR_DIR) != folder.var_dir(seed).resolve():
        raise SystemExit(
            f"The database is in {settings.VAR_DIR}, not in the loop's folder. Use manage.py closed_loop."
        )
    call_command("migrate", verbosity=0, interactive=False)


if __name__ == "__main__":
    sys.exit(main())
