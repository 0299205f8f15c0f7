"""Training an autoencoder with the "test" preset at 32 px: what is learnt, what comes out, that stopping is free."""

import csv
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL
from django.core.management import call_command
from PIL import Image
from safetensors.torch import load_file

from generation.diffusion.loading import ModelSource, load_generator
from generation.diffusion.phantoms import FINDINGS, draw
from medsyn.artifacts import verify_folder
from tests.training.test_finetuning_processes import free_port, run_together
from training.finetuning import train_vae
from training.finetuning.dataset import hold_out, load_dataset
from training.finetuning.pixel_cache import PixelCache
from training.finetuning.reconstruction import psnr, ssim
from training.finetuning.stopping import EXIT_CODE
from training.finetuning.train import main as train_generator
from training.finetuning.train_vae import main
from training.finetuning.vae_arguments import parse_arguments
from training.finetuning.vae_session import measured_rows
from training.finetuning.windows import WindowOrder, batches
from training.run_directory import RunDirectory


@pytest.fixture(autouse=True)
def one_thread_and_a_fresh_accelerator():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the subprocess has: sums over other numbers of threads round otherwise
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A new model by `init_model`, and beside it data.csv: 12 phantoms of 6 patients, and one cache for all tests."""
    folder = tmp_path_factory.mktemp("vae")
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "Text", "modality", "patient"])
        for index, phantom_class in enumerate(FINDINGS[:12]):
            drawn = draw(phantom_class, seed=index, size=32)
            Image.fromarray(drawn.pixels).save(folder / f"{index}.png")
            writer.writerow([f"{index}.png", "Fundus: exudates", "Fundus", f"patient {index // 2}"])
    call_command("init_model", "--preset", "test", "--output_dir", str(folder / "model"), verbosity=0)
    return folder


def command(base: Path, output: Path, *flags: str) -> list[str]:
    flags = flags if "--max_train_steps" in flags else (*flags, "--max_train_steps", "4")
    return [
        *("--pretrained_model_name_or_path", str(base / "model"), "--train_data_dir", str(base / "data.csv")),
        *("--output_dir", str(output), "--pixel_cache_dir", str(base / "cache"), "--report_to", "none"),
        *(
            "--train_batch_size",
            "2",
            "--learning_rate",
            "1e-3",
            "--holdout",
            "0.3",
            "--mixed_precision",
            "no",
            *flags,
        ),
    ]


def train(base: Path, output: Path, *flags: str) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    return main(command(base, output, *flags))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def same(one: Path, other: Path) -> bool:
    first, second = tensors(one), tensors(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- what comes out ---


@pytest.fixture(scope="module")
def finished(base) -> Path:
    """Sixty steps with everything switched on."""
    output = base / "finished"
    flags = ("--use_ema", "--lr_scheduler", "cosine", "--lr_warmup_steps", "5", "--checkpointing_steps", "20")
    more = ("--validation_steps", "30", "--num_validation_images", "2", "--checkpoints_total_limit", "2")
    arguments = [*command(base, output, *flags, *more, "--max_train_steps", "60"), "--report_to", "tensorboard"]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*arguments, "--learning_rate", "1e-2"]) == 0
    return output


def test_a_new_model_learns_to_give_images_back_and_still_draws(base, finished):
    report = json.loads((finished / "report.json").read_text())
    assert report["psnr_after"] > report["psnr_before"] + 3, "dB, on patients never trained on"
    assert report["ssim_after"] > report["ssim_before"]
    assert report["last_loss"] < report["first_loss"]
    assert (report["num_rows"], report["num_held_out"]) == (8, 4)
    generator = load_generator(ModelSource(str(finished / "pipeline")), device="cpu")
    (image,) = generator.generate(["OCT: drusen"], [1], num_inference_steps=2)
    assert image.size == (32, 32)
    assert verify_folder(finished / "pipeline")["trained_steps"] == 60
    for part in ("unet", "conditioner", "text_encoder"):
        assert same(finished / "pipeline" / part, base / "model" / part)
    assert not same(finished / "pipeline" / "vae", base / "model" / "vae")


def test_the_result_can_be_fine_tuned(base, finished, tmp_path):
    flags = ("--pretrained_model_name_or_path", str(finished / "pipeline"), "--max_train_steps", "2")
    AcceleratorState._reset_state(reset_partial_state=True)
    data = ("--train_data_dir", str(base / "data.csv"), "--output_dir", str(tmp_path))
    assert train_generator(["--train_text_encoder", "--report_to", "none", *data, *flags]) == 0
    assert same(tmp_path / "pipeline" / "vae", finished / "pipeline" / "vae")
    assert not same(tmp_path / "pipeline" / "text_encoder", finished / "pipeline" / "text_encoder")


def test_the_latents_have_unit_variance(base, finished):
    pipeline = load_generator(ModelSource(str(finished / "pipeline")), device="cpu").pipeline
    rows, _ = load_dataset(base / "data.csv")
    trained, _ = hold_out(rows, 0.3, 0)
    pixels = np.stack([np.asarray(Image.open(row.path)) for row in trained])
    with torch.no_grad():
        latents = pipeline.encode_images(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)


def test_the_report_is_of_the_weights_that_are_served(base, finished):
    report = json.loads((finished / "report.json").read_text())
    vae = AutoencoderKL.from_pretrained(finished / "pipeline" / "vae")
    rows, _ = load_dataset(base / "data.csv")
    _, held_out = hold_out(rows, 0.3, 0)
    pixels = np.stack([np.asarray(Image.open(row.path)) for row in held_out])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        decoded = vae.decode(vae.encode(images * 2 - 1).latent_dist.mode()).sample / 2 + 0.5
    errors = (decoded.clamp(0, 1) - images).square().mean((1, 2, 3))
    assert report["psnr_after"] == pytest.approx(float((10 * (1 / errors).log10()).mean()), abs=1e-3)


def test_images_stand_beside_their_reconstructions(base, finished):
    names = sorted(path.name for path in (finished / "validation").iterdir())
    assert names == ["step_30.png", "step_60.png"]
    picture = np.asarray(Image.open(finished / "validation" / "step_60.png"))
    assert picture.shape == (2 * 32 + 2, 3 * 32 + 4, 3), "rows of original, reconstruction and difference"
    rows, _ = load_dataset(base / "data.csv")
    _, held_out = hold_out(rows, 0.3, 0)
    assert np.array_equal(picture[:32, :32], np.asarray(Image.open(held_out[0].path)))
    difference = np.abs(picture[:32, :32].astype(int) - picture[:32, 34:66])
    shown = picture[:32, 68:].astype(int)
    assert np.abs(shown - np.minimum(4 * difference, 255)).max() <= 4, "four times as strong"
    assert list((finished / "tensorboard").glob("events*"))


def test_metrics_and_checkpoints(finished):
    lines = list(RunDirectory(finished).metrics())
    assert [line["step"] for line in lines if "psnr" in line] == [0, 30, 60]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 61))
    rates = [line["learning_rate"] for line in lines if "loss" in line]
    assert rates[1] == pytest.approx(1e-2 * 1 / 5) and max(rates) == pytest.approx(1e-2) and rates[-1] < 1e-4
    assert [folder.name for folder in RunDirectory(finished).checkpoints()] == ["checkpoint-40", "checkpoint-60"]
    assert {path.name for path in (finished / "checkpoint-60").iterdir()} == {
        "vae", "vae_ema", "training_state.pt", "manifest.json"
    }  # fmt: skip
    assert same(finished / "checkpoint-60" / "vae_ema", finished / "pipeline" / "vae")
    assert not same(finished / "checkpoint-60" / "vae", finished / "pipeline" / "vae")


def test_a_bare_autoencoder_comes_out_bare(base, tmp_path):
    shutil.copytree(base / "model" / "vae", tmp_path / "vae")
    flags = ("--pretrained_model_name_or_path", str(tmp_path / "vae"), "--save_precision", "float16")
    assert train(base, tmp_path / "run", *flags) == 0
    vae = AutoencoderKL.from_pretrained(tmp_path / "run" / "vae")
    assert len(vae.config.latents_mean) == 4
    assert {tensor.dtype for tensor in tensors(tmp_path / "run" / "vae").values()} == {torch.float16}
    assert not (tmp_path / "run" / "pipeline").exists()


def test_the_decoder_alone_leaves_the_latents_as_they_are(base, tmp_path):
    assert train(base, tmp_path / "run", "--decoder_only") == 0
    before, after = (tensors(folder / "vae") for folder in (base / "model", tmp_path / "run" / "pipeline"))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv"}
    config = json.loads((tmp_path / "run" / "pipeline" / "vae" / "config.json").read_text())
    assert config["latents_mean"] is None, "as before: nothing was measured anew"


def test_any_scale_factor(base, tmp_path):
    for levels in (2, 4):
        torch.manual_seed(0)
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=(4,) * levels,
            latent_channels=3,
            norm_num_groups=2,
            sample_size=32,
        ).save_pretrained(tmp_path / f"vae{levels}")
        flags = ("--pretrained_model_name_or_path", str(tmp_path / f"vae{levels}"), "--max_train_steps", "2")
        assert train(base, tmp_path / f"run{levels}", *flags, "--crops", "1") == 0
    assert train(base, tmp_path / "odd", "--resolution", "30") == 1


# --- stopping and going on ---


FLAGS = ("--use_ema", "--gradient_accumulation_steps", "2", "--lr_scheduler", "cosine", "--checkpointing_steps", "2")


def test_stopped_and_gone_on_with_ends_in_the_same_bits(base, tmp_path, monkeypatch):
    assert train(base, tmp_path / "whole", *FLAGS) == 0

    def save_and_die(run):
        train_vae_save(run)
        raise KeyboardInterrupt

    train_vae_save = train_vae.save
    monkeypatch.setattr(train_vae, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(base, tmp_path / "cut", *FLAGS)
    assert RunDirectory(tmp_path / "cut").latest().name == "checkpoint-2"
    monkeypatch.undo()
    assert train(base, tmp_path / "cut", *FLAGS) == 0
    for name in ("checkpoint-4/vae", "checkpoint-4/vae_ema", "pipeline/vae"):
        assert same(tmp_path / "cut" / name, tmp_path / "whole" / name)
    losses = [[line["loss"] for line in RunDirectory(tmp_path / name).metrics() if "loss" in line]
              for name in ("cut", "whole")]  # fmt: skip
    assert losses[0] == losses[1] and len(losses[0]) == 4
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("cut", "whole")]
    for report in reports:
        del report["images_per_second"]
    assert reports[0] == reports[1]


def test_asked_to_stop_it_saves_and_says_so(base, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getppid", iter([1, *[2] * 100]).__next__)
    assert train(base, tmp_path / "run") == EXIT_CODE
    assert RunDirectory(tmp_path / "run").latest().name == "checkpoint-1"


def test_other_settings_in_the_same_folder_are_refused(base, tmp_path, caplog):
    assert train(base, tmp_path / "run", "--max_train_steps", "1") == 0
    assert train(base, tmp_path / "run", "--max_train_steps", "1", "--kl_weight", "0") == 1
    assert "kl_weight: 0.001 before, 0.0 now" in caplog.text


def as_one_of_two(rank: int, port: int, base: Path, output: Path) -> int:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    return train(base, output, "--learning_rate", "1e-4")


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(base, tmp_path):
    port = free_port()
    works = [lambda rank=rank: as_one_of_two(rank, port, base, tmp_path / "two") for rank in range(2)]
    assert run_together(*works) == [0, 0]
    assert RunDirectory(tmp_path / "two").read_config()["num_processes"] == 2
    assert train(base, tmp_path / "one", "--learning_rate", "1e-4", "--train_batch_size", "4") == 0
    one, two = ([line["loss"] for line in RunDirectory(tmp_path / name).metrics() if "loss" in line]
                for name in ("one", "two"))  # fmt: skip
    assert one == pytest.approx(two, rel=1e-5) and len(one) == 4


# --- what is seen when ---


def order(num_rows: int = 5, **changes) -> WindowOrder:
    values = {"may_flip": (True,) * num_rows, "resolution": 32, "crop_side": 16, "crops": 0.5, "seed": 1}
    return WindowOrder(**values | changes)


def test_every_image_has_its_turn():
    windows = [order().at(position, cropped=False)[0] for position in range(10)]
    for epoch in (windows[:5], windows[5:]):
        assert sorted(window.row for window in epoch) == [0, 1, 2, 3, 4]
        assert {(window.top, window.left, window.side) for window in epoch} == {(0, 0, 32)}
    assert [window.row for window in windows[:5]] != [window.row for window in windows[5:]]


def test_crops_lie_inside_and_everywhere():
    windows = [window for position in range(200) for window in order().at(position, cropped=True)]
    assert len(windows) == 800
    assert {window.side for window in windows} == {16}
    assert {window.top for window in windows} == {window.left for window in windows} == set(range(17))
    assert 300 < sum(window.flipped for window in windows) < 500
    assert len({window.noise_seed for window in windows}) == 800


def test_the_share_of_crops():
    counts = {share: sum(order(crops=share).is_cropped(index) for index in range(400)) for share in (0, 0.25, 1)}
    assert counts[0] == 0 and 70 < counts[0.25] < 130 and counts[1] == 400


def test_an_image_whose_caption_names_a_side_is_never_mirrored():
    mixed = order(2, may_flip=(True, False))
    windows = [window for position in range(100) for window in mixed.at(position, cropped=True)]
    flipped = {window.row for window in windows if window.flipped}
    assert flipped == {0}


def test_a_window_is_the_part_of_the_image_that_it_says(base):
    rows, _ = load_dataset(base / "data.csv")
    cache = PixelCache(base / "cache", 32, "pad")
    cache.fill(rows, quiet=True)
    assert cache.fill(rows, quiet=True) == 0, "decoded once"
    windows = order(len(rows), crops=1)
    (batch,) = batches(windows, rows, cache, range(3, 4), batch_size=2, latent_channels=4, scale_factor=4)
    assert batch.images.shape == (8, 3, 16, 16) and batch.noise.shape == (8, 4, 4, 4)
    expected = [window for position in (6, 7) for window in windows.at(position, cropped=True)]
    assert any(window.flipped for window in expected) and not all(window.flipped for window in expected)
    for image, window in zip(batch.images, expected, strict=True):
        with Image.open(rows[window.row].path) as file:
            box = (window.left, window.top, window.left + 16, window.top + 16)
            part = np.asarray(file.crop(box))
        part = part[:, ::-1] if window.flipped else part
        assert np.array_equal((image * 255).round().numpy().transpose(1, 2, 0), part)


def test_two_processes_see_together_what_one_sees(base):
    """With accelerate's mean over processes the gradients are then those of one; the loop is tested elsewhere."""
    rows, _ = load_dataset(base / "data.csv")
    cache = PixelCache(base / "cache", 32, "pad")
    cache.fill(rows, quiet=True)
    windows, shape = order(len(rows)), {"latent_channels": 4, "scale_factor": 4}
    whole = list(batches(windows, rows, cache, range(6), batch_size=4, **shape))
    shares = [
        list(batches(windows, rows, cache, range(6), batch_size=2, rank=rank, num_processes=2, **shape))
        for rank in (0, 1)
    ]
    assert len({len(batch.images) for batch in whole}) == 2, "whole images and crops"
    for together, first, second in zip(whole, *shares, strict=True):
        assert torch.equal(together.images, torch.cat([first.images, second.images]))
        assert torch.equal(together.noise, torch.cat([first.noise, second.noise]))


def test_a_damaged_cache_entry_says_so(base, tmp_path):
    rows, _ = load_dataset(base / "data.csv")
    cache = PixelCache(tmp_path, 32, "pad")
    with pytest.raises(train_vae.ArtifactError, match="is gone"):
        cache.pixels(rows[0])
    cache.fill(rows[:1], quiet=True)
    cache.path(rows[0]).write_bytes(b"\x93NUMPY")
    with pytest.raises(train_vae.ArtifactError, match="damaged"):
        cache.pixels(rows[0])


def test_what_is_measured_is_spread_over_the_held_out_rows():
    assert measured_rows(range(256)) == list(range(256)) and measured_rows([]) == []
    spread = measured_rows(range(1000))  # sorted by kind, say
    assert len(spread) == 256 == len(set(spread)) and spread == sorted(spread)
    assert np.histogram(spread, bins=4, range=(0, 1000))[0].tolist() == [64] * 4


def test_patients_stand_on_one_side(base):
    rows, _ = load_dataset(base / "data.csv")
    for seed in range(5):
        trained, held_out = hold_out(rows, 0.3, seed)
        assert not {row.group for row in trained} & {row.group for row in held_out}
        assert len(trained) + len(held_out) == 12 and len(held_out) == 4
    assert hold_out(rows, 0, 0) == (rows, [])
    with pytest.raises(ValueError, match="Give 0 as the share"):
        hold_out(rows[:2], 0.3, 0)


# --- figures ---


def test_psnr_and_ssim_by_their_definitions():
    rng = np.random.default_rng(0)
    first = rng.random((1, 1, 11, 11))
    second = np.clip(first + 0.1 * rng.standard_normal(first.shape), 0, 1)
    images, decoded = torch.from_numpy(first), torch.from_numpy(second)
    assert float(psnr(decoded, images)) == pytest.approx(-10 * math.log10(np.mean((first - second) ** 2)))
    # One window covers the whole of 11 x 11 pixels.
    y, x = np.mgrid[-5:6, -5:6]
    weights = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    weights /= weights.sum()
    a, b = first[0, 0], second[0, 0]
    mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
    variance_a, variance_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
    covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
    expected = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
    expected /= (mean_a**2 + mean_b**2 + 1e-4) * (variance_a + variance_b + 9e-4)
    assert float(ssim(decoded, images)) == pytest.approx(expected, abs=1e-9)
    assert float(ssim(images, images)) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(images[..., :8], images[..., :8])


# --- flags ---


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--crops", "1.5", "from 0 to 1"),
        ("--holdout", "0.9", "from 0 to 0.5"),
        ("--train_batch_size", "0", "at least 1"),
        ("--kl_weight", "-1", "at least 0"),
        ("--learning_rate", "0", "at least"),
    ],
)
def test_flags_out_of_range(base, tmp_path, capsys, flag, value, message):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(command(base, tmp_path, flag, value))
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_what_is_no_autoencoder_is_told(base, tmp_path, caplog):
    assert train(base, tmp_path / "run", "--pretrained_model_name_or_path", str(tmp_path)) == 1
    assert "holds no autoencoder" in caplog.text


def test_without_a_holdout_nothing_is_measured(base, tmp_path):
    assert train(base, tmp_path / "run", "--holdout", "0", "--gradient_checkpointing") == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["num_rows"], report["num_held_out"]) == (12, 0)
    assert "psnr_after" not in report


def test_a_stronger_pull_makes_smaller_latents(base, tmp_path):
    sizes = []
    for weight in ("0", "10"):
        flags = ("--kl_weight", weight, "--max_train_steps", "20", "--learning_rate", "1e-2")
        assert train(base, tmp_path / weight, *flags) == 0
        report = json.loads((tmp_path / weight / "report.json").read_text())
        sizes.append(sum(report["latents_std"]) + sum(map(abs, report["latents_mean"])))
    assert sizes[1] < 0.7 * sizes[0]
