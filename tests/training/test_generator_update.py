"""The process of a generator update: all its stages, on a random pipeline of 32 px."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from generation.memorisation import FILE_NAME, MemoryIndex
from medsyn.artifacts import folder_sha256, read_manifest, write_json
from medsyn.imaging import load
from medsyn.modalities import parse_prompt
from tests.training.finetuning_runs import tensors
from tests.training.update_runs import update, write_pieces
from training.finetuning import train
from training.finetuning.dataset import load_dataset
from training.finetuning.memory_index import add_to_pipeline, build_index
from training.rlhf.generator_update import process
from training.rlhf.generator_update.acceptance import Change
from training.rlhf.generator_update.data import load_real_data
from training.rlhf.generator_update.process import main
from training.rlhf.generator_update.settings import UpdateSettings
from training.run_directory import RunDirectory
from training.simulation.phantom_dataset import write_phantom_dataset


@pytest.fixture(scope="session")
def pieces(tmp_path_factory) -> Path:
    return write_pieces(tmp_path_factory.mktemp("pieces"))


def report(directory: Path) -> dict:
    return json.loads((directory / "report.json").read_text())


@pytest.fixture(scope="session")
def finished(pieces, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("updates") / "run"
    assert update(pieces, directory) == 0
    return directory


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_run_learns_from_the_best_of_each_group_beside_real_images(finished):
    scores = json.loads((finished / "scores.json").read_text())
    assert len(scores) == 40
    by_group: dict[str, list[dict]] = {}
    for row in scores:
        by_group.setdefault(row["group"], []).append(row)
    for rows in by_group.values():
        value = {bool(row["weight"]): [] for row in rows}
        for row in rows:
            value[bool(row["weight"])].append(min(row["selector"], row["policy"]))
        assert min(value[True]) >= max(value.get(False, [0]))
    with (finished / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert ["/real/" in row["path"] for row in rows] == [True] * 24 + [False] * (len(rows) - 24)
    assert len(rows) - 24 == sum(row["weight"] for row in scores) == report(finished)["synthetic"]["chosen"]
    assert all(row["modality"] == parse_prompt(row["Text"]).modality for row in rows)


def test_images_to_choose_from_and_images_that_decide_share_no_seed(finished):
    def seeds(name):
        return [json.loads(path.read_text())["seed"] for path in sorted((finished / name).glob("0*.json"))]

    assert seeds("before") == seeds("after") and len(set(seeds("before"))) == 32
    assert not set(seeds("before")) & set(seeds("synthetic"))
    assert seeds("synthetic") == [row["seed"] for row in json.loads((finished / "scores.json").read_text())]


def test_both_losses_and_the_progress_are_in_the_metrics(finished):
    lines = list(RunDirectory(finished).metrics())
    steps = [line for line in lines if "step" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    for line in steps:
        assert line["loss"] == pytest.approx(line["synthetic_loss"] + line["real_loss"], rel=1e-5)
        assert line["stage"] == "training" and line["seconds_left"] >= 0
    done = [line["progress"]["done"] for line in lines if "progress" in line]
    assert done == sorted(done)
    assert lines[-2]["progress"] == {"done": 40 + 6 + 64, "total": 110, "unit": "images and steps"}
    assert lines[-1]["event"] == "finished"


def test_six_steps_on_noise_are_refused_with_figures_and_leave_no_pipeline(finished):
    found = report(finished)
    assert found["accepted"] is False and found["objections"]
    assert found["images"] == 32 and 0 <= found["poor"]["before"]["value"] <= 1
    assert not (finished / "pipeline").exists()
    assert (finished / "training" / "pipeline" / "model_index.json").is_file()


def test_the_new_generator_is_merged_and_differs(finished, pieces):
    old, new = tensors(pieces / "generator" / "unet"), tensors(finished / "training" / "pipeline" / "unet")
    assert old.keys() == new.keys()
    changed = [name for name in old if not np.array_equal(old[name].numpy(), new[name].numpy())]
    assert changed and all("attn" in name for name in changed)
    assert read_manifest(finished / "training" / "pipeline")["trained_steps"] == 6


def test_the_new_generator_must_copy_no_real_image_that_it_has_seen(finished):
    """Those of the generator before and those replayed; what it drew itself is nobody's."""
    memory = MemoryIndex.load(finished / "training" / "pipeline" / FILE_NAME)
    rows, _ = load_dataset(finished / "training.csv")
    assert memory.sha256s == ("0" * 64, *dict.fromkeys(row.image_sha256 for row in rows[:24]))


def test_started_again_a_decided_run_is_left_alone(copy, pieces):
    before = folder_sha256(copy / "training" / "pipeline"), report(copy)
    assert update(pieces, copy) == 0
    assert (folder_sha256(copy / "training" / "pipeline"), report(copy)) == before


@pytest.mark.slow
def test_a_run_stopped_while_learning_ends_in_the_same_weights(pieces, finished, tmp_path, monkeypatch, one_thread):
    directory, real_save = tmp_path / "run", train.save

    def save_and_die(session):
        real_save(session)
        if session.step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        update(pieces, directory)
    monkeypatch.setattr(train, "save", real_save)
    assert update(pieces, directory) == 0
    ours, theirs = (tensors(each / "training" / "pipeline" / "unet") for each in (directory, finished))
    assert all(np.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)
    steps = [line["step"] for line in RunDirectory(directory).metrics() if "step" in line]
    assert steps == [1, 2, 3, 4, 5, 6]


def panel_file(directory: Path, poor: dict[str, bool]) -> Path:
    """A panel that calls every image of a sample poor, or none."""
    path = directory.parent / "panel.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image_path", "rating", "modality", "expert_level", "prompt"))
        for name, is_poor in poor.items():
            for sidecar in sorted((directory / name).glob("0*.json")):
                facts = json.loads(sidecar.read_text())
                for level in (1, 2, 3):
                    rating = 1 if is_poor and level != 2 else 3
                    image = sidecar.with_suffix(".png")
                    writer.writerow((image, rating, facts["modality"], level, facts["prompt"]))
    return path


def test_a_panel_decides_where_it_has_rated_the_samples(copy, pieces, monkeypatch):
    equal = Change(0.5, 0.5, 0.0, 0.0)
    monkeypatch.setattr(process, "diversity_change", lambda *_, **__: equal)
    monkeypatch.setattr(process, "coverage_change", lambda *_, **__: equal)
    better = panel_file(copy, {"before": True, "after": False})
    assert update(pieces, copy, panel_ratings=better) == 0
    found = report(copy)
    assert found["accepted"] and "panel" in found["poor_by"]
    assert (found["poor"]["before"]["value"], found["poor"]["after"]["value"]) == (1, 0)
    assert (copy / "pipeline" / "model_index.json").is_file() and not (copy / "training" / "pipeline").exists()
    assert 0 <= found["poor_by_selector"]["before"]["value"] <= 1
    worse = panel_file(copy, {"before": False, "after": True})  # told better: the generator is taken back
    assert update(pieces, copy, panel_ratings=worse) == 0
    assert not report(copy)["accepted"] and not (copy / "pipeline").exists()


def test_a_panel_that_rated_one_side_only_decides_nothing(copy, pieces, caplog):
    ratings = panel_file(copy, {"before": True})
    assert update(pieces, copy, panel_ratings=ratings) == 1
    assert "0 of the 32 pairs" in caplog.text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"max_steps": 7}, "max_steps differ"),
        ({"generator": "/nowhere"}, "generator differ"),
    ],
)
def test_other_settings_in_a_used_directory_are_refused(copy, pieces, caplog, changes, text):
    assert update(pieces, copy, **changes) == 1
    assert text in caplog.text


def test_unwanted_images_teach_too(pieces, finished, tmp_path):
    run = tmp_path / "run"
    for name in ("synthetic", "before", "real"):
        shutil.copytree(finished / name, run / name)
    assert update(pieces, run, objective="kto") == 0
    weights = [row["weight"] for row in json.loads((run / "scores.json").read_text())]
    assert weights.count(1) == report(run)["synthetic"]["chosen"] and 0 < weights.count(-1) <= weights.count(1)
    steps = [line for line in RunDirectory(run).metrics() if "synthetic_loss" in line]
    assert steps[0]["preferred"] == pytest.approx(0, abs=1e-6)  # nothing has moved yet
    assert steps[0]["synthetic_loss"] == pytest.approx(4 / 2000 / 2, rel=1e-3)
    assert steps[-1]["preferred"] != 0


def test_a_generator_of_real_images_needs_its_dataset(pieces, tmp_path, caplog):
    folder = Path(shutil.copytree(pieces / "generator", tmp_path / "generator"))
    index = json.loads((folder / "model_index.json").read_text())
    write_json(folder / "model_index.json", {**index, "draws_phantoms": False})
    assert update(pieces, tmp_path / "run", generator=folder) == 1
    assert "name the dataset CSV" in caplog.text


def test_a_dataset_is_parted_by_patient(pieces, tmp_path):
    plain = write_phantom_dataset(tmp_path / "real", num_images=120, seed=5, size=32)
    with plain.open() as file:
        rows = list(csv.reader(file))
    with plain.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*rows[0], "patient"])
        writer.writerows([*row, f"p{number // 3}"] for number, row in enumerate(rows[1:]))
    files = {"generator": str(pieces / "generator"), "selector_file": "s", "policy_file": "p"}
    settings = UpdateSettings.from_dict({**files, "real_data": str(plain), "num_real": 50, "num_reference": 20})
    real = load_real_data(settings, tmp_path / "unused", image_size=32)
    assert len(real.replayed) == 50 and tuple(real.reference.shape) == (20, 3, 32, 32)
    assert set(real.wanted(settings, for_decision=True).prompts) <= {row[1] for row in rows[1:]}
    replayed_patients = {row.group for row in real.replayed}
    with plain.open() as file:
        held_out = [row for row in csv.DictReader(file) if row["patient"] not in replayed_patients]
    pictures = {load(plain.parent / row["path"]).to_rgb((32, 32)).tobytes() for row in held_out}
    for image in real.reference:
        assert image.permute(1, 2, 0).numpy().tobytes() in pictures


def test_patients_whom_the_generator_never_saw_stay_unseen(pieces, tmp_path):
    """Those that its memory index does not know are the held-out part, whatever the seed says."""
    data = write_phantom_dataset(tmp_path / "real", num_images=60, seed=5, size=32)
    rows, _ = load_dataset(data)
    generator = Path(shutil.copytree(pieces / "generator", tmp_path / "generator"))
    add_to_pipeline(build_index(rows[:35], rows[35:]), generator)
    files = {"generator": str(generator), "selector_file": "s", "policy_file": "p", "real_data": str(data)}
    settings = UpdateSettings.from_dict({**files, "num_real": 50, "num_reference": 50})
    real = load_real_data(settings, tmp_path / "unused", image_size=32)
    assert {row.image_sha256 for row in real.replayed} == {row.image_sha256 for row in rows[:35]}
    assert len(real.reference) == 25


def test_a_finished_rlhf_run_names_the_pieces(pieces, tmp_path):
    run = tmp_path / "rlhf"
    (run / "best").mkdir(parents=True)
    write_json(run / "config.json", {"model_paths": {"stable_diffusion": "medsyn-tiny"}})
    write_json(run / "report.json", {"checkpoint": "best"})
    found = process._of_rlhf_run(run)
    assert found["generator"].endswith("medsyn-tiny")
    assert found["selector_file"] == str(run / "best" / "selector_checkpoint.safetensors")
    assert main(["--run_directory", str(tmp_path / "u"), "--rlhf_run", str(tmp_path / "none")]) == 1
