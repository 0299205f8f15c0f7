"""Training as a process: what it leaves on disk, and that being killed changes nothing."""

import contextlib
import hashlib
import json
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from generation.scoring.policy import Policy
from generation.scoring.selector import Selector
from medsyn.artifacts import verify_folder
from ratings.csv_schema import RatingRow, read_ratings_file
from tests.training.rlhf_files import (
    SIZE,
    write_config,
    write_ratings_file,
    write_rows,
    write_text_encoder,
    write_tidy,
)
from tests.training.rlhf_runs import arguments, epochs_logged, make_trainer, weights
from training.rlhf.config import ConfigError, RaterSettings, load_config
from training.rlhf.dataset import load_rated_images, split_images
from training.rlhf.report import validation_auc
from training.rlhf.train import main
from training.run_directory import RunDirectory


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with ratings.csv, its images, and a text encoder."""
    folder = tmp_path_factory.mktemp("rlhf")
    torch.manual_seed(0)
    write_tidy(write_ratings_file(folder, images=60, ratings=3))
    write_text_encoder(folder / "pipeline")
    return folder


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory) -> Path:
    """A run of two stages."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert main(arguments(files, run, max_epochs=6, checkpoints={"save_frequency": 2})) == 0
    return run


def test_a_run_leaves_checkpoints_metrics_and_a_report(finished):
    for name in ("epoch_2", "epoch_4", "epoch_6"):
        manifest = verify_folder(finished / name)
        assert {"selector_checkpoint.safetensors", "policy_checkpoint.safetensors"} < set(manifest["files"])
    assert RunDirectory(finished).latest().name == "epoch_6"
    report = json.loads((finished / "report.json").read_text())
    assert report["counts"]["ratings"] == 180
    assert report["counts"]["train"] + report["counts"]["calibration"] + report["counts"]["held_out"] == 60
    assert 0 <= report["selector"]["auc_poor"]["low"] <= report["selector"]["auc_poor"]["high"] <= 1
    assert report["human_ceiling_auc_poor"]["value"] > 0.5
    assert report["serving"]["num_inference_steps"] == 50
    Selector.load(finished / report["checkpoint"] / "selector_checkpoint.safetensors")


def test_every_epoch_logs_losses_rates_pass_rate_and_auc(finished):
    epochs = [line for line in RunDirectory(finished).metrics() if "policy_loss" in line]
    assert [line["epoch"] for line in epochs] == [1, 2, 3, 4, 5, 6]
    assert [line["stage"] for line in epochs] == [1, 1, 1, 2, 2, 2]
    for line in epochs:
        assert line["synthetic_loss"] is None
        assert 0 <= line["pass_rate"] <= 1
        assert line["selector_encoder_learning_rate"] > 0
        assert line["policy_new_layers_learning_rate"] > 0
        assert 0 <= line["validation_auc"] <= 1
    assert epochs[2]["selector_new_layers_learning_rate"] < epochs[0]["selector_new_layers_learning_rate"]
    assert epochs[-1]["step"] == epochs[-1]["max_steps"]


def test_every_step_says_how_long_it_still_takes_and_where_it_runs(finished):
    lines = list(RunDirectory(finished).metrics())
    steps = [line for line in lines if "progress" in line]
    assert {line["device"] for line in steps} == {"cpu"}
    estimates = [line["seconds_left"] for line in steps if "seconds_left" in line]
    assert len(estimates) == len(steps) - 1  # one step alone tells no time
    assert estimates[-1] == 0
    assert all(estimate >= 0 for estimate in estimates)
    started = next(line for line in lines if line.get("event") == "started")
    assert started["device"] == "cpu"
    assert started["validation"] == "calibration fold"


def test_a_report_says_what_was_seen_and_how_good_it_is(finished, files):
    report = json.loads((finished / "report.json").read_text())
    config = load_config(finished.with_suffix(".yaml"))
    rated = load_rated_images(files / "ratings.csv", image_size=SIZE, settings=RaterSettings())
    held_out = split_images(rated, seed=0).held_out.tolist()
    given = [rated.grades[rated.item_of_rating == item] for item in held_out]
    assert report["data"] == {
        "ratings_file_sha256": hashlib.sha256((files / "ratings.csv").read_bytes()).hexdigest(),
        "tidy_file_sha256": hashlib.sha256((files / "ratings_tidy.csv").read_bytes()).hexdigest(),
        "rater_source": "tidy file",
        "left_out": {},
        "ratings": 180,
        "raters": 3,
        "gold_images": 0,
        "groups": 60,
        "lost_to_held_out_raters": 0,
        "labels": "own ratings and those of other images",
    }
    bins = report["reliability"]["selector"]
    assert sum(each["count"] for each in bins) == sum(map(len, given))
    share_good = np.mean(np.concatenate(given) > 1)
    assert sum(each["count"] * each["observed"] for each in bins) / sum(map(len, given)) == pytest.approx(share_good)
    for network in ("selector", "policy"):
        histogram = report["histograms"][network]
        assert len(histogram["edges"]) == 21
        counts = [sum(histogram["by_grade"][str(grade)]) for grade in (1, 2, 3)]
        assert counts == [(np.concatenate(given) == grade).sum() for grade in (1, 2, 3)]
    curve = report["pass_curve"]
    assert [point["threshold"] for point in curve] == [number / 50 for number in range(51)]
    assert curve[0]["selector"] == curve[0]["both"] == 1
    assert curve[0]["poor_both"] == pytest.approx(np.mean([(grades == 1).mean() for grades in given]))
    at_rule = next(point for point in curve if point["threshold"] == config.generation.quality_threshold)
    assert at_rule["both"] == pytest.approx(report["held_out_share_served"]["share"])
    for each in report["worst"]:
        item = rated.paths.index(each["image_path"])
        assert item in held_out
        assert each["image_sha256"] == rated.image_ids[item]
        assert each["grades"] == rated.grades[rated.item_of_rating == item].tolist()
    assert set(report["timing"]) == {"read", "features", "stage1", "stage2", "score", "report"}
    assert report["seconds"] == pytest.approx(sum(report["timing"].values()), abs=0.1)
    assert report["stopped_early"] is None
    assert 0 <= report["policy"]["auc_matched_prompt"]["value"] <= 1
    assert 0 <= report["policy"]["auc_matched_prompt_same_kind"]["value"] <= 1


def test_a_report_shows_each_rater(finished):
    raters = json.loads((finished / "report.json").read_text())["raters"]
    assert [each["rater"] for each in raters] == ["R-0", "R-1", "R-2"]
    for each in raters:
        assert (each["ratings"], each["overlap"], each["is_prior"]) == (60, 60, False)
        assert np.array(each["confusion"]).sum(1) == pytest.approx(np.ones(3), abs=1e-3)
        assert each["accuracy"] > 0.6  # they say the planted grade four times in five, or guess it
        assert 0.3 < each["kappa"] < 1


def test_training_state_loads_without_pickle(finished):
    state = torch.load(finished / "epoch_4" / "training_state.pt", weights_only=True)  # noqa: TID251 (weights_only)
    assert state["epoch"] == 4
    assert state["optimizers"]["policy"]["state"]


@pytest.fixture
def one_thread():
    """Forked processes must not meet the parent's OpenMP threads, and all runs compared must sum in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextlib.contextmanager
def forked(function, *values) -> Iterator[multiprocessing.Process]:
    """A real process, forked so that it need not import torch again; gone when the block ends."""
    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(function(*values)))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def wait_until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within two minutes"
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_stopped_and_resumed_equals_never_stopped(files, tmp_path, one_thread):
    training = {"max_epochs": 14, "checkpoints": {"save_frequency": 2}}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(arguments(files, whole, **training)) == 0
    command = arguments(files, broken, **training)
    with forked(main, command) as process:
        wait_until(lambda: len(epochs_logged(broken)) >= 3)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert RunDirectory(broken).latest().name == "epoch_2"
    with forked(main, command) as process:
        wait_until(lambda: len(epochs_logged(broken)) >= 5)
        process.terminate()
        process.join()
        assert process.exitcode == 143
    assert not (broken / "report.json").exists()
    assert main(command) == 0
    assert weights(broken, "epoch_14") == weights(whole, "epoch_14")
    assert len(weights(broken, "epoch_14")) == 2
    assert weights(broken, "best") == weights(whole, "best")
    assert epochs_logged(broken) == epochs_logged(whole)


def test_resuming_from_other_ratings_is_refused(files, finished, tmp_path, caplog):
    run = tmp_path / "run"
    run.mkdir()
    command = arguments(files, run / "r", max_epochs=2, stage=1, checkpoints={"save_frequency": 1})
    assert main(command) == 0
    rows = read_ratings_file(files / "ratings.csv")
    other = RatingRow(rows[0].image_path, 4 - rows[0].rating, rows[0].modality, 1, rows[0].prompt)
    config_path = run / "r" / "config.json"
    config = json.loads(config_path.read_text())
    changed = write_rows(files / "changed.csv", [other, *rows[1:]])
    config_path.write_text(json.dumps({**config, "data": {**config["data"], "ratings_file": str(changed)}}))
    assert main(["--run_directory", str(run / "r"), "--pipeline", str(files / "pipeline")]) == 2
    assert "trained from other ratings" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"ratings_file": "/nowhere/ratings.csv"}}, "/nowhere/ratings.csv"),
        ({"training": {"stage": 5}}, "training.stage is 5"),
        ({"device": {"precision": "float16", "use_cuda": False}}, "float16 needs a GPU"),
        ({"selector": {"architecture": {"pretrained": "/nowhere/encoder.safetensors"}}}, "/nowhere/encoder"),
    ],
)
def test_faulty_input_ends_with_a_clear_message_and_no_checkpoint(files, tmp_path, caplog, change, message):
    run = tmp_path / "run"
    run.mkdir()
    values = load_config(write_config(tmp_path / "c.yaml", files / "ratings.csv")).to_dict()
    for section, entries in change.items():
        for key, value in entries.items():
            if isinstance(value, dict):
                values[section][key].update(value)
            else:
                values[section][key] = value
    (run / "config.json").write_text(json.dumps(values))
    assert main(["--run_directory", str(run), "--pipeline", str(files / "pipeline")]) == 2
    assert message in caplog.text
    assert not RunDirectory(run).checkpoints()


def test_a_folder_without_a_text_encoder_is_named(files, tmp_path, caplog):
    command = arguments(files, tmp_path / "run")
    assert main([*command, "--pipeline", str(tmp_path / "empty")]) == 2
    assert f"No text encoder at {tmp_path / 'empty'}" in caplog.text


# --- the two stages ---


def test_stage_1_alone_trains_both_and_saves(files, tmp_path):
    run = tmp_path / "run"
    assert main(arguments(files, run, stage=1, max_epochs=2, checkpoints={"save_frequency": 1})) == 0
    assert [path.name for path in RunDirectory(run).checkpoints()] == ["epoch_1", "epoch_2"]
    first, second = weights(run, "epoch_1"), weights(run, "epoch_2")
    assert all(first[name] != second[name] for name in first)


def test_a_frozen_selector_logs_none_and_stage_2_refuses_it(files, tmp_path):
    trainer = make_trainer(files, tmp_path, stage=1, stage1={"train_selector": False})
    before = {name: value.clone() for name, value in trainer.selector.named_parameters()}
    assert trainer.train_epoch().selector_loss is None
    assert all(torch.equal(before[name], value) for name, value in trainer.selector.named_parameters())
    with pytest.raises(ConfigError, match="--selector_checkpoint"):
        make_trainer(files, tmp_path, stage=2, stage1={"train_selector": False})


def test_a_given_selector_skips_stage_1(files, tmp_path):
    selector = make_trainer(files, tmp_path).selector
    trainer = make_trainer(files, tmp_path, selector=selector)
    assert trainer.stage_of(1) == 2


def test_stage_2_learns_from_passed_images_only_and_none_may_pass(files, tmp_path):
    selector = make_trainer(files, tmp_path).selector
    open_gate = make_trainer(files, tmp_path, selector=selector, stage2={"selector_threshold": 0.0})
    assert open_gate.train_epoch().policy_loss is not None
    assert open_gate.pass_rate() == 1
    shut = make_trainer(files, tmp_path, selector=selector, stage2={"selector_threshold": 1.0})
    before = {name: value.clone() for name, value in shut.policy.named_parameters()}
    result = shut.train_epoch()
    assert result.policy_loss is None
    assert result.selector_loss is not None
    assert shut.pass_rate() == 0
    assert all(torch.equal(before[name], value) for name, value in shut.policy.named_parameters())


@pytest.mark.parametrize("unfreeze_from", [0, 3000])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_as_single_does(files, tmp_path, precision, unfreeze_from):
    """float16 is scaled as on a GPU; autocast has both on the CPU."""
    results = {}
    for name in ("float32", precision):
        torch.manual_seed(0)
        trainer = make_trainer(files, tmp_path, precision=name, unfreeze_from=unfreeze_from)
        results[name] = [trainer.train_epoch() for _ in range(3)]
        parts = (trainer.selector, trainer.policy)
        assert all(value.dtype == torch.float32 and value.isfinite().all() for p in parts for value in p.parameters())
        assert trainer.scaler.is_enabled() == (name == "float16")
    assert results[precision] != results["float32"], "autocast changes how sums round"
    for single, half in zip(*results.values(), strict=True):
        assert half.selector_loss == pytest.approx(single.selector_loss, rel=0.05)
        assert half.policy_loss == pytest.approx(single.policy_loss, rel=0.05, abs=0.02)


def test_baselines_know_only_the_images_the_policy_learns_from(files, tmp_path):
    """Else stage 2, which has lost the poor images, would have nothing but positive advantages."""
    trainer = make_trainer(files, tmp_path)
    train = trainer.split.train
    not_poor = trainer.soft_labels[:, 0] < 0.5
    advantage = trainer._advantages(not_poor)
    kept = train[not_poor[train]]
    assert advantage[kept].mean().abs() < 0.05
    assert advantage[kept].min() < 0 < advantage[kept].max()
    assert (advantage[train[~not_poor[train]]] == 0).all()


def test_the_metrics_alone_rank_images_before_the_networks_learn(files, tmp_path):
    trainer = make_trainer(files, tmp_path)
    trainer.scores = trainer.score_all()
    assert validation_auc(trainer.scores, trainer.rated, trainer.split)["validation_auc"] > 0.8


def test_held_out_images_never_teach(files, tmp_path):
    """Spoil the labels and pixels of the held-out images: the trained weights do not change by a bit."""

    def train(spoil: bool) -> torch.Tensor:
        trainer = make_trainer(files, tmp_path, stage=1)
        if spoil:
            held_out = trainer.split.held_out
            trainer.rated.pixels[held_out] = 255 - trainer.rated.pixels[held_out]
            trainer.soft_labels[held_out] = trainer.soft_labels[held_out].flip(1)
        trainer.train_epoch()
        parameters = [*trainer.selector.parameters(), *trainer.policy.parameters()]
        return torch.cat([parameter.detach().flatten() for parameter in parameters])

    assert torch.equal(train(spoil=False), train(spoil=True))


@pytest.mark.slow
def test_the_selector_learns_and_the_policy_reads_the_prompt(files, tmp_path):
    trainer = make_trainer(
        files, tmp_path, max_epochs=24, stage1={"learning_rate": 2e-4}, stage2={"learning_rate": 2e-4}
    )
    before = trainer.score_all()
    while trainer.epoch < trainer.max_epochs:
        trainer.train_epoch()
    aucs = validation_auc(trainer.scores, trainer.rated, trainer.split)
    assert aucs["validation_auc"] > 0.7
    after, train = trainer.scores, trainer.split.train
    grade = trainer.soft_labels[train].argmax(1)
    change = (after.acceptance - before.acceptance)[train]
    assert change[grade == 0].mean() < 0 < change[grade == 2].mean()
    gap = after.acceptance[train] - after.other_acceptance[train]
    assert gap[grade == 2].mean() > 0.03
    mean_good = 1 - trainer.soft_labels[train, 0].mean()
    assert after.alignment[train].mean().item() == pytest.approx(mean_good.item(), abs=1e-3)


def test_the_best_networks_are_not_the_last_ones(finished):
    """Best is written when it is reached; training that goes on must not reach into it."""
    report = json.loads((finished / "report.json").read_text())
    for network, entry in report["best"].items():
        name = f"{network}_checkpoint.safetensors"
        is_last = entry["epoch"] == 6
        assert (weights(finished, "best")[name] == weights(finished, "epoch_6")[name]) == is_last
    best = Policy.load(finished / "best" / "policy_checkpoint.safetensors")
    assert best.config.text_encoder_sha256 == report["text_encoder_sha256"]
