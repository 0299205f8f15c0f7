"""From noise to latents: the samplers as one pure function over diffusers' schedulers.

Every image has a random generator of its own, on the CPU, for its first noise and for the noise that an ancestral
sampler adds on the way. So a seed makes the same image alone, in any batch and on any device (up to rounding).
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
)
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from torch import Tensor

from generation.diffusion.conditioning import Conditioning

SCHEDULERS: dict[str, type[SchedulerMixin]] = {
    "dpm": DPMSolverMultistepScheduler,  # DPM-Solver++(2M), Lu et al. 2022
    "euler_a": EulerAncestralDiscreteScheduler,
    "euler": EulerDiscreteScheduler,
    "pndm": PNDMScheduler,  # its linear multistep part (PLMS) only
    "ddim": DDIMScheduler,  # eta = 0
}

Denoiser = Callable[[Tensor, Tensor, Conditioning], Tensor]  # (B, C, h, w), timestep, conditioning -> (B, C, h, w)
StepCallback = Callable[[int, int], None]  # steps done, steps in all; may raise to cancel

WHOLE_RUN = (0.0, 1.0)  # guidance interval: every step is guided


@dataclass(frozen=True)
class Sampled:
    latents: Tensor  # (B, C, h, w), clean
    unet_evaluations: int  # for each of the images; a guided step counts twice


def make_scheduler(name: str, config: Mapping[str, Any]) -> SchedulerMixin:
    """The sampler ``name`` for a model trained under the scheduler config ``config``.

    Prediction type, betas, zero terminal SNR and spacing come from the config. Raises ValueError for other names.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"Unknown scheduler {name!r}. Known: {', '.join(SCHEDULERS)}.")
    # Clipping the predicted image is meant for pixels in [-1, 1]; latents have no such range.
    changes: dict[str, Any] = {"clip_sample": False, "thresholding": False}
    if name == "pndm":
        changes |= {"skip_prk_steps": True}
        if config.get("rescale_betas_zero_snr"):
            changes |= _pndm_for_zero_terminal_snr(config)
    return SCHEDULERS[name].from_config(dict(config), **changes)


def _pndm_for_zero_terminal_snr(config: Mapping[str, Any]) -> dict[str, Any]:
    """PNDM knows no zero terminal SNR: give it the rescaled betas, and let it start short of the last timestep.

    At the last timestep alpha is 0 and PNDM's formula (9) divides by it; "leading" spacing never visits it.
    """
    plain = PNDMScheduler.from_config({**config, "rescale_betas_zero_snr": False})
    betas = rescale_zero_terminal_snr(plain.betas)
    return {"trained_betas": betas.tolist(), "timestep_spacing": "leading", "steps_offset": 1}


def takes_generator(scheduler: SchedulerMixin) -> bool:
    """Whether its step asks for random generators (only ancestral samplers draw from them)."""
    return "generator" in inspect.signature(scheduler.step).parameters


def image_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator for each image."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def initial_latents(generators: Sequence[torch.Generator], shape: tuple[int, int, int]) -> Tensor:
    """Standard normal noise (B, C, h, w) in float32 on the CPU, image i drawn from generator i alone."""
    return torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators])


def guided_steps(total: int, interval: tuple[float, float]) -> list[bool]:
    """Which of ``total`` steps are guided: those whose middle, (i + 1/2) / total, lies in ``interval``.

    0 is where sampling starts, in pure noise, and 1 where it ends (Kynkaanniemi et al. 2024: guidance harms at high
    noise levels and does nothing at low ones). Raises ValueError for an interval that is none within 0..1.
    """
    start, end = interval
    if not 0 <= start < end <= 1:
        raise ValueError(f"The guidance interval {start:g} to {end:g} does not go upwards within 0 to 1.")
    return [start <= (step + 0.5) / total <= end for step in range(total)]


def sample(
    denoise: Denoiser,
    scheduler: SchedulerMixin,
    latents: Tensor,
    conditioning: Conditioning,
    unconditional: Conditioning | None,
    *,
    guidance_scale: float,
    num_inference_steps: int,
    generators: Sequence[torch.Generator],
    guidance_interval: tuple[float, float] = WHOLE_RUN,
    on_step: StepCallback | None = None,
) -> Sampled:
    """Denoise ``latents`` (B, C, h, w, unit normal, float32) under ``conditioning``.

    Classifier-free guidance (Ho and Salimans 2022): u + g (c - u), both branches in one call of ``denoise`` on
    2 B latents. A step outside ``guidance_interval`` costs the conditional branch only, and so does every step where
    guidance is at most 1 or there is no ``unconditional``. ``on_step(done, total)`` follows each step; what it
    raises ends the sampling.
    """
    if not len(latents) == len(generators) == len(conditioning.tokens):
        raise ValueError(
            f"{len(latents)} latents, {len(generators)} generators and {len(conditioning.tokens)} prompts: "
            "every image needs one of each."
        )
    scheduler.set_timesteps(num_inference_steps, device=latents.device)
    total = len(scheduler.timesteps)
    guided = guided_steps(total, guidance_interval)
    if unconditional is None or guidance_scale <= 1:
        guided = [False] * total
    both = unconditional.followed_by(conditioning) if any(guided) else None
    noise = {"generator": list(generators)} if takes_generator(scheduler) else {}
    latents = latents * scheduler.init_noise_sigma
    for step, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(latents, timestep)
        if guided[step]:
            without, given = denoise(torch.cat([scaled, scaled]), timestep, both).chunk(2)
            output = without + guidance_scale * (given - without)
        else:
            output = denoise(scaled, timestep, conditioning)
        latents = scheduler.step(output, timestep, latents, **noise).prev_sample
        if on_step is not None:
            on_step(step + 1, total)
    return Sampled(latents, total + sum(guided))
