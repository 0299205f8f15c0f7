"""All figures of one evaluation, and what is written about them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from generation.diffusion.text_to_image import TextToImage
from medsyn.artifacts import atomic_path, write_json
from training.evaluation.classification import classification_accuracy_score
from training.evaluation.comparison import FeatureSets, distribution_figures
from training.evaluation.contact_sheet import contact_sheet
from training.evaluation.content import content_figures
from training.evaluation.degradation import DEGRADATIONS, degrade
from training.evaluation.diversity import diversity_figures
from training.evaluation.features import FrozenEncoder, caption_features, embed
from training.evaluation.figures import Figure
from training.evaluation.images import EvaluationError, ImageSet
from training.evaluation.inception import inception_figures
from training.evaluation.labels import choose_labels
from training.evaluation.retrieval import NEAREST, image_image_retrieval, image_text_retrieval

MIN_IMAGES = 20  # of each set: below it no figure has an interval worth reading
REPORT_NAME, SHEET_NAME = "evaluation.json", "contact_sheet.png"
_FORMAT = 1  # of the JSON file; rises when a key changes its meaning


@dataclass(frozen=True)
class Protocol:
    """What the figures are taken with."""

    encoder: FrozenEncoder
    k: int  # neighbours of density, coverage, precision, recall
    seed: int
    inception_weights: Path | None  # None: torchvision's own place, if the file is there


def evaluate(real: ImageSet, generated: ImageSet, pipeline: TextToImage | None, protocol: Protocol) -> list[Figure]:
    """Every figure of ``generated`` against ``real``, in the order of the table; raises EvaluationError.

    ``pipeline``: the generator, whose text encoder image-text retrieval reads; None leaves that row absent.
    """
    for name, images in (("reference", real), ("generated", generated)):
        if len(images) < MIN_IMAGES:
            raise EvaluationError(f"{len(images)} {name} images are too few: give at least {MIN_IMAGES}.")
    encoder, seed = protocol.encoder, protocol.seed
    labels = choose_labels(real, generated)
    features = embed(encoder, real.pixels, title="real features"), embed(encoder, generated.pixels, title="features")
    sets = FeatureSets(
        encoder.name,
        *features,
        np.array(real.groups),
        np.array(generated.groups),
        _degraded_features(encoder, real, seed),
    )
    return [
        *distribution_figures(sets, k=protocol.k, seed=seed),
        *inception_figures(real, generated, protocol.inception_weights, seed=seed),
        *diversity_figures(real, generated, seed=seed),
        *content_figures(real, generated, seed=seed),
        classification_accuracy_score(*features, labels, np.array(real.groups), encoder=encoder.name, seed=seed),
        *image_image_retrieval(real, generated, features, labels, encoder=encoder.name, seed=seed),
        *_image_text(real, generated, features, pipeline, encoder.name, seed),
    ]


def _degraded_features(encoder: FrozenEncoder, real: ImageSet, seed: int) -> dict[str, list[np.ndarray]]:
    """Features of the degraded real images: name -> (M, D) for each strength."""
    rungs = [(degradation, strength) for degradation in DEGRADATIONS for strength in degradation.strengths]
    found: dict[str, list[np.ndarray]] = {degradation.name: [] for degradation in DEGRADATIONS}
    for degradation, strength in tqdm(rungs, desc="degradation ladder", unit="rung", leave=False, disable=None):
        worse = degrade(real.pixels, degradation, strength, seed=seed)
        found[degradation.name].append(embed(encoder, worse))
    return found


def _image_text(
    real: ImageSet,
    generated: ImageSet,
    features: tuple[np.ndarray, np.ndarray],
    pipeline: TextToImage | None,
    encoder_name: str,
    seed: int,
) -> list[Figure]:
    if pipeline is None:
        reason = "the generator's text encoder is not loaded. Name the generator with --pretrained_model."
        return [Figure(f"image-text retrieval R@{k} ({encoder_name})", absent_because=reason) for k in NEAREST]
    wordings = sorted({*real.captions, *generated.captions})
    text = dict(zip(wordings, caption_features(pipeline, wordings), strict=True))
    return image_text_retrieval(real, generated, features, text, encoder=encoder_name, seed=seed)


def write_report(
    folder: Path,
    figures: Sequence[Figure],
    sets: tuple[ImageSet, ImageSet],
    protocol: Protocol,
    *,
    facts: dict[str, Any],
    warn: Callable[[str], None],
) -> None:
    """Contact sheet and evaluation.json; ``facts``: about generator, reference and parameters."""
    real, generated = sets
    with atomic_path(folder / SHEET_NAME) as temporary:
        contact_sheet(real, generated, seed=protocol.seed).save(temporary, format="PNG")
    doubtful = [figure.name for figure in figures if figure.is_trustworthy is False]
    if doubtful:
        warn(f"Not trustworthy here, by a ladder out of order or not noticed: {'; '.join(doubtful)}.")
    write_json(
        folder / REPORT_NAME,
        {
            "format": _FORMAT,
            **facts,
            "num_generated": len(generated),
            "num_real": len(real),
            "num_real_groups": len(set(real.groups)),
            "size": list(generated.pixels.shape[2:]),
            "encoder": {"name": protocol.encoder.name, "weights_sha256": protocol.encoder.weights_sha256},
            "seed": protocol.seed,
            "k": protocol.k,
            "not_trustworthy": doubtful,
            "figures": [figure.to_dict() for figure in figures],
        },
    )
