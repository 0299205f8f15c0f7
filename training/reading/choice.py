"""The door from a reading batch to torch: scores the pool with a release's selector. Imported inside tasks only."""

from collections.abc import Sequence

import numpy as np
import torch
from django.conf import settings
from PIL import Image

from generation.diffusion.loading import choose_device
from generation.models import GeneratedImage, Release
from generation.scoring.encoder import encode, prepare, summarise
from generation.scoring.network_file import NetworkFileError
from generation.scoring.quality_metrics import measure
from generation.scoring.selector import Selector, kind_indices
from generation.services import SELECTOR_NAME
from medsyn.artifacts import file_sha256
from medsyn.jobs import JobError
from training.models import ReadingBatch, ReadingPick
from training.reading.services import candidates, mix_of, put_into_study
from training.rlhf.reading_list import Pick, bald, choose_batch

_SCORED_TOGETHER = 32  # images


def run(batch: ReadingBatch) -> None:
    """Score the pool, choose, and put the images into the study; nothing is left to do where that was done before.

    Raises JobError, and what ``batch.report`` raises.
    """
    if batch.picks.exists():  # the worker before this one ended between storing and finishing
        return
    pool = candidates(study=batch.study, jobs=list(batch.jobs.all()), with_rejected=batch.with_rejected)
    images = list(pool.select_related("prompt").defer("parameters"))
    picks, information, poor = choose(batch, images)
    rows = [
        ReadingPick(
            batch=batch,
            image=images[pick.item],
            position=position,
            reason=pick.reason,
            information=None if batch.is_random else float(information[pick.item]),
            poor=None if batch.is_random else float(poor[pick.item]),
        )
        for position, pick in enumerate(picks)
    ]
    put_into_study(batch=batch, pool=[image.pk for image in images], picks=rows)
    batch.report(len(images), len(images), "images")


def choose(batch: ReadingBatch, images: Sequence[GeneratedImage]) -> tuple[list[Pick], np.ndarray, np.ndarray]:
    """The batch's picks from a pool, and of every image of it (N,) its BALD value and mean P(poor).

    The same batch and pool give the same picks. Raises JobError.
    """
    if batch.is_random:
        heads, embeddings = np.zeros((len(images), 1)), np.zeros((len(images), 1))
    else:
        heads, embeddings = score(batch, load_selector(batch.release), images)
    information = bald(heads)
    try:
        kinds = [image.prompt.kind for image in images]
        picks = choose_batch(kinds, information, embeddings, mix=mix_of(batch), seed=batch.seed)
    except ValueError as error:  # images came into use since the batch was asked for
        raise JobError(str(error)) from error
    return picks, information, heads.mean(1)


def load_selector(release: Release) -> Selector:
    """The release's selector on the device of the settings; JobError where its file is not the recorded one."""
    path = release.folder / SELECTOR_NAME
    try:
        if file_sha256(path) != release.selector_sha256:
            raise JobError(f"The selector of {release} has changed on the disk. Restore the release's folder.")
        torch.set_num_threads(settings.TORCH_NUM_THREADS)
        return Selector.load(path).to(choose_device(settings.DEVICE))
    except (OSError, NetworkFileError) as error:
        raise JobError(f"The selector of {release} cannot be read: {error}") from error


@torch.no_grad()
def score(batch: ReadingBatch, selector: Selector, images: Sequence[GeneratedImage]) -> tuple[np.ndarray, np.ndarray]:
    """P(poor) by each head (N, K), and what the encoder makes of each image (N, 3 D); progress goes to ``batch``."""
    heads, embeddings = [], []
    for start in range(0, len(images), _SCORED_TOGETHER):
        batch.report(start, len(images), "images")
        some = images[start : start + _SCORED_TOGETHER]
        prepared = torch.cat([_prepared(image, selector) for image in some]).to(selector.temperature.device)
        kinds = kind_indices([image.prompt.kind for image in some], prepared.device)
        tokens = encode(selector.encoder, prepared)
        logits = selector.heads(selector.features(selector.perception(tokens), measure(prepared), kinds))
        heads.append((1 - selector.probabilities(logits, kinds)).cpu().numpy())
        embeddings.append(summarise(tokens).float().cpu().numpy())
    return np.concatenate(heads), np.concatenate(embeddings)


def _prepared(image: GeneratedImage, selector: Selector) -> torch.Tensor:
    """(1, 3, S, S) in [0, 1]."""
    try:
        with Image.open(image.path) as picture:
            pixels = np.array(picture.convert("RGB"))
    except OSError as error:
        raise JobError(f"Image {image.public_id} cannot be read: {error.strerror or error}.") from error
    return prepare(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255, selector.config.image_size)
