"""Number formats: which one a device gets, and how far half precision is from float32."""

import pytest
import torch

from generation.diffusion.loading import ModelSource, load_generator
from generation.diffusion.pipeline import MedSynPipeline
from generation.diffusion.precision import choose_precision, fastest_precision
from generation.diffusion.sampling import SCHEDULERS
from tests.generation.test_sampling import PROMPTS
from tests.tiny_models import build_tiny_stable_diffusion, tiny_pipeline

CPU = torch.device("cpu")
# bfloat16 has 8 bits of mantissa: a prediction is wrong by 2^-9 of itself, guidance multiplies that.
BF16_FROM_FLOAT32 = 0.05  # root mean square over an image, random weights, guidance 3
BF16_ALONE_OR_TOGETHER = 0.02  # the same between a batch of 1 and of 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def half(folder):
    return load_generator(ModelSource(str(folder)), device="cpu", precision="bfloat16").pipeline


def rms(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).square().mean().sqrt())


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": False, "avx512_f": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_on_a_processor_asks_for_its_instructions(instructions, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    assert choose_precision("auto", CPU) == fastest_precision(CPU) == expected


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16), ((6, 1), torch.float32)],
)
def test_auto_on_a_gpu_asks_for_its_capability(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", torch.device("cuda:0")) == expected


def test_an_unknown_precision_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="float32, float16, bfloat16, auto"):
        choose_precision("int8", CPU)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_bfloat16_draws_nearly_what_float32_draws_alone_and_among_eight(half, name):
    parameters = {"scheduler": name, "num_inference_steps": 6, "guidance_scale": 3.0, "output_type": "pt"}
    seeds = list(range(40, 48))
    together = half(PROMPTS, seeds=seeds, **parameters)
    assert rms(together, tiny_pipeline()(PROMPTS, seeds=seeds, **parameters)) < BF16_FROM_FLOAT32
    for index in (0, 5):
        alone = half(PROMPTS[index], seeds=[seeds[index]], **parameters)
        assert rms(alone[0], together[index]) < BF16_ALONE_OR_TOGETHER


def test_in_half_precision_latents_scheduler_and_statistics_stay_float32(half, monkeypatch):
    seen = []
    denoise, decode = half.denoise, half.decode_latents
    monkeypatch.setattr(half, "denoise", lambda latents, *rest: seen.append(latents.dtype) or denoise(latents, *rest))
    monkeypatch.setattr(half, "decode_latents", lambda latents: seen.append(latents.dtype) or decode(latents))
    images = half(PROMPTS[0], seeds=[1], num_inference_steps=3, output_type="pt")
    assert half.unet.dtype == half.vae.dtype == torch.bfloat16
    assert set(seen) == {torch.float32} and images.dtype == torch.float32
    mean, deviation = half._latent_statistics(torch.zeros(1, 4, 2, 2))
    assert mean.dtype == deviation.dtype == torch.float32


def test_a_half_precision_pipeline_can_be_saved_and_stable_diffusion_loaded_so(half, tmp_path):
    half.save_pretrained(tmp_path / "half")
    again = MedSynPipeline.from_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    assert torch.equal(again.unet.conv_in.weight, half.unet.conv_in.weight)
    build_tiny_stable_diffusion().save_pretrained(tmp_path / "sd")
    pipeline = load_generator(ModelSource(str(tmp_path / "sd")), device="cpu", precision="bfloat16").pipeline
    images = pipeline(PROMPTS[:2], seeds=[1, 2], num_inference_steps=2, output_type="pt")
    assert images.isfinite().all() and images.std() > 0
