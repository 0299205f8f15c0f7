"""Images from prompts, drawn and judged: the one way that the worker and `manage.py generate` both go.

Knows torch but neither Django nor the database: plain values in, pictures and facts about them out.

Every image has a *position* k in its call and is drawn from seed + k. Baseline: position = place. RLHF: position =
candidate number (generation.filtering). Place p belongs to prompt p // num_images. Rounding inside a denoiser
depends on the size of its batch, so a baseline image remembers the positions it was denoised with, and a filtered one
the shape of the calls (generation.diffusion.trajectories): drawn again so it has the same pixels, bit for bit.
"""

import hashlib
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from generation.diffusion.loading import LoadedGenerator, ModelMismatch, ModelSource, load_generator
from generation.diffusion.pipeline import MedSynPipeline
from generation.diffusion.prompt_memory import PromptMemory
from generation.diffusion.sampling import WHOLE_RUN
from generation.diffusion.text_to_image import to_pil
from generation.diffusion.trajectories import BatchShape, Sampling, Trajectory, TrajectoryBatch
from generation.filtering import Candidate, Ended, FilterRule, Judged, Ledger, Verdict, fill_places
from generation.parameters import Parameters
from generation.scoring.gate_plan import is_ungated
from medsyn.artifacts import file_sha256
from medsyn.modalities import parse_prompt

if TYPE_CHECKING:  # they bring timm and scipy, which take a second to import and are not needed to draw
    from generation.scoring.gates import Gates
    from generation.scoring.policy import Policy
    from generation.scoring.selector import Selector

StepCallback = Callable[[int, int], None]  # denoiser steps done, steps in all; may raise to end the call
# The parameters that the pipeline is called with.
_SAMPLING = (
    "num_inference_steps",
    "guidance_scale",
    "guidance_interval",
    "negative_prompt",
    "scheduler",
    "height",
    "width",
)
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

    @cached_property
    def prompts(self) -> PromptMemory:
        """Encoded texts, kept as long as these models are."""
        return PromptMemory(self.generator.pipeline)

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
    name = choice.name or generator.name
    if choice.selector_file is None or choice.policy_file is None:
        return Models(generator, None, name)
    if not isinstance(generator.pipeline, MedSynPipeline):
        raise ModelMismatch(
            f"{name} is a {type(generator.pipeline).__name__}; the policy reads the text encoder of a "
            "MedSynPipeline. Generate in baseline mode, or name a MedSynPipeline."
        )
    judges = _load_judges(generator, choice.selector_file, choice.policy_file)
    if choice.gates_file is None:
        return Models(generator, judges, name)
    from generation.scoring.gates import Gates

    gates = Gates.load(choice.gates_file).to(generator.pipeline.device)
    return Models(generator, judges, name, gates, file_sha256(choice.gates_file))


def _load_judges(generator: LoadedGenerator, selector_file: Path, policy_file: Path) -> Judges:
    from generation.scoring.policy import Policy
    from generation.scoring.selector import Selector

    device = generator.pipeline.device
    return Judges(
        selector=Selector.load(selector_file).to(device),
        policy=Policy.load(policy_file, text_encoder=generator.pipeline.text_encoder).to(device),
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
    gates_would_stop: bool | None = None  # of one that no gate may stop: whether they would have; None: the others


def sampling_parameters(parameters: Parameters) -> dict[str, Any]:
    """The part of the parameters that the pipeline is called with."""
    return {name: getattr(parameters, name) for name in _SAMPLING}


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
    sampling = {name: complete[name] for name in _SAMPLING}
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
        yield [_unjudged(call, k, batch, shot) for k, shot in zip(batch, shots, strict=True) if k in missing]


def _unjudged(call: Call, position: int, batch: tuple[int, ...], shot: Shot) -> DrawnImage:
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

    cuts = {prompt: models.generator.pipeline.cut_off(parse_prompt(prompt).text) for prompt in call.prompts}
    for judged in fill_places(ledger, drawing, score):
        yield [_drawn(call, one, drawing, cuts) for one in judged]


def _drawn(call: Call, judged: Judged[Image.Image], drawing: CandidateDrawing, cuts: Mapping[str, str]) -> DrawnImage:
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
        gates_would_stop=drawing.gatekeeper and drawing.gatekeeper.would_stop(candidate.number),
    )


# --- what lies on disk ---


def png_bytes(picture: Image.Image, *, prompt: str, seed: int, is_phantom: bool) -> bytes:
    """The picture as PNG that says in its text chunks what it is; equal pictures give equal bytes."""
    text = PngInfo()
    text.add_text("Software", "MedSyn")
    text.add_text("Comment", origin_statement(is_phantom=is_phantom))
    text.add_itxt("Description", prompt)
    text.add_text("Seed", str(seed))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def origin_statement(*, is_phantom: bool) -> str:
    if is_phantom:
        return "Synthetic: a procedural phantom, not a medical image. It shows no patient."
    return "Synthetic: made by a generative model. It shows no patient and is not for diagnosis."


def sidecar(
    drawn: DrawnImage, models: Models, call: Call, *, png: bytes, is_phantom: bool, attempts: Sequence[Verdict] = ()
) -> dict[str, Any]:
    """The facts about an image as JSON; ``attempts`` are the verdicts of its place so far, its own included."""
    facts = {
        "synthetic": origin_statement(is_phantom=is_phantom),
        "prompt": drawn.prompt,
        "kind": parse_prompt(drawn.prompt).kind.prefix,
        "modality": parse_prompt(drawn.prompt).modality,
        "seed": drawn.seed,
        "sha256": hashlib.sha256(png).hexdigest(),
        "width": drawn.picture.width,
        "height": drawn.picture.height,
        "model": models.name,
        "weights_sha256": models.sha256,
        "mode": call.mode,
        "unet_evaluations": drawn.unet_evaluations,
        "prompt_cut": drawn.prompt_cut,
        "parameters": recorded_parameters(drawn, models, call),
    }
    if drawn.verdict is not None:
        facts |= {
            "verdict": "accepted" if drawn.verdict.accepted else "rejected",
            "attempt": drawn.attempt,
            "scores": {"selector": drawn.verdict.selector_score, "policy": drawn.verdict.policy_score},
            "attempts": [_attempt(call, verdict) for verdict in attempts],
        }
    return facts


def recorded_parameters(drawn: DrawnImage, models: Models, call: Call) -> dict[str, Any]:
    """What has to be known, beside weights, prompt and seed, to draw the image again."""
    parameters = sampling_parameters(call.parameters) | {
        "height": drawn.picture.height,
        "width": drawn.picture.width,
        "precision": str(models.generator.pipeline.unet.dtype).removeprefix("torch."),  # as loaded, not as wished
        "device": models.generator.pipeline.device.type,
        "batch_seeds": [call.seed + position for position in drawn.batch],
        "batch_prompts": [call.prompt_of(position) for position in drawn.batch],
    }
    if drawn.shape is not None:
        parameters |= {"batch_rows": drawn.shape.rows, "batch_tokens": drawn.shape.tokens}
    if drawn.prompt_cut:
        parameters["prompt_cut"] = drawn.prompt_cut  # for people: what the image's page says was not read
    if call.mode == "rlhf":
        names = ("quality_threshold", "max_attempts", "num_candidates")
        parameters |= {name: getattr(call.parameters, name) for name in names}
        parameters["use_gates"] = gates_in_use(models, call) is not None
    return parameters


def _attempt(call: Call, verdict: Verdict) -> dict[str, Any]:
    candidate = call.rule.candidate(verdict.number, call.seed)
    return {
        "attempt": candidate.attempt,
        "stage": candidate.stage,
        "seed": candidate.seed,
        "selector": verdict.selector_score,
        "policy": verdict.policy_score,
        "accepted": verdict.accepted,
    }
