"""Which code wrote an export: its version and a digest of the modules that decide over the bytes."""

import functools
import hashlib
import tomllib
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_DECIDING = (
    "ratings/export/*.py",
    "ratings/csv_schema.py",
    "ratings/answer_codes.py",
    "ratings/agreement/*.py",
    "medsyn/modalities.py",
)


@functools.cache
def code_version() -> str:
    """ "0.1.0+" and twelve digits: equal digits, equal modules. Needs no repository."""
    digest = hashlib.sha256()
    for pattern in _DECIDING:
        for path in sorted(_ROOT.glob(pattern)):
            digest.update(path.relative_to(_ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    project = _ROOT / "pyproject.toml"
    version = tomllib.loads(project.read_text())["project"]["version"] if project.is_file() else "unknown"
    return f"{version}+{digest.hexdigest()[:12]}"
