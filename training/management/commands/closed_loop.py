"""Run the whole loop with simulated experts, in databases of its own, and report what it is worth."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from django.conf import settings as django_settings
from django.core.management.base import BaseCommand, CommandError
from tqdm import tqdm

from medsyn.artifacts import write_bytes, write_json
from training.closed_loop.process import environment
from training.simulation.loop.curves import curves
from training.simulation.loop.report import markdown, read_results, summarise
from training.simulation.loop.seeds import check_repetitions
from training.simulation.loop.settings import ARMS, EMBEDDED, PANELS, PHANTOMS, LoopError, LoopFolder, LoopSettings

_POLL_SECONDS = 1.0
_TOLD_LINES = 12  # of the log of a seed that failed
_OPTIONS = {  # settings with what they mean
    "rounds": "of rating and training",
    "images": "that every arm has rated in a round",
    "ratings_per_image": "experts who rate an image, of six",
    "serve": "share of its candidates that every arm serves",
    "fresh": "images that a release is measured on",
    "unrated": "images that thresholds come from",
    "epochs": "of selector and policy",
    "steps": "of the sampler (default: recommended); for generators that draw",
    "alpha": "of the certificates: largest share of poor images",
    "delta": "of the certificates: probability of a broken promise",
    "update_images": "with --update-generator: drawn to learn from, and again to decide",
    "update_steps": "with --update-generator: of the optimiser",
    "real_data": "with --update-generator: dataset CSV to replay (default: phantoms)",
}


class Command(BaseCommand):
    help = (
        "Generate, let simulated experts rate over the API, train, release, certify, generate again: over several "
        "rounds, seeds and arms. Each seed has a database of its own in the output folder; yours is not touched. Run "
        "again, the command goes on where it was stopped."
    )
    requires_system_checks = ()

    def add_arguments(self, parser):
        parser.add_argument("--output", type=Path, required=True, help="folder of results and scratch databases")
        parser.add_argument("--seeds", type=int, default=5, help="independent repetitions (5)")
        parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, each one process (1)")
        parser.add_argument("--panel", choices=sorted(PANELS), default="default")
        parser.add_argument(
            "--generator", default=PHANTOMS, help=f"{PHANTOMS} (default), {EMBEDDED}, or a pipeline folder"
        )
        parser.add_argument("--arms", nargs="+", choices=sorted(ARMS), default=list(ARMS), metavar="ARM")
        parser.add_argument("--update-generator", action="store_true", help="between rounds; not with phantoms")
        defaults = LoopSettings()
        for name, meaning in _OPTIONS.items():
            default = getattr(defaults, name)
            kind = int if default is None else type(default)
            told = meaning if default is None else f"{meaning} ({default})"
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=told)

    def handle(self, **options):
        names = {field.name for field in dataclasses.fields(LoopSettings)}
        folder, seeds = LoopFolder(options["output"].resolve()), range(options["seeds"])
        try:
            given = {name: options[name] for name in names if name in options}
            settings = LoopSettings(**{**given, "arms": _in_order(options["arms"])})
            check_repetitions(settings, len(seeds))
        except LoopError as error:
            raise CommandError(str(error)) from error
        _settle(folder, settings)
        failed = _run_all(folder, settings, list(seeds), jobs=max(options["jobs"], 1))
        results = read_results(folder, settings, seeds)
        if results:
            _write_report(folder, summarise(results, settings))
            self.stdout.write(f"Report: {folder.path / 'report.md'}, report.json, curves.svg")
        if failed:
            raise CommandError("\n".join(_told(folder, seed) for seed in failed))


def _in_order(arms: list[str]) -> tuple[str, ...]:
    return tuple(arm for arm in ARMS if arm in arms)


def _settle(folder: LoopFolder, settings: LoopSettings) -> None:
    """Write down what is asked for; CommandError where the folder holds a loop that was asked for otherwise."""
    if folder.settings_file.exists():
        stored = json.loads(folder.settings_file.read_text(encoding="utf-8"))
        changed = [name for name, value in settings.to_dict().items() if stored.get(name) != value]
        if changed:
            raise CommandError(
                f"{folder.path} holds a loop with other settings: {', '.join(changed)} differ. Take another "
                "--output, or the same settings to go on."
            )
        return
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json(folder.settings_file, settings.to_dict())


def _run_all(folder: LoopFolder, settings: LoopSettings, seeds: list[int], *, jobs: int) -> list[int]:
    """Work on all seeds that lack results, ``jobs`` at a time; those that failed."""

    def count() -> int:
        return sum(path.exists() for seed in seeds for path in folder.result_files(seed, settings))

    waiting = deque(seed for seed in seeds if not all(path.exists() for path in folder.result_files(seed, settings)))
    total = sum(len(folder.result_files(seed, settings)) for seed in seeds)
    bar = tqdm(total=total, initial=count(), unit="result", desc="Closed loop (simulated experts)")
    with bar, ExitStack() as stack:
        return _work(folder, waiting, jobs, stack, lambda: bar.update(count() - bar.n))


def _work(
    folder: LoopFolder, waiting: deque[int], jobs: int, stack: ExitStack, show: Callable[[], object]
) -> list[int]:
    running: dict[int, subprocess.Popen] = {}
    failed = []
    while waiting or running:
        while waiting and len(running) < jobs:
            seed = waiting.popleft()
            running[seed] = _start(folder, seed, stack)
        time.sleep(_POLL_SECONDS)
        show()
        for seed in [seed for seed, process in running.items() if process.poll() is not None]:
            if running.pop(seed).returncode:
                failed.append(seed)
    show()
    return failed


def _start(folder: LoopFolder, seed: int, stack: ExitStack) -> subprocess.Popen:
    """A seed's process. It ends when this one does: its standard input is a pipe that then closes."""
    folder.seed_folder(seed).mkdir(parents=True, exist_ok=True)
    log = stack.enter_context(folder.log_file(seed).open("a"))
    command = [sys.executable, "-m", "training.closed_loop.walk"]
    command += ["--directory", str(folder.path), "--seed", str(seed)]
    process = subprocess.Popen(
        command,
        cwd=django_settings.BASE_DIR,
        env=environment(folder, seed, os.environ),
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    stack.enter_context(process.stdin)
    return process


def _write_report(folder: LoopFolder, summary: dict) -> None:
    write_json(folder.path / "report.json", summary)
    write_bytes(folder.path / "report.md", markdown(summary).encode())
    write_bytes(folder.path / "curves.svg", curves(summary).encode())


def _told(folder: LoopFolder, seed: int) -> str:
    lines = folder.log_file(seed).read_text(encoding="utf-8", errors="replace").splitlines()[-_TOLD_LINES:]
    return "\n".join([f"Seed {seed} failed; run the command again to go on. {folder.log_file(seed)} ends:", *lines])
