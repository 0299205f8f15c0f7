"""A real worker over the file broker, killed in mid-training: started again it ends with the same weights.

Everything is real: Celery, its beat, the sweep, the lease, `accelerate launch` and the trainer. Only the networks
are small, and the run that nothing interrupts is trained by the trainer in this process.
"""

import csv
import json
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from medsyn.artifacts import file_sha256
from tests.houses import DATABASE, copy_tests_database, environment_of, is_free, manage, start_worker, wait_until
from training.rlhf import train as rlhf
from training.run_directory import RunDirectory

PROMPTS = ("Chest X-ray: clear lungs", "Chest X-ray: left effusion", "OCT: drusen", "OCT: fluid")

SMALL = {"embed_dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32, "patch_size": 8, "pretrained": None}
CONFIG = {
    "training": {"max_epochs": 24, "batch_size": 4, "checkpoints": {"save_frequency": 2}},
    "data": {"num_workers": 0},
    "synthetic_system": {"image_size": [32, 32]},
    "selector": {"architecture": {**SMALL, "head_dim": 8, "ensemble_heads": 2}},
    "policy_model": {"architecture": {**SMALL, "fusion_dim": 16}},
}


@pytest.fixture
def house(db, tmp_path) -> dict[str, str]:
    """The environment of a MedSyn of its own, with short leases."""
    copy_tests_database(tmp_path / "var")
    return environment_of(
        tmp_path / "var",
        MEDSYN_JOB_LEASE_SECONDS="4",
        MEDSYN_JOB_SWEEP_SECONDS="1",
        MEDSYN_TORCH_THREADS="1",
        DEVICE="cpu",
    )


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
        "database": tmp_path / "var" / DATABASE,
        "artifacts": tmp_path / "var" / "artifacts",
    }


def start_run(environment, inputs) -> None:
    files = ("--ratings_file", inputs["ratings"], "--config", inputs["config"], "--pipeline", inputs["model"])
    manage(environment, "train_rlhf", *map(str, files), "--background")


def row(inputs) -> dict:
    """The run as it stands in the database."""
    with closing(sqlite3.connect(inputs["database"])) as connection:
        connection.row_factory = sqlite3.Row
        return dict(connection.execute("select * from training_trainingrun").fetchone())


def train_uninterrupted(folder: Path, config: dict) -> Path:
    """The same configuration in this process, from the first step to the last."""
    RunDirectory(folder).write_config(config)
    assert rlhf.main(["--run_directory", str(folder)]) == 0
    return folder


def final_weights(run: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted((run / "epoch_24").glob("*.safetensors"))}


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_killed_workers_run_ends_with_the_weights_of_an_uninterrupted_one(house, inputs, tmp_path):
    start_run(house, inputs)
    broken = inputs["artifacts"] / row(inputs)["run_directory"]
    directory = RunDirectory(broken)

    killed = worker = start_worker(house, "training", "--beat")
    try:
        wait_until(lambda: directory.latest() is not None, "a first checkpoint")
    finally:
        os.kill(worker.pid, signal.SIGKILL)  # the worker alone, not its group: nobody tells the trainer
        worker.wait()
    wait_until(lambda: is_free(directory), "the trainer's end after its worker's")
    interrupted_at = directory.latest().name
    assert row(inputs)["state"] == "running"  # nobody had the time to write anything else

    worker = start_worker(house, "training", "--beat")
    try:
        whole = train_uninterrupted(tmp_path / "whole", json.loads(row(inputs)["config"]))
        wait_until(lambda: row(inputs)["state"] not in ("running", "queued"), "the end of the resumed run")
    finally:
        os.killpg(worker.pid, signal.SIGTERM)
        os.killpg(killed.pid, signal.SIGKILL)  # its beat lives on in its group
        worker.wait(30)
    last = row(inputs)
    assert (last["state"], last["attempt"]) == ("succeeded", 2), last["error"]
    assert interrupted_at != "epoch_24"
    assert final_weights(broken) == final_weights(whole) != {}
