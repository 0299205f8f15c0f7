"""Training runs for tests: their command lines, their trainers, and what they leave on disk."""

import hashlib
from dataclasses import replace
from pathlib import Path

from generation.scoring.selector import Selector
from tests.training.rlhf_files import SIZE, write_config
from training.rlhf.config import RaterSettings, load_config
from training.rlhf.dataset import load_rated_images, soft_labels, split_images
from training.rlhf.text_features import encode_prompts
from training.rlhf.trainer import Trainer
from training.run_directory import RunDirectory


def arguments(files: Path, run: Path, **training) -> list[str]:
    config = write_config(run.with_suffix(".yaml"), files / "ratings.csv", **training)
    command = ["--run_directory", str(run), "--config", str(config), "--pipeline", str(files / "pipeline")]
    return [*command, "--report_to", "none"]


def make_trainer(
    files: Path, tmp_path: Path, *, selector: Selector | None = None, precision: str = "float32", **training
) -> Trainer:
    config = load_config(write_config(tmp_path / "c.yaml", files / "ratings.csv", **training))
    config = replace(config, device=replace(config.device, precision=precision))
    rated = load_rated_images(files / "ratings.csv", image_size=SIZE, settings=RaterSettings())
    labels, _, _ = soft_labels(rated, expert_weights=True)
    features = encode_prompts(files / "pipeline", rated.prompts)
    split = split_images(rated, seed=0)
    return Trainer(config, rated, labels, split, features, image_size=SIZE, selector=selector)


def weights(run: Path, checkpoint: str) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (run / checkpoint).glob("*_checkpoint.safetensors")
    }


def epochs_logged(run: Path) -> list[dict]:
    lines = [line for line in RunDirectory(run).metrics() if "policy_loss" in line]
    return [{key: value for key, value in line.items() if key not in ("time", "seconds")} for line in lines]
