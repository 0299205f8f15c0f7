"""Every flag of fine-tuning does what it says: each test fails where its flag is read by nothing."""

import math
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from generation.diffusion.loading import ModelSource, load_generator
from medsyn.artifacts import folder_files
from tests.training.finetuning_runs import command, largest_difference, losses, tensors, tune
from training.finetuning import loop, optimization
from training.finetuning.arguments import LR_SCHEDULERS, parse_arguments
from training.finetuning.loop import make_accelerator, train_step
from training.finetuning.noise import NoiseSource, generator_at
from training.finetuning.optimization import make_optimizer, make_schedule
from training.finetuning.preparation import prepare
from training.finetuning.session import Session
from training.finetuning.train import loss as loss_of
from training.finetuning.train import work_of
from training.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def session(base, tmp_path) -> Callable[..., Session]:
    """``session("--flag", ...)``: a run that is ready for its first step."""

    def ready(*flags: str) -> Session:
        AcceleratorState._reset_state(reset_partial_state=True)
        arguments = parse_arguments(command(base, tmp_path / "run", *flags))
        arguments.output_dir.mkdir(exist_ok=True)
        return prepare(arguments, make_accelerator(arguments.mixed_precision))

    return ready


@pytest.fixture
def stable_diffusion(base) -> tuple[str, str]:
    """The flags that take the small Stable Diffusion, which predicts noise."""
    return "--pretrained_model_name_or_path", str(base / "stable-diffusion")


def signal_and_noise(timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sqrt(abar) and sqrt(1 - abar) of Stable Diffusion's betas, (B, 1, 1, 1)."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    abar = torch.from_numpy(np.cumprod(1 - betas))[timesteps].float()[:, None, None, None]
    return abar.sqrt(), (1 - abar).sqrt()


# --- the objective ---


def test_input_perturbation_is_seen_but_not_to_be_predicted(session, stable_diffusion):
    ready = session(*stable_diffusion, "--input_perturbation", "0.5")
    seen = []
    ready.model = lambda noisy, timesteps, batch: seen.append(noisy) or batch.noise
    batch = next(ready.batches())
    assert loss_of(ready, batch).item() == 0, "the target is the noise alone"
    signal, noise = signal_and_noise(batch.timesteps)
    expected = signal * batch.latents + noise * (batch.noise + 0.5 * batch.perturbation)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)
    assert 0.8 < batch.perturbation.std() < 1.2
    assert next(session(*stable_diffusion).batches()).perturbation is None


def test_min_snr_weighs_each_image_by_its_timestep(session, stable_diffusion):
    ready = session(*stable_diffusion, "--snr_gamma", "5")
    ready.model = lambda noisy, timesteps, batch: batch.noise + 1  # a squared error of 1 everywhere
    batch = next(ready.batches())
    signal, noise = signal_and_noise(batch.timesteps)
    snr = (signal / noise) ** 2
    assert loss_of(ready, batch).item() == pytest.approx((snr.clamp(max=5) / snr).mean().item(), rel=1e-4)


def test_a_noise_predictor_can_be_taught_v_prediction(base, session, stable_diffusion, tmp_path):
    ready = session(*stable_diffusion, "--prediction_type", "v_prediction")

    def velocity(noisy, timesteps, batch):
        signal, noise = signal_and_noise(timesteps)
        return signal * batch.noise - noise * batch.latents

    ready.model = velocity
    assert loss_of(ready, next(ready.batches())).item() == pytest.approx(0, abs=1e-8)

    flags = (*stable_diffusion, "--prediction_type", "v_prediction", "--max_train_steps", "1")
    assert tune(base, tmp_path / "v", *flags) == 0
    sources = [
        ModelSource(str(tmp_path / "v" / "pipeline")),
        ModelSource(str(base / "stable-diffusion"), str(tmp_path / "v" / "checkpoint-1")),
    ]
    for source in sources:  # whoever samples must know
        scheduler = load_generator(source, device="cpu").pipeline.scheduler
        assert scheduler.config.prediction_type == "v_prediction"
        assert not scheduler.config.get("rescale_betas_zero_snr"), "the noise levels stay those of the model"


def test_noise_cannot_be_predicted_where_the_schedule_ends_in_noise_alone(base, tmp_path, caplog):
    assert tune(base, tmp_path, "--prediction_type", "epsilon") == 1
    assert "--prediction_type epsilon cannot be trained on this model" in caplog.text


def test_noise_offset_adds_one_number_to_each_channel():
    plain = NoiseSource(seed=1, num_timesteps=1000)
    shifted = NoiseSource(seed=1, num_timesteps=1000, offset=0.5)
    shifts = []
    for position in range(300):
        a, b = plain.draw(position, (4, 3, 3)), shifted.draw(position, (4, 3, 3))
        difference = (b.noise - a.noise).flatten(1)
        assert a.timestep == b.timestep
        assert (difference.std(1) < 1e-6).all(), "constant within a channel"
        shifts += difference.mean(1).tolist()
    assert np.std(shifts) == pytest.approx(0.5, abs=0.05)


def test_noise_and_timesteps_are_those_of_their_position():
    source = NoiseSource(seed=1, num_timesteps=1000, with_perturbation=True)
    draws = [source.draw(position, (4, 8, 8)) for position in range(400)]
    again = source.draw(7, (4, 8, 8))
    assert torch.equal(draws[7].noise, again.noise) and draws[7].timestep == again.timestep
    assert len({float(draw.noise[0, 0, 0]) for draw in draws}) == 400
    assert np.mean([draw.timestep for draw in draws]) == pytest.approx(499.5, abs=4 * 1000 / 12**0.5 / 20)
    correlation = torch.stack([(draw.noise * draw.perturbation).mean() for draw in draws])
    assert abs(float(correlation.mean())) < 0.02, "noise and perturbation are independent"
    other = NoiseSource(seed=2, num_timesteps=1000).draw(7, (4, 8, 8))
    assert not torch.equal(other.noise, again.noise)
    assert generator_at(1, 2, 3).random() != generator_at(1, 3, 2).random()


def test_latents_can_be_drawn_from_the_posterior(session):
    modes, samples = (next(session(*flags).batches()) for flags in ((), ("--latent_sample",)))
    again = next(session("--latent_sample").batches())
    assert torch.equal(samples.latents, again.latents)
    assert not torch.equal(samples.latents, modes.latents)
    assert torch.equal(samples.noise, modes.noise)
    ready = session("--latent_sample")
    draw = ready.examples.order.draw(0)
    mean, std = ready.examples.cache.latent(ready.examples.rows[draw.row], draw.flipped)
    normal = (samples.latents[0] - mean) / std  # position 0
    assert float(normal.mean()) == pytest.approx(0, abs=4 / normal.numel() ** 0.5)
    assert float(normal.std()) == pytest.approx(1, abs=4 / normal.numel() ** 0.5)


# --- the optimiser ---


def test_the_learning_rate_scales_with_the_images_of_a_step(base, tmp_path):
    flags = ("--scale_lr", "--gradient_accumulation_steps", "2", "--max_train_steps", "1")
    assert tune(base, tmp_path, *flags) == 0
    (line,) = RunDirectory(tmp_path).metrics()
    assert line["learning_rate"] == pytest.approx(1e-3 * 4 * 2)


_COURSES = {  # share of the peak at step s of 20 after 4 of warm-up
    "constant": lambda s: 1,
    "constant_with_warmup": lambda s: min(1, s / 4),
    "linear": lambda s: s / 4 if s < 4 else (20 - s) / 16,
    "cosine": lambda s: s / 4 if s < 4 else (1 + math.cos(math.pi * (s - 4) / 16)) / 2,
    "cosine_with_restarts": lambda s: s / 4 if s < 4 else (1 + math.cos(math.pi * (s - 4) / 16)) / 2,
    "polynomial": lambda s: s / 4 if s < 4 else (20 - s) / 16,
}


@pytest.mark.parametrize("name", LR_SCHEDULERS)
def test_the_learning_rate_follows_its_course_from_any_step(name):
    arguments = parse_arguments(
        ["--train_data_dir", "d", "--output_dir", "o", "--lr_scheduler", name, "--lr_warmup_steps", "4"]
    )
    weight = torch.nn.Parameter(torch.zeros(1))
    for start in (0, 3, 11):
        optimizer = torch.optim.AdamW([weight], lr=0.5)
        schedule = make_schedule(arguments, optimizer, peak=0.5, steps_done=start, total_steps=20)
        for step in range(start, 20):
            expected = 0.5 * _COURSES[name](step)
            assert schedule.get_last_lr()[0] == pytest.approx(expected, abs=2e-7), (start, step)
            optimizer.step()
            schedule.step()


def test_a_phase_warms_up_where_it_begins(base, tmp_path):
    assert tune(base, tmp_path / "first", "--max_train_steps", "2") == 0
    flags = ("--resume_from_checkpoint", str(tmp_path / "first" / "checkpoint-2"), "--max_train_steps", "6")
    flags += ("--lr_scheduler", "cosine", "--lr_warmup_steps", "2", "--checkpointing_steps", "3")
    assert tune(base, tmp_path / "second", *flags) == 0
    rates = [line["learning_rate"] for line in RunDirectory(tmp_path / "second").metrics()]
    assert rates == pytest.approx([0, 0.5e-3, 1e-3, 0.5e-3])
    # Interrupted within the phase: its beginning is remembered.
    third = tmp_path / "third"
    assert tune(base, third, *flags) == 0
    for folder in (third / "checkpoint-6", third / "pipeline"):
        (folder / "manifest.json").unlink()
    assert tune(base, third, *flags) == 0
    assert folder_files(third / "pipeline") == folder_files(tmp_path / "second" / "pipeline")


def test_gradients_are_clipped(session):
    norms = {}
    for limit in ("0.01", "1000"):
        ready = session("--max_grad_norm", limit)
        parameters, seen = ready.parts.parameters, []

        def record(parameters=parameters, seen=seen):
            seen.append(torch.stack([each.grad.norm() for each in parameters]).norm().item())

        ready.optimizer.step = record
        _, before = train_step(ready, ready.batches(), work_of(ready))
        norms[limit] = (before, seen[0])
    assert norms["0.01"][1] == pytest.approx(0.01, rel=1e-3)
    assert norms["1000"][1] == pytest.approx(norms["1000"][0], rel=1e-4)


def test_eight_bit_adam_is_that_of_bitsandbytes(monkeypatch):
    """There is no GPU here: the class it would use is a stand-in, the choice of it is real."""

    class AdamW8bit(torch.optim.SGD):
        def __init__(self, parameters, lr, weight_decay):
            super().__init__(parameters, lr=lr, weight_decay=weight_decay)

    arguments = parse_arguments(["--train_data_dir", "d", "--output_dir", "o", "--use_8bit_adam"])
    weights = [torch.nn.Parameter(torch.zeros(1))]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(optimization.OptimizerUnavailable, match="pip install bitsandbytes"):
        make_optimizer(arguments, weights)
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    stand_in = types.ModuleType("bitsandbytes.optim")
    stand_in.AdamW8bit = AdamW8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", stand_in)
    assert type(make_optimizer(arguments, weights)) is AdamW8bit


def test_accumulated_micro_batches_make_the_step_of_one_large_batch(base, tmp_path):
    flags = ("--max_train_steps", "3", "--noise_offset", "0.1", "--input_perturbation", "0.1", "--random_flip")
    accumulated = ("--train_batch_size", "2", "--gradient_accumulation_steps", "4")
    assert tune(base, tmp_path / "accumulated", *flags, *accumulated) == 0
    assert tune(base, tmp_path / "large", *flags, "--train_batch_size", "8") == 0
    assert losses(tmp_path / "accumulated") == pytest.approx(losses(tmp_path / "large"), rel=1e-4)
    for part in ("unet", "conditioner"):
        folders = [tmp_path / name / "pipeline" / part for name in ("accumulated", "large")]
        assert largest_difference(*folders) < 2e-5 < largest_difference(folders[0], base / "model" / part)


def test_gradient_checkpointing_computes_the_same_twice(session):
    calls, gradients = {}, {}
    for flags in ((), ("--gradient_checkpointing",)):
        ready = session(*flags)
        seen = []
        block = ready.pipeline.unet.down_blocks[0].resnets[0]
        block.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        ready.optimizer.step = ready.optimizer.zero_grad = lambda: None
        train_step(ready, ready.batches(), work_of(ready))
        calls[flags] = len(seen)
        gradients[flags] = torch.cat([each.grad.flatten() for each in ready.parts.parameters])
    assert list(calls.values()) == [1, 2]
    torch.testing.assert_close(*gradients.values(), rtol=1e-4, atol=1e-6)


def test_recomputed_activations_need_less_memory(session):
    """Bytes that autograd keeps for the backward pass."""
    kept = {}
    for flags in ((), ("--gradient_checkpointing",)):
        ready, total = session(*flags), []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, total=total: total.append(t.nbytes) or t, lambda t: t
        ):
            loss_of(ready, next(ready.batches()))
        kept[flags] = sum(total)
    assert kept[("--gradient_checkpointing",)] < 0.7 * kept[()]


def test_flags_that_this_machine_cannot_serve_say_so(base, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune(base, tmp_path, "--use_8bit_adam") == 1
    assert "--use_8bit_adam needs a CUDA GPU" in caplog.text
    assert tune(base, tmp_path, "--enable_xformers_memory_efficient_attention") == 1
    assert "--enable_xformers_memory_efficient_attention cannot be used here" in caplog.text
    assert tune(base, tmp_path, "--mixed_precision", "fp16") == 1
    assert "--mixed_precision fp16 needs a GPU" in caplog.text


def test_the_precision_is_the_launcher_s_or_what_the_device_computes_in(monkeypatch):
    def chosen(asked: str, launched: str, fastest: torch.dtype) -> str:
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
        monkeypatch.setattr(loop, "fastest_precision", lambda device: fastest)
        return make_accelerator(asked).mixed_precision

    assert chosen("auto", "no", torch.bfloat16) == "bf16"
    assert chosen("auto", "no", torch.float16) == "no", "fp16 needs a scaler and care: nobody gets it unasked"
    assert chosen("auto", "bf16", torch.float32) == "bf16"
    assert chosen("no", "bf16", torch.bfloat16) == "no"


def test_bfloat16_trains_and_rounds(base, tmp_path):
    assert tune(base, tmp_path / "bf16", "--mixed_precision", "bf16") == 0
    assert tune(base, tmp_path / "exact") == 0
    rough, exact = losses(tmp_path / "bf16"), losses(tmp_path / "exact")
    assert rough == pytest.approx(exact, rel=0.05) and rough != exact
    assert {each.dtype for each in tensors(tmp_path / "bf16" / "checkpoint-4" / "unet").values()} == {torch.float32}


def test_tf32_is_allowed(base, tmp_path):
    try:
        assert tune(base, tmp_path / "exact", "--max_train_steps", "1") == 0
        assert torch.get_float32_matmul_precision() == "highest"
        assert tune(base, tmp_path / "rough", "--max_train_steps", "1", "--allow_tf32") == 0
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_dropout_inside_a_text_encoder_is_off(session):
    """Its mask would depend on how a step's images are spread over micro-batches and processes."""
    ready = session("--train_text_encoder")
    assert next(ready.batches()).text is None, "features are computed, not cached"
    assert any(each is ready.pipeline.text_encoder for each in ready.model.modules())
    assert not any(each.training for each in ready.model.modules())


# --- the data ---


def test_the_seed_decides_and_worker_processes_do_not(base, tmp_path):
    flags = ("--max_train_steps", "3", "--random_flip")
    assert tune(base, tmp_path / "first", *flags) == 0
    assert tune(base, tmp_path / "workers", *flags, "--dataloader_num_workers", "2") == 0
    assert tune(base, tmp_path / "seed", *flags, "--seed", "1") == 0
    assert losses(tmp_path / "workers") == losses(tmp_path / "first")
    assert losses(tmp_path / "seed") != losses(tmp_path / "first")


def test_some_rows_only(base, session):
    first, second = session("--max_train_samples", "6"), session("--max_train_samples", "6", "--seed", "1")
    assert (first.num_rows, second.num_rows) == (6, 6)
    assert first.directory.read_config()["num_rows"] == 6
    lines = [{row.line for row in ready.examples.rows} for ready in (first, second)]
    assert lines[0] != lines[1]


def test_columns_by_other_names(base, tmp_path):
    content = (base / "data.csv").read_text().replace("path,Text,modality", "picture,says,modality")
    table = base / "renamed.csv"
    table.write_text(content)
    flags = ("--train_data_dir", str(table), "--max_train_steps", "1")
    assert tune(base, tmp_path, *flags) == 1
    assert tune(base, tmp_path, *flags, "--image_column", "picture", "--caption_column", "says") == 0


def test_cropped_pictures_have_no_border(session):
    """The pictures are 36 x 30: padded they have black columns, cropped they have none."""
    ready = {fit: session(*flags) for fit, flags in (("pad", ()), ("crop", ("--center_crop",)))}
    pictures = {}
    for fit, each in ready.items():
        latent, _ = each.examples.cache.latent(each.examples.rows[0], False)
        pictures[fit] = each.examples.cache._picture((each.examples.rows[0], False))
        torch.testing.assert_close(
            latent[None],
            each.pipeline.encode_images(torch.from_numpy(pictures[fit]).permute(2, 0, 1)[None] / 255).detach(),
            rtol=1e-3,
            atol=1e-3,
        )
    assert (pictures["pad"][:, 0] == 0).all() and (pictures["crop"][:, 0] > 0).any()


def test_flips_and_dropped_captions_happen_when_asked_for(session):
    for flags, flips, drops in ((("--caption_dropout", "0"), False, False), (("--random_flip",), True, True)):
        order = session(*flags).examples.order
        draws = [order.draw(position) for position in range(200)]
        assert (any(draw.flipped for draw in draws), any(draw.dropped for draw in draws)) == (flips, drops)


def test_bad_rows_stop_training_unless_told_otherwise(base, tmp_path, caplog):
    table = base / "with_bad_rows.csv"
    table.write_text((base / "data.csv").read_text() + "gone.png,Fundus: fine,Fundus\n")
    flags = ("--train_data_dir", str(table), "--max_train_steps", "1")
    assert tune(base, tmp_path, *flags) == 1
    assert "line 12" in caplog.text and not list(tmp_path.glob("checkpoint-*"))
    assert tune(base, tmp_path, *flags, "--skip-bad-rows") == 0
    assert "Going on without 1 bad row" in caplog.text


def test_a_resolution_that_does_not_fit_the_model(base, tmp_path, caplog):
    assert tune(base, tmp_path, "--resolution", "36") == 1
    assert "use a multiple of 8" in caplog.text


def test_epochs_count_passes_over_the_data(base, tmp_path):
    for name, steps in (("epochs", []), ("steps", ["--max_train_steps", "5"])):
        flags = [*command(base, tmp_path / name)[:-2], "--train_batch_size", "2", "--num_train_epochs", "3", *steps]
        AcceleratorState._reset_state(reset_partial_state=True)
        arguments = parse_arguments(flags)
        arguments.output_dir.mkdir()
        assert prepare(arguments, make_accelerator("no")).total_steps == (5 if steps else 3 * 10 // 2)


# --- what is kept and shown ---


def test_validation_images_and_curves_lie_in_tensorboard(base, tmp_path):
    flags = ("--validation_prompts", "OCT: fluid", "--validation_epochs", "1", "--num_validation_images", "2")
    assert tune(base, tmp_path, *flags, "--report_to", "tensorboard", "--validation_scheduler", "ddim") == 0
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Images("validation")] == [2, 4]  # ten images, four a step
    picture = events.Images("validation")[-1]
    assert (picture.width, picture.height) == (32 + 2 + 32, 32)
    assert picture.encoded_image_string.startswith(b"\x89PNG")
    curve = [event.value for event in events.Scalars("loss")]
    assert curve == pytest.approx(losses(tmp_path), rel=1e-6)
    assert {"learning_rate", "grad_norm", "images_per_second"} <= set(events.Tags()["scalars"])


def test_the_sampler_of_validation_images(base, tmp_path):
    pictures = set()
    for sampler in ("dpm", "euler_a"):
        flags = ("--validation_prompts", "OCT: fluid", "--validation_scheduler", sampler, "--max_train_steps", "1")
        assert tune(base, tmp_path / sampler, *flags, "--num_validation_images", "1") == 0
        pictures.add((tmp_path / sampler / "validation" / "step_1.png").read_bytes())
    assert len(pictures) == 2


def test_weights_and_biases(base, tmp_path, monkeypatch, caplog):
    """wandb is no dependency: a stand-in takes its place and keeps what it is told."""
    flags = ("--report_to", "wandb", "--validation_prompts", "OCT: fluid", "--max_train_steps", "2")
    monkeypatch.delenv("WANDB_DISABLED", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert tune(base, tmp_path, *flags) == 1
    assert "--report_to wandb needs the package wandb" in caplog.text

    calls = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
    )
    stand_in = types.ModuleType("wandb")
    stand_in.init = lambda **options: calls.append(options) or run
    stand_in.Image = lambda picture: picture.size
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert tune(base, tmp_path, *flags) == 0
    assert calls[0]["config"]["max_train_steps"] == 2 and calls[0]["resume"] == "allow"
    assert [step for step, values in calls[1:-1] if "loss" in values] == [1, 2]
    assert (2, {"validation": (4 * 32 + 3 * 2, 32)}) in calls
    assert calls[-1] == "end"

    calls.clear()
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert tune(base, tmp_path / "silent", *flags) == 0
    assert calls == [] and "WANDB_DISABLED is set" in caplog.text


# --- the command line ---


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--train_batch_size", "0"], "--train_batch_size 0 is too small"),
        (["--rank", "0"], "--rank 0 is too small"),
        (["--input_perturbation", "-1"], "--input_perturbation -1.0 is too small"),
        (["--learning_rate", "nan"], "--learning_rate nan must be above 0"),
        (["--caption_dropout", "1.5"], "--caption_dropout 1.5 is a share"),
        (["--validation_prompts", "an eye"], "--validation_prompts: Prompt 'an eye' has no prefix"),
        (["--lr_scheduler", "cosinus"], "invalid choice"),
        (["--prediction_type", "sample"], "invalid choice"),
        (["--recipe", "fundus-5"], "invalid choice"),
        (["--learning_rat", "1"], "unrecognized arguments"),
    ],
)
def test_wrong_flags_end_before_anything_starts(flags, complaint, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(["--train_data_dir", "d.csv", "--output_dir", "o", *flags])
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


def test_either_spelling_of_a_flag():
    arguments = parse_arguments(["--train-data-dir", "d.csv", "--output_dir", "o", "--skip_bad_rows"])
    assert arguments.skip_bad_rows and arguments.train_data_dir == Path("d.csv")
    assert arguments.cache_folder == Path("o/latent_cache")


def test_help_tells_defaults(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "rank of the adapters of --use_lora (default: 8)" in text
    assert "--no-use_8bit_adam" in text
