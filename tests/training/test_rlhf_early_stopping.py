"""Early stopping on held-out raters, its state on disk, and TensorBoard."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.rlhf_files import write_ratings_file, write_text_encoder, write_tidy
from tests.training.rlhf_runs import arguments, epochs_logged, make_trainer, weights
from training.rlhf.early_stopping import BestNetworks
from training.rlhf.labels import make_targets
from training.rlhf.train import main
from training.run_directory import RunDirectory


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Path:
    """A folder as ``files``, with enough raters and images that a rater can be held out."""
    folder = tmp_path_factory.mktemp("watched")
    torch.manual_seed(0)
    write_tidy(write_ratings_file(folder, images=340, ratings=3))
    write_text_encoder(folder / "pipeline")
    return folder


IMPATIENT = {
    "stage": 1,
    "max_epochs": 40,
    "batch_size": 128,
    "early_stopping_patience": 2,
    "stage1": {"learning_rate": 0.02},
    "checkpoints": {"save_frequency": 2},
}


@pytest.fixture(scope="module")
def stopped_early(watched, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "stopped"
    assert main(arguments(watched, run, **IMPATIENT)) == 0
    return run


def test_training_ends_where_held_out_raters_see_no_progress(stopped_early):
    report = json.loads((stopped_early / "report.json").read_text())
    assert report["validation"]["source"] == "held-out raters"
    assert len(report["validation"]["raters"]) == 1
    epochs = [line for line in RunDirectory(stopped_early).metrics() if "policy_loss" in line]
    losses = {name: [line[f"{name}_validation_loss"] for line in epochs] for name in ("selector", "policy")}
    best = {name: 1 + values.index(min(values)) for name, values in losses.items()}
    assert {name: entry["epoch"] for name, entry in report["best"].items()} == best
    assert report["stopped_early"]["epoch"] == epochs[-1]["epoch"] == max(best.values()) + 2 < 40
    assert "held-out raters" in report["stopped_early"]["reason"]
    assert RunDirectory(stopped_early).latest().name == f"epoch_{epochs[-1]['epoch']}"


def test_started_again_a_run_that_stopped_early_stays_stopped(watched, stopped_early):
    before = {name: weights(stopped_early, name) for name in ("best", RunDirectory(stopped_early).latest().name)}
    report = json.loads((stopped_early / "report.json").read_text())
    assert main(arguments(watched, stopped_early, **IMPATIENT)) == 0
    assert {name: weights(stopped_early, name) for name in before} == before
    again = json.loads((stopped_early / "report.json").read_text())
    for name in ("stopped_early", "best", "selector", "policy", "pass_curve"):
        assert again[name] == report[name]


def test_stopped_by_a_signal_and_resumed_a_run_ends_in_the_same_epoch(watched, stopped_early, tmp_path, monkeypatch):
    run, log = tmp_path / "run", RunDirectory.log
    last = json.loads((stopped_early / "report.json").read_text())["stopped_early"]["epoch"]

    def interrupted(self, **values):
        log(self, **values)
        if "progress" in values and values["epoch"] == last:  # after the epochs that decide are begun
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "log", interrupted)
        assert main(arguments(watched, run, **IMPATIENT)) == 143
    assert not (run / "report.json").exists()
    assert main(arguments(watched, run, **IMPATIENT)) == 0
    assert weights(run, "best") == weights(stopped_early, "best")
    assert weights(run, f"epoch_{last}") == weights(stopped_early, f"epoch_{last}")
    assert epochs_logged(run) == epochs_logged(stopped_early)


def test_a_lost_folder_of_the_best_networks_is_told(watched, stopped_early, tmp_path, caplog):
    run = tmp_path / "run"
    shutil.copytree(stopped_early, run)
    shutil.rmtree(run / "best")
    assert main(["--run_directory", str(run), "--pipeline", str(watched / "pipeline"), "--report_to", "none"]) == 2
    assert "does not hold the" in caplog.text


def test_patience_waits_for_the_last_stage(watched, tmp_path):
    """Stage 2 has not begun where stage 1 gets no better."""
    trainer = make_trainer(watched, tmp_path, max_epochs=20)
    rated, split = trainer.rated, trainer.split
    targets = make_targets(rated, split, expert_weights=True, image_prior=True, hold_out_raters=True, seed=0)
    best = BestNetworks(RunDirectory(tmp_path / "run"), trainer, targets.validation)
    best.entries = {"selector": {"loss": 0.5, "epoch": 2}, "policy": {"loss": 0.5, "epoch": 3}}

    def stops(epoch: int, patience: int) -> bool:
        trainer.epoch = epoch
        return best.stop(patience) is not None

    assert [epoch for epoch in range(1, 20) if stops(epoch, 4)] == list(range(14, 20))  # stage 2 begins with 11
    assert not any(stops(epoch, 0) for epoch in range(1, 21))
    best.entries["policy"]["epoch"] = 13
    assert [epoch for epoch in range(13, 20) if stops(epoch, 4)] == [17, 18, 19]
    assert not stops(20, 4)  # that is the end anyhow


# --- TensorBoard ---


def test_tensorboard_is_written_unless_it_is_not_wanted(watched, tmp_path):
    run = tmp_path / "run"
    command = arguments(watched, run, stage=1, max_epochs=2, checkpoints={"save_frequency": 1})
    assert main(command[:-2]) == 0
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    logged = [line for line in RunDirectory(run).metrics() if "policy_loss" in line]
    wanted = {"policy_loss", "selector_loss", "pass_rate", "validation_auc", "policy_validation_auc"}
    rates = {
        f"{network}_{part}_learning_rate" for network in ("selector", "policy") for part in ("encoder", "new_layers")
    }
    assert wanted | rates <= set(events.Tags()["scalars"])
    for name in wanted:
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == [line["step"] for line in logged]
        assert [scalar.value for scalar in scalars] == pytest.approx([line[name] for line in logged])
    assert not (tmp_path / "elsewhere").exists()
    assert main([*arguments(watched, tmp_path / "elsewhere", stage=1, max_epochs=1)]) == 0
    assert not (tmp_path / "elsewhere" / "tensorboard").exists()
