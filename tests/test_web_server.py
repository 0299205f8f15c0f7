"""gunicorn.conf.py: one description of the web server, for start.sh and for production."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHOW = "import runpy; c = runpy.run_path('gunicorn.conf.py'); print(c['bind'], c['workers'], c['threads'])"


def configured(**variables: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MEDSYN_WEB_", "PORT"))}
    command = [sys.executable, "-c", SHOW]
    return subprocess.run(command, cwd=ROOT, env={**kept, **variables}, capture_output=True, text=True)


def test_it_listens_on_this_machine_only_with_a_process_for_each_core_up_to_four():
    bind, processes, threads = configured().stdout.split()
    assert bind == "127.0.0.1:8000" and int(threads) == 4
    assert int(processes) == min(4, len(os.sched_getaffinity(0)))


def test_port_processes_and_threads_come_from_the_environment():
    shown = configured(PORT="8123", MEDSYN_WEB_PROCESSES="6", MEDSYN_WEB_THREADS="2").stdout
    assert shown.split() == ["127.0.0.1:8123", "6", "2"]


@pytest.mark.parametrize("name", ["PORT", "MEDSYN_WEB_PROCESSES", "MEDSYN_WEB_THREADS"])
@pytest.mark.parametrize("value", ["0", "many"])
def test_a_wrong_number_is_refused_by_name(name, value):
    done = configured(**{name: value})
    assert done.returncode != 0 and name in done.stderr


def test_start_sh_adds_nothing_to_it():
    line = re.search(r"^.*gunicorn.*$", (ROOT / "start.sh").read_text(), re.MULTILINE).group()
    assert line.partition(" #")[0] == 'PORT="$PORT" .venv/bin/gunicorn medsyn.wsgi &'
