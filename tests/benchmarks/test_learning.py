"""From ratings to scores, on phantoms with planted defects and simulated experts: who learns best from how much.

OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests/benchmarks/test_learning.py -m benchmark -s

MEDSYN_LEARNING_SEEDS=2 takes fewer seeds than five. The table goes to standard output and, as JSON, to the file that
MEDSYN_LEARNING_RESULTS names. `-k labels` compares labels only, on linear starts of many panels: a few minutes.
docs/learning.md holds the last full run.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from generation.scoring.selector import Selector, SelectorConfig, SelectorScores
from tests.benchmarks.learning_study import (
    SIDE,
    BlindTrainer,
    LinearStudy,
    NoMetricsTrainer,
    SelectorTrainer,
    Study,
    TestPool,
    auc_poor,
    pessimistic,
    poor_rate,
    rated_images,
)
from training.rlhf.config import RLHFConfig, from_dict
from training.rlhf.evaluation import auc
from training.simulation.pool import PhantomPool, draw_panel, draw_pool, rate_pool

pytestmark = pytest.mark.benchmark
RATED, TEST = 500, 1000  # images
SEED_STRIDE, TEST_SEED, MIXED_SEED = 100_000, 900_000, 950_000
MISMATCH_RATE = 0.2
YIELDS = (0.3, 0.5)
BUDGETS = ((500, 1), (250, 2), (150, 1))  # images, ratings of each
PANELS = 4  # of every pool, in the comparison of labels


def config_of(seed: int) -> RLHFConfig:
    return from_dict({"training": {"seed": seed}, "synthetic_system": {"image_size": [128, 128]}}, source="benchmark")


class Benchmark:
    """The test pools, drawn once, and the results of every seed."""

    def __init__(self):
        self.pools = {"test": draw_pool(TEST, seed=TEST_SEED)}
        self.pools["mixed"] = draw_pool(TEST, seed=MIXED_SEED, mismatch_rate=MISMATCH_RATE)
        self.tests: dict[str, TestPool] = {}

    def run(self, seed: int) -> dict[str, float]:
        pool = draw_pool(RATED, seed=SEED_STRIDE * (seed + 1))
        panel = draw_panel(seed=seed)
        study = Study.of(rated_images(pool, rate_pool(pool, panel, ratings_per_image=1, seed=seed)), config_of(seed))
        results = self._default(study, pool)
        results |= self._selectors(study, pool, seed)
        return results

    def _default(self, study: Study, pool: PhantomPool) -> dict[str, float]:
        """The whole training on 500 ratings: selector, policy, the predecessors beside them."""
        started = time.monotonic()
        labels = study.soft()
        trainer = study.trainer(labels, relabel=study.relabel())
        encoded = time.monotonic()
        if not self.tests:
            self.tests = {name: TestPool.of(each, trainer.policy) for name, each in self.pools.items()}
        test, mixed = self.tests["test"], self.tests["mixed"]
        results = {
            "AUC(poor) predecessors, as published": study.predecessors(trainer, test, as_published=True),
            "AUC(poor) predecessors, repaired": study.predecessors(trainer, test, as_published=False),
            "AUC(poor) 500 x 1, linear start": auc_poor(test, test.heads(trainer.selector).mean(1)),
        }
        before = trainer.score_all().acceptance
        begun = time.monotonic()
        epochs = study.train(trainer, labels)
        results |= {
            "seconds: encoding": encoded - started,
            "seconds: 100 epochs": time.monotonic() - begun,
            "epoch of best selector": epochs["selector"],
            "epoch of best policy": epochs["policy"],
        }
        heads = test.heads(trainer.selector)
        results["AUC(poor) 500 x 1, ours"] = auc_poor(test, heads.mean(1))
        results["AUC(poor) 500 x 1, ours, serving score"] = auc_poor(test, SelectorScores.of_heads(heads).serving)
        results["AUC(poor) 500 x 1, one head"] = auc_poor(test, heads[:, 0])
        results |= self._movement(study, trainer, pool, before) | self._policy(trainer.policy, test)
        return results | self._served(trainer, mixed)

    @staticmethod
    def _movement(study: Study, trainer, pool: PhantomPool, before: torch.Tensor) -> dict[str, float]:
        """From before the first epoch to after the last, on the training images."""
        change = (study.last_acceptance - before)[trainer.split.train].numpy()
        quality = pool.quality[trainer.split.train]
        low, high = np.quantile(pool.quality, (0.3, 0.7))
        return {
            "policy score's change, gold poor": float(change[quality < low].mean()),
            "policy score's change, gold excellent": float(change[quality > high].mean()),
        }

    @staticmethod
    def _policy(policy, test: TestPool) -> dict[str, float]:
        own = test.alignment(policy, test.pool.prompts)
        others = {"any other prompt": test.any_other(0), "another finding of its kind": test.wrong_finding}
        labels = np.repeat([1, 0], len(own))
        results = {"AUC(poor) policy": auc_poor(test, own)}
        for name, prompts in others.items():
            other = test.alignment(policy, prompts)
            good = ~test.pool.is_poor
            results[f"policy: matched against {name}, AUC"] = auc(np.concatenate([own, other]), labels)
            results[f"policy: matched against {name}, same image"] = float((own > other).mean())
            results[f"policy: matched against {name}, AUC of images not poor"] = auc(
                np.concatenate([own[good], other[good]]), np.repeat([1, 0], good.sum())
            )
        return results

    @staticmethod
    def _served(trainer, mixed: TestPool) -> dict[str, float]:
        score = SelectorScores.of_heads(mixed.heads(trainer.selector)).serving.numpy()
        aligned = mixed.alignment(trainer.policy, mixed.pool.prompts)
        arms = {
            "unfiltered": np.random.default_rng(0).random(len(score)),
            "selector": score,
            "selector + policy": np.minimum(score, aligned),
            "oracle": mixed.pool.quality,
        }
        return {
            f"poor among served at {share:.0%} yield, {name}": poor_rate(mixed, scores, share)
            for share in YIELDS
            for name, scores in arms.items()
        }

    def _selectors(self, study: Study, pool: PhantomPool, seed: int) -> dict[str, float]:
        """Selectors of other budgets, labels and parts."""
        test, panel, results = self.tests["test"], draw_panel(seed=seed), {}
        arms = {
            "no ViT": (BlindTrainer, {"blind": True}),
            "no quality metrics": (NoMetricsTrainer, {"metrics": False}),
        }
        for name, (kind, options) in arms.items():
            trainer = study.trainer(study.soft(), kind, relabel=study.relabel())
            study.train(trainer, study.soft())
            results[f"AUC(poor) 500 x 1, {name}"] = auc_poor(test, test.heads(trainer.selector, **options).mean(1))
        for count, each in BUDGETS:
            ratings = rate_pool(pool.subset(np.arange(count)), panel, ratings_per_image=each, seed=seed)
            part = study.first(count, ratings, pool)
            soft, equal = part.soft(), part.equal()
            for name, labels, relabel in (("soft labels", soft, part.relabel()), ("equal weights", equal, None)):
                trainer = part.trainer(labels, SelectorTrainer, relabel=relabel)
                part.train(trainer, labels)
                results[f"AUC(poor) {count} x {each}, {name}"] = auc_poor(test, test.heads(trainer.selector).mean(1))
        return results


def table(results: list[dict[str, float]]) -> str:
    lines = [f"{'':62} {'mean':>7} {'min':>7} {'max':>7}"]
    for name in results[0]:
        values = [each[name] for each in results]
        lines.append(f"{name:62} {np.mean(values):7.3f} {min(values):7.3f} {max(values):7.3f}")
    return "\n".join(lines)


def test_learning_from_ratings():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    benchmark, results = Benchmark(), []
    for seed in range(int(os.environ.get("MEDSYN_LEARNING_SEEDS", "5"))):
        results.append(benchmark.run(seed))
        print(f"\nafter {len(results)} seeds\n{table(results)}", flush=True)
        if "MEDSYN_LEARNING_RESULTS" in os.environ:
            Path(os.environ["MEDSYN_LEARNING_RESULTS"]).write_text(json.dumps(results, indent=1))
    torch.set_num_threads(before)
    means = {name: np.mean([each[name] for each in results]) for name in results[0]}
    assert means["policy score's change, gold poor"] < 0 < means["policy score's change, gold excellent"]
    assert means["AUC(poor) 500 x 1, ours"] > means["AUC(poor) 500 x 1, no ViT"] + 0.03
    assert means["AUC(poor) 500 x 1, ours"] > means["AUC(poor) predecessors, as published"] + 0.03
    assert means["AUC(poor) 500 x 1, soft labels"] > means["AUC(poor) 500 x 1, equal weights"] - 0.003
    assert means["policy: matched against any other prompt, AUC"] > 0.75


def compare_labels(num_pools: int) -> dict[str, np.ndarray]:
    """By panel, budget and labels, AUC(poor) (pools, panels, 2) of the mean over heads and of the serving score."""
    selector = Selector(SelectorConfig(SIDE))
    selector.load_pretrained()
    test, results = TestPool.of(draw_pool(TEST, seed=TEST_SEED), selector), {}
    for number in range(num_pools):
        study = LinearStudy(draw_pool(RATED, seed=SEED_STRIDE * (number + 1)), selector)
        for panel_name, change in (("default", list), ("pessimistic", pessimistic)):
            for count, each in BUDGETS:
                for repeat in range(PANELS):
                    seed = number + 100 * repeat
                    panel, images = change(draw_panel(seed=seed)), study.pool.subset(np.arange(count))
                    ratings = rate_pool(images, panel, ratings_per_image=each, seed=seed)
                    for labels, scores in study.scores(count, ratings, test, seed).items():
                        results.setdefault(f"{panel_name}, {count} x {each}, {labels}", []).append(scores)
    return {name: np.array(values).reshape(num_pools, PANELS, 2) for name, values in results.items()}


def test_labels_of_raters_and_of_other_images():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    results = compare_labels(int(os.environ.get("MEDSYN_LEARNING_SEEDS", "5")))
    torch.set_num_threads(before)
    print(f"\n{'':48} {'mean':>6} {'gain':>7} {'(se)':>7} {'serving':>8} {'gain':>7} {'(se)':>7}")
    gains = {}
    for name, values in results.items():
        gain = values - results[f"{name.split(' x ')[0]} x {name.split(' x ')[1][0]}, equal weights"]
        gains[name] = gain.mean((0, 1))
        error = gain.std((0, 1), ddof=1) / gain[..., 0].size ** 0.5
        mean = values.mean((0, 1))
        print(
            f"{name:48} {mean[0]:6.3f} {gains[name][0]:+7.4f} ({error[0]:.4f}) {mean[1]:8.3f} "
            f"{gains[name][1]:+7.4f} ({error[1]:.4f})  by pool {np.round(gain.mean(1)[:, 0], 3).tolist()}",
            flush=True,
        )
    for panel in ("default", "pessimistic"):
        assert gains[f"{panel}, 150 x 1, rater model, image prior"][0] >= 0.01
        assert (gains[f"{panel}, 500 x 1, rater model, image prior"] >= -0.003).all()
