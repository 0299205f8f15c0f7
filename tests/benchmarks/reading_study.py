"""Ways of choosing what to rate next, on phantoms with planted defects and simulated experts.

All arms begin with the same random images, are given the same batch sizes and the same panel, and train the same
selector: the linear heads that the project's training begins with, on what the frozen encoder makes of the images.
No learner sees the gold quality.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import isotonic_regression
from torch import Tensor

from generation.scoring.encoder import encode, prepare, summarise
from generation.scoring.quality_metrics import measure
from generation.scoring.selector import Selector, SelectorConfig, SelectorHeads, kind_indices
from medsyn.modalities import parse_prompt
from ratings.agreement.rater_model import PRIOR_ACCURACY, fit_rater_model
from training.rlhf.config import from_dict
from training.rlhf.evaluation import auc
from training.rlhf.reading_list import Mix, Pick, Reason, bald, choose_batch, entropy
from training.rlhf.selector_loss import fit_linear_heads
from training.simulation.pool import DEFAULT_LEVELS, PhantomPool, draw_panel, rate_pool

SIDE = 128  # pixels
_ENCODED_TOGETHER = 50
FIRST, BATCH = 80, 40  # images
NOT_SPREAD = 1e-6  # of a kind: a shortlist no longer than what is chosen from it
Chooser = Callable[["EncodedPool", np.ndarray, np.ndarray, int], list[Pick]]  # pool, open items, P(poor), seed


def untrained_selector() -> Selector:
    config = from_dict({"synthetic_system": {"image_size": [SIDE, SIDE]}}, source="benchmark")
    selector = Selector(SelectorConfig(SIDE, config.selector.architecture, config.selector.quality_metrics))
    selector.load_pretrained()
    return selector.eval()


@dataclass(frozen=True, eq=False)
class EncodedPool:
    """A pool and what the frozen encoder and the quality metrics say of it."""

    pool: PhantomPool
    percepts: Tensor  # (N, P)
    metrics: Tensor  # (N, M)
    embeddings: np.ndarray  # (N, 3 D)
    kind_slugs: tuple[str, ...]  # (N,)

    @classmethod
    def of(cls, pool: PhantomPool, selector: Selector, cache: Path) -> "EncodedPool":
        if not cache.exists():
            save_file(_encoded(pool, selector), cache)
        found = load_file(cache)
        slugs = tuple(parse_prompt(prompt).kind.slug for prompt in pool.prompts)
        return cls(pool, found["percepts"], found["metrics"], found["embeddings"].numpy(), slugs)

    @property
    def kinds(self) -> Tensor:
        return kind_indices(self.kind_slugs)


@torch.no_grad()
def _encoded(pool: PhantomPool, selector: Selector) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {"percepts": [], "metrics": [], "embeddings": []}
    for part in torch.from_numpy(pool.pixels).permute(0, 3, 1, 2).split(_ENCODED_TOGETHER):
        prepared = prepare(part.float() / 255, SIDE)
        tokens = encode(selector.encoder, prepared)
        found["percepts"].append(selector.perception(tokens))
        found["metrics"].append(measure(prepared))
        found["embeddings"].append(summarise(tokens))
    return {name: torch.cat(parts).contiguous() for name, parts in found.items()}


@dataclass(frozen=True, eq=False)
class Ratings:
    """One rating of every image of a pool, revealed as images are chosen."""

    rater: np.ndarray  # (N,)
    grade: np.ndarray  # (N,) 1 to 3
    accuracies: np.ndarray  # (J,) prior of each rater

    @classmethod
    def of(cls, pool: PhantomPool, seed: int, levels: Sequence[int] = DEFAULT_LEVELS) -> "Ratings":
        panel = draw_panel(seed=seed, levels=levels)
        given = rate_pool(pool, panel, ratings_per_image=1, seed=seed)
        return cls(given.rater, given.grade, np.array([PRIOR_ACCURACY[expert.level] for expert in panel]))

    def soft_labels(self, items: np.ndarray) -> Tensor:
        """(n, 3) posterior grades from the ratings of ``items`` alone."""
        rows = np.arange(len(items))
        model = fit_rater_model(rows, self.rater[items], self.grade[items], self.accuracies, num_images=len(items))
        return torch.from_numpy(model.posterior).float()


def train(base: Selector, encoded: EncodedPool, ratings: Ratings, items: np.ndarray, seed: int) -> Selector:
    """The selector's heads fitted to the ratings of ``items``, each head on a bootstrap sample of its own."""
    selector = copy.deepcopy(base)
    kinds, rows = encoded.kinds, torch.from_numpy(items)
    selector.fit_metrics(encoded.metrics[rows], kinds[rows])
    selector.fit_percepts(encoded.percepts[rows])
    generator = torch.Generator().manual_seed(seed)
    num_heads = selector.config.architecture.ensemble_heads
    drawn = torch.randint(len(items), (num_heads, len(items)), generator=generator)
    weights = torch.stack([torch.bincount(row, minlength=len(items)).float() for row in drawn], dim=1)
    with torch.no_grad():
        features = selector.features(encoded.percepts[rows], encoded.metrics[rows], kinds[rows])
    torch.manual_seed(seed)
    selector.heads = SelectorHeads(features.shape[1], selector.config.architecture.head_dim, num_heads)
    penalties = selector.linear_penalties(len(items), knows_strengths=True)
    fit_linear_heads(selector.heads, features, ratings.soft_labels(items), weights, penalties=penalties)
    return selector


@torch.no_grad()
def poor(selector: Selector, encoded: EncodedPool) -> np.ndarray:
    """(N, K) P(poor) by each head."""
    kinds = encoded.kinds
    logits = selector.heads(selector.features(encoded.percepts, encoded.metrics, kinds))
    return 1 - selector.probabilities(logits, kinds).numpy()


# --- arms ---


def choose_at_random(encoded: EncodedPool, left: np.ndarray, heads: np.ndarray, seed: int) -> list[Pick]:
    drawn = np.random.default_rng(seed).permutation(left)[:BATCH]
    return [Pick(int(item), Reason.RANDOM) for item in drawn]


def _total_entropy(heads: np.ndarray) -> np.ndarray:
    return entropy(heads.mean(1))


def choose_by_entropy(encoded: EncodedPool, left: np.ndarray, heads: np.ndarray, seed: int) -> list[Pick]:
    best = np.argsort(-_total_entropy(heads[left]), kind="stable")[:BATCH]
    return [Pick(int(item), Reason.MODEL) for item in left[best]]


def choose_by_mix(mix: Mix, value: Callable[[np.ndarray], np.ndarray] = bald) -> Chooser:
    """``value``: of P(poor) by each head (N, K), what a rating is expected to tell (N,)."""

    def choose(encoded: EncodedPool, left: np.ndarray, heads: np.ndarray, seed: int) -> list[Pick]:
        kinds = [encoded.kind_slugs[item] for item in left]
        picks = choose_batch(kinds, value(heads[left]), encoded.embeddings[left], mix=mix, seed=seed)
        return [Pick(int(left[pick.item]), pick.reason) for pick in picks]

    return choose


@dataclass(frozen=True)
class Arm:
    choose: Chooser
    trains_on_random: bool = True  # else they are kept for calibration


ARMS = {
    "random": Arm(choose_at_random),
    "mix, random share kept for calibration": Arm(choose_by_mix(Mix(BATCH)), trains_on_random=False),
    "mix, random share trained on": Arm(choose_by_mix(Mix(BATCH))),
    "mix, random share trained on, not spread": Arm(choose_by_mix(Mix(BATCH, shortlist_share=NOT_SPREAD))),
    "entropy": Arm(choose_by_entropy),
    "mix by entropy, random share trained on, not spread": Arm(
        choose_by_mix(Mix(BATCH, shortlist_share=NOT_SPREAD), _total_entropy)
    ),
}


@dataclass(frozen=True)
class Curve:
    """How well a selector tells poor images after each batch."""

    spent: list[int]  # ratings, those kept for calibration included
    trained: list[int]  # ratings that the selector learnt from
    auc: list[float]  # AUC(poor) on fresh images, by gold


def run_arm(
    arm: Arm,
    base: Selector,
    encoded: EncodedPool,
    test: EncodedPool,
    *,
    seed: int,
    most_spent: int,
    levels: Sequence[int] = DEFAULT_LEVELS,
) -> Curve:
    """Batches of one rating an image until ``most_spent`` ratings are spent."""
    ratings = Ratings.of(encoded.pool, seed, levels)
    learnt = np.random.default_rng([seed, 1]).permutation(len(encoded.pool))[:FIRST]
    is_left = np.ones(len(encoded.pool), dtype=bool)
    is_left[learnt] = False
    curve = Curve([], [], [])
    while True:
        selector = train(base, encoded, ratings, learnt, seed)
        spent = int((~is_left).sum())
        curve.spent.append(spent)
        curve.trained.append(len(learnt))
        curve.auc.append(auc(poor(selector, test).mean(1), test.pool.is_poor))
        if spent >= most_spent:
            return curve
        left = np.flatnonzero(is_left)
        picks = arm.choose(encoded, left, poor(selector, encoded), seed * 1000 + spent)
        is_left[[pick.item for pick in picks]] = False
        taught = [pick.item for pick in picks if arm.trains_on_random or pick.reason != Reason.RANDOM]
        learnt = np.concatenate([learnt, taught])


def needed(counts: list[int], values: list[float], goal: float) -> float | None:
    """How many ratings the goal takes: where the rising curve that fits the values best reaches it, between two
    batches linearly; None where it ends below.

    Each value has the noise of one training; the rising curve (isotonic regression by least squares) is what they say
    together. A curve's first, or last, crossing would be the luckiest, or unluckiest, of many trainings.
    """
    rising = isotonic_regression(values).x
    if rising[-1] < goal:
        return None
    if rising[0] >= goal:
        return float(counts[0])
    after = int(np.argmax(rising >= goal))
    share = (goal - rising[after - 1]) / (rising[after] - rising[after - 1])
    return float(counts[after - 1] + share * (counts[after] - counts[after - 1]))
