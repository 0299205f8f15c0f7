"""A run directory: what a training process leaves on disk, and what it resumes from. Standard library only.

    config.json       the resolved configuration
    metrics.jsonl     one JSON object per line, appended
    <checkpoint>/     written to a temporary sibling, manifest last, then renamed

A folder without a manifest is not a checkpoint. The newest is the one with the greatest integer ``step``.
"""

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medsyn.artifacts import MANIFEST_NAME, atomic_folder, read_manifest, write_json

CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.jsonl"


class RunDirectoryBusy(RuntimeError):
    """Another process is training in this directory."""


class RunDirectory:
    def __init__(self, path: Path):
        self.path = path

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for this process; the kernel lets go when the process dies, however it dies."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunDirectoryBusy(
                    f"{self.path} is in use by another training process. Wait for it or stop it."
                ) from None
            yield

    def write_config(self, config: dict[str, Any]) -> None:
        write_json(self.path / CONFIG_NAME, config)

    def read_config(self) -> dict[str, Any]:
        return json.loads((self.path / CONFIG_NAME).read_text())

    def log(self, **values: Any) -> None:
        """Append one line to the metrics; ``time`` is added, in seconds since the epoch."""
        with (self.path / METRICS_NAME).open("a") as file:
            file.write(json.dumps({**values, "time": round(time.time(), 3)}) + "\n")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The logged lines in order; a last line cut short by a killed process is passed over."""
        path = self.path / METRICS_NAME
        if not path.exists():
            return
        with path.open() as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)

    def rewind(self, step: int) -> None:
        """Drop the lines logged after ``step``: a resumed run logs them again.

        Lines without a ``step`` (events) are kept.
        """
        kept = [line for line in self.metrics() if line.get("step", step) <= step]
        path = self.path / METRICS_NAME
        if path.exists():
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
            temporary.replace(path)

    @contextlib.contextmanager
    def checkpoint(self, name: str, *, step: int, **manifest: Any) -> Iterator[Path]:
        """Yield a temporary folder that becomes the checkpoint ``name`` when the block ends well."""
        with atomic_folder(self.path / name, step=step, **manifest) as folder:
            yield folder

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest step first."""
        folders = [path.parent for path in self.path.glob(f"*/{MANIFEST_NAME}") if path.parent.name[0] != "."]
        stepped = [(manifest["step"], folder) for folder in folders if "step" in (manifest := read_manifest(folder))]
        return [folder for _, folder in sorted(stepped)]

    def latest(self) -> Path | None:
        checkpoints = self.checkpoints()
        return checkpoints[-1] if checkpoints else None
