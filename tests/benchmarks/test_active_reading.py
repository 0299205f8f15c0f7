"""How many ratings a selector needs, by who chooses what is rated: ten panels of simulated experts on one pool.

OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests/benchmarks/test_active_reading.py -m benchmark -s

MEDSYN_READING_SEEDS takes another number of panels than ten, MEDSYN_READING_CACHE names a folder that keeps what the
encoder makes of the pools, MEDSYN_READING_RESULTS a file for the curves as JSON. docs/reading-lists.md holds the last
full run.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from generation.scoring.selector import Selector
from medsyn.percent import percent
from tests.benchmarks.reading_study import ARMS, Curve, EncodedPool, needed, run_arm, untrained_selector
from training.reading.services import DEFAULT_RANDOM_SHARE
from training.simulation.pool import DEFAULT_LEVELS, draw_pool

pytestmark = pytest.mark.benchmark
POOL, TEST = 1500, 800  # images
POOL_SEED, TEST_SEED = 1_000_000, 900_000
MOST_SPENT = 640  # ratings
GOALS = (0.88, 0.89, 0.90)  # AUC(poor)
GOAL, WANTED = 0.90, 0.20  # fewer ratings by this share, or random stays the default
PROPOSED = "mix, random share trained on"
Curves = dict[str, list[Curve]]  # by arm, one for each panel


def ratings_needed(curves: list[Curve], goal: float, *, counted: bool = True) -> tuple[np.ndarray, int]:
    """(S,) ratings until the goal, all there were where it was not reached, and how often it was not."""
    counts = [curve.spent if counted else curve.trained for curve in curves]
    found = [needed(count, curve.auc, goal) for count, curve in zip(counts, curves, strict=True)]
    capped = [count[-1] if value is None else value for count, value in zip(counts, found, strict=True)]
    return np.array(capped), found.count(None)


def paired(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Mean of one minus other over panels, with Student's 95 % interval."""
    difference = one - other
    reach = stats.t.ppf(0.975, len(one) - 1) * difference.std(ddof=1) / len(one) ** 0.5
    return difference.mean(), difference.mean() - reach, difference.mean() + reach


def line(name: str, curves: Curves, arm: str, goal: float, *, counted: bool = True) -> str:
    base, _ = ratings_needed(curves["random"], goal)
    found, unreached = ratings_needed(curves[arm], goal, counted=counted)
    mean, low, high = paired(found, base)
    figure = f"{'over ' if unreached else ''}{found.mean():.0f}"
    share = percent(mean / base.mean(), 0, is_signed=True)
    against = f"{mean:+.0f} ({low:+.0f} to {high:+.0f}), {share}" if arm != "random" else ""
    if unreached > len(found) / 2:
        against = ""  # a number that counts a panel as done where its ratings ended says nothing
    return f"| {name} | {goal:.2f} | {figure} | {unreached} | {against} |"


def table(curves: Curves) -> str:
    rows = [
        "| what is rated | AUC(poor) | ratings needed | panels that never got there | against random |",
        "|---|---|---|---|---|",
    ]
    for arm in curves:
        rows += [line(arm, curves, arm, goal) for goal in GOALS]
        if not ARMS[arm].trains_on_random:
            rows += [line(f"{arm} and not counted", curves, arm, goal, counted=False) for goal in GOALS]
    rows += ["", "| ratings spent | " + " | ".join(map(str, curves["random"][0].spent)) + " |"]
    rows.append("|---" * (1 + len(curves["random"][0].spent)) + "|")
    for arm, found in curves.items():
        means = np.mean([curve.auc for curve in found], axis=0)
        rows.append(f"| {arm} | " + " | ".join(f"{value:.3f}".lstrip("0") for value in means) + " |")
    return "\n".join(rows)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> "Bench":
    torch.set_num_threads(1)
    cache = Path(os.environ.get("MEDSYN_READING_CACHE", tmp_path_factory.mktemp("encoded")))
    base = untrained_selector()
    pool = EncodedPool.of(draw_pool(POOL, seed=POOL_SEED), base, cache / "pool.safetensors")
    test = EncodedPool.of(draw_pool(TEST, seed=TEST_SEED), base, cache / "test.safetensors")
    return Bench(base, pool, test)


@dataclasses.dataclass(frozen=True)
class Bench:
    """An untrained selector, and the pools that it has looked at."""

    base: Selector
    pool: EncodedPool
    test: EncodedPool

    def run(self, arms: Iterable[str], levels: Sequence[int], name: str) -> Curves:
        """The curves of every panel, printed, and kept as ``name`` where that is asked for."""
        curves: Curves = {arm: [] for arm in arms}
        for seed in range(int(os.environ.get("MEDSYN_READING_SEEDS", 10))):
            for arm, found in curves.items():
                given = {"seed": seed, "most_spent": MOST_SPENT, "levels": levels}
                found.append(run_arm(ARMS[arm], self.base, self.pool, self.test, **given))
            print(f"panel {seed} done", flush=True)
        print(table(curves))
        if "MEDSYN_READING_RESULTS" in os.environ:
            path = Path(os.environ["MEDSYN_READING_RESULTS"])
            rows = json.loads(path.read_text()) if path.exists() else {}
            rows[name] = {arm: [dataclasses.asdict(curve) for curve in found] for arm, found in curves.items()}
            path.write_text(json.dumps(rows))
        return curves


def test_readers_who_agree_more(bench):
    """Whether choosing pays more where less of what is unknown is the readers' noise; never worse than a draw."""
    curves = bench.run(("random", PROPOSED), (3, 3, 3, 3, 3, 3), "seniors")
    ends = {arm: np.mean([curve.auc[-1] for curve in found]) for arm, found in curves.items()}
    assert ends[PROPOSED] >= ends["random"] - 0.005


def test_the_default_is_what_needs_fewest_ratings(bench):
    curves = bench.run(ARMS, DEFAULT_LEVELS, "default")

    random, _ = ratings_needed(curves["random"], GOAL)
    proposed, _ = ratings_needed(curves[PROPOSED], GOAL)
    _, _, high = paired(proposed, random)
    pays = proposed.mean() <= (1 - WANTED) * random.mean() and high < 0
    assert pays == (DEFAULT_RANDOM_SHARE < 1), "The default of training.reading.services is not what was measured."
