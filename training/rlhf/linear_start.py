"""Where the selector begins: the heads' linear part, fitted at once, and labels that heed what such a fit foretells.

A convex problem of about a hundred numbers tells most of what a few hundred ratings say. Fitted without a fifth of
the images, five times over, it foretells the grades of every image from the ratings of others. Such an image prior
takes the place of the grades' prevalence in the rater model (Raykar et al. 2010, JMLR 11:1297; there the prior is the
classifier's own, here it is cross-fitted, so that a label leans less on the very model that it teaches).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from generation.scoring.selector import Selector, SelectorHeads
from training.rlhf.selector_loss import fit_linear_heads

NUM_FOLDS = 5
NUM_ROUNDS = 2  # of foretelling and labelling again; a second one gains a little, more were not tried
LEAST_PRIOR = 0.02  # of a grade: ratings may overrule any forecast


@dataclass(frozen=True)
class LinearStart:
    """The first fit of a selector's heads, on n training images."""

    selector: Selector
    features: Tensor  # (n, F) what its heads read
    knows_strengths: bool  # whether a pretrained perception tells strengths of degradations

    @classmethod
    @torch.no_grad()
    def of(cls, selector: Selector, metrics: Tensor, kinds: Tensor, percepts: Tensor | None) -> Self:
        """Standardise the selector's inputs on raw metrics (n, M), kinds (n,) and percepts (n, P).

        Percepts are None where the encoder has no weights to begin with and knows nothing.
        """
        selector.eval()
        selector.fit_metrics(metrics, kinds)
        if percepts is not None:
            selector.fit_percepts(percepts)
        seen = selector.percept_mean.expand(len(metrics), -1) if percepts is None else percepts
        return cls(selector, selector.features(seen, metrics, kinds), percepts is not None)

    def _penalties(self, count: int) -> Tensor:
        penalties = self.selector.linear_penalties(count, knows_strengths=self.knows_strengths)
        return penalties.to(self.features.device)

    def fit(self, labels: Tensor, weights: Tensor) -> None:
        """Fit the selector's heads to labels (n, 3); ``weights`` (n, K): how often each head's sample holds each."""
        penalties = self._penalties(len(labels))
        fit_linear_heads(self.selector.heads, self.features, labels, weights, penalties=penalties)

    def foretell(self, labels: Tensor, folds: Tensor) -> Tensor:
        """P(grade) (n, 3) of each image by a model of the labels (n, 3) in the other folds (n,), none nearly 0."""
        labels = labels.to(self.features.device)
        foretold = torch.empty_like(labels)
        for fold in folds.unique():
            out = (folds == fold).to(labels.device)
            features, taught = self.features[~out], labels[~out]
            heads = SelectorHeads(features.shape[1], 1, 1).to(features.device)
            penalties, weights = self._penalties(len(taught)), taught.new_ones(len(taught), 1)
            fit_linear_heads(heads, features, taught, weights, penalties=penalties)
            with torch.no_grad():
                foretold[out] = grade_probabilities(heads.linear(self.features[out])[:, 0])
        foretold = foretold.clamp(min=LEAST_PRIOR)
        return (foretold / foretold.sum(1, keepdim=True)).cpu()

    def label_again(
        self, labels: Tensor, items: Tensor, folds: Tensor, relabel: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Soft labels (N, 3) where those of ``items`` (n,) heed what the others among them foretell.

        ``labels`` (N, 3) by ratings alone, which all others keep; ``folds`` (n,) of the items; ``relabel``: labels
        (N, 3) by ratings and an image prior (N, 3).
        """
        if len(folds.unique()) < NUM_FOLDS:  # too few groups to foretell anything
            return labels
        prior, again = labels[items].mean(0).repeat(len(labels), 1), labels.clone()
        for _ in range(NUM_ROUNDS):
            prior[items] = self.foretell(again[items], folds)
            again[items] = relabel(prior)[items]
        return again


def grade_probabilities(logits: Tensor) -> Tensor:
    """P(grade) (B, 3) from conditional logits (B, 2)."""
    above_poor, above_acceptable = torch.sigmoid(logits).unbind(1)
    excellent = above_poor * above_acceptable
    return torch.stack([1 - above_poor, above_poor - excellent, excellent], dim=1)


def draw_folds(groups: np.ndarray, *, seed: int) -> Tensor:
    """(n,) the fold, 0 to NUM_FOLDS - 1, of items of these ``groups`` (n,); a group is in one fold."""
    distinct, number = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(distinct))
    return torch.from_numpy(order[number] % NUM_FOLDS)
