"""Gates for a release: trained in a process of their own, then attached. Imports no torch."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.conf import settings

from generation.models import GeneratedImage, Prompt, Release
from generation.parameters import Parameters
from generation.scoring.gate_plan import GATES_NAME
from generation.services import (
    PIPELINE_NAME,
    POLICY_NAME,
    SELECTOR_NAME,
    attach_gates,
    recommended_sampling,
)
from medsyn.artifacts import digest_of, write_bytes, write_json
from training.lifeline import VARIABLE

MAX_PROMPTS = 60  # taken from the database where none are named
_LINES_SHOWN = 15  # of the process' log, when it fails


class GatesError(RuntimeError):
    """Gates could not be trained; the text says why."""


def usual_prompts(release: Release) -> list[str]:
    """What the release has been asked for, else what any image here shows; the oldest first, at most MAX_PROMPTS."""
    own = Prompt.objects.filter(images__in=GeneratedImage.objects.synthetic().filter(release=release))
    known = own if own.exists() else Prompt.objects.filter(images__in=GeneratedImage.objects.synthetic())
    return list(known.distinct().order_by("pk").values_list("text", flat=True)[:MAX_PROMPTS])


def train_release_gates(
    *,
    release: Release,
    prompts: Sequence[str] = (),
    sampling: dict[str, Any] | None = None,
    num_trajectories: int = 1000,
    recall: float = 0.8,
    updates: int = 400,
    seed: int = 0,
    name: str = "",
) -> Release:
    """Train gates for a release and return the release that has them, not yet active.

    ``sampling`` are generation parameters, by default those that the generator's maker recommends: gates serve calls
    with the same ones only. The work lies below ``<artifact root>/gates/`` and goes on there when it was interrupted.
    Raises GatesError, ParameterError, ReleaseError.
    """
    texts = list(prompts) or usual_prompts(release)
    if not texts:
        raise GatesError("There is no prompt to draw trajectories of: name some with --prompts_file.")
    given = recommended_sampling(release) | (sampling or {}) | {"quality_threshold": release.quality_threshold}
    parameters = Parameters.from_mapping(given)
    what = {"release": release.digest, "prompts": texts, "parameters": parameters.as_dict()}
    what |= {"num_trajectories": num_trajectories, "seed": seed}
    folder = settings.ARTIFACT_ROOT / "gates" / digest_of(what)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "parameters.json", parameters.as_dict())
    write_bytes(folder / "prompts.txt", "\n".join(texts).encode())
    counts = {"num_trajectories": num_trajectories, "recall": recall, "updates": updates, "seed": seed}
    _run(_command(release, folder, counts), folder / "train_gates.log")
    return attach_gates(release=release, gates_file=folder / GATES_NAME, name=name)


def _command(release: Release, folder: Path, counts: dict[str, float]) -> list[str]:
    flags = {
        "run_directory": folder,
        "pipeline": release.folder / PIPELINE_NAME,
        "selector_checkpoint": release.folder / SELECTOR_NAME,
        "policy_checkpoint": release.folder / POLICY_NAME,
        "prompts_file": folder / "prompts.txt",
        "parameters": folder / "parameters.json",
        "device": settings.DEVICE,
        **counts,
    }
    values = [text for flag, value in flags.items() for text in (f"--{flag}", str(value))]
    return [sys.executable, "-m", "training.rlhf.train_gates", *values]


def _run(command: list[str], log: Path) -> None:
    """Wait for the process; it ends with this one, however this one ends."""
    environment = os.environ | {VARIABLE: "stdin", "OMP_NUM_THREADS": str(settings.TORCH_NUM_THREADS)}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=settings.BASE_DIR,
            env=environment,
        )
        try:
            code = process.wait()
        finally:
            process.stdin.close()
    if code:
        lines = log.read_text(errors="replace").splitlines()[-_LINES_SHOWN:]
        raise GatesError(f"The process ended with exit code {code}.\n" + "\n".join(lines))
