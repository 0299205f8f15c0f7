"""What the arms of a simulated loop learn from a ratings CSV, and how they judge. Pure.

none              serves everything
published         the predecessors' rule as published, on our features
repaired          the same with its faults mended
ours              min(selector's lower bound, policy)
no-lower-bound    min(selector's mean, policy)
no-policy         selector's lower bound
no-soft-labels    ours, taught with the plain shares of the grades that an image got
oracle            the gold quality
"""

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from generation.scoring.policy import Policy
from generation.scoring.selector import Selector, SelectorConfig, SelectorHeads, SelectorScores
from medsyn.artifacts import atomic_path
from training.rlhf.config import RLHFConfig, from_dict
from training.rlhf.dataset import RatedImages, load_rated_images
from training.rlhf.early_stopping import BestNetworks
from training.rlhf.encoded_images import encode_images
from training.rlhf.inputs import load_inputs
from training.rlhf.timing import Timing
from training.rlhf.trainer import POLICY_FILE, SELECTOR_FILE, Trainer
from training.run_directory import RunDirectory
from training.simulation.loop.images import SIDE, Encoded
from training.simulation.loop.settings import (
    NO_FILTER,
    NO_LOWER_BOUND,
    NO_POLICY,
    ORACLE,
    PUBLISHED,
    REPAIRED,
    LoopSettings,
)
from training.simulation.predecessors import train_heads

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Judges:
    """Files of what an arm has learnt."""

    selector_file: Path | None = None  # None: nothing is learnt
    policy_file: Path | None = None

    def to_dict(self) -> dict[str, str | None]:
        return {name: value and str(value) for name, value in dataclasses.asdict(self).items()}


def scores(arm: str, judges: Judges, encoded: Encoded) -> np.ndarray:
    """(N,) by which an arm serves, higher is better; of the gold quality for the oracle alone."""
    if arm == NO_FILTER:
        return np.ones(len(encoded))
    if arm == ORACLE:
        return encoded.images.quality.astype(float)
    judged = SelectorScores.of_heads(encoded.heads(Selector.load(judges.selector_file)))
    mean = judged.mean.numpy().astype(float)
    if arm in (PUBLISHED, REPAIRED):
        return mean
    quality = mean if arm == NO_LOWER_BOUND else judged.serving.numpy().astype(float)
    if arm == NO_POLICY:
        return quality
    return np.minimum(quality, encoded.alignment(Policy.load(judges.policy_file)))


# --- learning ---


def config_of(settings: LoopSettings, *, seed: int) -> RLHFConfig:
    """How selector and policy are trained in a loop: the defaults, all ratings teach, a fixed number of epochs."""
    values = {
        "training": {"seed": seed, "max_epochs": settings.epochs, "early_stopping_patience": 0},
        "data": {"num_workers": 0},
        "synthetic_system": {"image_size": [SIDE, SIDE]},
    }
    return from_dict(values, source="closed loop")


def train_predecessors(ratings_file: Path, config: RLHFConfig, folder: Path, *, as_published: bool) -> Judges:
    """Teach the heads of an untrained selector by the predecessors' rule; ours is everything but the rule."""
    target = folder / SELECTOR_FILE
    if not target.exists():
        rated = load_rated_images(ratings_file, image_size=SIDE, settings=config.raters)
        torch.manual_seed(config.training.seed)
        selector = Selector(SelectorConfig(SIDE, config.selector.architecture, config.selector.quality_metrics))
        selector.load_pretrained()
        _teach_heads(selector.eval(), rated, seed=config.training.seed, as_published=as_published)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary:
            selector.save(temporary)
    return Judges(selector_file=target)


def _teach_heads(selector: Selector, rated: RatedImages, *, seed: int, as_published: bool) -> None:
    percepts = encode_images(rated, selector.perceive, image_size=SIDE, device=_CPU)
    with torch.no_grad():
        metrics = torch.cat([selector.measure(rated.images(part)) for part in torch.arange(len(rated)).split(64)])
        selector.fit_metrics(metrics, rated.kinds)
        selector.fit_percepts(percepts)
        features = selector.features(percepts, metrics, rated.kinds)
    architecture = selector.config.architecture
    selector.heads = SelectorHeads(features.shape[1], architecture.head_dim, architecture.ensemble_heads)
    train_heads(
        selector.heads,
        features[torch.from_numpy(rated.item_of_rating)],
        torch.from_numpy(rated.grades),
        torch.from_numpy(rated.levels),
        as_published=as_published,
        seed=seed,
    )


def train_on_shares(ratings_file: Path, config: RLHFConfig, folder: Path, *, generator: Path) -> Judges:
    """Train selector and policy as the application does, but for the targets: every rating counts alike."""
    run = RunDirectory(folder)
    done = folder / "done"
    if not done.exists():
        with run.lock():
            _train(ratings_file, config, run, generator)
            done.touch()
    best = folder / "best"
    return Judges(best / SELECTOR_FILE, best / POLICY_FILE)


def _train(ratings_file: Path, config: RLHFConfig, run: RunDirectory, generator: Path) -> None:
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, ratings_file=str(ratings_file)))
    options = argparse.Namespace(pipeline=generator, selector_checkpoint=None, policy_checkpoint=None)
    inputs = load_inputs(config, options, Timing())
    labels = equal_weights(inputs.rated)
    trainer = Trainer(config, inputs.rated, labels, inputs.split, inputs.features, image_size=inputs.image_size)
    validation = inputs.targets.validation
    best = BestNetworks(run, trainer, dataclasses.replace(validation, labels=labels[validation.items]))
    while trainer.epoch < trainer.max_epochs:
        trainer.train_epoch()
        best.update()


def equal_weights(rated: RatedImages) -> Tensor:
    """(N, 3) shares of the grades given, every rating alike."""
    shares = np.zeros((len(rated), 3))
    np.add.at(shares, (rated.item_of_rating, rated.grades - 1), 1)
    return torch.from_numpy(shares / shares.sum(1, keepdims=True)).float()
