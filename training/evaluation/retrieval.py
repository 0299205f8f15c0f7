"""Retrieval: is the real image nearest to a generated one of the same content, and does a caption find its image?"""

from dataclasses import dataclass
from math import comb

import numpy as np

from training.evaluation.figures import HIGHER, Figure
from training.evaluation.images import ImageSet, finest_label
from training.evaluation.intervals import Interval, mean_over_groups
from training.evaluation.labels import Labelling, fold_of_each, numbers

NEAREST = (1, 5)  # ranks reported
NUM_FOLDS = 5
RIDGE_PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)  # times the number of training pairs, on standardised features
_MIN_REAL = 20


def unit(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Features (n, D) around ``mean`` (D,), of length 1: their products are cosines."""
    centred = features - mean
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


def image_image_retrieval(
    real: ImageSet,
    generated: ImageSet,
    features: tuple[np.ndarray, np.ndarray],
    labels: Labelling,
    *,
    encoder: str,
    seed: int,
) -> list[Figure]:
    """Precision at 1 and 5 by cosine: the share of the nearest real images that carry the generated one's label.

    The real images' own figure looks each of them up among the real images of other groups.
    """
    real_features, generated_features = features
    true, asked = numbers(labels.real, labels.names), numbers(labels.generated, labels.names)
    queries = np.flatnonzero(asked >= 0)
    names = [f"image-image retrieval P@{k} of the {labels.level} ({encoder})" for k in NEAREST]
    if len(labels.names) < 2 or not len(queries):
        return [
            Figure(name, absent_because="the captions share too few labels with the real images.") for name in names
        ]
    mean = real_features.mean(0)
    places = unit(real_features, mean)
    near = unit(generated_features[queries], mean) @ places.T
    own = places @ places.T
    groups = np.array(real.groups)
    own[groups[:, None] == groups[None, :]] = -np.inf
    carried = np.flatnonzero(true >= 0)
    share = np.bincount(true[carried], minlength=len(labels.names)) / len(true)
    figures = []
    for name, k in zip(names, NEAREST, strict=True):
        right = _precision(near, true, asked[queries], k)
        real_right = _precision(own[carried], true, true[carried], k)
        figures.append(
            Figure(
                name=name,
                better=HIGHER,
                value=mean_over_groups(right, np.array(generated.groups)[queries], seed=seed),
                interval_method="over generated images",
                real=mean_over_groups(real_right, groups[carried], seed=seed),
                chance=float(share[asked[queries]].mean()),
                num_images=len(queries),
                details={"k": k, "real_images_searched": len(real)},
            )
        )
    return figures


def _precision(similarity: np.ndarray, labels: np.ndarray, wanted: np.ndarray, k: int) -> np.ndarray:
    """(n,) share of each row's ``k`` most similar columns whose label is the wanted one."""
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return (labels[nearest] == wanted[:, None]).mean(1)


# --- captions ---


@dataclass(frozen=True)
class TextMap:
    """Ridge regression from features of a caption to features of its image, both standardised."""

    text_mean: np.ndarray  # (T,)
    text_std: np.ndarray  # (T,)
    image_mean: np.ndarray  # (D,)
    image_std: np.ndarray  # (D,)
    weight: np.ndarray  # (T, D)

    @classmethod
    def fit(cls, text: np.ndarray, images: np.ndarray, penalty: float) -> "TextMap":
        """W = (X'X + penalty n I)^-1 X'Y of n pairs (n, T), (n, D)."""
        text_mean, text_std = text.mean(0), text.std(0) + 1e-6
        image_mean, image_std = images.mean(0), images.std(0) + 1e-6
        x, y = (text - text_mean) / text_std, (images - image_mean) / image_std
        weight = np.linalg.solve(x.T @ x + penalty * len(x) * np.eye(x.shape[1]), x.T @ y)
        return cls(text_mean, text_std, image_mean, image_std, weight)

    def similarity(self, images: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Cosine (n, P) of images (n, D) with what the map expects for captions (P, T)."""
        expected = ((text - self.text_mean) / self.text_std) @ self.weight
        zero = np.zeros(images.shape[1])
        return unit((images - self.image_mean) / self.image_std, zero) @ unit(expected, zero).T


@dataclass(frozen=True)
class CaptionPool:
    """The captions that compete for an image, and what each means."""

    features: np.ndarray  # (P, T)
    meanings: np.ndarray  # (P,) phantom class, else the caption itself: several wordings may mean one thing


def image_text_retrieval(
    real: ImageSet,
    generated: ImageSet,
    features: tuple[np.ndarray, np.ndarray],
    text: dict[str, np.ndarray],
    *,
    encoder: str,
    seed: int,
) -> list[Figure]:
    """R@1 and R@5: whether a caption of the asked meaning is among the k that fit a generated image best.

    ``text``: features (T,) of every caption of both sets. The captions compared are those of the generated images.
    NUM_FOLDS maps are fitted, each without one fold of the real images' groups. A real image is looked at by the map
    that has not seen it, a generated one by all of them in turn.
    """
    names = [f"image-text retrieval R@{k} ({encoder}, ridge on the text encoder)" for k in NEAREST]
    wordings = sorted(set(generated.captions))
    pool = CaptionPool(np.stack([text[w] for w in wordings]), np.array([finest_label(w) for w in wordings]))
    if len(set(pool.meanings)) < 2 or len(real) < _MIN_REAL:
        reason = f"it needs two captions of different meaning and {_MIN_REAL} real images."
        return [Figure(name, absent_because=reason) for name in names]
    pairs = np.stack([text[caption] for caption in real.captions])
    folds = fold_of_each(real.groups, [finest_label(c) for c in real.captions], NUM_FOLDS, seed=seed)
    penalty = best_penalty(pairs, features[0], folds)
    hits = _Hits.of(real, generated, features, pairs, folds, pool, penalty)
    return [hits.figure(name, k, real, generated, penalty, seed) for name, k in zip(names, NEAREST, strict=True)]


def best_penalty(text: np.ndarray, images: np.ndarray, folds: np.ndarray) -> float:
    """Of RIDGE_PENALTIES the one whose maps come nearest to the left-out images, by mean cosine."""

    def mean_cosine(penalty: float) -> float:
        cosines = []
        for fold in np.unique(folds):
            out = folds == fold
            fitted = TextMap.fit(text[~out], images[~out], penalty)
            cosines.extend(np.diag(fitted.similarity(images[out], text[out])))
        return float(np.mean(cosines))

    return max(RIDGE_PENALTIES, key=mean_cosine)


@dataclass(frozen=True)
class _Hits:
    """Rank from 0 of the first caption of the right meaning."""

    generated: np.ndarray  # (N, folds)
    real: np.ndarray  # (M,), -1 for images whose meaning no caption of the pool has
    num_captions: int
    num_right: np.ndarray  # (N,) captions of the pool that mean what the image was asked to show

    @classmethod
    def of(
        cls,
        real: ImageSet,
        generated: ImageSet,
        features: tuple[np.ndarray, np.ndarray],
        pairs: np.ndarray,
        folds: np.ndarray,
        pool: CaptionPool,
        penalty: float,
    ) -> "_Hits":
        asked = np.array([finest_label(caption) for caption in generated.captions])
        shown = np.array([finest_label(caption) for caption in real.captions])
        ranks, real_rank = [], np.full(len(real), -1)
        for fold in np.unique(folds):
            out = folds == fold
            fitted = TextMap.fit(pairs[~out], features[0][~out], penalty)
            ranks.append(_first_right(fitted.similarity(features[1], pool.features), asked, pool.meanings))
            real_rank[out] = _first_right(
                fitted.similarity(features[0][out], pool.features), shown[out], pool.meanings
            )
        num_right = (asked[:, None] == pool.meanings[None, :]).sum(1)
        return cls(np.stack(ranks, axis=1), real_rank, len(pool.meanings), num_right)

    def figure(self, name: str, k: int, real: ImageSet, generated: ImageSet, penalty: float, seed: int) -> Figure:
        found = (self.generated < k).mean(1)
        usable = self.real >= 0
        real_found = (self.real[usable] < k).astype(float)
        return Figure(
            name=name,
            better=HIGHER,
            value=mean_over_groups(found, np.array(generated.groups), seed=seed),
            interval_method="over generated images",
            real=_mean_or_none(real_found, np.array(real.groups)[usable], seed),
            chance=float(np.mean([chance_of_hit(self.num_captions, right, k) for right in self.num_right])),
            num_images=len(found),
            details={"k": k, "captions_compared": self.num_captions, "ridge_penalty": penalty, "folds": NUM_FOLDS},
        )


def _mean_or_none(values: np.ndarray, groups: np.ndarray, seed: int) -> Interval | None:
    return mean_over_groups(values, groups, seed=seed) if len(values) else None


def _first_right(similarity: np.ndarray, wanted: np.ndarray, meanings: np.ndarray) -> np.ndarray:
    """(n,) how many captions fit strictly better than the best right one, half of the ties counted; -1 without one.

    Equal captions of another meaning must not count as found because they stand behind in the list.
    """
    right = wanted[:, None] == meanings[None, :]
    best = np.where(right, similarity, -np.inf).max(1)
    above = (~right & (similarity > best[:, None])).sum(1)
    ties = (~right & (similarity == best[:, None])).sum(1)
    return np.where(right.any(1), above + ties // 2, -1)


def chance_of_hit(num_captions: int, num_right: int, k: int) -> float:
    """Chance that k of the captions, drawn blindly, hold at least one of the right ones."""
    return 1 - comb(num_captions - num_right, k) / comb(num_captions, k) if k <= num_captions else 1.0
