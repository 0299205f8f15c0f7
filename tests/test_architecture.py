"""What the house promises about itself: no torch in the web process, a quick start, short functions."""

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
APPS = ("medsyn", "generation", "ratings", "training", "accounts")
SOURCES = sorted(
    path for app in APPS for path in (ROOT / app).rglob("*.py") if "migrations" not in path.relative_to(ROOT).parts
)
MAX_FUNCTION_LINES = 60
MAX_MODULE_LINES = 500
DUMPING_GROUNDS = {"utils.py", "helpers.py", "common.py", "misc.py", "base.py", "core.py"}

LOAD_EVERY_URL = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "medsyn.settings"
import medsyn.wsgi
from django.urls import get_resolver
from django.core.management import call_command
len(get_resolver().reverse_dict)
call_command("check")
heavy = {"torch", "diffusers", "transformers", "timm"} & set(sys.modules)
assert not heavy, heavy
"""

PLAIN_DJANGO = """
import django
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"], SECRET_KEY="x",
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)
django.setup()
from django.core.management import call_command
call_command("check")
"""


def run_python(code: str) -> None:
    outcome = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr


def test_the_web_process_never_imports_torch(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSYN_VAR_DIR", str(tmp_path))
    run_python(LOAD_EVERY_URL)


def best_of_three(code: str) -> float:
    """Processor seconds of the cheapest of three runs: other tests share the machine, so its clock says nothing."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run_python(code)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)


@pytest.mark.slow
def test_check_takes_less_than_two_seconds_more_than_plain_django(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSYN_VAR_DIR", str(tmp_path))
    ours, plain = best_of_three(LOAD_EVERY_URL), best_of_three(PLAIN_DJANGO)
    assert ours - plain < 2.0, f"{ours:.2f} s of processor time against {plain:.2f} s"


def test_nothing_is_called_a_dumping_ground():
    named_by_django = ROOT / "medsyn" / "sqlite" / "base.py"  # a database backend's module must have this name
    assert [path for path in SOURCES if path.name in DUMPING_GROUNDS and path != named_by_django] == []


def test_modules_stay_readable():
    too_long = {
        str(path.relative_to(ROOT)): lines
        for path in SOURCES
        if (lines := len(path.read_text().splitlines())) > MAX_MODULE_LINES
    }
    assert too_long == {}


def test_functions_stay_short():
    too_long = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    too_long[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = lines
    assert too_long == {}
