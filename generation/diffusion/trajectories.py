"""Images denoised side by side, each at a step of its own: what filtered generation draws with.

A *trajectory* is one image on its way from noise, with its own scheduler (multistep samplers remember earlier steps)
and its own random numbers. A *batch* gives the rows of many trajectories to the UNet at once, one timestep a row. A
guided step needs two rows, unconditional and conditional, any other step one. Room that falls free is taken by
the next trajectory at once.

**Bit for bit.** How a UNet rounds depends on the number of rows it is given (measured: every row of medsyn-tiny in
float32 changes with it), but at a fixed number a row's result depends on neither its place nor its company (float32
and bfloat16, one and two threads; tests/generation/test_trajectories.py). So every call has the same number of rows,
the last ones filled up with copies, and every text the same number of tokens. An image then is a function of prompt,
seed, parameters and that shape alone, whoever was drawn beside it, and is decoded by itself.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import SchedulerMixin
from PIL import Image
from torch import Tensor

from generation.diffusion.conditioning import Conditioning
from generation.diffusion.prompt_memory import PromptMemory
from generation.diffusion.sampling import (
    WHOLE_RUN,
    guided_steps,
    image_generators,
    initial_latents,
    make_scheduler,
    takes_generator,
)
from generation.diffusion.text_to_image import TextToImage, to_pil


@dataclass(frozen=True)
class BatchShape:
    """What every call of the UNet looks like; an image is drawn again in the same one."""

    rows: int  # of each call
    tokens: int  # of each text, padded


@dataclass(frozen=True)
class Sampling:
    """How each trajectory goes; as the parameters of `TextToImage.draw`."""

    num_inference_steps: int = 50
    guidance_scale: float = 7.5  # 1 and below: no guidance
    guidance_interval: tuple[float, float] = WHOLE_RUN
    negative_prompt: str = ""
    scheduler: str = "dpm"
    height: int | None = None  # pixels; None: the model's own
    width: int | None = None  # pixels; None: the model's own

    @property
    def rows_of_a_guided_step(self) -> int:
        return 2 if self.guidance_scale > 1 else 1


class Trajectory:
    """One image on its way."""

    def __init__(self, number: int, seed: int, prompt: str, given: Conditioning, scheduler: SchedulerMixin):
        self.number = number
        self.prompt = prompt
        self.given = given  # conditioning of its prompt, one row
        self.scheduler = scheduler  # its own, timesteps set
        self.generator = image_generators([seed])[0]
        self.latents: Tensor = torch.empty(0)  # (1, C, h, w), set by the batch
        self.done = 0  # steps
        self.unet_evaluations = 0
        # What the last step's prediction says, for gates. (C, h, w): the clean latents as they look from here.
        self.clean_estimate: Tensor | None = None
        self.guidance_distance = 0.0  # root mean square of conditional minus unconditional output; 0: not guided

    @property
    def total(self) -> int:
        return len(self.scheduler.timesteps)

    @property
    def timestep(self) -> Tensor:
        return self.scheduler.timesteps[self.done]


class TrajectoryBatch:
    """Trajectories of one model that share the calls of its UNet.

    ``keep(trajectories)`` is asked after each call about those it moved on and that have steps left; where it says
    no for one, that one ends without an image. ``on_step(done, total)`` follows each call with the place of the
    oldest trajectory in it; what it raises ends the drawing.
    """

    def __init__(
        self,
        model: TextToImage,
        sampling: Sampling,
        shape: BatchShape,
        *,
        memory: PromptMemory | None = None,
        keep: Callable[[Sequence[Trajectory]], Sequence[bool]] | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ):
        self.model, self.sampling, self.shape = model, sampling, shape
        if shape.rows < sampling.rows_of_a_guided_step:
            raise ValueError(f"A batch of {shape.rows} row has no room for a guided step, which needs two.")
        self.latent_shape = model.latent_shape(sampling.height, sampling.width)
        self._memory = memory or PromptMemory(model)
        self._keep, self._on_step = keep, on_step
        self._scheduler = make_scheduler(sampling.scheduler, model.scheduler.config)
        self._scheduler.set_timesteps(sampling.num_inference_steps, device=model.device)
        self._takes_noise = takes_generator(self._scheduler)
        total = len(self._scheduler.timesteps)
        self._guided = guided_steps(total, sampling.guidance_interval)
        self._without: Conditioning | None = None
        if sampling.guidance_scale > 1 and any(self._guided):
            self._without = self._memory.unconditional(1, sampling.negative_prompt).padded(shape.tokens)
        else:
            self._guided = [False] * total
        self.under_way: list[Trajectory] = []  # the oldest first
        self.padding = 0  # rows that held copies, so far: the price of a fixed shape

    # --- which rows ---

    def _rows_of(self, trajectory: Trajectory) -> int:
        return 2 if self._guided[trajectory.done] else 1

    def _next_call(self) -> tuple[list[Trajectory], int]:
        """The trajectories that move in the next call, the oldest first, and the rows that are left over."""
        moving, left = [], self.shape.rows
        for trajectory in self.under_way:
            rows = self._rows_of(trajectory)
            if rows <= left:
                moving.append(trajectory)
                left -= rows
        return moving, left

    def has_room(self) -> bool:
        """Whether one more trajectory would move in the next call."""
        _, left = self._next_call()
        return left >= (2 if self._guided[0] else 1)

    # --- beginning and ending ---

    def begin(self, number: int, *, prompt: str, seed: int) -> None:
        """Let a trajectory set off; ``number`` is its name. Raises PromptError."""
        given = self._memory.conditioning([prompt]).padded(self.shape.tokens)
        trajectory = Trajectory(number, seed, prompt, given, copy.deepcopy(self._scheduler))
        noise = initial_latents([trajectory.generator], self.latent_shape).to(self.model.device)
        trajectory.latents = noise * trajectory.scheduler.init_noise_sigma
        self.under_way.append(trajectory)

    def give_up(self, number: int) -> int:
        """End a trajectory without an image; the UNet evaluations it used."""
        (trajectory,) = [one for one in self.under_way if one.number == number]
        self.under_way.remove(trajectory)
        return trajectory.unet_evaluations

    # --- moving ---

    @torch.inference_mode()
    def step(self) -> tuple[list[Trajectory], list[Trajectory]]:
        """One call of the UNet: those that are finished now, and those that ``keep`` ended."""
        moving, left = self._next_call()
        self._move(moving)
        self.padding += left
        if self._on_step is not None:
            self._on_step(moving[0].done, moving[0].total)
        finished = [one for one in moving if one.done == one.total]
        asked = [one for one in moving if one.done < one.total]
        stopped = []
        if self._keep is not None and asked:
            kept = self._keep(asked)
            stopped = [one for one, is_kept in zip(asked, kept, strict=True) if not is_kept]
        gone = {one.number for one in (*finished, *stopped)}
        self.under_way = [one for one in self.under_way if one.number not in gone]
        return finished, stopped

    def _move(self, moving: Sequence[Trajectory]) -> None:
        inputs, timesteps, texts = [], [], []
        for one in moving:
            scaled = one.scheduler.scale_model_input(one.latents, one.timestep)
            branches = [self._without, one.given] if self._guided[one.done] else [one.given]
            texts += branches
            inputs += [scaled] * len(branches)
            timesteps += [one.timestep] * len(branches)
        missing = self.shape.rows - len(texts)
        inputs, timesteps = inputs + inputs[:1] * missing, timesteps + timesteps[:1] * missing
        texts += texts[:1] * missing
        outputs = self.model.denoise(torch.cat(inputs), torch.stack(timesteps), Conditioning.joined(texts))
        row = 0
        for one in moving:
            rows = self._rows_of(one)
            self._advance(one, inputs[row], outputs[row : row + rows])
            row += rows

    def _advance(self, one: Trajectory, scaled: Tensor, outputs: Tensor) -> None:
        """Guidance (Ho and Salimans 2022, u + g (c - u)) and one step of its scheduler; outputs (1 or 2, C, h, w)."""
        output, one.guidance_distance = outputs[-1:], 0.0
        if len(outputs) == 2:
            difference = outputs[1:] - outputs[:1]
            output = outputs[:1] + self.sampling.guidance_scale * difference
            one.guidance_distance = difference.square().mean().sqrt().item()
        if self._keep is not None:
            one.clean_estimate = clean_estimate(one.scheduler, scaled, output, one.timestep)[0]
        noise = {"generator": [one.generator]} if self._takes_noise else {}
        one.latents = one.scheduler.step(output, one.timestep, one.latents, **noise).prev_sample
        one.unet_evaluations += len(outputs)
        one.done += 1

    @torch.inference_mode()
    def image(self, trajectory: Trajectory) -> Tensor:
        """The picture of a finished trajectory, (3, H, W) float32 in [0, 1], on the CPU: decoded by itself."""
        return self.model.decode_latents(trajectory.latents)[0].cpu()

    def picture(self, trajectory: Trajectory) -> Image.Image:
        """The same as 8-bit RGB."""
        return to_pil(self.image(trajectory)[None])[0]


def clean_estimate(scheduler: SchedulerMixin, scaled: Tensor, output: Tensor, timestep: Tensor) -> Tensor:
    """The clean latents that a prediction implies, x_t = a x_0 + s e with a^2 the cumulative alpha of the timestep.

    ``scaled`` is x_t as the UNet sees it and ``output`` the guided prediction, both (B, C, h, w). Fractional
    timesteps (Euler's) lie between two alphas, interpolated linearly. Where a = 0 and the model predicts the noise
    nothing can be said of x_0; a is kept from 0 there.
    """
    alphas = scheduler.alphas_cumprod.to(output)
    position = timestep.to(output).clamp(0, len(alphas) - 1)
    low = position.floor().long()
    high = (low + 1).clamp(max=len(alphas) - 1)
    cumulative = torch.lerp(alphas[low], alphas[high], position - low)
    signal, noise = cumulative.sqrt(), (1 - cumulative).sqrt()
    match scheduler.config.prediction_type:
        case "v_prediction":
            return signal * scaled - noise * output
        case "epsilon":
            return (scaled - noise * output) / signal.clamp(min=1e-2)
        case "sample":
            return output
        case other:
            raise ValueError(f"Prediction type {other!r} is unknown: no clean image can be estimated from it.")
