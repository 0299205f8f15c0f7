"""Free trajectories for gates: drawn to their end, looked at on the way, judged by selector and policy. No ratings.

They lie in parts of some dozens as safetensors, each written whole, so that an interrupted collection goes on after
the last part. What a trajectory is follows from its number, so it goes on as if it had never stopped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from generation.diffusion.sampling import guided_steps, make_scheduler
from generation.diffusion.trajectories import Trajectory, TrajectoryBatch
from generation.production import Call, Models, as_tensor, filtered_shape, judge, sampling_of
from generation.scoring.gates import Views, text_summary, view_of
from generation.scoring.selector import kind_indices
from medsyn.artifacts import atomic_path
from medsyn.modalities import parse_prompt
from training.rlhf.gate_choice import Watched

_PART = 32  # trajectories
_EARLIEST, _LATEST, _MOST = 0.1, 0.75, 16  # of the run: before there is nothing to see, after nothing to save


@dataclass(frozen=True, eq=False, kw_only=True)
class Trajectories(Watched):
    """What there was to see of each trajectory after each step, and how its end was judged."""

    views: Views  # (N S,), those of a trajectory together
    scores: np.ndarray  # (N, 2) selector's serving score, policy's score

    def rows(self, index: np.ndarray) -> Tensor:
        """Positions in ``views`` of these trajectories, (len(index) S,)."""
        return torch.from_numpy(np.asarray(index)[:, None] * len(self.steps) + np.arange(len(self.steps))).flatten()


def steps_looked_at(total: int) -> tuple[int, ...]:
    """After which of ``total`` steps a gate may stand."""
    first, last = max(1, round(_EARLIEST * total)), max(1, min(total - 1, round(_LATEST * total)))
    return tuple(sorted({round(step) for step in np.linspace(first, last, min(_MOST, last - first + 1))}))


def collect(models: Models, call: Call, folder: Path, *, report: Callable[[int], None]) -> Trajectories:
    """One trajectory for each place of the (baseline) ``call``; ``report(done)`` follows each part."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = list(range(call.num_places))
    for start in range(0, len(numbers), _PART):
        path = folder / f"{start:06d}.safetensors"
        part = numbers[start : start + _PART]
        if not path.exists():
            tensors = _draw(models, call, part)
            with atomic_path(path) as temporary:
                save_file(tensors, temporary)
        report(start + len(part))
    return _read(models, call, folder)


def total_steps(models: Models, call: Call) -> tuple[int, np.ndarray]:
    """Steps of a trajectory and (total,) what each costs: PNDM takes one more than it is asked for."""
    wanted = sampling_of(call.parameters)
    scheduler = make_scheduler(wanted.scheduler, models.generator.pipeline.scheduler.config)
    scheduler.set_timesteps(wanted.num_inference_steps)
    total = len(scheduler.timesteps)
    guided = guided_steps(total, wanted.guidance_interval) if wanted.guidance_scale > 1 else [False] * total
    return total, 1 + np.array(guided, dtype=int)


def _draw(models: Models, call: Call, numbers: Sequence[int]) -> dict[str, Tensor]:
    total, _ = total_steps(models, call)
    steps = steps_looked_at(total)
    seen: dict[int, list[Views]] = {number: [] for number in numbers}
    texts = {prompt: text_summary(models.prompts.conditioning([prompt])) for prompt in call.prompts}

    def look(trajectories: Sequence[Trajectory]) -> list[bool]:
        for one in trajectories:
            if one.done in steps:
                seen[one.number].append(view_of(one, texts[one.prompt]))
        return [True] * len(trajectories)

    batch = TrajectoryBatch(
        models.generator.pipeline,
        sampling_of(call.parameters),
        filtered_shape(models, call),
        memory=models.prompts,
        keep=look,
    )
    waiting, pictures = list(numbers), {}
    while waiting or batch.under_way:
        while waiting and batch.has_room():
            number = waiting.pop(0)
            batch.begin(number, prompt=call.prompt_of(number), seed=call.seed + number)
        finished, _ = batch.step()
        pictures |= {one.number: batch.picture(one) for one in finished}
    ordered = [pictures[number] for number in numbers]
    return _as_tensors(
        [Views.joined(seen[number]) for number in numbers], _scores(models, call, numbers, ordered)
    ) | {"images": (as_tensor(ordered) * 255).round().byte().contiguous()}


def _scores(models: Models, call: Call, numbers: Sequence[int], pictures: Sequence[Image.Image]) -> Tensor:
    """(B, 2) as serving judges: each picture by itself."""
    pairs = [
        judge(models, [call.prompt_of(number)], [picture]) for number, picture in zip(numbers, pictures, strict=True)
    ]
    return torch.tensor([[selector[0], policy[0]] for selector, policy in pairs], dtype=torch.float32)


def _as_tensors(views: Sequence[Views], scores: Tensor) -> dict[str, Tensor]:
    """Latents in half precision: gates need no more, and there are many."""
    return {
        "latents": torch.stack([view.latents.cpu().half() for view in views]),
        "distance": torch.stack([view.distance.cpu() for view in views]),
        "scores": scores,
    }


def _read(models: Models, call: Call, folder: Path) -> Trajectories:
    parts = [load_file(folder / f"{start:06d}.safetensors") for start in range(0, call.num_places, _PART)]
    latents, distance, scores = (
        torch.cat([part[name] for part in parts]) for name in ("latents", "distance", "scores")
    )
    total, costs = total_steps(models, call)
    steps = steps_looked_at(total)
    prompts = np.arange(len(scores)) // call.num_images
    text = torch.cat([text_summary(models.prompts.conditioning([prompt])).cpu() for prompt in call.prompts])
    kinds = [parse_prompt(prompt).kind.slug for prompt in call.prompts]
    index = torch.from_numpy(prompts).repeat_interleave(len(steps))
    views = Views(
        latents=latents.flatten(0, 1).float(),
        distance=distance.flatten(),
        progress=(torch.tensor(steps) / total).repeat(len(scores)),
        kinds=kind_indices(kinds)[index],
        text=text[index],
    )
    so_far = costs.cumsum()
    return Trajectories(
        steps=steps,
        views=views,
        scores=scores.numpy(),
        prompts=prompts,
        kinds=np.array(kinds)[prompts],
        costs=so_far[np.array(steps) - 1],
        full_cost=int(so_far[-1]),
    )
