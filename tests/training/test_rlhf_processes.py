"""Selector and policy trained by two processes over gloo are those that one process trains."""

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.training.rlhf_files import write_config, write_ratings_file, write_text_encoder
from tests.training.test_finetuning_processes import free_port, run_together
from training.rlhf.processes import Processes
from training.rlhf.train import main
from training.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("one_thread")
NETWORKS = ("selector_checkpoint.safetensors", "policy_checkpoint.safetensors")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rlhf")
    torch.manual_seed(0)
    write_ratings_file(folder, images=40)
    write_text_encoder(folder / "pipeline")
    return folder


def command(files: Path, run: Path, epochs: int) -> list[str]:
    """Without dropout, whose random numbers each process draws for itself."""
    path = write_config(run.with_suffix(".yaml"), files / "ratings.csv", max_epochs=epochs, batch_size=7)
    values = yaml.safe_load(path.read_text())
    for network in ("selector", "policy_model"):
        values[network]["architecture"]["dropout"] = 0.0
    path.write_text(yaml.safe_dump(values))
    return ["--run_directory", str(run), "--config", str(path), "--pipeline", str(files / "pipeline")]


def train_as(rank: int, port: int, arguments: list[str]) -> int:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    return main([*arguments, "--report_to", "none"])


def train_in_two(arguments: list[str]) -> list[int]:
    port = free_port()
    return run_together(*(lambda rank=rank: train_as(rank, port, arguments) for rank in range(2)))


def test_two_processes_train_the_networks_of_one(files, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert train_in_two(command(files, two, epochs=2)) == [0, 0]
    assert run_together(lambda: main([*command(files, one, epochs=2), "--report_to", "none"])) == [0]
    for name in NETWORKS:
        alone, together = (load_file(run / "epoch_2" / name) for run in (one, two))
        assert alone.keys() == together.keys()
        assert max((alone[key] - together[key]).abs().max().item() for key in alone) < 1e-4
    # One process wrote: each epoch is logged once, and the report is there.
    epochs = [line["epoch"] for line in RunDirectory(two).metrics() if "policy_loss" in line]
    assert epochs == [1, 2]
    reports = [json.loads((run / "report.json").read_text()) for run in (one, two)]
    assert reports[0]["selector"]["auc_poor"] == pytest.approx(reports[1]["selector"]["auc_poor"], abs=1e-3)


def test_shares_are_a_partition_and_one_process_has_all():
    values = torch.arange(7)
    shares = [Processes(rank, 3).share(values) for rank in range(3)]
    assert torch.equal(torch.cat(shares).sort().values, values)
    assert torch.equal(Processes().share(values), values)
    assert [Processes(rank, 2).writes for rank in range(2)] == [True, False]
