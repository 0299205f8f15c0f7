"""How fast sampling is, and what each part of the speed costs in quality and memory:

.venv/bin/python -m pytest tests/benchmarks/test_sampling.py -m benchmark -s

Processor seconds on one thread, ratios within one run. The reference is a loop of single calls at 50 steps of PNDM
with guidance, as ``StableDiffusionPipeline`` is used by default. docs/sampling.md keeps the tables.
"""

import copy
import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from diffusers import StableDiffusionPipeline
from scipy.stats import binomtest

from generation.diffusion.compilation import compile_unet
from generation.diffusion.loading import DEFAULT_MODEL_DIR, ModelSource, load_generator
from generation.diffusion.phantoms import FINDINGS, all_captions, caption
from generation.diffusion.precision import choose_precision, lay_out
from generation.diffusion.presets import PRESETS, build_pipeline
from generation.diffusion.prompt_memory import PromptMemory
from generation.diffusion.sampling import WHOLE_RUN, guided_steps
from generation.diffusion.stable_diffusion import PromptedStableDiffusion
from generation.diffusion.text_to_image import TextToImage
from tests.benchmarks.stable_diffusion_models import full_unet, tiny_stable_diffusion, vae
from training.simulation.judge import Judge

pytestmark = pytest.mark.benchmark

BATCH = 8
MIDDLE = (0.2, 0.8)  # METHOD.md 5: guidance in the middle 60 %
GUIDANCE = 7.5
IMAGES_PER_CLASS = 4  # that the judge looks at, on each rung
FRESH_SEED = 20_000
HALF_IS_FAST = choose_precision("auto", torch.device("cpu")) == torch.bfloat16


@dataclass(frozen=True)
class Rung:
    """One way to draw; each rung of a ladder changes one thing of the rung before."""

    name: str
    batch: int
    scheduler: str
    steps: int
    interval: tuple[float, float] = WHOLE_RUN
    is_half: bool = False  # bfloat16, channels last
    is_compiled: bool = False  # the UNet by torch.compile

    @property
    def evaluations(self) -> tuple[int, int]:
        """(guided, plain) steps; PNDM asks once more than it has steps."""
        total = self.steps + (self.scheduler == "pndm")
        guided = sum(guided_steps(total, self.interval))
        return guided, total - guided


SINGLE = Rung("own loop, single images", 1, "pndm", 50)
BATCHED = replace(SINGLE, name=f"batch of {BATCH}", batch=BATCH)
LADDER = (
    SINGLE,
    BATCHED,
    replace(BATCHED, name="DPM-Solver++, 20 steps", scheduler="dpm", steps=20),
    replace(BATCHED, name="guidance in the middle 60 %", scheduler="dpm", steps=20, interval=MIDDLE),
    replace(BATCHED, name="bfloat16", scheduler="dpm", steps=20, interval=MIDDLE, is_half=True),
    replace(BATCHED, name="10 steps", scheduler="dpm", steps=10, interval=MIDDLE, is_half=True),
)
COMPILED = replace(LADDER[-1], name="UNet compiled", is_compiled=True)
SAME_STEPS = (
    replace(BATCHED, name="50 steps of PNDM, bfloat16", is_half=True),
    replace(BATCHED, name="50 steps of PNDM, bfloat16, middle 60 %", is_half=True, interval=MIDDLE),
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def processor_seconds(work: Callable[[], object], repeats: int = 2) -> float:
    """The least of some runs: what disturbs a run only lengthens it."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def in_half(pipeline: TextToImage) -> TextToImage:
    """A copy in bfloat16, laid out as `load_generator` does."""
    half = copy.deepcopy(pipeline).to(torch.bfloat16)
    lay_out(half)
    return half


def draw(pipeline: TextToImage, rung: Rung, prompts: list[str], memory: PromptMemory, **parameters) -> torch.Tensor:
    seeds = range(FRESH_SEED, FRESH_SEED + len(prompts))
    parts = []
    for first in range(0, len(prompts), rung.batch):
        part = slice(first, first + rung.batch)
        drawing = pipeline.draw(
            prompts[part],
            seeds=seeds[part],
            scheduler=rung.scheduler,
            num_inference_steps=rung.steps,
            guidance_interval=rung.interval,
            memory=memory,
            **parameters,
        )
        guided, plain = rung.evaluations
        assert drawing.unet_evaluations == 2 * guided + plain
        parts.append(drawing.images)
    return torch.cat(parts)


def show(name: str, seconds: float, before: float, reference: float, more: str = "") -> None:
    print(f"| {name} | {seconds * 1000:.0f} | {before / seconds:.2f} | {reference / seconds:.2f} |{more}", flush=True)


# --- a small Stable Diffusion against diffusers' own pipeline ---


def test_a_small_stable_diffusion_against_single_calls_of_diffusers():
    plain = tiny_stable_diffusion()
    plain.set_progress_bar_config(disable=True)
    ours = PromptedStableDiffusion(**plain.components, requires_safety_checker=False)
    half, compiled = in_half(ours), in_half(ours)
    print(f"\n{compile_unet(compiled)}")
    prompts = [caption(FINDINGS[number], seed=number) for number in range(BATCH)]
    reference = _by_diffusers(plain, prompts[:2])
    print("\n| rung | ms per image | gain of this step | in all |\n| --- | --- | --- | --- |")
    show("single calls of StableDiffusionPipeline, PNDM 50 steps", reference, reference, reference)
    before = reference
    for rung in (*LADDER, COMPILED, *SAME_STEPS):
        pipeline = compiled if rung.is_compiled else half if rung.is_half else ours
        memory = PromptMemory(pipeline)
        wanted = prompts[: max(rung.batch, 2)]
        # Warm; compiling needs to have met guided and plain batches, hence the steps.
        draw(pipeline, replace(rung, steps=min(rung.steps, 5)), wanted, memory, guidance_scale=GUIDANCE)
        repeats = 1 if rung.steps >= 50 else 3
        work = partial(draw, pipeline, rung, wanted, memory, guidance_scale=GUIDANCE)
        seconds = processor_seconds(work, repeats) / len(wanted)
        show(rung.name, seconds, reference if rung in SAME_STEPS else before, reference)
        before = seconds
        if rung == COMPILED:
            everything = reference / seconds
    assert everything >= (20 if HALF_IS_FAST else 8)


def _by_diffusers(pipeline: StableDiffusionPipeline, prompts: list[str]) -> float:
    """Processor seconds per image of one call for each prompt."""
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor

    def one(prompt: str, steps: int) -> None:
        pipeline(prompt, num_inference_steps=steps, guidance_scale=GUIDANCE, height=side, width=side)

    one(prompts[0], 2)  # warm
    return processor_seconds(lambda: [one(prompt, 50) for prompt in prompts], repeats=3) / len(prompts)


# --- medsyn-tiny: the same ladder, and what the judge sees ---


def test_medsyn_tiny_keeps_its_accuracy():
    pipeline = load_generator(ModelSource(str(DEFAULT_MODEL_DIR)), device="cpu").pipeline
    half = in_half(pipeline)
    guidance = {"guidance_scale": pipeline.recommended_sampling.get("guidance_scale", GUIDANCE)}
    count = IMAGES_PER_CLASS * len(FINDINGS)
    prompts = [caption(FINDINGS[number % len(FINDINGS)], seed=FRESH_SEED + number) for number in range(count)]
    print(f"\nguidance {guidance['guidance_scale']:g}, {count} images; class = finding, side and sequence")
    print("| rung | ms per image | gain of this step | in all | class right | kind right |")
    print("| --- | --- | --- | --- | --- | --- |")
    reference = before = None
    shares, lowest = [], None
    for rung in LADDER:
        chosen = half if rung.is_half else pipeline
        memory = PromptMemory(chosen)
        draw(chosen, replace(rung, steps=2), prompts[:BATCH], memory, **guidance)  # warm
        if rung.batch == 1:  # in batches they are the same images to 1e-4, so the judge sees those of the next rung
            seconds = (
                processor_seconds(lambda p=chosen: draw(p, SINGLE, prompts[:2], PromptMemory(p), **guidance)) / 2
            )
            reference = before = seconds
            show(rung.name, seconds, before, reference, " as below | |")
            continue
        started = time.process_time()
        images = draw(chosen, rung, prompts, memory, **guidance)
        seconds = (time.process_time() - started) / count
        right, kinds = _judged(images)
        interval = binomtest(right, count).proportion_ci(method="wilson")
        shares.append(right / count)
        lowest = interval.low if lowest is None else lowest
        accuracy = f" {right / count:.3f} ({interval.low:.3f} to {interval.high:.3f}) | {kinds / count:.3f} |"
        show(rung.name, seconds, before, reference, accuracy)
        before = seconds
    assert min(shares) >= lowest, "below the interval of 50 steps"


@torch.inference_mode()
def _judged(images: torch.Tensor) -> tuple[int, int]:
    """How many images of all classes in turn show the right class, and the right kind."""
    judge = Judge.load()
    seen = [number for part in images.split(64) for number in judge(part)[0].argmax(1).tolist()]
    wanted = [number % len(FINDINGS) for number in range(len(images))]
    right = sum(a == b for a, b in zip(seen, wanted, strict=True))
    return right, sum(FINDINGS[a].kind == FINDINGS[b].kind for a, b in zip(seen, wanted, strict=True))


# --- by a few calls of the UNet and arithmetic ---


@dataclass(frozen=True)
class Costs:
    """Processor seconds of one call, by what it is given."""

    pair: float  # one image, both branches, float32
    guided: dict[bool, float]  # a batch, both branches, by is_half
    plain: dict[bool, float]  # a batch, one branch
    decoded: dict[bool, float]  # a batch
    decoded_alone: float  # one image, float32
    batch: int

    def per_image(self, rung: Rung) -> float:
        guided, plain = rung.evaluations
        if rung.batch == 1:
            return guided * self.pair + self.decoded_alone
        half = rung.is_half
        return (guided * self.guided[half] + plain * self.plain[half] + self.decoded[half]) / self.batch


@pytest.mark.parametrize(("model", "side", "batch"), [("small", 32, 8), ("full", 32, 4), ("full", 64, 2)])
def test_by_arithmetic(model, side, batch):
    """Full: 860 M parameters; 256 px by 32 x 32 latents (Stable Diffusion's VAE, f = 8) or by 64 x 64 (f = 4)."""
    channels = (128, 256, 512, 512) if side == 32 else (128, 256, 512)
    if model == "small":
        small = tiny_stable_diffusion()
        costs = _measure(small.unet, small.vae, batch, repeats=5)
    else:
        costs = _measure(full_unet(side), vae(channels, layers=2, size=256), batch, repeats=1)
    print(f"\n{model}, {side} x {side} latents, measured in batches of {batch}; text and scheduler left out")
    print("| rung | ms per image | gain of this step | in all |\n| --- | --- | --- | --- |")
    reference = before = costs.per_image(SINGLE)
    for rung in (*LADDER, *SAME_STEPS):
        seconds = costs.per_image(rung)
        name = f"batch of {batch}" if rung == BATCHED else rung.name
        show(name, seconds, reference if rung in SAME_STEPS else before, reference)
        before = seconds
    print(f"{costs}\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")
    if HALF_IS_FAST:
        assert reference / costs.per_image(LADDER[-1]) > 8


@torch.inference_mode()
def _measure(unet, decoder, batch: int, repeats: int) -> Costs:
    side, width = unet.config.sample_size, unet.config.cross_attention_dim

    def call(size: int) -> float:
        latents = torch.randn(size, 4, side, side, dtype=unet.dtype)
        text = torch.randn(size, 77, width, dtype=unet.dtype)
        return processor_seconds(lambda: unet(latents, 500, encoder_hidden_states=text), repeats)

    def decode(size: int) -> float:
        latents = torch.randn(size, 4, side, side, dtype=decoder.dtype)
        return processor_seconds(lambda: decoder.decode(latents), repeats)

    call(1)  # the first call packs weights
    pair, alone = call(2), decode(1)
    guided, plain, decoded = {False: call(2 * batch)}, {False: call(batch)}, {False: decode(batch)}
    for part in (unet, decoder):
        part.to(torch.bfloat16).to(memory_format=torch.channels_last)
    call(1)
    decode(1)
    guided[True], plain[True], decoded[True] = call(2 * batch), call(batch), decode(batch)
    return Costs(pair, guided, plain, decoded, alone, batch)


# --- memory ---


def peak_of(preset: str, size: int, batch: int, precision: str) -> tuple[float, float]:
    """(before drawing, highest) resident memory in MiB of a process that draws one batch in one step."""
    torch.set_num_threads(1)
    pipeline = build_pipeline(PRESETS[preset], captions_for_vocabulary=all_captions(), seed=0)
    if precision == "bfloat16":
        pipeline.to(torch.bfloat16)
        lay_out(pipeline)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pipeline.draw(["OCT: drusen"] * batch, seeds=range(batch), num_inference_steps=1, height=size, width=size)
    return before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize(
    ("preset", "size"), [("medsyn-tiny", 128), ("medsyn-tiny", 256), ("medsyn-tiny", 512), ("medsyn-small", 256)]
)
def test_peak_memory(preset, size):
    """Every setting in a process of its own, forked from one that has imported everything and drawn nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    print("\n| preset | pixels | batch | precision | before drawing, MiB | highest, MiB | drawing takes |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    taken = {}
    for batch, precision in ((1, "float32"), (BATCH, "float32"), (BATCH, "bfloat16")):
        with context.Pool(1) as pool:
            before, highest = pool.apply(peak_of, (preset, size, batch, precision))
        taken[batch, precision] = highest - before
        setting = f"| {preset} | {size} | {batch} | {precision} |"
        print(f"{setting} {before:.0f} | {highest:.0f} | {highest - before:.0f} |", flush=True)
    assert taken[1, "float32"] < taken[BATCH, "float32"]
    assert taken[BATCH, "bfloat16"] < taken[BATCH, "float32"]
