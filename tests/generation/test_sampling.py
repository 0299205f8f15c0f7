"""The samplers: against closed-form solutions, and the same seed in any batch."""

import pytest
import torch
from diffusers import PNDMScheduler

from generation.diffusion.conditioning import Conditioning
from generation.diffusion.presets import build_scheduler
from generation.diffusion.sampling import (
    SCHEDULERS,
    guided_steps,
    image_generators,
    initial_latents,
    make_scheduler,
    sample,
)
from tests.tiny_models import tiny_pipeline

SHAPE = (4, 8, 8)
PROMPTS = [
    "Fundus: left eye with hard exudates",
    "OCT: macular hole",
    "Chest X-ray: cardiomegaly, frontal view, enlarged heart",
    "Chest CT: left lung nodule",
    "Brain MRI: axial T1, hydrocephalus",
    "Breast MRI: implants",
    "MRI: lumbar spine",
    "Chest X-ray: no abnormality",
]


def some_conditioning(batch: int, length: int = 3, value: float = 0.0) -> Conditioning:
    tokens = torch.full((batch, length, 8), value)
    return Conditioning(tokens, torch.ones(batch, length, dtype=torch.bool), tokens.mean(1))


def draw(name, denoise, *, seeds=(1, 2), steps=25, guidance=1.0, prediction_type="v_prediction", **others):
    """Latents from standard noise under a denoiser of our own."""
    return run(name, denoise, seeds, steps, guidance, prediction_type, **others).latents


def run(name, denoise, seeds=(1, 2), steps=25, guidance=1.0, prediction_type="v_prediction", **others):
    generators = image_generators(seeds)
    return sample(
        denoise,
        make_scheduler(name, build_scheduler(prediction_type).config),
        initial_latents(generators, SHAPE),
        some_conditioning(len(seeds)),
        some_conditioning(len(seeds), value=1.0),
        guidance_scale=guidance,
        num_inference_steps=steps,
        generators=generators,
        **others,
    )


def perfect_denoiser(clean: torch.Tensor, prediction_type: str = "v_prediction"):
    """What a model says that knows the one clean latent (C, h, w) of its data set.

    x = alpha x0 + sigma e, so e = (x - alpha x0) / sigma and v = alpha e - sigma x0.
    """
    signal = build_scheduler(prediction_type).alphas_cumprod

    def denoise(latents, timestep, conditioning):
        position = float(timestep)
        low = min(int(position), len(signal) - 1)
        share = position - int(position)
        squared = signal[low] * (1 - share) + signal[min(low + 1, len(signal) - 1)] * share
        alpha, sigma = squared.sqrt(), (1 - squared).sqrt()
        noise = (latents - alpha * clean) / sigma
        return noise if prediction_type == "epsilon" else alpha * noise - sigma * clean

    return denoise


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_perfect_denoiser_leads_to_its_clean_latent(name, prediction_type):
    clean = torch.linspace(-1.5, 1.5, 4 * 8 * 8).view(SHAPE)
    result = draw(name, perfect_denoiser(clean, prediction_type), prediction_type=prediction_type)
    # The last timestep of DDIM and PNDM is not quite free of noise: sigma there is 0.03.
    assert (result - clean).abs().max() < 0.15
    assert (result - clean).square().mean().sqrt() < 0.05


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_seed_makes_the_same_image_alone_and_among_eight(name):
    pipeline = tiny_pipeline()
    seeds = list(range(40, 48))
    parameters = {"scheduler": name, "num_inference_steps": 6, "output_type": "pt"}
    together = pipeline(PROMPTS, seeds=seeds, **parameters)
    for index in (0, 5):
        alone = pipeline(PROMPTS[index], seeds=[seeds[index]], **parameters)
        torch.testing.assert_close(alone[0], together[index], atol=1e-4, rtol=0)
    assert (together[0] - together[1]).abs().max() > 0.01, "different seeds and prompts must differ"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_latents_stay_finite_from_one_step_to_fifty(name):
    clean = torch.zeros(SHAPE)
    for steps in (1, 2, 50):
        assert draw(name, perfect_denoiser(clean), steps=steps).isfinite().all()


def test_guidance_extrapolates_in_one_call_of_both_branches():
    calls = []

    def denoise(latents, timestep, conditioning):
        calls.append(latents.shape[0])
        return conditioning.tokens[:, :1, :1, None].expand(-1, *SHAPE) * 0.25

    # Unconditional tokens are 1, conditional ones 0: the guided output is 0.25 (1 + g (0 - 1)) everywhere.
    guided = draw("ddim", denoise, guidance=3.0, steps=4)
    expected = draw("ddim", lambda latents, *_: torch.full_like(latents, 0.25 * (1 - 3.0)), steps=4)
    torch.testing.assert_close(guided, expected)
    assert calls == [4, 4, 4, 4]


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_guidance_of_one_or_less_costs_one_branch(guidance):
    sizes = []
    draw("dpm", lambda latents, *_: sizes.append(len(latents)) or latents, guidance=guidance, steps=3)
    assert set(sizes) == {2}


# --- guidance interval ---


@pytest.mark.parametrize(
    ("total", "interval", "guided"),
    [
        (10, (0.0, 1.0), range(10)),
        (10, (0.2, 0.8), range(2, 8)),  # the middle 60 %
        (12, (0.2, 0.8), range(2, 10)),
        (20, (0.2, 0.8), range(4, 16)),
        (4, (0.5, 1.0), (2, 3)),
        (1, (0.2, 0.8), (0,)),
        (3, (0.0, 0.1), ()),
    ],
)
def test_a_step_is_guided_where_its_middle_lies_in_the_interval(total, interval, guided):
    assert [step for step, is_guided in enumerate(guided_steps(total, interval)) if is_guided] == list(guided)


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.8, 0.2), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0)])
def test_an_interval_that_is_none_is_refused(interval):
    with pytest.raises(ValueError, match="guidance interval"):
        guided_steps(10, interval)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_outside_the_interval_the_model_is_asked_for_one_branch_and_every_evaluation_is_counted(name):
    sizes = []

    def denoise(latents, timestep, conditioning):
        assert len(conditioning.tokens) == len(latents)
        sizes.append(len(latents) // 2)  # two images: evaluations for each
        return latents

    sampled = run(name, denoise, guidance=3.0, guidance_interval=(0.25, 0.75), steps=8)
    expected = [1, 1, 2, 2, 2, 2, 2, 1, 1] if name == "pndm" else [1, 1, 2, 2, 2, 2, 1, 1]  # PNDM asks twice at first
    assert sizes == expected
    assert sampled.unet_evaluations == sum(expected)


def test_evaluations_are_counted_with_and_without_guidance():
    same = lambda latents, *_: latents  # noqa: E731 - any model
    assert run("dpm", same, steps=7, guidance=1.0).unet_evaluations == 7
    assert run("dpm", same, steps=7, guidance=1.1).unet_evaluations == 14
    assert run("dpm", same, steps=7, guidance=5.0, guidance_interval=(0.0, 0.05)).unet_evaluations == 7


def test_guidance_acts_inside_the_interval_only():
    """One DDIM step after the other, by hand: conditional tokens are 0, unconditional ones 1."""

    def denoise(latents, timestep, conditioning):
        return latents * 0.1 + conditioning.tokens[:, :1, :1, None].expand(-1, *SHAPE)

    result = draw("ddim", denoise, guidance=3.0, guidance_interval=(0.5, 1.0), steps=4)
    scheduler = make_scheduler("ddim", build_scheduler("v_prediction").config)
    scheduler.set_timesteps(4)
    latents = initial_latents(image_generators((1, 2)), SHAPE)
    for step, timestep in enumerate(scheduler.timesteps):
        output = latents * 0.1 + (0.0 if step < 2 else 1 + 3.0 * (0 - 1))
        latents = scheduler.step(output, timestep, latents).prev_sample
    torch.testing.assert_close(result, latents)


def test_branches_of_different_length_are_padded_with_masked_tokens():
    both = some_conditioning(2, length=3).followed_by(some_conditioning(1, length=5))
    assert both.tokens.shape == (3, 5, 8)
    assert both.mask.sum(1).tolist() == [3, 3, 5]
    assert both.pooled.shape == (3, 8)


def test_progress_counts_to_the_end_and_may_cancel():
    seen = []
    draw("dpm", lambda latents, *_: latents, steps=5, on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]

    def cancel(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw("dpm", lambda latents, *_: latents, on_step=cancel)


def test_ancestral_noise_comes_from_the_images_own_generators():
    zero = lambda latents, *_: torch.zeros_like(latents)  # noqa: E731 - a model that says nothing
    first = draw("euler_a", zero, seeds=(7, 8), steps=5)
    torch.testing.assert_close(first, draw("euler_a", zero, seeds=(8, 7), steps=5).flip(0))
    torch.rand(3)  # the global generator plays no part
    torch.testing.assert_close(first, draw("euler_a", zero, seeds=(7, 8), steps=5))


def test_prediction_type_and_betas_come_from_the_model():
    for name in SCHEDULERS:
        assert make_scheduler(name, build_scheduler("epsilon").config).config.prediction_type == "epsilon"
        scheduler = make_scheduler(name, build_scheduler("v_prediction").config)
        assert scheduler.config.prediction_type == "v_prediction"
        assert float(scheduler.alphas_cumprod[-1]) < 1e-6, "zero terminal SNR"


def test_stable_diffusion_keeps_its_own_spacing():
    config = PNDMScheduler(skip_prk_steps=True, steps_offset=1, timestep_spacing="leading").config
    scheduler = make_scheduler("dpm", config)
    assert scheduler.config.timestep_spacing == "leading"
    assert scheduler.config.steps_offset == 1


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="dpm, euler_a, euler, pndm, ddim"):
        make_scheduler("heun", build_scheduler("epsilon").config)


def test_every_image_needs_a_generator_and_a_prompt():
    generators = image_generators([1, 2])
    with pytest.raises(ValueError, match="one of each"):
        sample(
            lambda latents, *_: latents,
            make_scheduler("dpm", build_scheduler("epsilon").config),
            initial_latents(generators, SHAPE),
            some_conditioning(3),
            None,
            guidance_scale=1,
            num_inference_steps=2,
            generators=generators,
        )
