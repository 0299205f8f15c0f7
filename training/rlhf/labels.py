"""The targets of a run: soft labels to learn from, and whose ratings choose the epoch.

A training image's own ratings may be read together with what the ratings of other images foretell of it (an image
prior): see `training.rlhf.linear_start`. The labels of calibration images never are, for they judge the networks.

Where raters are known, some of them are held out: the soft labels of the training images never use their ratings, and
the epoch is chosen by how well the networks foretell these ratings on the calibration fold: neither the images nor
the eyes are known to the networks.

Held-out raters cost ratings. In simulation (linear selector, six raters, 80 panels) one of the lowest level costs
0.002 to 0.004 of AUC(poor) where images are read by three raters or more, one of any level up to 0.011 where two read
an image and 500 ratings are all there are. So they are drawn from the level with most raters first, the lower one of
two with as many, and held out only where enough ratings stay; elsewhere the fold's own soft labels choose, as they do
without early stopping.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medsyn.percent import percent
from ratings.agreement.rater_model import RaterModel
from ratings.csv_schema import EXPERT_LEVELS
from training.rlhf import tidy
from training.rlhf.calibration import negative_log_likelihood
from training.rlhf.dataset import RatedImages, fit_raters, rater_levels
from training.rlhf.splits import Split

HELD_OUT_RATERS, CALIBRATION_FOLD = "held-out raters", "calibration fold"
HELD_OUT_RATER_SHARE = 0.2
MIN_RATERS = 3  # with fewer, a held-out one would leave a single pair of eyes
MIN_VALIDATION_RATINGS = 30  # of held-out raters on the calibration fold; fewer choose by chance
MIN_KEPT = 1.8  # ratings by others that a training image keeps on average, or else ...
ENOUGH_KEPT = 800  # ... ratings by others in all
MAX_LOST_SHARE = 0.1  # of the training images, that only held-out raters rated


@dataclass(frozen=True)
class Observed:
    """Ratings of held-out raters, and how these raters see: R of them."""

    items: Tensor  # (R,) int64
    says_poor: Tensor  # (R,) 1 or 0
    poor_if_poor: Tensor  # (R,) probability that this rater says poor of a poor image
    poor_if_not: Tensor  # (R,) the same of an image that is not poor

    def negative_log_likelihood(self, good: Tensor) -> float:
        """Mean over ratings, of P(r > 1) (N,): how surprising they are where that is right and the raters see so.

        Held against the bare ratings, the surest networks would lose to those that say little: raters err, and a
        network that is right must not be as unsure as they are.
        """
        stated = good[self.items]
        poor = (1 - stated) * self.poor_if_poor + stated * self.poor_if_not
        return negative_log_likelihood(poor, self.says_poor).item()


@dataclass(frozen=True)
class Validation:
    """What the epoch of the best networks, and the end of training, are chosen by."""

    source: str  # HELD_OUT_RATERS or CALIBRATION_FOLD
    reason: str  # why it is the fold; "" for held-out raters
    raters: tuple[str, ...]  # those held out
    items: Tensor  # (n,) positions in the calibration fold
    labels: Tensor  # (n, 3) shares of the grades that held-out raters gave, or soft labels of all raters
    ratings: int  # that stand behind the labels
    observed: Observed | None  # what held-out raters said; None: the fold's labels choose


@dataclass(frozen=True)
class Relabelling:
    """Soft labels by ratings and an image prior."""

    rated: RatedImages
    expert_weights: bool
    counts: np.ndarray | None  # (R,) which ratings teach; None: all

    def __call__(self, image_prior: Tensor) -> Tensor:
        """Posterior grades (N, 3) where ``image_prior`` (N, 3) is what is likely without an image's own ratings."""
        prior = image_prior.double().numpy()
        model, _ = fit_raters(self.rated, expert_weights=self.expert_weights, counts=self.counts, image_prior=prior)
        return torch.from_numpy(model.posterior).float()


@dataclass(frozen=True)
class Targets:
    """What the networks learn from."""

    labels: Tensor  # (N, 3) soft labels by ratings; of training images without the ratings of held-out raters
    relabel: Relabelling | None  # labels that heed an image prior too; None: raters.image_prior is false
    raters: RaterModel  # of all ratings
    rater_names: tuple[str, ...]  # in the model's order
    split: Split  # without training images that lost all their ratings
    num_lost: int  # training images that only held-out raters had rated
    validation: Validation


def make_targets(
    rated: RatedImages, split: Split, *, expert_weights: bool, image_prior: bool, hold_out_raters: bool, seed: int
) -> Targets:
    """Soft labels of all items and what chooses the epoch.

    ``image_prior``: whether training images shall be labelled again once features are there. ``hold_out_raters``:
    whether raters may be held out; the seed says which.
    """
    model, names = fit_raters(rated, expert_weights=expert_weights)
    labels = torch.from_numpy(model.posterior).float()
    relabel = Relabelling(rated, expert_weights, None) if image_prior else None
    if not hold_out_raters:
        validation = _by_fold(rated, split, labels, "early stopping is off")
        return Targets(labels, relabel, model, names, split, 0, validation)
    chosen = choose_raters(rated, split, seed=seed)
    reason = _why_not(rated, split, chosen)
    if reason:
        return Targets(labels, relabel, model, names, split, 0, _by_fold(rated, split, labels, reason))
    teaches = ~np.isin(rated.raters, chosen)
    taught, _ = fit_raters(rated, expert_weights=expert_weights, counts=teaches)
    labels[split.train] = torch.from_numpy(taught.posterior).float()[split.train]
    kept = split.train[_is_labelled(rated, teaches)[split.train]]
    smaller = Split(kept, split.calibration, split.held_out)
    validation = _by_raters(rated, split, chosen, model, names)
    if relabel is not None:
        relabel = replace(relabel, counts=teaches)
    return Targets(labels, relabel, model, names, smaller, len(split.train) - len(kept), validation)


def choose_raters(rated: RatedImages, split: Split, *, seed: int) -> tuple[str, ...]:
    """About a fifth of the raters who rated images of the calibration fold, at least one.

    Levels take turns, beginning with the one that has most raters; the seed says who within a level.
    """
    names, raters = np.unique(rated.raters, return_inverse=True)
    levels = rater_levels(rated)
    in_fold = np.isin(rated.item_of_rating, split.calibration.numpy())
    candidates = np.unique(raters[in_fold])
    drawn = np.random.default_rng(seed).permutation(candidates)
    queues = [[rater for rater in drawn if levels[rater] == level] for level in EXPERT_LEVELS]
    queues.sort(key=len, reverse=True)  # stable: the lower level first
    in_turn = [queue[turn] for turn in range(len(names)) for queue in queues if turn < len(queue)]
    count = max(1, round(HELD_OUT_RATER_SHARE * len(names)))
    return tuple(sorted(str(names[rater]) for rater in in_turn[:count]))


def _why_not(rated: RatedImages, split: Split, chosen: tuple[str, ...]) -> str:
    """Why these raters cannot be held out; "" where they can."""
    if rated.seen.rater_source == tidy.EXPERT_LEVELS:
        return "who gave each rating is not known"
    number = len(np.unique(rated.raters))
    if number < MIN_RATERS:
        return f"{number} raters are fewer than {MIN_RATERS}"
    is_chosen = np.isin(rated.raters, chosen)
    in_train = np.isin(rated.item_of_rating, split.train.numpy())
    kept = int((in_train & ~is_chosen).sum())
    if kept < min(ENOUGH_KEPT, MIN_KEPT * len(split.train)):
        return f"{kept} ratings by others would be left to teach with on {len(split.train)} images, which are too few"
    lost = 1 - _is_labelled(rated, ~is_chosen)[split.train].float().mean().item()
    if lost > MAX_LOST_SHARE:
        allowed = percent(MAX_LOST_SHARE)
        return f"{percent(lost, 0)} of the training images were rated by held-out raters only, more than {allowed}"
    in_fold = int((is_chosen & np.isin(rated.item_of_rating, split.calibration.numpy())).sum())
    if in_fold < MIN_VALIDATION_RATINGS:
        return (
            f"held-out raters would have {in_fold} ratings of the calibration fold, fewer than "
            f"{MIN_VALIDATION_RATINGS}"
        )
    return ""


def _is_labelled(rated: RatedImages, teaches: np.ndarray) -> Tensor:
    """(N,) whether a rating that ``teaches`` (R,), or a known grade, says something of an item."""
    labelled = rated.known > 0
    labelled[rated.item_of_rating[teaches]] = True
    return torch.from_numpy(labelled)


def _by_fold(rated: RatedImages, split: Split, labels: Tensor, reason: str) -> Validation:
    fold = split.calibration
    ratings = int(np.isin(rated.item_of_rating, fold.numpy()).sum())
    return Validation(CALIBRATION_FOLD, reason, (), fold, labels[fold], ratings, None)


def _by_raters(
    rated: RatedImages, split: Split, chosen: tuple[str, ...], model: RaterModel, names: tuple[str, ...]
) -> Validation:
    counts = np.isin(rated.raters, chosen) & np.isin(rated.item_of_rating, split.calibration.numpy())
    grades, rated_items = torch.from_numpy(rated.grades[counts]), torch.from_numpy(rated.item_of_rating[counts])
    given = F.one_hot(grades.long() - 1, 3).float()
    shares = torch.zeros(len(rated), 3).index_add_(0, rated_items, given)
    items = rated_items.unique()
    labels = shares[items] / shares[items].sum(1, keepdim=True)
    says_poor = model.confusion[np.searchsorted(names, rated.raters[counts]), :, 0]  # (R, 3) by true grade
    not_poor = says_poor[:, 1:] @ model.prevalence[1:] / model.prevalence[1:].sum()
    observed = Observed(
        rated_items, (grades == 1).float(), torch.tensor(says_poor[:, 0]).float(), torch.tensor(not_poor).float()
    )
    return Validation(HELD_OUT_RATERS, "", chosen, items, labels, int(counts.sum()), observed)
