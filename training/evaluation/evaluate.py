"""All figures of one evaluation, and what is written about them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from tqdm import tqdm

from generation.diffusion.text_to_image import TextToImage
from medsyn.artifacts import atomic_path, write_bytes, write_json
from training.evaluation.classification import classification_accuracy_score
from training.evaluation.comparison import FeatureSets, distribution_figures
from training.evaluation.contact_sheet import contact_sheet
from training.evaluation.content import content_figures
from training.evaluation.copies import Resemblances, copy_figures
from training.evaluation.copies_plot import copies_plot
from training.evaluation.degradation import DEGRADATIONS, degrade
from training.evaluation.diversity import diversity_figures
from training.evaluation.features import FrozenEncoder, caption_features, embed
from training.evaluation.figures import Figure
from training.evaluation.images import EvaluationError, ImageSet
from training.evaluation.inception import inception_figures
from training.evaluation.labels import choose_labels
from training.evaluation.retrieval import NEAREST, image_image_retrieval, image_text_retrieval

MIN_IMAGES = 20  # of each set: below it no figure has an interval worth reading
MIN_IMAGES_OF_KIND = 40  # of each set, for figures of one kind
REPORT_NAME, SHEET_NAME, COPIES_NAME = "evaluation.json", "contact_sheet.png", "copies.svg"
_FORMAT = 1  # of the JSON file; rises when a key changes its meaning


@dataclass(frozen=True)
class Protocol:
    """What the figures are taken with."""

    encoder: FrozenEncoder
    k: int  # neighbours of density, coverage, precision, recall
    seed: int
    inception_weights: Path | None  # None: torchvision's own place, if the file is there


@dataclass(frozen=True, eq=False)
class Measured:
    """Both sets with all that networks make of them: figures of a part of them need no network again."""

    real: ImageSet
    generated: ImageSet
    real_features: np.ndarray  # (M, D)
    features: np.ndarray  # (N, D)
    degraded: Mapping[str, Sequence[np.ndarray]]  # name of a degradation -> (M, D) for each strength
    text: Mapping[str, np.ndarray] | None  # (T,) by caption; None: no generator's text encoder at hand
    copies: Resemblances | str  # or why nothing is known of them

    @classmethod
    def of(
        cls,
        real: ImageSet,
        generated: ImageSet,
        pipeline: TextToImage | None,
        protocol: Protocol,
        copies: Resemblances | str = "nothing is known of them.",
    ) -> Self:
        """Raises EvaluationError for too few images. ``pipeline``: the generator, whose text encoder image-text
        retrieval reads."""
        for name, images in (("reference", real), ("generated", generated)):
            if len(images) < MIN_IMAGES:
                raise EvaluationError(f"{len(images)} {name} images are too few: give at least {MIN_IMAGES}.")
        encoder, text = protocol.encoder, None
        if pipeline is not None:
            wordings = sorted({*real.captions, *generated.captions})
            text = dict(zip(wordings, caption_features(pipeline, wordings), strict=True))
        return cls(
            real,
            generated,
            embed(encoder, real.pixels, title="real features"),
            embed(encoder, generated.pixels, title="features"),
            _degraded_features(encoder, real, protocol.seed),
            text,
            copies,
        )

    def of_kind(self, kind: str) -> "Measured":
        """The images of one kind, by its prefix."""
        here, made = (np.flatnonzero(np.array(images.kinds) == kind) for images in (self.real, self.generated))
        return replace(
            self,
            real=self.real.subset(here),
            generated=self.generated.subset(made),
            real_features=self.real_features[here],
            features=self.features[made],
            degraded={name: [rung[here] for rung in rungs] for name, rungs in self.degraded.items()},
            copies=self.copies if isinstance(self.copies, str) else self.copies.subset(here, made),
        )


def evaluate(measured: Measured, protocol: Protocol) -> list[Figure]:
    """Every figure of the generated images against the real ones, in the order of the table; raises
    EvaluationError."""
    real, generated = measured.real, measured.generated
    seed, groups = protocol.seed, np.array(real.groups)
    labels = choose_labels(real, generated)
    features = measured.real_features, measured.features
    name = protocol.encoder.name
    sets = FeatureSets(name, *features, groups, np.array(generated.groups), measured.degraded)
    return [
        *distribution_figures(sets, k=protocol.k, seed=seed),
        *inception_figures(real, generated, protocol.inception_weights, seed=seed),
        *diversity_figures(real, generated, seed=seed),
        *copy_figures(real, generated, measured.copies, seed=seed),
        *content_figures(real, generated, seed=seed),
        classification_accuracy_score(*features, labels, groups, encoder=name, seed=seed),
        *image_image_retrieval(real, generated, features, labels, encoder=name, seed=seed),
        *_image_text(measured, name, seed),
    ]


def evaluate_kinds(measured: Measured, protocol: Protocol) -> dict[str, list[Figure]]:
    """The same for each kind by itself, by prefix: of those with enough images, where there are several kinds."""
    real, made = Counter(measured.real.kinds), Counter(measured.generated.kinds)
    kinds = sorted(real.keys() | made.keys())
    # Halves of the real images must have more neighbours to look at than k.
    least = max(MIN_IMAGES_OF_KIND, 3 * protocol.k)
    enough = [kind for kind in kinds if min(real[kind], made[kind]) >= least]
    return {kind: evaluate(measured.of_kind(kind), protocol) for kind in enough if len(kinds) > 1}


def _degraded_features(encoder: FrozenEncoder, real: ImageSet, seed: int) -> dict[str, list[np.ndarray]]:
    """Features of the degraded real images: name -> (M, D) for each strength."""
    rungs = [(degradation, strength) for degradation in DEGRADATIONS for strength in degradation.strengths]
    found: dict[str, list[np.ndarray]] = {degradation.name: [] for degradation in DEGRADATIONS}
    for degradation, strength in tqdm(rungs, desc="degradation ladder", unit="rung", leave=False, disable=None):
        worse = degrade(real.pixels, degradation, strength, seed=seed)
        found[degradation.name].append(embed(encoder, worse))
    return found


def _image_text(measured: Measured, encoder_name: str, seed: int) -> list[Figure]:
    if measured.text is None:
        reason = "the generator's text encoder is not loaded. Name the generator with --pretrained_model."
        return [Figure(f"image-text retrieval R@{k} ({encoder_name})", absent_because=reason) for k in NEAREST]
    real, generated = measured.real, measured.generated
    features = measured.real_features, measured.features
    return image_text_retrieval(real, generated, features, measured.text, encoder=encoder_name, seed=seed)


def write_report(
    folder: Path,
    figures: Sequence[Figure],
    by_kind: Mapping[str, Sequence[Figure]],
    measured: Measured,
    protocol: Protocol,
    *,
    facts: dict[str, Any],
    warn: Callable[[str], None],
) -> None:
    """Contact sheet, evaluation.json and, where copies were looked for, their plot; ``facts``: about generator,
    reference and parameters."""
    real, generated = measured.real, measured.generated
    with atomic_path(folder / SHEET_NAME) as temporary:
        contact_sheet(real, generated, seed=protocol.seed).save(temporary, format="PNG")
    if not isinstance(measured.copies, str):
        write_bytes(folder / COPIES_NAME, copies_plot(measured.copies, real.kinds, generated.kinds).encode())
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
            "by_kind": {kind: [figure.to_dict() for figure in found] for kind, found in by_kind.items()},
        },
    )
