"""Fine-tuning with the "test" preset at 32 px: what is learnt, what is kept, and that stopping changes nothing."""

import dataclasses
import json
import os
import resource
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from generation.diffusion.conditioning import NULL_MODALITY
from generation.diffusion.loading import ModelSource, load_generator
from generation.diffusion.presets import TEST, build_pipeline
from medsyn.artifacts import file_sha256, folder_files, read_manifest, verify_folder
from tests.training.finetuning_runs import CAPTIONS, a_process, command, drawn, losses, tensors, tune
from training.finetuning.batches import CachedExamples, DataOrder, batches, collate, positions
from training.finetuning.dataset import load_dataset
from training.finetuning.latent_cache import LatentCache
from training.finetuning.noise import NoiseSource
from training.finetuning.session import Denoiser
from training.finetuning.stopping import EXIT_CODE, StopRequest
from training.finetuning.train import main
from training.finetuning.trained_parts import TrainedParts
from training.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("one_thread")


# --- what comes out ---


@pytest.fixture(scope="module")
def finished(base) -> Path:
    """A run of four steps with everything switched on, a checkpoint after each."""
    output = base / "finished"
    prompts = ("--validation_prompts", "Fundus: exudates", "OCT: fluid", "--validation_steps", "2")
    schedule = ("--lr_scheduler", "cosine", "--lr_warmup_steps", "2")
    flags = ("--use_ema", "--random_flip", "--checkpointing_steps", "1", "--num_validation_images", "3")
    arguments = [*command(base, output, *flags, *schedule, *prompts), "--report_to", "tensorboard"]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(arguments) == 0
    return output


def test_a_checkpoint_keeps_everything_that_generates(base, finished):
    folder = finished / "checkpoint-2"
    manifest = verify_folder(folder)
    names = {path.name for path in folder.iterdir() if path.is_dir()}
    assert names == {"unet", "conditioner", "text_encoder", "tokenizer", "scheduler", "unet_ema", "conditioner_ema"}
    assert manifest["step"] == 2
    assert manifest["dataset_sha256"] == file_sha256(base / "data.csv")
    assert manifest["base_weights_sha256"] and manifest["code_sha256"]
    before, after = tensors(base / "model" / "text_encoder"), tensors(folder / "text_encoder")
    assert before.keys() <= after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    for part in ("unet", "conditioner"):
        before, after = tensors(base / "model" / part), tensors(folder / part)
        assert before.keys() == after.keys()
        assert not all(torch.equal(before[name], after[name]) for name in before)


def test_metrics_config_and_report(base, finished):
    lines = list(RunDirectory(finished).metrics())
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["progress"] == {"done": 4, "total": 4, "unit": "steps", "eta_seconds": 0}
    assert lines[0]["progress"]["eta_seconds"] >= 0
    assert lines[-1]["epoch"] == 1.6
    assert all(line["grad_norm"] > 0 and line["images_per_second"] > 0 for line in lines)
    # Two steps of linear warm-up, then half a cosine over the other two; the rate that each step took.
    assert [line["learning_rate"] for line in lines] == pytest.approx([0, 0.5e-3, 1e-3, 0.5e-3])
    config = RunDirectory(finished).read_config()
    assert (config["resolution"], config["num_rows"], config["use_ema"]) == (32, 10, True)
    report = json.loads((finished / "report.json").read_text())
    assert (report["steps"], report["last_loss"]) == (4, lines[-1]["loss"])


def test_validation_grids(finished):
    assert sorted(path.name for path in (finished / "validation").iterdir()) == ["step_2.png", "step_4.png"]
    with Image.open(finished / "validation" / "step_4.png") as picture:
        assert picture.size == (3 * 32 + 2 * 2, 2 * 32 + 2)
        pixels = np.asarray(picture).astype(int)
    cells = [pixels[y : y + 32, x : x + 32] for y in (0, 34) for x in (0, 34, 68)]
    assert all(np.abs(cells[0] - cell).mean() > 1 for cell in cells[1:])  # a seed and a prompt of its own each
    assert list((finished / "tensorboard").iterdir())


def test_the_average_is_that_of_the_steps(base, finished):
    """Decay (1 + n) / (10 + n) with n = step - 1, and 0 at the first step."""
    for part in ("unet", "conditioner"):
        name = next(name for name in tensors(base / "model" / part) if name.endswith("weight"))
        average = tensors(finished / "checkpoint-1" / part)[name].double()
        for step in (2, 3, 4):
            decay = step / (9 + step)
            weights = tensors(finished / f"checkpoint-{step}" / part)[name].double()
            average = decay * average + (1 - decay) * weights
        stored = tensors(finished / "checkpoint-4" / f"{part}_ema")[name].double()
        torch.testing.assert_close(stored, average, rtol=0, atol=1e-6)
        served = tensors(finished / "pipeline" / part)[name].double()
        torch.testing.assert_close(served, average, rtol=0, atol=1e-6)


def test_the_pipeline_is_served_as_it_was_validated(base, finished):
    with Image.open(finished / "validation" / "step_4.png") as grid:
        shown = np.asarray(grid)[34:66, :32].astype(int)
    assert np.abs(drawn(base, finished / "pipeline") - shown).max() <= 1


def test_half_precision_on_disk(base, tmp_path):
    assert tune(base, tmp_path, "--save_precision", "float16", "--max_train_steps", "1") == 0
    assert {tensor.dtype for tensor in tensors(tmp_path / "pipeline" / "unet").values()} == {torch.float16}
    assert {tensor.dtype for tensor in tensors(tmp_path / "checkpoint-1" / "unet").values()} == {torch.float32}
    before = folder_files(tmp_path)
    assert tune(base, tmp_path, "--save_precision", "float16", "--max_train_steps", "1") == 0
    assert folder_files(tmp_path) == before  # nothing left to do, nothing done


# --- what is learnt ---


@pytest.fixture(scope="module")
def examples(base):
    """(pipeline, make): make(dropout, flips) -> examples of the dataset."""
    source = ModelSource(pretrained_model=str(base / "model"), model_used=None)
    pipeline = load_generator(source, device="cpu", precision="float32").pipeline
    rows, _ = load_dataset(base / "data.csv")
    cache = LatentCache.for_pipeline(base / "cache", pipeline, resolution=32, fit="pad")
    cache.fill_latents(pipeline, rows, flips=True)
    cache.fill_text_features(pipeline, ["", *(row.text for row in rows)])

    def make(dropout: float = 0.0, flips: bool = False) -> CachedExamples:
        order = DataOrder(tuple(flips and row.may_flip for row in rows), seed=5, caption_dropout=dropout)
        ids = {name: pipeline.conditioner.modality_id(name) for name in ("OCT", "Fundus", "X-Ray", "MRI")}
        return CachedExamples(rows, order, NoiseSource(5, 1000), cache, ids, with_text_features=True)

    return pipeline, make


def modality_gradient(pipeline, batch) -> torch.Tensor:
    """The norm of the gradient of each row of the modality embedding."""
    parts = TrainedParts.of(pipeline, with_text_encoder=False, rank=0, seed=0, base_weights_sha256="")
    model = Denoiser(pipeline, parts)
    model.zero_grad()
    timesteps = torch.full((len(batch.captions),), 500)
    model(torch.randn(batch.latents.shape), timesteps, batch).square().mean().backward()
    return pipeline.conditioner.modality_embedding.weight.grad.norm(dim=1)


def test_dropped_captions_train_the_null_branch(examples):
    pipeline, make = examples
    batch = collate([make(dropout=1.0)[position] for position in range(4)])
    assert batch.captions == [""] * 4
    gradient = modality_gradient(pipeline, batch)
    assert gradient[NULL_MODALITY] > 0
    assert (gradient[1:] == 0).all()
    with torch.no_grad():
        ours = pipeline.condition(batch.text, batch.modality_ids)
        theirs = pipeline.unconditional(4)  # what guidance will ask for
    torch.testing.assert_close(ours.tokens, theirs.tokens, rtol=0, atol=2e-3)  # the cache's half precision
    torch.testing.assert_close(ours.pooled, theirs.pooled, rtol=0, atol=2e-3)


def test_each_modality_trains_its_own_row(examples):
    pipeline, make = examples
    for position in range(10):
        batch = collate([make()[position]])
        gradient = modality_gradient(pipeline, batch)
        assert gradient.nonzero().flatten().tolist() == pipeline.modality_ids(batch.captions).tolist()


def test_captions_are_dropped_at_the_rate_asked_for(examples):
    order = dataclasses.replace(examples[1]().order, caption_dropout=0.1)
    dropped = [order.draw(position).dropped for position in range(5000)]
    assert np.mean(dropped) == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 5000) ** 0.5)


def test_only_captions_without_a_side_are_mirrored(examples):
    pipeline, make = examples
    flipping = make(flips=True)
    draws = [flipping.order.draw(position) for position in range(400)]
    flipped = {draw.row for draw in draws if draw.flipped}
    assert flipped == {row for row in range(10) if "left" not in CAPTIONS[row % 5][0]}
    assert not any(make(flips=False).order.draw(position).flipped for position in range(400))
    share = np.mean([draw.flipped for draw in draws if draw.row in flipped])
    assert share == pytest.approx(0.5, abs=0.1)


def test_a_cached_latent_is_that_of_the_picture_or_its_mirror_image(base, examples):
    pipeline, make = examples
    cache, rows = make().cache, load_dataset(base / "data.csv")[0]
    with Image.open(rows[1].path) as picture:
        small = np.asarray(picture.resize((27, 32), Image.Resampling.BILINEAR))
    square = np.zeros((32, 32, 3), np.uint8)
    square[:, 2:29] = small
    for flipped, pixels in ((False, square), (True, square[:, ::-1].copy())):
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
        expected = pipeline.encode_images(image)[0]
        torch.testing.assert_close(cache.latent(rows[1], flipped)[0], expected, rtol=0, atol=0.05)
    assert cache.fill_latents(pipeline, rows, flips=True) == 0
    assert cache.fill_text_features(pipeline, [row.text for row in rows]) == 0


def test_an_interrupted_cache_is_filled_up_with_the_same_bits(base, examples, tmp_path):
    pipeline, make = examples
    rows, _ = load_dataset(base / "data.csv")
    cache = LatentCache.for_pipeline(tmp_path, pipeline, resolution=32, fit="pad")
    assert cache.fill_latents(pipeline, rows[3:5], flips=False) == 2
    assert cache.fill_latents(pipeline, rows, flips=False) == 8
    for row in rows:
        assert all(map(torch.equal, cache.latent(row, False), make().cache.latent(row, False)))


def test_a_cache_entry_belongs_to_file_weights_and_geometry(base, examples, tmp_path):
    pipeline, make = examples
    cache, row = make().cache, load_dataset(base / "data.csv")[0][1]
    other_ct = dataclasses.replace(row, image_sha256="0" * 64)
    keys = {
        cache.latent_key(row, False),
        cache.latent_key(row, True),
        cache.latent_key(other_ct, False),
        dataclasses.replace(cache, resolution=64).latent_key(row, False),
        dataclasses.replace(cache, fit="crop").latent_key(row, False),
        dataclasses.replace(cache, vae_sha256="0" * 64).latent_key(row, False),
    }
    assert len(keys) == 6
    moved = dataclasses.replace(row, path=tmp_path / "elsewhere.png", line=99)
    assert cache.latent_key(moved, False) == cache.latent_key(row, False)
    other = build_pipeline(TEST, captions_for_vocabulary=["another"], seed=0)
    elsewhere = LatentCache.for_pipeline(tmp_path, other, resolution=32, fit="pad")
    assert elsewhere.text_key("x") != cache.text_key("x")


def test_features_do_not_depend_on_their_neighbours(examples):
    pipeline, make = examples
    batch = collate([make()[position] for position in range(4)])
    with torch.no_grad():
        together = pipeline.encode_text(batch.captions)
    assert torch.equal(batch.text.mask, together.mask)
    ours, theirs = batch.text.tokens[together.mask], together.tokens[together.mask]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)  # kept in half precision


# --- the order of things ---


def test_every_epoch_shows_every_row_once_in_an_order_of_its_own():
    order = DataOrder((False,) * 7, seed=3, caption_dropout=0.0)
    epochs = [[order.draw(epoch * 7 + offset).row for offset in range(7)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    other = DataOrder((False,) * 7, seed=4, caption_dropout=0.0)
    assert [other.draw(position).row for position in range(28)] != [row for epoch in epochs for row in epoch]


def test_processes_share_the_positions_without_gap_or_overlap():
    shares = [list(positions(range(5), 3, rank, 2)) for rank in range(2)]
    assert sorted(position for share in shares for batch in share for position in batch) == list(range(30))
    assert list(positions(range(2, 5), 3, 1, 2)) == shares[1][2:]


def test_worker_processes_change_nothing(examples):
    def first(num_workers: int) -> list[torch.Tensor]:
        return [b.latents for b in batches(examples[1](0.5, True), range(3), batch_size=2, num_workers=num_workers)]

    assert all(torch.equal(a, b) for a, b in zip(first(0), first(1), strict=True))


# --- stopping, resuming, going on ---


def served(output: Path) -> dict[str, str]:
    return folder_files(output / "pipeline")


def wait_for_step(process: BaseProcess, output: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.is_alive():
        if any(line["step"] >= step for line in RunDirectory(output).metrics()):
            return
        time.sleep(0.02)
    pytest.fail(f"Step {step} was not reached; exit code {process.exitcode}")


@pytest.mark.slow
def test_killed_and_stopped_and_started_again_ends_in_the_same_weights(base, tmp_path):
    """SIGKILL in mid-training, SIGTERM in the next attempt, then to the end: the bits of an undisturbed run."""
    flags = ("--max_train_steps", "30", "--checkpointing_steps", "4", "--random_flip", "--use_ema")
    flags += ("--gradient_accumulation_steps", "2", "--noise_offset", "0.05", "--lr_scheduler", "cosine")
    assert tune(base, tmp_path / "undisturbed", *flags) == 0
    output = tmp_path / "run"
    for sign, step in ((signal.SIGKILL, 6), (signal.SIGTERM, 13)):
        with a_process(base, output, *flags) as process:
            wait_for_step(process, output, step)
            os.kill(process.pid, sign)
            process.join(60)
        assert process.exitcode == (EXIT_CODE if sign == signal.SIGTERM else -sign)
    logged = max(line["step"] for line in RunDirectory(output).metrics())
    assert 13 <= logged < 30
    assert read_manifest(RunDirectory(output).latest())["step"] == logged  # SIGTERM saved where it stood
    assert tune(base, output, *flags) == 0
    assert served(output) == served(tmp_path / "undisturbed")
    assert losses(output) == losses(tmp_path / "undisturbed")
    last = folder_files(output / "checkpoint-30")
    assert last == folder_files(tmp_path / "undisturbed" / "checkpoint-30")


def test_killed_while_a_checkpoint_is_written(base, tmp_path):
    """The process dies with half a checkpoint on disk: it counts for nothing, and the end is the same."""
    flags = ("--max_train_steps", "6", "--checkpointing_steps", "2")
    assert tune(base, tmp_path / "undisturbed", *flags) == 0
    output = tmp_path / "run"
    save = torch.save

    def stuck(state, path):
        save(state, path)
        if ".checkpoint-4." in str(path):
            time.sleep(600)  # weights and optimizer are written, the manifest is not

    with a_process(base, output, *flags, before=lambda: setattr(torch, "save", stuck)) as process:
        deadline = time.monotonic() + 120
        while not list(output.glob(".checkpoint-4.*/training_state.pt")):
            assert time.monotonic() < deadline and process.is_alive()
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert list(output.glob(".checkpoint-4.*"))
    assert [folder.name for folder in RunDirectory(output).checkpoints()] == ["checkpoint-2"]
    assert tune(base, output, *flags) == 0
    assert served(output) == served(tmp_path / "undisturbed")
    assert losses(output) == losses(tmp_path / "undisturbed")
    assert not list(output.glob(".checkpoint-*"))


def test_the_text_encoder_learns_and_resumes_too(base, tmp_path):
    flags = ("--train_text_encoder", "--checkpointing_steps", "2")
    assert tune(base, tmp_path / "whole", *flags) == 0
    assert tune(base, tmp_path / "parts", *flags, "--max_train_steps", "2") == 0
    before = tensors(base / "model" / "text_encoder")
    after = tensors(tmp_path / "parts" / "checkpoint-2" / "text_encoder")
    assert not all(torch.equal(before[name], after[name]) for name in before)
    whole = drawn(base, tmp_path / "parts" / "pipeline")
    assert (drawn(base, None, tmp_path / "parts" / "checkpoint-2") == whole).all()  # with its own text encoder
    assert tune(base, tmp_path / "parts", *flags, "--resume_from_checkpoint", "latest") == 0
    assert served(tmp_path / "parts") == served(tmp_path / "whole")


def test_other_settings_in_the_same_directory_are_refused(base, tmp_path, caplog):
    assert tune(base, tmp_path, "--checkpointing_steps", "2") == 0
    before = folder_files(tmp_path)
    assert tune(base, tmp_path, "--learning_rate", "5e-4", "--max_train_steps", "6") == 1
    assert "learning_rate: 0.001 before, 0.0005 now" in caplog.text
    assert "--resume_from_checkpoint latest" in caplog.text
    assert folder_files(tmp_path) == before
    extended = ("--learning_rate", "5e-4", "--max_train_steps", "6", "--resume_from_checkpoint", "latest")
    assert tune(base, tmp_path, *extended) == 0
    rates = [line["learning_rate"] for line in RunDirectory(tmp_path).metrics()]
    assert rates == pytest.approx([1e-3] * 4 + [5e-4] * 2)


def test_any_checkpoint_can_be_gone_on_from(base, finished, tmp_path):
    """Another run's, at another resolution and learning rate; the step goes on counting."""
    flags = ("--resume_from_checkpoint", str(finished / "checkpoint-3"), "--resolution", "48", "--max_train_steps")
    assert tune(base, tmp_path, *flags, "5") == 0
    assert [line["step"] for line in RunDirectory(tmp_path).metrics()] == [4, 5]
    assert tune(base, tmp_path / "short", *flags, "3") == 1


def test_a_checkpoint_of_another_architecture_is_refused(base, finished, tmp_path, caplog):
    preset = dataclasses.replace(TEST, unet_channels=(12, 12))
    other = build_pipeline(preset, captions_for_vocabulary=[caption for caption, _ in CAPTIONS], seed=0)
    other.save_pretrained(tmp_path / "other")
    flags = ("--resume_from_checkpoint", str(finished / "checkpoint-2"))
    output = tmp_path / "run"
    assert tune(base, output, *flags, "--pretrained_model_name_or_path", str(tmp_path / "other")) == 1
    assert "checkpoint-2/unet is of another architecture" in caplog.text
    assert not (output / "pipeline").exists()


def test_a_damaged_checkpoint_is_refused(base, tmp_path, caplog):
    assert tune(base, tmp_path, "--max_train_steps", "2") == 0
    weights = next((tmp_path / "checkpoint-2" / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert tune(base, tmp_path, "--max_train_steps", "4", "--resume_from_checkpoint", "latest") == 1
    assert f"{weights} is changed" in caplog.text


def test_old_checkpoints_go_and_leftovers_of_a_killed_process_too(base, tmp_path):
    (tmp_path / ".checkpoint-1.abc.tmp").mkdir()
    assert tune(base, tmp_path, "--checkpointing_steps", "1", "--checkpoints_total_limit", "2") == 0
    folders = sorted(path.name for path in tmp_path.glob("*checkpoint-*"))
    assert folders == ["checkpoint-3", "checkpoint-4"]


def test_a_full_disk_leaves_the_earlier_checkpoints(base, finished, tmp_path, caplog):
    """The kernel refuses to let a file grow: what a full disk looks like to whoever writes."""
    assert tune(base, tmp_path, "--checkpointing_steps", "2", "--max_train_steps", "2") == 0
    before = folder_files(tmp_path / "checkpoint-2")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        flags = ("--max_train_steps", "4", "--resume_from_checkpoint", "latest")
        assert tune(base, tmp_path, *flags) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "checkpoint-4 could not be written" in caplog.text
    assert folder_files(tmp_path / "checkpoint-2") == before
    assert not list(tmp_path.glob(".checkpoint-*"))
    assert tune(base, tmp_path, *flags) == 0


def test_an_orphan_stops(monkeypatch):
    with StopRequest() as stop:
        assert not stop.is_requested
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert stop.is_requested


def test_a_directory_in_use_is_refused(base, tmp_path, caplog):
    with RunDirectory(tmp_path).lock():
        assert tune(base, tmp_path) == 1
    assert "in use by another training process" in caplog.text
