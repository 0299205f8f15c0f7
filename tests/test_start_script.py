"""start.sh in a folder of its own, with a recorder in Python's place: what it calls, refuses and leaves alone."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECORDER = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> calls.txt
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """start.sh with an environment that counts as installed, and somebody's earlier models."""
    (tmp_path / "scripts").mkdir()
    for name in ("start.sh", "scripts/environment.sh", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(RECORDER)
    python.chmod(0o755)
    stamp = (tmp_path / "requirements.txt").read_text().rstrip("\n") + " torch-backend="
    (tmp_path / ".venv" / "requirements.installed").write_text(stamp)
    for name in (
        "checkpoints/medical-model/keep.bin",
        "checkpoints/medical-model-2/keep.bin",
        "generated_images/keep.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"kept")
    return tmp_path


def start(folder: Path, **variables: str) -> subprocess.CompletedProcess:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    values = {**kept, "SERVE": "0", "AUTOPICK_GPU": "0", **variables}
    return subprocess.run(["bash", "start.sh"], cwd=folder, env=values, capture_output=True, text=True)


def calls(folder: Path) -> list[str]:
    return [line.removeprefix("manage.py ") for line in (folder / "calls.txt").read_text().splitlines()]


def test_it_walks_the_loop_in_order_and_tells_each_steps_time(folder):
    outcome = start(folder)
    assert outcome.returncode == 0, outcome.stderr
    steps = [call.split()[0] for call in calls(folder)]
    loop = ["finetune", "demo_study", "simulate_ratings", "train_rlhf", "generate"]
    assert steps == ["migrate", "demo_accounts", "demo_dataset", *loop]
    assert outcome.stdout.count("done in") == len(steps) + 1  # the environment too


def test_it_deletes_nothing(folder):
    before = {path for path in folder.rglob("*") if path.is_file()}
    assert start(folder).returncode == 0
    assert {path for path in before if not path.is_file() or path.read_bytes() == b""} == set()
    assert (folder / "checkpoints" / "medical-model" / "keep.bin").read_bytes() == b"kept"


def test_overrides_reach_the_commands(folder):
    variables = {
        "RESOLUTION": "64", "TRAIN_BATCH_SIZE": "3", "GRADIENT_ACCUMULATION_STEPS": "5", "USE_EMA": "1",
        "UNET_OUTPUT_DIR": "else/where", "RLHF_CONFIG_PATH": "other.yaml", "BASE_PROMPT": "OCT: drusen",
        "NUM_IMAGES": "7", "E2E_OUTPUT_DIR": "out/put",
    }  # fmt: skip
    assert start(folder, **variables).returncode == 0
    said = {call.split()[0]: call for call in calls(folder)}
    for part in (
        "--resolution 64",
        "--train_batch_size 3",
        "--gradient_accumulation_steps 5",
        "--use_ema",
        "else/where",
    ):
        assert part in said["finetune"]
    assert "--use_8bit_adam" not in said["finetune"] and "xformers" not in said["finetune"]
    assert "--config other.yaml" in said["train_rlhf"]
    for part in ("--mode rlhf", "--prompt OCT: drusen", "--img_num 7", "--output_dir out/put"):
        assert part in said["generate"]


def test_filtered_images_that_are_there_are_not_made_again(folder):
    (folder / "generated_e2e" / "finetuned").mkdir(parents=True)
    (folder / "generated_e2e" / "finetuned" / "a.png").write_bytes(b"kept")
    assert start(folder).returncode == 0
    assert "generate" not in {call.split()[0] for call in calls(folder)}


@pytest.mark.parametrize("name", ["SERVE", "USE_EMA", "USE_8BIT_ADAM", "ENABLE_XFORMERS", "AUTOPICK_GPU"])
def test_a_switch_that_is_neither_on_nor_off_is_refused_before_anything_happens(folder, name):
    outcome = start(folder, **{name: "yes"})
    assert outcome.returncode != 0 and f"{name}=yes" in outcome.stderr
    assert not (folder / "calls.txt").exists()
