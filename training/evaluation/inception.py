"""Fréchet distance and inception score with torchvision's Inception v3, where its weights are on disk."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import inception_v3

from generation.scoring.encoder import prepare
from medsyn.artifacts import file_sha256
from training.evaluation.comparison import FeatureSets, draw_splits
from training.evaluation.distances import frechet_distance, inception_score
from training.evaluation.features import read_state
from training.evaluation.figures import HIGHER, LOWER, Figure
from training.evaluation.images import EvaluationError, ImageSet
from training.evaluation.intervals import CONFIDENCE, Interval

FILE_NAME = "inception_v3_google-0cc3c7bd.pth"  # as torchvision's download names it
FRECHET_NAME = "Fréchet distance (torchvision Inception v3)"
SCORE_NAME = "inception score (torchvision Inception v3)"
_SIZE = 299  # pixels
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what torchvision's weights expect
_BATCH = 16
_NUM_SPLITS = 5  # of the real images; a distance takes seconds
_NUM_BOOTSTRAPS = 100


def default_file() -> Path:
    """Where torchvision would have downloaded the weights to; nothing is downloaded here."""
    return Path(torch.hub.get_dir()) / "checkpoints" / FILE_NAME


@dataclass(frozen=True)
class Inception:
    network: nn.Module
    weights_sha256: str

    @classmethod
    def load(cls, path: Path) -> "Inception":
        """The network with the weights of a state dict; raises EvaluationError."""
        network = inception_v3(weights=None, init_weights=False, transform_input=True).eval()
        try:
            network.load_state_dict(read_state(path))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise EvaluationError(f"{path} is not torchvision's Inception v3: {reason}") from None
        return cls(network, file_sha256(path))

    @torch.inference_mode()
    def read(self, pixels: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """uint8 images (N, 3, H, W) -> pooled features (N, 2048) and class probabilities (N, 1000)."""
        features: list[Tensor] = []
        hook = self.network.avgpool.register_forward_hook(lambda _m, _i, pooled: features.append(pooled.flatten(1)))
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
        try:
            parts = pixels.split(_BATCH)
            logits = [self.network((prepare(part.float() / 255, _SIZE) - mean) / std) for part in parts]
        finally:
            hook.remove()
        probabilities = torch.cat(logits).double().softmax(1)
        return torch.cat(features).double().numpy(), probabilities.numpy()


def inception_figures(real: ImageSet, generated: ImageSet, path: Path | None, *, seed: int) -> list[Figure]:
    """Both figures, or rows that say which file is missing. ``path``: given by hand, else the default file."""
    place = path or default_file()
    if path is None and not place.is_file():
        reason = (
            f"put torchvision's Inception v3 weights ({FILE_NAME}) into {place.parent.name}/ of torch's hub folder, "
            "or name the file with --inception_weights."
        )
        return [Figure(name, absent_because=reason) for name in (FRECHET_NAME, SCORE_NAME)]
    inception = Inception.load(place)
    real_features, real_probabilities = inception.read(real.pixels)
    features, probabilities = inception.read(generated.pixels)
    sets = FeatureSets("Inception v3", real_features, features, np.array(real.groups), np.array(generated.groups), {})
    details = {"weights_sha256": inception.weights_sha256}
    return [
        _frechet_figure(sets, details, seed),
        Figure(
            SCORE_NAME,
            better=HIGHER,
            value=_score_interval(probabilities, seed),
            interval_method="bootstrap over generated images",
            real=_score_interval(real_probabilities, seed),
            num_images=len(generated),
            details=details,
        ),
    ]


def _frechet_figure(sets: FeatureSets, details: dict, seed: int) -> Figure:
    """The distance falls with the number of images, so both columns hold equally many."""
    splits = draw_splits(sets, seed=seed)[:_NUM_SPLITS]
    halves = [sets.real[split.half_b] for split in splits]
    made = [frechet_distance(half, sets.generated[s.generated]) for half, s in zip(halves, splits, strict=True)]
    floor = [frechet_distance(half, sets.real[s.half_a]) for half, s in zip(halves, splits, strict=True)]
    return Figure(
        FRECHET_NAME,
        better=LOWER,
        value=Interval(float(np.mean(made)), min(made), max(made)),
        interval_method="range over the subsets",
        real=Interval(float(np.mean(floor)), min(floor), max(floor)),
        num_images=len(sets.generated),
        details=details | {"subset_size": len(splits[0].half_a), "num_subsets": len(splits)},
    )


def _score_interval(probabilities: np.ndarray, seed: int) -> Interval:
    rng = np.random.default_rng(seed)
    count = len(probabilities)
    drawn = [inception_score(probabilities[rng.integers(0, count, count)]) for _ in range(_NUM_BOOTSTRAPS)]
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(inception_score(probabilities), float(low), float(high))
