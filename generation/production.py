"""Images from prompts, drawn and judged: the one way that the worker and `manage.py generate` both go.

Knows torch but neither Django nor the database: plain values in, pictures and facts about them out.

Every image has a *position* k in its call and is drawn from seed + k. Baseline: position = place. RLHF: position =
candidate number (generation.filtering). Place p belongs to prompt p // num_images. Rounding inside a denoiser
depends on the size of its batch, so a baseline image remembers the positions it was denoised with, and a filtered one
the shape of the calls (generation.diffusion.trajectories): drawn again so it has the same pixels, bit for bit.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from generation.diffusion.loading import LoadedGenerator, ModelMismatch, ModelSource, load_generator
from generation.diffusion.pipeline import MedSynPipeline
from generation.diffusion.prompt_memory import PromptMemory
from generation.diffusion.sampling import WHOLE_RUN
from generation.diffusion.text_to_image import to_pil
from generation.diffusion.trajectories import BatchShape, Sampling, Trajectory, TrajectoryBatch
from generation.filtering import Candidate, Ended, FilterRule, Judge, Judged, Ledger, Verdict, fill_places
from generation.memorisation import FILE_NAME as MEMORY_NAME
from generation.memorisation import MemoryIndex, Resemblance
from generation.parameters import SAMPLING, Arithmetic, Parameters
from generation.scoring.gate_plan import is_ungated
from medsyn.artifacts import file_sha256
from medsyn.modalities import parse_prompt

if TYPE_CHECKING:  # they bring timm and scipy, which take a second to import and are not needed to draw
    from generation.scoring.gates import Gates
    from generation.scoring.policy import Policy
    from generation.scoring.selector import Selector

StepCallback = Callable[[int, int], None]  # denoiser steps done, steps in all; may raise to end the call
# Images of before there was an interval were guided all the time.
_BEFORE_INTERVALS = {"guidance_interval": WHOLE_RUN}


@dataclass(frozen=True)
class Judges:
    """Selector and policy, with the digests of their files."""

    selector: "Selector"
    policy: "Policy"
    selector_sha256: str
    policy_sha256: str


@dataclass(frozen=True)
class Models:
    """What a call draws with, and judges with where it filters."""

    generator: LoadedGenerator
    judges: Judges | None
    name: str  # what people call the generator
    gates: "Gates | None" = None
    gates_sha256: str = ""
    memory: MemoryIndex | None = None  # of the images that the generator was trained on, where its folder has one

    @cached_property
    def prompts(self) -> PromptMemory:
        """Encoded texts, kept as long as these models are."""
        return PromptMemory(self.generator.pipeline)

    @property
    def arithmetic(self) -> Arithmetic:
        """What they draw in, as they were loaded."""
        pipeline = self.generator.pipeline
        return Arithmetic(str(pipeline.unet.dtype).removeprefix("torch."), pipeline.device.type)

    @property
    def sha256(self) -> dict[str, str]:
        """Digests of every weight that shaped an image, by role."""
        digests = {"generator": self.generator.weights_sha256}
        if self.judges:
            digests |= {"selector": self.judges.selector_sha256, "policy": self.judges.policy_sha256}
        if self.gates is not None:
            digests["gates"] = self.gates_sha256
        return digests


@dataclass(frozen=True)
class ModelChoice:
    """Which files to load, and where to; hashable, so that loaded models can be kept by it."""

    source: ModelSource
    selector_file: Path | None  # both or neither
    policy_file: Path | None
    device: str  # auto, cpu or cuda:N
    precision: str
    name: str = ""  # of the release; empty: the folder's or the hub's
    gates_file: Path | None = None  # the release's; None: every candidate is drawn to its end


def load_models(choice: ModelChoice) -> Models:
    """Load generator, selector and policy; raises what loading each of them raises, with its remedy."""
    generator = load_generator(choice.source, device=choice.device, precision=choice.precision)
    name, memory = choice.name or generator.name, _load_memory(generator)
    if choice.selector_file is None or choice.policy_file is None:
        return Models(generator, None, name, memory=memory)
    if not isinstance(generator.pipeline, MedSynPipeline):
        raise ModelMismatch(
            f"{name} is a {type(generator.pipeline).__name__}; the policy reads the text encoder of a "
            "MedSynPipeline. Generate in baseline mode, or name a MedSynPipeline."
        )
    judges = _load_judges(generator, choice.selector_file, choice.policy_file)
    if choice.gates_file is None:
        return Models(generator, judges, name, memory=memory)
    from generation.scoring.gates import Gates

    gates = Gates.load(choice.gates_file).to(generator.pipeline.device)
    return Models(generator, judges, name, gates, file_sha256(choice.gates_file), memory)


def _load_memory(generator: LoadedGenerator) -> MemoryIndex | None:
    """The memory index beside the weights; raises ArtifactError where it is damaged: unchecked is not served."""
    path = Path(generator.folder) / MEMORY_NAME
    return MemoryIndex.load(path) if path.is_file() else None


def _load_judges(generator: LoadedGenerator, selector_file: Path, policy_file: Path) -> Judges:
    from generation.scoring.policy import Policy
    from generation.scoring.selector import Selector

    device = generator.pipeline.device
    return Judges(
        selector=Selector.load(selector_file).to(device),
        policy=Policy.load(policy_file, text_encoder=generator.exact_text_encoder()).to(device),
        selector_sha256=file_sha256(selector_file),
        policy_sha256=file_sha256(policy_file),
    )


@dataclass(frozen=True)
class Call:
    """What was asked for."""

    prompts: tuple[str, ...]  # canonical texts
    num_images: int  # of each prompt
    seed: int  # position k is drawn from seed + k
    mode: str  # baseline | rlhf
    parameters: Parameters

    @property
    def num_places(self) -> int:
        return len(self.prompts) * self.num_images

    @property
    def rule(self) -> FilterRule:
        wanted = self.parameters
        return FilterRule(wanted.quality_threshold, wanted.max_attempts, wanted.num_candidates)

    def place_of(self, position: int) -> int:
        return position if self.mode == "baseline" else position // self.rule.candidates_per_place

    def prompt_of(self, position: int) -> str:
        return self.prompts[self.place_of(position) // self.num_images]


@dataclass(frozen=True)
class DrawnImage:
    picture: Image.Image
    prompt: str
    position: int
    place: int  # which of the images asked for, from 0
    attempt: int  # from 1; always 1 in baseline
    seed: int
    batch: tuple[int, ...]  # positions whose company its pixels depend on, in their order, its own among them
    unet_evaluations: int  # a guided step counts twice
    prompt_cut: str  # the end of the prompt that the model has no room for; "" where all of it fits
    verdict: Verdict | None  # None in baseline: nothing judged it
    shape: BatchShape | None = None  # of the calls that denoised it; None in baseline
    resemblance: Resemblance | None = None  # the nearest training image; None where none was looked for
    gates_would_stop: bool | None = None  # of one that no gate may stop: whether they would have; None: the others

    @property
    def is_copy(self) -> bool:
        """Whether it must not be served because it copies a training image."""
        return self.resemblance is not None and self.resemblance.is_copy

    @property
    def outcome(self) -> str:
        """unfiltered, accepted, rejected or blocked."""
        if self.is_copy:
            return "blocked"
        if self.verdict is None:
            return "unfiltered"
        return "accepted" if self.verdict.accepted else "rejected"


def sampling_parameters(parameters: Parameters) -> dict[str, Any]:
    """The part of the parameters that the pipeline is called with."""
    return {name: getattr(parameters, name) for name in SAMPLING}


@dataclass(frozen=True)
class Shot:
    """One picture of a batch with what drawing it took."""

    picture: Image.Image
    unet_evaluations: int
    prompt_cut: str


def draw_positions(
    models: Models, call: Call, positions: Sequence[int], *, on_step: StepCallback | None = None
) -> list[Shot]:
    """The pictures of these positions, denoised together."""
    drawing = models.generator.pipeline.draw(
        [call.prompt_of(position) for position in positions],
        seeds=[call.seed + position for position in positions],
        memory=models.prompts,
        **sampling_parameters(call.parameters),
        on_step=on_step,
    )
    pictures = zip(to_pil(drawing.images), drawing.cuts, strict=True)
    return [Shot(picture, drawing.unet_evaluations, cut) for picture, cut in pictures]


def redraw(generator: LoadedGenerator, recorded: Mapping[str, Any], *, seed: int) -> Image.Image:
    """The image of ``seed`` again, from what `recorded_parameters` noted: in its batch, or in calls of its shape."""
    seeds = recorded["batch_seeds"]
    complete = _BEFORE_INTERVALS | recorded
    sampling = {name: complete[name] for name in SAMPLING}
    if "batch_rows" not in recorded:
        return generator.generate(recorded["batch_prompts"], seeds, **sampling)[seeds.index(seed)]
    shape = BatchShape(recorded["batch_rows"], recorded["batch_tokens"])
    batch = TrajectoryBatch(generator.pipeline, _as_sampling(sampling), shape)
    batch.begin(0, prompt=recorded["batch_prompts"][seeds.index(seed)], seed=seed)
    finished: list[Trajectory] = []
    while not finished:
        finished, _ = batch.step()
    return batch.picture(finished[0])


def _as_sampling(values: Mapping[str, Any]) -> Sampling:
    return Sampling(**{**values, "guidance_interval": tuple(values["guidance_interval"])})  # JSON knows lists only


def sampling_of(parameters: Parameters) -> Sampling:
    """How the trajectories of a call go."""
    return _as_sampling(sampling_parameters(parameters))


def as_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """8-bit RGB pictures of one size to (B, 3, H, W) float32 in [0, 1]: what a file of them would give again."""
    pixels = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def judge(models: Models, prompts: Sequence[str], pictures: Sequence[Image.Image]) -> tuple[list[float], list[float]]:
    """Selector's serving scores and policy's alignment scores, each in 0..1."""
    if models.judges is None:
        raise ValueError("There is no selector and policy to judge with: these models were loaded for baseline.")
    images = as_tensor(pictures)
    quality = models.judges.selector.score(images, [parse_prompt(prompt).kind.slug for prompt in prompts])
    text = models.prompts.features(prompts)
    alignment = models.judges.policy.score(images, text.tokens, text.mask)
    return quality.serving.tolist(), alignment.tolist()


def resemblances(
    models: Models, prompts: Sequence[str], pictures: Sequence[Image.Image]
) -> list[Resemblance] | list[None]:
    """The training image that each picture resembles most; None for each where the generator has no memory index."""
    if models.memory is None:
        return [None] * len(pictures)
    return models.memory.judge(as_tensor(pictures), [parse_prompt(prompt).kind.slug for prompt in prompts])


def draw_baseline(
    models: Models, call: Call, *, stored: Collection[int] = (), on_step: StepCallback | None = None
) -> Iterator[list[DrawnImage]]:
    """Every image asked for, batch by batch, without the positions that are ``stored`` already."""
    size = call.parameters.batch_size
    for start in range(0, call.num_places, size):
        batch = tuple(range(start, min(start + size, call.num_places)))
        missing = set(batch).difference(stored)
        if not missing:
            continue
        shots = draw_positions(models, call, batch, on_step=on_step)
        nearest = resemblances(models, [call.prompt_of(k) for k in batch], [shot.picture for shot in shots])
        found = zip(batch, shots, nearest, strict=True)
        yield [_unjudged(call, k, batch, shot, one) for k, shot, one in found if k in missing]


def _unjudged(
    call: Call, position: int, batch: tuple[int, ...], shot: Shot, resemblance: Resemblance | None
) -> DrawnImage:
    return DrawnImage(
        picture=shot.picture,
        prompt=call.prompt_of(position),
        position=position,
        place=position,
        attempt=1,
        seed=call.seed + position,
        batch=batch,
        unet_evaluations=shot.unet_evaluations,
        prompt_cut=shot.prompt_cut,
        verdict=None,
        resemblance=resemblance,
    )


def filtered_shape(models: Models, call: Call) -> BatchShape:
    """The shape of every call of the UNet: room for ``batch_size`` guided candidates, or for as many as there can be.

    It follows from the call alone, so a call that was interrupted goes on in the same one.
    """
    wanted, sampling = call.parameters, sampling_of(call.parameters)
    side_by_side = min(wanted.batch_size, call.num_places * wanted.num_candidates)
    tokens = models.prompts.longest([*call.prompts, wanted.negative_prompt])
    return BatchShape(side_by_side * sampling.rows_of_a_guided_step, tokens)


def gates_in_use(models: Models, call: Call) -> "Gates | None":
    """The gates of the models, where there are some that this call's parameters allow for."""
    gates = models.gates
    return gates if gates is not None and not gates.plan.why_not(call.parameters.as_dict()) else None


class _Gatekeeper:
    """Asks the gates about the trajectories of a call, and notes what they say of those that they may not stop."""

    def __init__(self, models: Models, call: Call, gates: "Gates"):
        from generation.scoring.gates import text_summary, view_of

        self._call, self._gates, self._view_of = call, gates, view_of
        self._texts = {prompt: text_summary(models.prompts.conditioning([prompt])) for prompt in call.prompts}
        self._would_stop: dict[int, bool] = {}

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[bool]:
        return [self._keeps(one) for one in trajectories]

    def _keeps(self, trajectory: Trajectory) -> bool:
        threshold = self._gates.threshold_after(trajectory.done)
        if threshold is None:
            return True
        view = self._view_of(trajectory, self._texts[trajectory.prompt])
        stops = self._gates.evidence(view).item() < threshold
        if not is_ungated(self._call.seed + trajectory.number):
            return not stops
        self._would_stop[trajectory.number] = stops or self._would_stop.get(trajectory.number, False)
        return True

    def would_stop(self, number: int) -> bool | None:
        return self._would_stop.get(number)


class CandidateDrawing:
    """Draws the candidates of a call as trajectories: what `fill_places` asks for."""

    def __init__(self, models: Models, call: Call, *, on_step: StepCallback | None = None):
        self.call, self.shape = call, filtered_shape(models, call)
        gates = gates_in_use(models, call)
        self.gatekeeper = None if gates is None else _Gatekeeper(models, call, gates)
        self.batch = TrajectoryBatch(
            models.generator.pipeline,
            sampling_of(call.parameters),
            self.shape,
            memory=models.prompts,
            keep=self.gatekeeper,
            on_step=on_step,
        )
        self.has_room = self.batch.has_room
        self.give_up = self.batch.give_up

    def begin(self, candidate: Candidate) -> None:
        self.batch.begin(candidate.number, prompt=self.call.prompt_of(candidate.number), seed=candidate.seed)

    def step(self) -> list[Ended[Image.Image]]:
        finished, stopped = self.batch.step()
        ended = [Ended(one.number, None, one.unet_evaluations) for one in stopped]
        for one in finished:
            ended.append(Ended(one.number, self.batch.picture(one), one.unet_evaluations))
        return ended


def draw_filtered(
    models: Models, call: Call, ledger: Ledger, *, on_step: StepCallback | None = None
) -> Iterator[list[DrawnImage]]:
    """Judged candidates, those of a step together, until the ledger's places are filled or spent.

    A list is empty where gates stopped all that ended. Each candidate is judged by itself: its verdict depends on
    no other.
    """
    drawing = CandidateDrawing(models, call, on_step=on_step)

    def score(candidate: Candidate, picture: Image.Image) -> tuple[float, float]:
        (selector,), (policy,) = judge(models, [call.prompt_of(candidate.number)], [picture])
        return selector, policy

    nearest: dict[int, Resemblance | None] = {}  # by candidate

    def blocks(candidate: Candidate, picture: Image.Image) -> bool:
        (found,) = resemblances(models, [call.prompt_of(candidate.number)], [picture])
        nearest[candidate.number] = found
        return found is not None and found.is_copy

    cuts = {prompt: models.generator.pipeline.cut_off(parse_prompt(prompt).text) for prompt in call.prompts}
    for judged in fill_places(ledger, drawing, Judge(score, blocks)):
        yield [_drawn(call, one, drawing, cuts, nearest[one.candidate.number]) for one in judged]


def _drawn(
    call: Call,
    judged: Judged[Image.Image],
    drawing: CandidateDrawing,
    cuts: Mapping[str, str],
    resemblance: Resemblance | None,
) -> DrawnImage:
    candidate, prompt = judged.candidate, call.prompt_of(judged.candidate.number)
    return DrawnImage(
        picture=judged.image,
        prompt=prompt,
        position=candidate.number,
        place=candidate.place,
        attempt=candidate.attempt,
        seed=candidate.seed,
        batch=(candidate.number,),
        unet_evaluations=judged.unet_evaluations,
        prompt_cut=cuts[prompt],
        verdict=judged.verdict,
        shape=drawing.shape,
        resemblance=resemblance,
        gates_would_stop=drawing.gatekeeper and drawing.gatekeeper.would_stop(candidate.number),
    )
