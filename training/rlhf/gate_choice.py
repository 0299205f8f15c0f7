"""Where gates stand and how strict they are: chosen on one half of the trajectories, measured on the other. numpy.

A trajectory that gate g stops has cost c_g UNet evaluations, one that ends has cost c. Per accepted image

    cost = E[evaluations of a trajectory] / P(it ends and passes)

and the gain of gates is cost without over cost with them, one trajectory in twenty running ungated in both. Gates are
chosen to cost least while recall, the share of passing trajectories that reach their end, keeps what is promised.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.stats import spearmanr

from generation.scoring.gate_plan import UNGATED_SHARE, Estimate, Gate, share_estimate

DROP_CORRELATION = 0.6  # within prompt, with the final score: from here on a gate may be strict (METHOD.md 5)
RECALL_PER_KIND = 0.6
_FEWEST_OF_A_KIND = 5  # accepted trajectories from which a kind's recall is looked at
_LOSSES = np.array([0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.16, 0.2, 0.25])  # of passing ones, one gate's
_RESAMPLES = 1000


@dataclass(frozen=True, eq=False, kw_only=True)
class Watched:
    """N trajectories that ran to their end and were looked at after S steps each."""

    steps: tuple[int, ...]  # (S,) after how many steps, rising
    prompts: np.ndarray  # (N,) numbers
    kinds: np.ndarray  # (N,) slugs
    costs: np.ndarray  # (S,) UNet evaluations until after each step
    full_cost: int  # of a whole trajectory

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True, eq=False, kw_only=True)
class Trials(Watched):
    """What a gate would have said of each trajectory after each step, and how it ended."""

    evidence: np.ndarray  # (N, S) of passing, from networks that had not seen the trajectory
    passed: np.ndarray  # (N,) bool
    score: np.ndarray  # (N,) the smaller of the two final scores

    def at(self, index: np.ndarray) -> "Trials":
        rows = ("evidence", "passed", "score", "prompts", "kinds")
        return replace(self, **{name: getattr(self, name)[index] for name in rows})

    def halves(self) -> tuple["Trials", "Trials"]:
        """Two parts in which every prompt is equally common: its trajectories go here and there in turn."""
        turn = np.zeros(len(self), dtype=int)
        for prompt in np.unique(self.prompts):
            rows = np.flatnonzero(self.prompts == prompt)
            turn[rows] = np.arange(len(rows)) + prompt
        return self.at(turn % 2 == 0), self.at(turn % 2 == 1)


# --- what gates do ---


def survives(trials: Trials, gates: Sequence[Gate]) -> np.ndarray:
    """(N,) bool: no gate stops it."""
    columns = [trials.evidence[:, trials.steps.index(gate.step)] >= gate.threshold for gate in gates]
    return np.logical_and.reduce(columns) if columns else np.ones(len(trials), dtype=bool)


def evaluations(trials: Trials, gates: Sequence[Gate]) -> np.ndarray:
    """(N,) UNet evaluations under the gates."""
    cost = np.full(len(trials), float(trials.full_cost))
    for gate in reversed(sorted(gates, key=lambda one: one.step)):
        column = trials.steps.index(gate.step)
        cost = np.where(trials.evidence[:, column] < gate.threshold, trials.costs[column], cost)
    return cost


def gain_of(passed: np.ndarray, kept: np.ndarray, cost: np.ndarray, full_cost: int) -> float:
    """Evaluations per accepted image without gates over the same with them; 0 where nothing is accepted."""
    mixed_cost = (1 - UNGATED_SHARE) * cost.mean() + UNGATED_SHARE * full_cost
    accepted = (1 - UNGATED_SHARE) * (passed & kept).mean() + UNGATED_SHARE * passed.mean()
    return float(full_cost / passed.mean() * accepted / mixed_cost) if passed.any() else 0.0


def recall_of(passed: np.ndarray, kept: np.ndarray) -> float:
    return float(kept[passed].mean()) if passed.any() else float("nan")


def recall_by_kind(trials: Trials, kept: np.ndarray) -> dict[str, float]:
    """Of kinds with an accepted trajectory."""
    found = {}
    for kind in np.unique(trials.kinds[trials.passed]):
        found[str(kind)] = recall_of(trials.passed & (trials.kinds == kind), kept)
    return found


def rank_correlation(trials: Trials, *, smallest_group: int = 5) -> list[float]:
    """Within prompt, of the evidence after each step with the final score: Spearman's, averaged over trajectories.

    Pooled correlation would flatter: it counts knowing which prompts are hard.
    """
    found = []
    for column in range(len(trials.steps)):
        values, weights = [0.0], [0]
        for prompt in np.unique(trials.prompts):
            rows = trials.prompts == prompt
            evidence, score = trials.evidence[rows, column], trials.score[rows]
            if rows.sum() >= smallest_group and np.ptp(evidence) > 0 and np.ptp(score) > 0:
                values.append(float(spearmanr(evidence, score).statistic))
                weights.append(int(rows.sum()))
        found.append(float(np.average(values, weights=weights)) if sum(weights) else 0.0)
    return found


# --- choosing ---


def choose_gates(trials: Trials, *, correlation: Sequence[float], promised_recall: float) -> tuple[Gate, ...]:
    """At most two gates of least cost per accepted image that keep the promises; none where none saves anything.

    The later one stands where the within-prompt correlation has reached 0.6, or is the last there is. Recall must
    clear the promise by one standard error, so that it holds on other trajectories too.
    """
    reached = [step for step, value in zip(trials.steps, correlation, strict=True) if value >= DROP_CORRELATION]
    drop = reached[0] if reached else trials.steps[-1]
    best: tuple[float, tuple[Gate, ...]] = (1.0, ())
    for gates in _candidates(trials, drop):
        kept = survives(trials, gates)
        if not _keeps_promises(trials, kept, promised_recall):
            continue
        gain = gain_of(trials.passed, kept, evaluations(trials, gates), trials.full_cost)
        best = max(best, (gain, gates), key=lambda one: one[0])
    return best[1]


def _candidates(trials: Trials, drop: int) -> Iterator[tuple[Gate, ...]]:
    passing = trials.evidence[trials.passed]
    if not len(passing):
        return
    thresholds = {step: np.quantile(passing[:, k], _LOSSES) for k, step in enumerate(trials.steps)}
    for step in trials.steps:
        if step >= drop:
            yield from ((Gate(step, float(value)),) for value in thresholds[step])
    for first, second in combinations(trials.steps, 2):
        if second >= drop:
            for one in thresholds[first]:
                yield from ((Gate(first, float(one)), Gate(second, float(two))) for two in thresholds[second])


def _keeps_promises(trials: Trials, kept: np.ndarray, promised: float) -> bool:
    accepted = int(trials.passed.sum())
    margin = np.sqrt(promised * (1 - promised) / accepted)
    if recall_of(trials.passed, kept) < min(promised + margin, 1.0):
        return False
    for kind in np.unique(trials.kinds):
        of_kind = trials.passed & (trials.kinds == kind)
        if of_kind.sum() >= _FEWEST_OF_A_KIND and recall_of(of_kind, kept) < RECALL_PER_KIND:
            return False
    return True


# --- measuring ---


def measure_gain(trials: Trials, gates: Sequence[Gate], *, seed: int) -> Estimate:
    """With its 95 % bootstrap interval over trajectories (percentiles)."""
    kept, cost = survives(trials, gates), evaluations(trials, gates)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(_RESAMPLES):
        rows = rng.integers(0, len(trials), len(trials))
        draws.append(gain_of(trials.passed[rows], kept[rows], cost[rows], trials.full_cost))
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(gain_of(trials.passed, kept, cost, trials.full_cost), float(low), float(high))


def measure_recall(trials: Trials, gates: Sequence[Gate]) -> Estimate:
    """With its 95 % Wilson interval."""
    kept = survives(trials, gates)
    return share_estimate(int((trials.passed & kept).sum()), int(trials.passed.sum()))
