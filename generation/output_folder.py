"""The folder that `manage.py generate` writes to. Pure.

Names: ``chest_xray_0.png`` (baseline, from 0) and ``Brain_MRI_1_selector_0.85_policy_0.92.png`` (rlhf, from 1), each
with a JSON sidecar. Images of an earlier call in the same folder stay: the numbers go on after the greatest there.
In rlhf mode ``attempts.jsonl`` gains one line for each candidate, passed or not.
"""

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from generation.filtering import Verdict
from medsyn.artifacts import write_json
from medsyn.modalities import Kind

ATTEMPTS_NAME = "attempts.jsonl"


def write_new(target: Path, content: bytes) -> bool:
    """Write a file that must not exist yet, whole or not at all; False where the name is taken."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        os.link(name, target)  # unlike a rename, fails where the name is taken
    except FileExistsError:
        return False
    finally:
        Path(name).unlink()
    return True


class OutputFolder:
    def __init__(self, path: Path):
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def add(self, kind: Kind, verdict: Verdict | None, png: bytes, facts: dict[str, Any]) -> Path:
        """Write image and sidecar under the next free number; returns the image's path."""
        number = self._next_number(_stem(kind, verdict), start=0 if verdict is None else 1)
        while True:
            target = self.path / f"{_stem(kind, verdict)}_{number}{_scores(verdict)}.png"
            if write_new(target, png):
                break
            number += 1  # another call into this folder was faster
        write_json(target.with_suffix(".json"), facts)
        return target

    def note_attempt(self, **facts: Any) -> None:
        with (self.path / ATTEMPTS_NAME).open("a") as file:
            file.write(json.dumps(facts, ensure_ascii=False) + "\n")

    def _next_number(self, stem: str, start: int) -> int:
        pattern = re.compile(re.escape(stem) + r"_(\d+)(_selector_.*)?\.png")
        found = (pattern.fullmatch(path.name) for path in self.path.iterdir())
        return max((int(match[1]) + 1 for match in found if match), default=start)


def _stem(kind: Kind, verdict: Verdict | None) -> str:
    return kind.slug if verdict is None else kind.prefix.replace(" ", "_")


def _scores(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    return f"_selector_{verdict.selector_score:.2f}_policy_{verdict.policy_score:.2f}"
