"""Stable Diffusion through our sampling: what diffusers' own pipeline draws, from a folder that it wrote."""

import json
import logging
import warnings

import pytest
import torch
from diffusers import StableDiffusionPipeline

from generation.diffusion.loading import ModelSource, load_generator
from generation.diffusion.sampling import SCHEDULERS, image_generators, initial_latents
from tests.tiny_models import build_tiny_stable_diffusion

PROMPTS = ["Chest X-ray: cardiomegaly", "Brain MRI: left mass, T2 weighted axial slice", "OCT: drusen"]
SEEDS = [3, 14, 159]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Stable Diffusion folder as diffusers itself writes it."""
    folder = tmp_path_factory.mktemp("sd")
    build_tiny_stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    return load_generator(ModelSource(str(folder)), device="cpu").pipeline


def theirs(folder, scheduler: str, *, guidance_scale: float, negative_prompt: str, steps: int) -> torch.Tensor:
    """diffusers' own call at the same first noise, with the same generators for what comes after it."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    # Stable Diffusion's own scheduler_config.json says clip_sample: false; the tiny one leaves DDIM its default.
    pipeline.scheduler = SCHEDULERS[scheduler].from_config(pipeline.scheduler.config, clip_sample=False)
    generators = image_generators(SEEDS)
    images = pipeline(
        PROMPTS,
        negative_prompt=[negative_prompt] * len(PROMPTS),
        latents=initial_latents(generators, (4, 8, 8)),
        generator=generators,
        height=32,
        width=32,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        output_type="pt",
    ).images
    return images.float()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("guidance_scale", "negative_prompt"), [(7.5, ""), (3.0, "blurred"), (1.0, "")])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_images_are_those_of_diffusers_own_pipeline(folder, ours, scheduler, guidance_scale, negative_prompt):
    expected = theirs(folder, scheduler, guidance_scale=guidance_scale, negative_prompt=negative_prompt, steps=6)
    images = ours(
        PROMPTS,
        seeds=SEEDS,
        scheduler=scheduler,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        num_inference_steps=6,
        output_type="pt",
    )
    torch.testing.assert_close(images, expected, atol=2e-5, rtol=0)
    assert expected.std() > 0.01, "a picture of one grey would agree with anything"


def test_a_saved_folder_stays_what_diffusers_knows(ours, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    again = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None, requires_safety_checker=False)
    assert type(again) is StableDiffusionPipeline
    for name, weight in again.unet.state_dict().items():
        assert torch.equal(weight, ours.unet.state_dict()[name])


def test_a_prompt_longer_than_clip_reads_is_cut_with_a_warning_that_quotes_the_rest(ours, caplog):
    text = "Chest CT: " + "x " * 80 + "and a final remark"
    with caplog.at_level(logging.WARNING, logger="generation.diffusion"):
        features = ours.encode_text([text])
    assert features.tokens.shape[1] == ours.max_tokens == 77
    cut = ours.cut_off(text)
    assert cut.endswith("and a final remark") and text.endswith(cut)
    assert cut in caplog.text and "77 tokens" in caplog.text
    assert len(ours.tokenizer(text.removesuffix(cut))["input_ids"]) == 77, "all that fits is kept"
    # What is cut plays no part; what is kept does.
    torch.testing.assert_close(ours.encode_text([text.removesuffix(cut)]).tokens, features.tokens)
    assert ours.cut_off(PROMPTS[0]) == ""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_seed_makes_the_same_image_alone_and_among_eight(ours, scheduler):
    prompts = [*PROMPTS, "Fundus: glaucoma", "Chest CT: " + "left lung nodule, " * 4, *PROMPTS]
    seeds = list(range(60, 68))
    parameters = {"scheduler": scheduler, "num_inference_steps": 5, "guidance_interval": (0.2, 0.8)}
    together = ours(prompts, seeds=seeds, output_type="pt", **parameters)
    for index in (1, 4):
        alone = ours(prompts[index], seeds=[seeds[index]], output_type="pt", **parameters)
        torch.testing.assert_close(alone[0], together[index], atol=1e-4, rtol=0)
