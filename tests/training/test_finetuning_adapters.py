"""Stable Diffusion folders and low-rank adapters: what is trained, stored, put back, and refused."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from generation.diffusion.loading import ModelMismatch, ModelSource, load_generator
from generation.diffusion.lora import FILE_NAME
from generation.diffusion.stable_diffusion import PromptedStableDiffusion
from medsyn.artifacts import folder_files, verify_folder
from tests.tiny_models import build_tiny_pipeline, build_tiny_stable_diffusion
from tests.training.finetuning_runs import drawn, largest_difference, losses, tensors, tune

pytestmark = pytest.mark.usefixtures("one_thread")

LORA = ("--use_lora", "--rank", "2", "--learning_rate", "0.02", "--max_train_steps", "3")
MODELS = ("model", "stable-diffusion")


def flags_for(base: Path, model: str, *flags: str) -> tuple[str, ...]:
    return ("--pretrained_model_name_or_path", str(base / model), *flags)


def folders_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir()}


def load(base: Path, model: str, checkpoint: Path):
    return load_generator(ModelSource(str(base / model), str(checkpoint)), device="cpu").pipeline


# --- Stable Diffusion, all weights ---


def test_stable_diffusion_is_fine_tuned_and_put_back(base, tmp_path):
    flags = flags_for(base, "stable-diffusion", "--use_ema", "--snr_gamma", "5", "--checkpointing_steps", "2")
    assert tune(base, tmp_path, *flags) == 0
    checkpoint, pipeline = tmp_path / "checkpoint-4", tmp_path / "pipeline"
    assert folders_in(checkpoint) == {"unet", "unet_ema", "text_encoder", "tokenizer", "scheduler"}
    assert largest_difference(pipeline / "unet", base / "stable-diffusion" / "unet") > 1e-4
    for frozen in ("vae", "text_encoder"):
        assert largest_difference(pipeline / frozen, base / "stable-diffusion" / frozen) == 0
    served = drawn(base, pipeline)
    assert (drawn(base, base / "stable-diffusion", checkpoint) == served).all()
    assert (drawn(base, base / "stable-diffusion") != served).any()


def test_the_result_is_a_plain_stable_diffusion_folder(base, tmp_path):
    assert tune(base, tmp_path, *flags_for(base, "stable-diffusion", "--max_train_steps", "1")) == 0
    index = json.loads((tmp_path / "pipeline" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    plain = StableDiffusionPipeline.from_pretrained(tmp_path / "pipeline", safety_checker=None)
    assert type(plain) is StableDiffusionPipeline and type(plain.scheduler).__name__ == "PNDMScheduler"
    plain.set_progress_bar_config(disable=True)
    assert plain("OCT: fluid", num_inference_steps=2, output_type="np").images.shape == (1, 32, 32, 3)


def test_stable_diffusion_resumes_bit_for_bit(base, tmp_path):
    flags = flags_for(base, "stable-diffusion", "--checkpointing_steps", "2", "--input_perturbation", "0.1")
    assert tune(base, tmp_path / "whole", *flags) == 0
    assert tune(base, tmp_path / "parts", *flags, "--max_train_steps", "2") == 0
    assert tune(base, tmp_path / "parts", *flags, "--resume_from_checkpoint", "latest") == 0
    assert folder_files(tmp_path / "parts" / "pipeline") == folder_files(tmp_path / "whole" / "pipeline")


@pytest.mark.parametrize("model", MODELS)
def test_a_text_encoder_trained_in_an_earlier_phase_stays_with_its_unet(base, tmp_path, model):
    first = flags_for(base, model, "--train_text_encoder", "--max_train_steps", "2")
    assert tune(base, tmp_path / "first", *first) == 0
    trained = tmp_path / "first" / "checkpoint-2"
    assert largest_difference(trained / "text_encoder", tmp_path / "first" / "pipeline" / "text_encoder") == 0
    assert any(
        not torch.equal(after, tensors(base / model / "text_encoder")[name])
        for name, after in tensors(trained / "text_encoder").items()
    )
    second = flags_for(base, model, "--resume_from_checkpoint", str(trained), "--resolution", "48")
    assert tune(base, tmp_path / "second", *second, "--max_train_steps", "3") == 0
    kept = tmp_path / "second" / "pipeline"
    assert largest_difference(kept / "text_encoder", trained / "text_encoder") == 0
    assert largest_difference(kept / "unet", trained / "unet") > 0
    assert json.loads((kept / "unet" / "config.json").read_text())["sample_size"] == 12  # 48 px


# --- adapters ---


@pytest.fixture(scope="module")
def adapted(base) -> dict[str, Path]:
    """A run with adapters of UNet and text encoder on each model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    outputs = {}
    for model in MODELS:
        outputs[model] = base / f"adapted-{model}"
        flags = flags_for(base, model, *LORA, "--train_text_encoder", "--checkpointing_steps", "1")
        assert tune(base, outputs[model], *flags) == 0
    torch.set_num_threads(threads)
    return outputs


@pytest.mark.parametrize("model", MODELS)
def test_an_adapter_is_all_that_a_checkpoint_holds_of_unet_and_text_encoder(adapted, model):
    checkpoint = adapted[model] / "checkpoint-3"
    verify_folder(checkpoint)
    conditioner = {"conditioner"} if model == "model" else set()
    assert folders_in(checkpoint) == {"lora", "tokenizer", "scheduler"} | conditioner
    with safe_open(checkpoint / "lora" / FILE_NAME, framework="pt") as file:
        assert file.metadata()["rank"] == "2" and len(file.metadata()["base_weights_sha256"]) == 64
        names = list(file.keys())
        shapes = {min(file.get_tensor(name).shape) for name in names}
    assert shapes == {2}
    assert {name.split(".")[0] for name in names} == {"unet", "text_encoder"}


@pytest.mark.parametrize("model", MODELS)
def test_the_pipeline_holds_base_plus_product(base, adapted, model):
    """W + B A, by hand, where there is an adapter; the base's weights everywhere else."""
    with safe_open(adapted[model] / "checkpoint-3" / "lora" / FILE_NAME, framework="pt") as file:
        adapter = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    changed = 0
    for part in ("unet", "text_encoder"):
        before, after = tensors(base / model / part), tensors(adapted[model] / "pipeline" / part)
        assert before.keys() <= after.keys() and not any("lora" in name for name in after)
        for name, weight in before.items():
            down = next((key for key in adapter if key == f"{part}.{name.removesuffix('weight')}lora_A.weight"), None)
            if down is None:
                assert torch.equal(after[name], weight), name
                continue
            product = adapter[down.replace("lora_A", "lora_B")] @ adapter[down]
            assert product.abs().max() > 1e-5
            torch.testing.assert_close(after[name], weight + product, rtol=1e-5, atol=1e-6)
            changed += 1
    assert changed == len(adapter) // 2


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_with_an_adapter_draws_what_the_pipeline_draws(base, adapted, model):
    ours = drawn(base, base / model, adapted[model] / "checkpoint-3")
    assert abs(ours - drawn(base, adapted[model] / "pipeline")).max() <= 1
    assert abs(ours - drawn(base, base / model)).max() > 1
    assert abs(ours - drawn(base, base / model, adapted[model] / "checkpoint-1")).max() > 1


def test_diffusers_itself_reads_the_adapter(base, adapted):
    plain = StableDiffusionPipeline.from_pretrained(base / "stable-diffusion", safety_checker=None)
    plain.load_lora_weights(adapted["stable-diffusion"] / "checkpoint-3" / "lora")
    ours = load(base, "stable-diffusion", adapted["stable-diffusion"] / "checkpoint-3")
    assert isinstance(ours, PromptedStableDiffusion)
    ids = torch.tensor([[0, 5, 6, 1]])
    noise, time = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    with torch.no_grad():
        outputs = []
        for pipeline in (plain, ours):
            text = pipeline.text_encoder(input_ids=ids).last_hidden_state
            outputs.append((text, pipeline.unet(noise, time, encoder_hidden_states=text).sample))
    for theirs, mine in zip(*outputs, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "build"), zip(MODELS, (build_tiny_pipeline, build_tiny_stable_diffusion), strict=True)
)
def test_an_adapter_is_refused_by_another_base(base, adapted, tmp_path, model, build):
    """One of the same architecture and other weights, which would draw nonsense in silence."""
    build(seed=9).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelMismatch, match="was trained on another model"):
        load(tmp_path, "other", adapted[model] / "checkpoint-3")


def test_adapters_resume_bit_for_bit_with_their_averages(base, tmp_path):
    flags = flags_for(base, "model", *LORA, "--use_ema", "--checkpointing_steps", "1")
    assert tune(base, tmp_path / "whole", *flags) == 0
    assert tune(base, tmp_path / "parts", *flags, "--max_train_steps", "1") == 0
    assert tune(base, tmp_path / "parts", *flags, "--resume_from_checkpoint", "latest") == 0
    assert folder_files(tmp_path / "parts" / "pipeline") == folder_files(tmp_path / "whole" / "pipeline")
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    assert {"lora", "lora_ema", "conditioner", "conditioner_ema"} <= folders_in(checkpoint)
    average, raw = tensors(checkpoint / "lora_ema"), tensors(checkpoint / "lora")
    assert any(not torch.equal(average[name], raw[name]) for name in raw)
    served = drawn(base, tmp_path / "whole" / "pipeline")
    assert abs(drawn(base, base / "model", checkpoint) - served).max() <= 1, "the average is what is served"


def test_phases_with_adapters_and_without_do_not_mix(base, adapted, tmp_path, caplog):
    start = ("--resume_from_checkpoint", str(adapted["model"] / "checkpoint-3"), "--max_train_steps", "5")
    assert tune(base, tmp_path / "a", *flags_for(base, "model", *start)) == 1
    assert "the checkpoint was written with other flags" in caplog.text
    rank = ("--use_lora", "--rank", "3", "--train_text_encoder")
    assert tune(base, tmp_path / "b", *flags_for(base, "model", *start, *rank)) == 1
    assert "has rank 2. Give --rank 2." in caplog.text
    assert tune(base, tmp_path / "whole", *flags_for(base, "model", "--max_train_steps", "1")) == 0
    whole = ("--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-1"), "--use_lora")
    assert tune(base, tmp_path / "c", *flags_for(base, "model", *whole)) == 1
    assert "was written without --use_lora" in caplog.text


def test_only_the_rank_decides_how_much_is_trained(base, tmp_path):
    sizes = {}
    for rank in ("1", "2"):
        flags = flags_for(base, "stable-diffusion", *LORA[:1], "--rank", rank, "--max_train_steps", "1")
        assert tune(base, tmp_path / rank, *flags) == 0
        adapter = tensors(tmp_path / rank / "checkpoint-1" / "lora")
        sizes[rank] = sum(tensor.numel() for tensor in adapter.values())
    assert sizes["2"] == 2 * sizes["1"]
    assert all(loss > 0 for loss in losses(tmp_path / "2"))
