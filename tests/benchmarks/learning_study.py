"""Selector and policy on phantoms with planted defects, rated by simulated experts: the arms of the comparison.

No learner sees the gold quality. All arms read what one frozen encoder makes of the images; it is computed once.
"""

import copy
import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from generation.diffusion.phantoms import class_of_caption, other_caption
from generation.embedded_model import EMBEDDED_MODEL_DIR
from generation.scoring.encoder import encode, prepare
from generation.scoring.policy import Policy
from generation.scoring.quality_metrics import measure
from generation.scoring.selector import Selector, SelectorHeads, SelectorScores, kind_indices
from medsyn.modalities import parse_prompt
from training.rlhf.config import RLHFConfig
from training.rlhf.dataset import DataSeen, RatedImages, soft_labels
from training.rlhf.early_stopping import validation_losses
from training.rlhf.evaluation import auc
from training.rlhf.labels import Relabelling, make_targets
from training.rlhf.linear_start import LinearStart, draw_folds
from training.rlhf.policy_loss import rewards
from training.rlhf.splits import Split
from training.rlhf.text_features import PromptFeatures, encode_prompts
from training.rlhf.tidy import GIVEN
from training.rlhf.trainer import Trainer
from training.simulation.experts import PESSIMISTIC_STD, THRESHOLD_QUANTILES, Expert
from training.simulation.loop.arms import equal_weights
from training.simulation.pool import PanelRatings, PhantomPool
from training.simulation.predecessors import train_heads

SIDE = 128  # pixels
CALIBRATION_SHARE = 0.1  # of the rated images; all others teach, for the gold of fresh images is the test
_BATCH = 50


def rated_images(pool: PhantomPool, ratings: PanelRatings) -> RatedImages:
    prompts = tuple(dict.fromkeys(pool.prompts))
    slugs = tuple(parse_prompt(prompt).kind.slug for prompt in pool.prompts)
    names = tuple(str(number) for number in range(len(pool)))
    return RatedImages(
        pixels=torch.from_numpy(pool.pixels).permute(0, 3, 1, 2).contiguous(),
        kinds=kind_indices(slugs),
        kind_slugs=slugs,
        prompts=prompts,
        prompt_index=torch.tensor([prompts.index(prompt) for prompt in pool.prompts]),
        image_ids=names,
        paths=names,
        groups=np.arange(len(pool)),
        known=np.zeros(len(pool), dtype=int),
        item_of_rating=ratings.image,
        grades=ratings.grade,
        levels=ratings.level,
        raters=np.array([f"reader {rater}" for rater in ratings.rater]),
        seen=DataSeen("", None, GIVEN, {}),
    )


def split_of(count: int, seed: int) -> Split:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    fold = round(CALIBRATION_SHARE * count)
    return Split(train=order[fold:], calibration=order[:fold], held_out=order[:fold])


@dataclass(frozen=True)
class TestPool:
    """Fresh images of known gold quality, encoded once."""

    pool: PhantomPool
    tokens: Tensor  # (N, T, D)
    metrics: Tensor  # (N, M)
    kinds: Tensor  # (N,)

    @classmethod
    @torch.no_grad()
    def of(cls, pool: PhantomPool, network: Selector | Policy) -> "TestPool":
        pixels = torch.from_numpy(pool.pixels).permute(0, 3, 1, 2)
        parts = [prepare(part.float() / 255, SIDE) for part in pixels.split(_BATCH)]
        tokens = torch.cat([encode(network.encoder.eval(), part) for part in parts])
        kinds = kind_indices([parse_prompt(prompt).kind.slug for prompt in pool.prompts])
        return cls(pool, tokens, torch.cat([measure(part) for part in parts]), kinds)

    @cached_property
    def wrong_finding(self) -> tuple[str, ...]:
        """(N,) for each image a prompt of its kind that names another finding, side or sequence."""
        return tuple(other_caption(class_of_caption(text), number) for number, text in enumerate(self.pool.prompts))

    def any_other(self, seed: int) -> tuple[str, ...]:
        """(N,) another image's prompt, of another class."""
        rng, prompts = np.random.default_rng(seed), self.pool.prompts
        drawn = list(rng.permutation(len(prompts)))
        for number, text in enumerate(prompts):
            while class_of_caption(prompts[drawn[number]]) == class_of_caption(text):
                drawn[number] = int(rng.integers(len(prompts)))
        return tuple(prompts[number] for number in drawn)

    @torch.no_grad()
    def heads(self, selector: Selector, *, blind: bool = False, metrics: bool = True) -> Tensor:
        """P(r > 1) by each head, (N, K)."""
        percepts = selector.perception.eval()(self.tokens)
        if blind:
            percepts = torch.zeros_like(percepts)
        measured = self.metrics if metrics else torch.zeros_like(self.metrics)
        logits = selector.eval().heads(selector.features(percepts, measured, self.kinds))
        return selector.probabilities(logits, self.kinds)

    @torch.no_grad()
    def alignment(self, policy: Policy, prompts: tuple[str, ...]) -> np.ndarray:
        features, place = encode_prompts(EMBEDDED_MODEL_DIR, tuple(sorted(set(prompts)))), {}
        for number, text in enumerate(sorted(set(prompts))):
            place[text] = number
        index = torch.tensor([place[text] for text in prompts])
        policy.eval()
        scores = []
        for items in torch.arange(len(prompts)).split(_BATCH):
            text, mask = features[index[items]]
            scores.append(policy.alignment(policy.fuse(policy.image_projection(self.tokens[items]), text, mask)))
        return torch.cat(scores).numpy()


def auc_poor(test: TestPool, good: Tensor | np.ndarray) -> float:
    return auc(-np.asarray(good), test.pool.is_poor)


_ACCEPTS_NOTHING = -30.0  # the logit of a score of 0


class SelectorTrainer(Trainer):
    """Leaves the policy untrained: arms that differ in the selector only need none."""

    blind, without_metrics = False, False

    def _step_policy(self, *_):
        return 0.0

    def _score_batch(self, items, other):
        return _selector_logits(self, items), torch.full((len(items), 2), _ACCEPTS_NOTHING)

    def _perceive(self, tokens):
        seen = super()._perceive(tokens)
        return torch.zeros_like(seen) if self.blind else seen

    def _measure_all(self):
        measured = super()._measure_all()
        return torch.zeros_like(measured) if self.without_metrics else measured


class BlindTrainer(SelectorTrainer):
    blind = True


class NoMetricsTrainer(SelectorTrainer):
    without_metrics = True


def _selector_logits(trainer: Trainer, items: Tensor) -> Tensor:
    metrics, kinds = trainer.metrics[items], trainer.rated.kinds[items]
    features = trainer.selector.features(trainer._percepts(items), metrics, kinds)
    return trainer.selector.heads(features).float()


@dataclass
class Study:
    """One seed: a pool, its ratings, and what is trained from them."""

    rated: RatedImages
    config: RLHFConfig
    features: PromptFeatures
    tokens: Tensor | None = None  # of all images; made by the first trainer, used by all
    last_acceptance: Tensor | None = None  # (N,) the policy's after the last epoch of the latest training

    @classmethod
    def of(cls, rated: RatedImages, config: RLHFConfig) -> "Study":
        return cls(rated, config, encode_prompts(EMBEDDED_MODEL_DIR, rated.prompts))

    def first(self, count: int, ratings: PanelRatings, pool: PhantomPool) -> "Study":
        """The first ``count`` images under other ratings, with what is encoded already."""
        rated = rated_images(pool.subset(np.arange(count)), ratings)
        features = encode_prompts(EMBEDDED_MODEL_DIR, rated.prompts)
        return Study(rated, self.config, features, self.tokens[:count])

    def trainer(
        self, labels: Tensor, kind: type[Trainer] = Trainer, *, relabel: Relabelling | None = None
    ) -> Trainer:
        study = self

        class Remembering(kind):
            def _encode(self, network, encoding):
                if study.tokens is None:
                    study.tokens = super()._encode(network, encoding)
                return study.tokens

        split = split_of(len(self.rated), self.config.training.seed)
        return Remembering(self.config, self.rated, labels, split, self.features, image_size=SIDE, relabel=relabel)

    def train(self, trainer: Trainer, labels: Tensor) -> dict[str, int]:
        """To the last epoch; leaves the best selector and the best policy in the trainer. Gives their epochs."""
        fold = trainer.split.calibration
        seed = self.config.training.seed
        targets = make_targets(
            self.rated, trainer.split, expert_weights=True, image_prior=False, hold_out_raters=False, seed=seed
        )
        validation = dataclasses.replace(targets.validation, labels=labels[fold])
        mean_reward = rewards(trainer.soft_labels)[trainer.split.train].mean()
        networks = {"selector": trainer.selector, "policy": trainer.policy}
        best: dict[str, tuple[float, int, dict]] = {}
        while trainer.epoch < trainer.max_epochs:
            trainer.train_epoch()
            for name, loss in validation_losses(trainer.scores, validation, mean_reward).items():
                if name not in best or loss < best[name][0]:
                    best[name] = (loss, trainer.epoch, copy.deepcopy(networks[name].state_dict()))
        self.last_acceptance = trainer.scores.acceptance
        for name, (_, _, state) in best.items():
            networks[name].load_state_dict(state)
        return {name: epoch for name, (_, epoch, _) in best.items()}

    def soft(self) -> Tensor:
        return soft_labels(self.rated, expert_weights=True)[0]

    def equal(self) -> Tensor:
        return equal_weights(self.rated)

    def relabel(self) -> Relabelling:
        return Relabelling(self.rated, expert_weights=True, counts=None)

    def predecessors(self, trainer: Trainer, test: TestPool, *, as_published: bool) -> float:
        """AUC(poor) by the predecessors' rule with our features and network."""
        selector = copy.deepcopy(trainer.selector)
        items = torch.from_numpy(self.rated.item_of_rating)
        with torch.no_grad():
            features = selector.eval().features(
                trainer._percepts(items), trainer.metrics[items], self.rated.kinds[items]
            )
        architecture = selector.config.architecture
        torch.manual_seed(self.config.training.seed)
        selector.heads = SelectorHeads(features.shape[1], architecture.head_dim, architecture.ensemble_heads)
        grades, levels = torch.from_numpy(self.rated.grades), torch.from_numpy(self.rated.levels)
        train_heads(
            selector.heads, features, grades, levels, as_published=as_published, seed=self.config.training.seed
        )
        return auc_poor(test, test.heads(selector).mean(1))


def poor_rate(test: TestPool, scores: np.ndarray, yield_share: float) -> float:
    """Share of gold poor among the best ``yield_share`` of the images."""
    best = np.argsort(-np.asarray(scores), kind="stable")[: round(yield_share * len(test.pool))]
    return float(test.pool.is_poor[best].mean())


class LinearStudy:
    """The heads' linear start alone, fitted to all rated images: seconds for many panels."""

    def __init__(self, pool: PhantomPool, selector: Selector):
        self.pool, self.selector = pool, selector
        pixels = torch.from_numpy(pool.pixels).permute(0, 3, 1, 2)
        parts = [prepare(part.float() / 255, SIDE) for part in pixels.split(_BATCH)]
        with torch.no_grad():
            self.percepts = torch.cat([selector.eval().perceive(part) for part in parts])
        self.metrics = torch.cat([measure(part) for part in parts])
        self.kinds = kind_indices([parse_prompt(prompt).kind.slug for prompt in pool.prompts])

    def scores(self, count: int, ratings: PanelRatings, test: TestPool, seed: int) -> dict[str, tuple[float, float]]:
        """By labels, AUC(poor) of the mean over heads and of the serving score; ``ratings`` of the first images."""
        rated = rated_images(self.pool.subset(np.arange(count)), ratings)
        start = LinearStart.of(self.selector, self.metrics[:count], self.kinds[:count], self.percepts[:count])
        generator = torch.Generator().manual_seed(seed)
        heads = self.selector.config.architecture.ensemble_heads
        drawn = torch.randint(count, (heads, count), generator=generator)
        weights = torch.stack([torch.bincount(row, minlength=count).float() for row in drawn], dim=1)
        soft, relabel = soft_labels(rated, expert_weights=True)[0], Relabelling(rated, True, None)
        labels = {
            "equal weights": equal_weights(rated),
            "rater model": soft,
            "rater model, image prior": start.label_again(
                soft, torch.arange(count), draw_folds(rated.groups, seed=seed), relabel
            ),
            "gold": gold_labels(self.pool.quality[:count]),
        }
        return {name: self._auc(start, each, weights, test) for name, each in labels.items()}

    def _auc(self, start: LinearStart, labels: Tensor, weights: Tensor, test: TestPool) -> tuple[float, float]:
        with torch.no_grad():
            for parameter in self.selector.heads.parameters():
                parameter.zero_()
        start.fit(labels, weights)
        heads = test.heads(self.selector)
        return auc_poor(test, heads.mean(1)), auc_poor(test, SelectorScores.of_heads(heads).serving)


def gold_labels(quality: np.ndarray) -> Tensor:
    """(N, 3) the grade that an expert without bias, noise or lapse gives."""
    low, high = np.quantile(quality, THRESHOLD_QUANTILES)
    return torch.eye(3)[torch.from_numpy((quality > low).astype(int) + (quality > high))]


def pessimistic(panel: list[Expert]) -> list[Expert]:
    """The same experts, all as noisy as the pessimistic panel's."""
    return [dataclasses.replace(expert, noise_std=PESSIMISTIC_STD) for expert in panel]
