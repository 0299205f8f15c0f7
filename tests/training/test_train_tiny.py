"""The one command that makes medsyn-tiny, on the preset "test"."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from generation.diffusion.loading import ModelSource, load_generator
from generation.diffusion.phantoms import FINDINGS, draw
from medsyn.artifacts import verify_folder
from medsyn.modalities import FUNDUS
from tests.tiny_models import build_tiny_pipeline
from training.finetuning import train_tiny
from training.finetuning.reconstruction import reconstruction_loss, set_latent_statistics
from training.finetuning.train_tiny import (
    Recipe,
    class_round,
    denoising_loss,
    drawn_images,
    learning_rate,
    main,
    new_training,
    save,
)
from training.run_directory import RunDirectory

SMALL = ("--preset=test", "--images_per_class=1", "--vae_steps=4", "--decoder_steps=3", "--workers=1")


def train(output: Path, *others: str) -> None:
    main(["--output_dir", str(output), "--work_dir", f"{output}.work", "--checkpointing_steps", "2", *SMALL, *others])


def weights(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


@pytest.fixture
def blank_sheets(monkeypatch) -> None:
    """Drawing samples takes longer than all the rest; where weights are compared nobody looks at them."""
    monkeypatch.setattr(train_tiny, "sheet_of", lambda pipeline, prompts: Image.new("RGB", (1, 1)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    train(folder, "--cycles", "3", "1")
    return folder


@pytest.mark.slow
def test_the_result_is_a_whole_pipeline_in_half_precision(finished):
    recipe = verify_folder(finished)["recipe"]
    assert (recipe["preset"], recipe["cycles"]) == ("test", [3, 1])
    tensors = [tensor for path in finished.rglob("*.safetensors") for tensor in load_file(path).values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    config = json.loads((finished / "vae" / "config.json").read_text())
    assert len(config["latents_mean"]) == len(config["latents_std"]) == 4
    with Image.open(finished / "samples.png") as sheet:
        assert sheet.size == (8 * 32, 5 * 32), "38 classes in rows of 8"
    with Image.open(finished / "variety.png") as sheet:
        assert sheet.size == (8 * 32, 6 * 32), "eight seeds of each kind"
    generator = load_generator(ModelSource(str(finished)), device="cpu")
    assert len(generator.generate(["OCT: drusen"], [1], num_inference_steps=2)) == 1


@pytest.mark.usefixtures("blank_sheets")
def test_stopped_and_gone_on_with_ends_in_the_same_bits(finished, tmp_path):
    def save_and_die(directory, training):
        save(directory, training)
        if directory.path.name == "denoiser":
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_tiny, "save", save_and_die)
        train(tmp_path / "model", "--cycles", "3", "1")
    denoiser = RunDirectory(tmp_path / "model.work" / "denoiser")
    assert denoiser.latest().name == "checkpoint-2"
    train(tmp_path / "model", "--cycles", "3", "1")
    assert weights(tmp_path / "model") == weights(finished)
    steps = [line["step"] for line in denoiser.metrics()]
    assert steps == sorted(set(steps)), "no step is logged twice"


def test_a_work_folder_belongs_to_one_recipe(finished, tmp_path):
    shutil.copytree(f"{finished}.work", tmp_path / "model.work")
    with pytest.raises(SystemExit, match="other seed"):
        train(tmp_path / "model", "--cycles", "3", "1", "--seed", "1")
    for cycles in (["4"], ["3"], ["2", "1", "1"]):
        with pytest.raises(SystemExit, match="other cycles"):
            train(tmp_path / "model", "--cycles", *cycles)


@pytest.mark.usefixtures("blank_sheets")
def test_a_finished_run_goes_on_with_a_further_cycle(finished, tmp_path):
    train(tmp_path / "model", "--cycles", "3")
    assert weights(tmp_path / "model") != weights(finished)
    train(tmp_path / "model", "--cycles", "3", "1")
    assert weights(tmp_path / "model") == weights(finished)


@pytest.mark.usefixtures("blank_sheets")
def test_the_average_can_be_looked_at_while_the_run_goes_on(finished, tmp_path):
    main(["--output_dir", str(tmp_path / "look"), "--work_dir", f"{finished}.work", *SMALL, "--export_only"])
    assert weights(tmp_path / "look") == weights(finished)


def test_the_learning_rate_warms_up_stays_and_falls():
    recipe = Recipe(warmup_steps=10, constant_share=0.6, final_share=0.03)
    rates = [learning_rate(recipe, 2.0, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9:60] == [2.0] * 51
    assert rates[80] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(0.06)


def test_every_cycle_begins_anew():
    places = [train_tiny.place_in_cycle((2, 3), step) for step in range(5)]
    assert places == [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    with pytest.raises(ValueError, match="behind the last"):
        train_tiny.place_in_cycle((2, 3), 5)


def test_the_reconstruction_loss_sees_pixels_edges_and_brightness():
    image = torch.rand(1, 3, 8, 8)
    assert reconstruction_loss(image, image) == 0
    # A shift of brightness leaves edges alone: 0.1 by pixels and 0.1 by means.
    assert float(reconstruction_loss(image + 0.1, image)) == pytest.approx(0.2, abs=1e-6)
    stripes = torch.zeros(1, 3, 8, 8)
    stripes[..., ::2] = 0.1
    # Half the pixels off by 0.1, every horizontal difference too, no vertical one, means off by 0.05.
    assert float(reconstruction_loss(stripes, torch.zeros_like(stripes))) == pytest.approx(0.05 + 0.05 + 0.05)


def test_left_out_captions_leave_out_the_modality_too(monkeypatch):
    pipeline = build_tiny_pipeline()
    latents = torch.randn(len(FINDINGS), 4, 8, 8)
    seen = []
    encode_text, condition = pipeline.encode_text, pipeline.condition
    monkeypatch.setattr(pipeline, "encode_text", lambda texts: seen.append(texts) or encode_text(texts))
    monkeypatch.setattr(pipeline, "condition", lambda text, ids: seen.append(ids.tolist()) or condition(text, ids))
    denoising_loss(Recipe(caption_dropout=0.5, batch_size=64), pipeline, latents, 0, np.random.default_rng(0))
    texts, modalities = seen
    assert [text == "" for text in texts] == [modality == 0 for modality in modalities]
    assert 15 < texts.count("") < 50


def test_the_fundus_comes_more_often_until_its_steps_are_over():
    recipe = Recipe(fundus_share=3, fundus_steps=10, batch_size=40_000)
    classes = class_round(recipe)

    def fundus_part(step: int) -> float:
        indices = drawn_images(recipe, 5 * len(classes), step, np.random.default_rng(0))
        assert set(indices) <= set(range(5 * len(classes)))
        return float(np.mean([classes[index % len(classes)].kind == FUNDUS for index in indices]))

    assert fundus_part(9) == pytest.approx(24 / 54, abs=0.01)
    assert fundus_part(10) == pytest.approx(8 / 38, abs=0.01)


def test_every_part_learns():
    pipeline = build_tiny_pipeline()
    parts = {name: getattr(pipeline, name) for name in ("unet", "text_encoder", "conditioner")}
    training = new_training(parts, 1e-3)
    latents = torch.randn(len(FINDINGS), 4, 8, 8)
    recipe = Recipe(bfloat16=False, caption_dropout=0.3)
    denoising_loss(recipe, pipeline, latents, 0, np.random.default_rng(1)).backward()
    still = [name for name, weight in training.modules.named_parameters() if weight.grad is None]
    assert still == []


def test_latent_statistics_make_unit_latents():
    pipeline = build_tiny_pipeline()
    pixels = np.stack([draw(phantom_class, seed=1, size=32).pixels for phantom_class in FINDINGS[:12]])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        raw = pipeline.vae.encode(images * 2 - 1).latent_dist.mode()
        set_latent_statistics(pipeline.vae, raw)
        latents = pipeline.encode_images(images)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
