"""A real worker over the file broker, killed in mid-training: started again it ends with the same weights.

Everything is real: Celery, its beat, the sweep, the lease, `accelerate launch` and the trainer. Only the networks
are small.
"""

import csv
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from medsyn.artifacts import file_sha256
from training.run_directory import RunDirectory, RunDirectoryBusy

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ("Chest X-ray: clear lungs", "Chest X-ray: left effusion", "OCT: drusen", "OCT: fluid")
PATIENCE_SECONDS = 180

SMALL = {"embed_dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32, "patch_size": 8, "pretrained": None}
CONFIG = {
    "training": {"max_epochs": 24, "batch_size": 4, "checkpoints": {"save_frequency": 2}},
    "data": {"num_workers": 0},
    "synthetic_system": {"image_size": [32, 32]},
    "selector": {"architecture": {**SMALL, "head_dim": 8, "ensemble_heads": 2}},
    "policy_model": {"architecture": {**SMALL, "fusion_dim": 16}},
}


@pytest.fixture
def house(tmp_path) -> dict[str, str]:
    """The environment of a MedSyn of its own, migrated, with short leases."""
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "medsyn.settings",
        "MEDSYN_VAR_DIR": str(tmp_path / "var"),
        "MEDSYN_JOB_LEASE_SECONDS": "4",
        "MEDSYN_JOB_SWEEP_SECONDS": "1",
        "MEDSYN_TORCH_THREADS": "1",
        "DEVICE": "cpu",
    }
    environment.pop("MEDSYN_DATABASE_URL", None)
    manage(environment, "migrate", "--verbosity", "0")
    return environment


@pytest.fixture
def inputs(tmp_path) -> dict[str, Path]:
    """Thirty-two small rated images, a configuration, and a random generator for its text encoder."""
    from generation.diffusion.presets import TEST, build_pipeline

    rng = np.random.default_rng(0)
    with (tmp_path / "ratings.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image_path", "rating", "modality", "expert_level", "prompt"))
        for number in range(32):
            name, prompt = f"{number}.png", PROMPTS[number % len(PROMPTS)]
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / name)
            modality = "X-Ray" if prompt.startswith("Chest") else "OCT"
            for level in (1, 3):
                writer.writerow((name, 1 + number % 3, modality, level, prompt))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    build_pipeline(TEST, captions_for_vocabulary=PROMPTS, seed=0).save_pretrained(tmp_path / "model")
    return {
        "ratings": tmp_path / "ratings.csv",
        "config": tmp_path / "config.yaml",
        "model": tmp_path / "model",
        "database": tmp_path / "var" / "medsyn.sqlite3",
        "artifacts": tmp_path / "var" / "artifacts",
    }


def manage(environment: dict[str, str], *arguments: str) -> str:
    outcome = subprocess.run(
        [sys.executable, "manage.py", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


def start_run(environment, inputs, *flags: str) -> None:
    files = ("--ratings_file", inputs["ratings"], "--config", inputs["config"], "--pipeline", inputs["model"])
    manage(environment, "train_rlhf", *map(str, files), *flags)


def start_worker(environment) -> subprocess.Popen:
    command = [sys.executable, "-m", "celery", "--app", "medsyn.celery", "worker", "--pool", "solo", "--beat"]
    command += ["--queues", "training", "--loglevel", "WARNING", "--without-gossip", "--without-mingle"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)


def rows(inputs) -> list[tuple]:
    """(key, state, run_directory, attempt, error) of every run, oldest first."""
    with sqlite3.connect(inputs["database"]) as connection:
        query = "select id, state, run_directory, attempt, error from training_trainingrun order by id"
        return connection.execute(query).fetchall()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} s: {what}"
        time.sleep(0.2)


def is_free(directory: RunDirectory) -> bool:
    try:
        with directory.lock():
            return True
    except RunDirectoryBusy:
        return False


def final_weights(inputs, run_directory: str) -> dict[str, str]:
    folder = inputs["artifacts"] / run_directory / "epoch_24"
    return {path.name: file_sha256(path) for path in sorted(folder.glob("*.safetensors"))}


@pytest.mark.slow
def test_a_killed_workers_run_ends_with_the_weights_of_an_uninterrupted_one(house, inputs):
    start_run(house, inputs)  # here and now, never interrupted
    start_run(house, inputs, "--background")
    (_, state, whole, _, error), (_, _, broken, _, _) = rows(inputs)
    assert state == "succeeded", error
    directory = RunDirectory(inputs["artifacts"] / broken)

    killed = worker = start_worker(house)
    try:
        wait_until(lambda: directory.latest() is not None, "a first checkpoint")
    finally:
        os.kill(worker.pid, signal.SIGKILL)  # the worker alone, not its group: nobody tells the trainer
        worker.wait()
    wait_until(lambda: is_free(directory), "the trainer's end after its worker's")
    interrupted_at = directory.latest().name
    assert rows(inputs)[1][1] == "running"  # nobody had the time to write anything else

    worker = start_worker(house)
    try:
        wait_until(lambda: rows(inputs)[1][1] not in ("running", "queued"), "the end of the resumed run")
    finally:
        os.killpg(worker.pid, signal.SIGTERM)
        os.killpg(killed.pid, signal.SIGKILL)  # its beat lives on in its group
        worker.wait(30)
    _, state, _, attempt, error = rows(inputs)[1]
    assert (state, attempt) == ("succeeded", 2), error
    assert interrupted_at != "epoch_24"
    assert final_weights(inputs, broken) == final_weights(inputs, whole) != {}
