"""Loading generators: what is asked for comes, or an error says what is missing; nothing else takes its place."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from generation.diffusion import loading
from generation.diffusion.loading import (
    DEFAULT_MODEL_DIR,
    ModelMismatch,
    ModelNotFound,
    ModelSource,
    choose_device,
    choose_precision,
    load_generator,
)
from generation.diffusion.lora import Adapter, add_adapter
from generation.diffusion.pipeline import MedSynPipeline
from generation.diffusion.sampling import SCHEDULERS
from generation.diffusion.text_to_image import to_pil
from generation.embedded_model import EMBEDDED_MODEL_DIR, draws_phantoms
from medsyn.modalities import PromptError
from tests.tiny_models import build_tiny_pipeline, build_tiny_stable_diffusion

PROMPT = "Fundus: left eye with hard exudates"
QUICK = {"num_inference_steps": 3}


@pytest.fixture(scope="module")
def medsyn_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "little"
    build_tiny_pipeline(seed=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stable_diffusion_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "little-sd"
    build_tiny_stable_diffusion(seed=1).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(tmp_path):
    """A copy of a model's folder that a test may spoil."""
    return lambda folder: shutil.copytree(folder, tmp_path / folder.name)


def load(folder, model_used=None, **options):
    source = ModelSource(str(folder), None if model_used is None else str(model_used))
    return load_generator(source, device="cpu", **options)


def pixels(images):
    return [image.tobytes() for image in images]


# --- pipelines ---


def test_a_medsyn_folder_draws_what_the_pipeline_itself_draws(medsyn_folder):
    generator = load(medsyn_folder)
    assert (generator.name, generator.folder) == ("little", medsyn_folder)
    expected = to_pil(build_tiny_pipeline(seed=1)(PROMPT, seeds=[4], output_type="pt", **QUICK))
    assert pixels(generator.generate([PROMPT], [4], **QUICK)) == pixels(expected)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_stable_diffusion_draws_the_same_alone_and_in_a_batch(stable_diffusion_folder, scheduler):
    generator = load(stable_diffusion_folder)
    scheduler_before = generator.pipeline.scheduler
    parameters = {"num_inference_steps": 4, "scheduler": scheduler}
    together = generator.generate([PROMPT, "OCT: drusen", PROMPT], [1, 2, 3], **parameters)
    (alone,) = generator.generate([PROMPT], [3], **parameters)
    difference = [abs(a - b) for a, b in zip(alone.tobytes(), together[2].tobytes(), strict=True)]
    assert max(difference) <= 1, "at most rounding to 8 bits"
    assert together[0].tobytes() != together[2].tobytes(), "another seed, another image"
    assert generator.pipeline.scheduler is scheduler_before


@pytest.mark.parametrize("folder", ["medsyn_folder", "stable_diffusion_folder"])
def test_both_pipelines_take_the_same_call(folder, request):
    generator = load(request.getfixturevalue(folder))
    seen = []
    images = generator.generate(
        [PROMPT] * 2,
        [1, 2],
        num_inference_steps=3,
        guidance_scale=2.0,
        negative_prompt="blurred",
        scheduler="ddim",
        height=48,
        width=64,
        on_step=lambda done, total: seen.append((done, total)),
    )
    assert [image.size for image in images] == [(64, 48)] * 2
    assert seen == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(PromptError):
        generator.generate(["no prefix"], [1], **QUICK)
    with pytest.raises(ValueError, match="2 prompts and 1 seeds"):
        generator.generate([PROMPT] * 2, [1], **QUICK)

    def cancel(done, total):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        generator.generate([PROMPT], [1], on_step=cancel, **QUICK)


def test_the_embedded_model_is_what_no_name_means(monkeypatch, medsyn_folder):
    monkeypatch.setattr(loading, "DEFAULT_MODEL_DIR", medsyn_folder)
    assert load_generator(ModelSource(), device="cpu").folder == medsyn_folder


# --- what is not there ---


def test_a_missing_folder_is_named_with_the_embedded_model(tmp_path):
    with pytest.raises(ModelNotFound, match=r"no model folder .*nowhere.*medsyn-tiny"):
        load(tmp_path / "nowhere")


def test_a_folder_without_a_pipeline_is_named(tmp_path):
    with pytest.raises(ModelNotFound, match=r"model_index\.json is missing\. Fill this folder"):
        load(tmp_path)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_a_hub_model_is_not_downloaded_and_nothing_takes_its_place(variable, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFound) as caught:
        load("runwayml/stable-diffusion-v1-5")
    message = str(caught.value)
    assert str(tmp_path / "models--runwayml--stable-diffusion-v1-5") in message, "the folder to fill"
    assert "HF_HUB_OFFLINE" in message and "medsyn-tiny" in message


def test_a_missing_part_is_an_error(copied, medsyn_folder):
    folder = copied(medsyn_folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match="incomplete"):
        load(folder)


def test_pickled_weights_are_not_read(copied, medsyn_folder):
    folder = copied(medsyn_folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), folder / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelNotFound, match="incomplete"):
        load(folder)


def test_other_pipelines_are_refused_by_their_class(copied, medsyn_folder):
    folder = copied(medsyn_folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
    with pytest.raises(ModelMismatch, match="FluxPipeline"):
        load(folder)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(ModelMismatch, match="not valid JSON"):
        load(folder)


# --- checkpoints ---


def write_checkpoint(folder, pipeline, *parts):
    for name in parts:
        getattr(pipeline, name).save_pretrained(folder / name)
    return folder


def test_a_checkpoint_brings_its_text_encoder_conditioner_and_tokenizer(medsyn_folder, tmp_path):
    """The predecessors put a checkpoint's UNet beside the base model's text encoder."""
    tuned = build_tiny_pipeline(seed=2)
    tuned.vae.load_state_dict(build_tiny_pipeline(seed=1).vae.state_dict())
    checkpoint = write_checkpoint(
        tmp_path / "checkpoint-40", tuned, "unet", "conditioner", "text_encoder", "tokenizer"
    )
    generator = load(medsyn_folder, checkpoint)
    assert generator.name == "little + checkpoint-40"
    assert isinstance(generator.pipeline, MedSynPipeline)
    expected = to_pil(tuned(PROMPT, seeds=[4], output_type="pt", **QUICK))
    assert pixels(generator.generate([PROMPT], [4], **QUICK)) == pixels(expected)
    assert generator.weights_sha256 != load(medsyn_folder).weights_sha256


@pytest.mark.parametrize("within", ["", "unet"])
def test_a_unet_alone_is_put_in(medsyn_folder, tmp_path, within):
    tuned = build_tiny_pipeline(seed=2).unet
    tuned.save_pretrained(tmp_path / "mine" / within)
    unet = load(medsyn_folder, tmp_path / "mine").pipeline.unet
    assert torch.equal(unet.conv_in.weight, tuned.conv_in.weight)


def test_moving_averages_are_preferred(medsyn_folder, tmp_path):
    write_checkpoint(tmp_path, build_tiny_pipeline(seed=2), "unet", "conditioner")
    averaged = build_tiny_pipeline(seed=3)
    averaged.unet.save_pretrained(tmp_path / "unet_ema")
    averaged.conditioner.save_pretrained(tmp_path / "conditioner_ema")
    pipeline = load(medsyn_folder, tmp_path).pipeline
    assert torch.equal(pipeline.unet.conv_in.weight, averaged.unet.conv_in.weight)
    assert torch.equal(pipeline.conditioner.projection.weight, averaged.conditioner.projection.weight)


def test_a_stable_diffusion_checkpoint_is_put_in(stable_diffusion_folder, tmp_path):
    tuned = build_tiny_stable_diffusion(seed=2)
    write_checkpoint(tmp_path / "checkpoint-8", tuned, "unet", "text_encoder")
    generator = load(stable_diffusion_folder, tmp_path / "checkpoint-8")
    assert torch.equal(generator.pipeline.unet.conv_in.weight, tuned.unet.conv_in.weight)
    assert len(generator.generate([PROMPT], [1], **QUICK)) == 1


def test_another_architecture_is_refused_with_the_keys_that_differ(medsyn_folder, stable_diffusion_folder):
    with pytest.raises(ModelMismatch) as caught:
        load(medsyn_folder, stable_diffusion_folder)
    message = str(caught.value)
    assert "class_embed_type: projection in the model, None there" in message
    assert "block_out_channels" not in message, "what is equal is not listed"


def test_weights_of_other_shapes_than_their_config_are_refused(medsyn_folder, tmp_path):
    write_checkpoint(tmp_path, build_tiny_pipeline(seed=2), "unet")
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_in.weight"] = torch.zeros(3, 3, 3, 3)
    save_file(weights, path)
    with pytest.raises(ModelMismatch, match="do not fit"):
        load(medsyn_folder, tmp_path)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["medsyn_folder", "stable_diffusion_folder"])
def test_an_adapter_is_merged_into_the_model_it_was_trained_on(kind, precision, request, tmp_path):
    """The output is that of the network with its side paths, at the size that was trained at."""
    folder = request.getfixturevalue(kind)
    base = load(folder)
    unet = base.pipeline.unet
    add_adapter(unet, rank=2, seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    unet.register_to_config(sample_size=12)
    Adapter.of({"unet": unet}, 2, base.weights_sha256).write(tmp_path / "lora")
    expected = base.pipeline(PROMPT, seeds=[1], output_type="pt", **QUICK)
    merged = load(folder, tmp_path, precision=precision)
    assert merged.pipeline.image_size == 48 and expected.shape[-1] == 48
    assert not any("lora" in name for name, _ in merged.pipeline.unet.named_parameters())
    drawn = merged.pipeline(PROMPT, seeds=[1], output_type="pt", **QUICK)
    assert (drawn - expected).abs().mean() < (1e-4 if precision == "float32" else 0.03)
    assert (
        load(folder).pipeline(PROMPT, seeds=[1], height=48, width=48, output_type="pt", **QUICK) - expected
    ).abs().mean() > 0.01
    assert merged.weights_sha256 != base.weights_sha256


def test_files_that_are_no_adapter_are_refused(medsyn_folder, tmp_path):
    (tmp_path / "lora").mkdir()
    with pytest.raises(ModelMismatch, match="cannot be read"):
        load(medsyn_folder, tmp_path)
    path = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    save_file({"unet.to_q.lora_A.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ModelMismatch, match="does not say its 'rank'"):
        load(medsyn_folder, tmp_path)
    record = {"rank": "2", "sample_size": "8", "base_weights_sha256": load(medsyn_folder).weights_sha256}
    save_file({"unet.to_q.lora_A.weight": torch.zeros(2, 2)}, path, metadata=record)
    with pytest.raises(ModelMismatch, match="does not fit the unet"):
        load(medsyn_folder, tmp_path)


def test_a_checkpoint_that_is_none_is_refused(medsyn_folder, tmp_path):
    with pytest.raises(ModelNotFound, match="no checkpoint folder"):
        load(medsyn_folder, tmp_path / "checkpoint-9")
    with pytest.raises(ModelNotFound, match="neither unet/ nor"):
        load(medsyn_folder, tmp_path)
    (tmp_path / "unet").mkdir()
    with pytest.raises(ModelNotFound, match="no UNet folder"):
        load(medsyn_folder, tmp_path)


def test_the_resolution_trained_at_is_no_architecture(copied, medsyn_folder, tmp_path):
    tuned = build_tiny_pipeline(seed=2).unet
    tuned.register_to_config(sample_size=16)
    tuned.save_pretrained(tmp_path / "checkpoint-1" / "unet")
    assert load(medsyn_folder, tmp_path / "checkpoint-1").pipeline.image_size == 64


# --- device, precision, digest ---


def test_devices_are_checked():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ValueError, match="Unknown device 'gpu'"):
        choose_device("gpu")
    with pytest.raises(ValueError, match="CUDA devices"):
        choose_device("cuda:99")


def test_half_precision_on_a_cpu_becomes_float32_with_a_warning(medsyn_folder, caplog):
    with caplog.at_level(logging.WARNING, logger="generation.diffusion.loading"):
        generator = load(medsyn_folder, precision="float16")
    assert generator.pipeline.unet.dtype == torch.float32
    assert "float16" in caplog.text
    with pytest.raises(ValueError, match="float32, float16, bfloat16"):
        choose_precision("int8", torch.device("cpu"))


def test_bfloat16_draws_nearly_the_same(medsyn_folder):
    exact = load(medsyn_folder).pipeline(PROMPT, seeds=[1], output_type="pt", **QUICK)
    generator = load(medsyn_folder, precision="bfloat16")
    assert generator.pipeline.unet.dtype == torch.bfloat16
    rough = generator.pipeline(PROMPT, seeds=[1], output_type="pt", **QUICK)
    assert (rough - exact).abs().mean() < 0.03


def test_the_digest_follows_the_weights_and_nothing_else(copied, medsyn_folder):
    digest = load(medsyn_folder).weights_sha256
    folder = copied(medsyn_folder)
    (folder / "README.md").write_text("A card.")
    assert load(folder).weights_sha256 == digest
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["decoder.conv_out.bias"] += 1
    save_file(weights, path, metadata={"format": "pt"})
    assert load(folder).weights_sha256 != digest


# --- the weights that lie in the repository ---


def test_medsyn_tiny_loads_and_tells_kinds_apart():
    generator = load(DEFAULT_MODEL_DIR)
    assert generator.pipeline.unet.dtype == torch.float32
    prompts = ["Fundus: left eye, no abnormality", "Brain MRI: axial T2, no abnormality"]
    fundus, brain = generator.generate(prompts, [1, 2], num_inference_steps=8, guidance_scale=3.0)
    assert fundus.size == (128, 128)
    colour = lambda image: sum(abs(r - b) for r, _, b in image.get_flattened_data()) / 128**2  # noqa: E731
    assert colour(fundus) > 40, "a fundus is red"
    assert colour(brain) < 15, "an MR image is grey"


def test_medsyn_tiny_fits_into_the_repository():
    weights = [path for path in DEFAULT_MODEL_DIR.rglob("*.safetensors")]
    assert 10e6 < sum(path.stat().st_size for path in weights) < 24e6
    assert {tensor.dtype for path in weights for tensor in load_file(path).values()} == {torch.float16}
    assert "not medical images" in (DEFAULT_MODEL_DIR / "README.md").read_text()


def test_the_embedded_model_says_that_it_draws_phantoms(medsyn_folder):
    assert draws_phantoms(EMBEDDED_MODEL_DIR)
    assert not draws_phantoms(medsyn_folder)
