"""Where a seed's candidates come from, and their rows in the database once somebody is to rate them."""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from generation.diffusion.phantoms import FINDINGS, caption
from generation.models import GeneratedImage, GenerationJob
from generation.parameters import Parameters
from generation.services import MAX_PROMPTS, recommended_sampling, start_generation
from medsyn.imaging import load
from training.closed_loop.identities import identify
from training.simulated_rows import draw_now, import_phantoms
from training.simulation.judge import SIZE, Judge, classes_of, gold_quality
from training.simulation.loop.images import LoopImages, joined
from training.simulation.loop.seeds import check_repetitions, first_seed
from training.simulation.loop.settings import EMBEDDED, PHANTOMS, LoopSettings
from training.simulation.pool import draw_pool

_JUDGED_TOGETHER = 64
_JOB = MAX_PROMPTS // 2  # candidates that one job draws at most
_BATCH = "Closed loop (simulated)"
_CAPTION_STREAM = 23


class Source(Protocol):
    """A generator: streams of candidates, each as long as wanted and the same whenever it is drawn."""

    def draw(self, stream: int, count: int, *, begin: int = 0) -> LoopImages:
        """Candidates ``begin`` to ``begin + count`` of a stream."""

    def rows(self, images: LoopImages) -> list[GeneratedImage]:
        """The rows of candidates that it has drawn, in their order."""


def source_of(settings: LoopSettings, *, seed: int) -> Source:
    """The generator of a loop's repetition ``seed``; raises LoopError where no seeds are left for its images."""
    check_repetitions(settings, seed + 1)
    if settings.generator == PHANTOMS:
        return PhantomSource(settings, seed)
    return PipelineSource(settings, seed)


class PhantomSource:
    """Phantoms with planted defects: an imperfect generator that takes no time."""

    def __init__(self, settings: LoopSettings, seed: int):
        self._settings, self._seed = settings, seed
        self._drawn: dict[int, LoopImages] = {}  # by stream, from its beginning

    def draw(self, stream: int, count: int, *, begin: int = 0) -> LoopImages:
        known = self._drawn.get(stream)
        missing = begin + count - (0 if known is None else len(known))
        if missing > 0:
            new = self._new(stream, 0 if known is None else len(known), missing)
            known = new if known is None else joined([known, new])
            self._drawn[stream] = known
        return known.subset(np.arange(begin, begin + count))

    def _new(self, stream: int, begin: int, count: int) -> LoopImages:
        first = first_seed(self._settings, self._seed, stream=stream) + begin
        pool = draw_pool(count, seed=first, mismatch_rate=self._settings.mismatch_rate)
        names = tuple(f"{stream}-{begin + number}" for number in range(count))
        return LoopImages(names, pool.pixels, pool.prompts, pool.quality)

    def rows(self, images: LoopImages) -> list[GeneratedImage]:
        rows = import_phantoms(zip(images.pixels, images.prompts, strict=True), batch=_BATCH)
        for image in rows:
            identify(image, f"{image.sha256} {image.prompt.text}")
        return rows


class PipelineSource:
    """A generator that draws through the application's own jobs; the judge network stands for the gold quality."""

    def __init__(self, settings: LoopSettings, seed: int, *, pipeline: Path | None = None, updated_after: int = 0):
        """``pipeline``: instead of the settings' own, the one that the update after that round made of it."""
        self._settings, self._seed, self._updated_after = settings, seed, updated_after
        self._is_embedded = pipeline is None and settings.generator == EMBEDDED
        self.folder = "" if self._is_embedded else str(pipeline or Path(settings.generator).resolve())
        self._judge = Judge.load()
        self._images: dict[str, GeneratedImage] = {}  # by name

    def draw(self, stream: int, count: int, *, begin: int = 0) -> LoopImages:
        """A job that was drawn before is not drawn again."""
        starts = range(begin, begin + count, _JOB)
        return joined([self._job(stream, start, min(_JOB, begin + count - start)) for start in starts])

    def _job(self, stream: int, begin: int, count: int) -> LoopImages:
        return self._judged(self._drawn(self._first_seed(stream) + begin, count), stream, begin)

    def _first_seed(self, stream: int = 0) -> int:
        return first_seed(self._settings, self._seed, updated_after=self._updated_after, stream=stream)

    def _drawn(self, seed: int, count: int) -> list[GeneratedImage]:
        """Images of ``count`` seeds from ``seed`` on, by the job that drew them or a new one."""
        job = GenerationJob.objects.filter(seed=seed, pretrained_model=self.folder, num_images=1).first()
        if job is None:
            job = start_generation(
                prompts=_captions(count, seed=seed),
                user=None,
                num_images=1,
                seed=seed,
                parameters=self._parameters(),
                pretrained_model=self.folder,
                is_embedded=self._is_embedded,
            )
        draw_now(job)
        return list(job.images.order_by("position").select_related("prompt"))

    def _parameters(self) -> Parameters:
        wanted = dict(recommended_sampling(None)) | {"batch_size": 16}
        if self._settings.steps is not None:
            wanted["num_inference_steps"] = self._settings.steps
        return Parameters(**wanted)

    def _judged(self, images: list[GeneratedImage], stream: int, begin: int) -> LoopImages:
        names = tuple(f"{self._first_seed()}-{stream}-{begin + number}" for number in range(len(images)))
        for name, image in zip(names, images, strict=True):
            identify(image, name)
            self._images[name] = image
        pixels = np.stack([load(image.path).to_rgb(SIZE) for image in images])
        prompts = tuple(image.prompt.text for image in images)
        tensor, classes = torch.from_numpy(pixels).permute(0, 3, 1, 2), classes_of(prompts)
        parts = [slice(start, start + _JUDGED_TOGETHER) for start in range(0, len(images), _JUDGED_TOGETHER)]
        quality = [gold_quality(self._judge, tensor[part].float() / 255, classes[part]) for part in parts]
        return LoopImages(names, pixels, prompts, torch.cat(quality).numpy(), images[0].unet_evaluations)

    def rows(self, images: LoopImages) -> list[GeneratedImage]:
        return [self._images[name] for name in images.names]


def _captions(count: int, *, seed: int) -> list[str]:
    """Different captions of findings drawn at random: a job takes each prompt once."""
    rng = np.random.default_rng([seed, _CAPTION_STREAM])
    found: dict[str, None] = {}
    while len(found) < count:
        found[caption(FINDINGS[rng.integers(len(FINDINGS))], int(rng.integers(2**31)))] = None
    return list(found)
