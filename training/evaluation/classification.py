"""Classification accuracy score: what a classifier learns from generated images, tested on real ones.

Ravuri and Vinyals (2019) train a deep network; here it is multinomial logistic regression on a frozen encoder's
features, which a hundred images suffice to fit, and the name says so.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.evaluation.figures import HIGHER, Figure
from training.evaluation.intervals import mean_over_groups
from training.evaluation.labels import Labelling, fold_of_each, numbers

NUM_FOLDS = 5
PENALTY = 1e-2  # of the squared weights, beside the mean cross entropy, on standardised features
_MAX_STEPS = 200
_SMALLEST_TRAINING_SET = 10


@dataclass(frozen=True)
class LinearClassifier:
    mean: np.ndarray  # (D,) of the training features
    std: np.ndarray  # (D,)
    weight: np.ndarray  # (D, C)
    bias: np.ndarray  # (C,)

    @classmethod
    def fit(cls, features: np.ndarray, classes: np.ndarray, num_classes: int) -> "LinearClassifier":
        """The minimum of mean cross entropy + PENALTY |W|^2 / 2: convex, so no seed."""
        mean, std = features.mean(0), features.std(0) + 1e-6
        inputs = torch.from_numpy((features - mean) / std)
        targets = torch.from_numpy(classes)
        weight = torch.zeros(features.shape[1], num_classes, dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=_MAX_STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(inputs @ weight + bias, targets) + PENALTY * weight.square().sum() / 2
            value.backward()
            return value

        optimizer.step(loss)
        return cls(mean, std, weight.detach().numpy(), bias.detach().numpy())

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n,) classes."""
        return (((features - self.mean) / self.std) @ self.weight + self.bias).argmax(1)


def classification_accuracy_score(
    real: np.ndarray, generated: np.ndarray, labels: Labelling, groups: np.ndarray, *, encoder: str, seed: int
) -> Figure:
    """CAS of features (M, D) and (N, D), beside the accuracy of training on as many real images, cross-validated."""
    name = f"CAS of the {labels.level} (logistic regression on {encoder})"
    true, asked = numbers(labels.real, labels.names), numbers(labels.generated, labels.names)
    tested, taught = np.flatnonzero(true >= 0), np.flatnonzero(asked >= 0)
    reason = _why_absent(labels, len(taught))
    if reason:
        return Figure(name, absent_because=reason)
    count = len(labels.names)
    classifier = LinearClassifier.fit(generated[taught], asked[taught], count)
    right = classifier.predict(real[tested]) == true[tested]
    folds = fold_of_each(groups[tested], [labels.real[i] for i in tested], NUM_FOLDS, seed=seed)
    real_right, num_taught = _cross_validated(real[tested], true[tested], folds, count, len(taught), seed)
    return Figure(
        name=name,
        better=HIGHER,
        value=mean_over_groups(right.astype(float), groups[tested], seed=seed),
        interval_method="over the real images tested, groups whole",
        real=mean_over_groups(real_right.astype(float), groups[tested], seed=seed),
        chance=float(np.bincount(true[tested]).max() / len(tested)),
        num_images=len(taught),
        details={
            "labels": list(labels.names),
            "num_labels": count,
            "trained_on_generated": len(taught),
            "trained_on_real": num_taught,
            "tested_on_real": len(tested),
            "real_folds": NUM_FOLDS,
            "labels_without_generated_images": count - len(np.unique(asked[taught])),
            "chance_is": "always naming the most frequent label",
        },
    )


def _why_absent(labels: Labelling, num_taught: int) -> str:
    if len(labels.names) < 2:
        return "the real images show fewer than two kinds of five images each. Give a reference with more."
    if num_taught < _SMALLEST_TRAINING_SET:
        return f"only {num_taught} generated images carry a label of the real ones. Draw more with --num_images."
    return ""


def _cross_validated(
    features: np.ndarray, classes: np.ndarray, folds: np.ndarray, num_classes: int, num_taught: int, seed: int
) -> tuple[np.ndarray, int]:
    """Whether each image is right when its fold was left out, and the mean number of images trained on.

    At most ``num_taught`` of the other folds' images teach, as many as there are generated ones: else the real
    images would win by number.
    """
    right, taught = np.zeros(len(features), dtype=bool), []
    rng = np.random.default_rng([seed, 2])
    for fold in np.unique(folds):
        others = np.flatnonzero(folds != fold)
        chosen = rng.permutation(others)[:num_taught]
        classifier = LinearClassifier.fit(features[chosen], classes[chosen], num_classes)
        here = folds == fold
        right[here] = classifier.predict(features[here]) == classes[here]
        taught.append(len(chosen))
    return right, round(float(np.mean(taught)))
