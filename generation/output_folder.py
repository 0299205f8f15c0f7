"""The folder that `manage.py generate` writes to. Pure.

Names: ``chest_xray_0.png`` (baseline, from 0) and ``Brain_MRI_1_selector_0.85_policy_0.92.png`` (rlhf, from 1), each
with a JSON sidecar; ``.dcm`` for DICOM. Images of an earlier call in the same folder stay: the numbers go on after
the greatest there, whatever its format. In rlhf mode ``attempts.jsonl`` gains one line for each candidate, passed
or not.
"""

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from generation.filtering import Verdict
from medsyn.artifacts import json_bytes
from medsyn.modalities import Kind

ATTEMPTS_NAME = "attempts.jsonl"


FORMATS = {"png": ".png", "dicom": ".dcm"}  # file name endings by what --format says


def in_format(image_format: str, png: bytes, facts: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """A PNG file and the facts of its sidecar, both as they are written in this format."""
    if image_format == "png":
        return png, facts
    from generation.dicom_output import as_dicom  # numpy and pydicom: only when asked

    return as_dicom(png, facts)


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


def _write_or_withdraw(target: Path, content: bytes) -> bool:
    """Write the image whose sidecar is there; where that fails the sidecar goes too."""
    is_written = False
    try:
        is_written = write_new(target, content)
    finally:
        if not is_written:
            target.with_suffix(".json").unlink()
    return is_written


class OutputFolder:
    """A folder of images in one format: "png" or "dicom"."""

    def __init__(self, path: Path, image_format: str = "png"):
        if image_format not in FORMATS:
            raise ValueError(f"Image format {image_format!r} is unknown. Use one of: {', '.join(FORMATS)}.")
        self.path = path
        self.image_format = image_format
        path.mkdir(parents=True, exist_ok=True)

    def add(self, kind: Kind, verdict: Verdict | None, png: bytes, facts: dict[str, Any]) -> Path:
        """Write image and sidecar under the next free number; returns the image's path.

        The sidecar goes first and claims the number for every format: an image is never without its facts.
        """
        content, facts = in_format(self.image_format, png, facts)
        record = json_bytes(facts)
        number = self._next_number(_stem(kind, verdict), start=0 if verdict is None else 1)
        while True:
            target = self.path / f"{_stem(kind, verdict)}_{number}{_scores(verdict)}{FORMATS[self.image_format]}"
            if write_new(target.with_suffix(".json"), record) and _write_or_withdraw(target, content):
                return target
            number += 1  # another call into this folder was faster

    def note_attempt(self, **facts: Any) -> None:
        with (self.path / ATTEMPTS_NAME).open("a") as file:
            file.write(json.dumps(facts, ensure_ascii=False) + "\n")

    def _next_number(self, stem: str, start: int) -> int:
        pattern = re.compile(re.escape(stem) + r"_(\d+)(_selector_.*)?\.(png|dcm|json)")
        found = (pattern.fullmatch(path.name) for path in self.path.iterdir())
        return max((int(match[1]) + 1 for match in found if match), default=start)


def _stem(kind: Kind, verdict: Verdict | None) -> str:
    return kind.slug if verdict is None else kind.prefix.replace(" ", "_")


def _scores(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    return f"_selector_{verdict.selector_score:.2f}_policy_{verdict.policy_score:.2f}"
