"""The selector: is this image good?

A vision transformer reads the pixels, and a perception sums its tokens up; quality metrics are standardised within
the kind of image. K small heads, each trained on a bootstrap sample of its own, give two conditional logits for the
grades 1 poor, 2 acceptable, 3 excellent (CORN: Shi, Cao, Raschka 2021): P(r > 1) and P(r > 2 | r > 1). A head is the
sum of a linear model of metrics and percepts, which a hundred ratings suffice to fit, and of a network on the same
inputs, which begins near zero.
"""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from generation.scoring.architecture import QualityMetricsSettings, SelectorArchitecture
from generation.scoring.encoder import build_encoder, encode, encoder_file, load_pretrained, prepare, summarise
from generation.scoring.network_file import fill, read_network, save_network
from generation.scoring.quality_metrics import ARTEFACT_METRICS, QUALITY_METRICS, measure
from medsyn.modalities import ALL_KINDS, kind_from_name

logger = logging.getLogger(__name__)
KIND_SLUGS = tuple(kind.slug for kind in ALL_KINDS)
_NUM_SHORTFALLS = 2
_NETWORK_SCALE = 0.1  # of the last layer at the start: the metrics speak first
_SNR, _CONTRAST = QUALITY_METRICS.index("log_snr"), QUALITY_METRICS.index("contrast")
PERCEPTION_FILE_NAME = "perception.safetensors"  # beside the encoder's weights
NUM_STRENGTHS = 13  # degradations whose strength the perception tells, training.rlhf.degradations
# Ridge penalties, for a loss that is summed over images: what is known of a weight before the first rating.
STRENGTH_PENALTY = 40.0  # on squared linear weights: of strengths, few that say most ...
OTHER_PENALTY = 300.0  # ... and of all else
ALONE_PENALTY = 4.5  # on the metrics' where no strength is known
NETWORK_PENALTY = 6000.0  # on the squared output weights of the heads' networks
_METRIC_LIMIT = 5.0  # standard deviations; what lies further out says no more than "far out"


@dataclass(frozen=True)
class SelectorConfig:
    image_size: int  # pixels, the side of the square the network reads
    architecture: SelectorArchitecture = field(default_factory=SelectorArchitecture)
    quality_metrics: QualityMetricsSettings = field(default_factory=QualityMetricsSettings)

    @classmethod
    def from_dict(cls, values: dict) -> Self:
        return cls(
            image_size=values["image_size"],
            architecture=SelectorArchitecture(**values["architecture"]),
            quality_metrics=QualityMetricsSettings(**values["quality_metrics"]),
        )


@dataclass(frozen=True)
class SelectorScores:
    mean: Tensor  # (B,) P(r > 1), averaged over the heads, [0, 1]
    std: Tensor  # (B,) its standard deviation over the heads
    serving: Tensor  # (B,) mean - std, clipped to [0, 1]: what serving decides by

    @classmethod
    def of_heads(cls, probabilities: Tensor) -> Self:
        """From P(r > 1) of each head, (B, K)."""
        mean, std = probabilities.mean(1), probabilities.std(1, correction=0)
        return cls(mean, std, (mean - std).clamp(0, 1))


def kind_indices(kind_slugs: Sequence[str], device: torch.device | None = None) -> Tensor:
    """(B,) positions in ALL_KINDS of slugs, prefixes or aliases; raises UnknownModality."""
    return torch.tensor([KIND_SLUGS.index(kind_from_name(slug).slug) for slug in kind_slugs], device=device)


class Perception(nn.Module):
    """Image tokens (B, N, D) -> percepts (B, P + NUM_STRENGTHS): mean, deviation and maximum through one layer, and
    linear in that the strengths of degradations, where it was trained to tell them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(3 * width), nn.Linear(3 * width, hidden), nn.GELU())
        self.strengths = nn.Linear(hidden, NUM_STRENGTHS)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.layers(summarise(tokens))
        return torch.cat([hidden, self.strengths(hidden)], dim=1)


class SelectorHeads(nn.Module):
    """K heads evaluated at once: features (B, F) -> logits (B, K, 2)."""

    def __init__(self, num_features: int, hidden: int, num_heads: int):
        super().__init__()
        self.linear_weight = nn.Parameter(torch.zeros(num_heads, num_features, 2))
        self.linear_bias = nn.Parameter(torch.zeros(num_heads, 2))
        bound = num_features**-0.5
        self.weight_in = nn.Parameter(torch.empty(num_heads, num_features, hidden).uniform_(-bound, bound))
        self.bias_in = nn.Parameter(torch.zeros(num_heads, hidden))
        bound = _NETWORK_SCALE * hidden**-0.5
        self.weight_out = nn.Parameter(torch.empty(num_heads, hidden, 2).uniform_(-bound, bound))

    def linear(self, features: Tensor) -> Tensor:
        """The linear part of the logits, (B, K, 2)."""
        return torch.einsum("bf,kfo->bko", features, self.linear_weight) + self.linear_bias

    def forward(self, features: Tensor) -> Tensor:
        hidden = nn.functional.gelu(torch.einsum("bf,kfh->bkh", features, self.weight_in) + self.bias_in)
        return self.linear(features) + torch.einsum("bkh,kho->bko", hidden, self.weight_out)


class Selector(nn.Module):
    def __init__(self, config: SelectorConfig):
        super().__init__()
        self.config = config
        architecture = config.architecture
        self.encoder = build_encoder(architecture, config.image_size)
        self.perception = Perception(architecture.embed_dim, architecture.perception_dim)
        self.dropout = nn.Dropout(architecture.dropout)
        num_metrics = len(QUALITY_METRICS)
        num_percepts = architecture.perception_dim + NUM_STRENGTHS
        num_features = 2 * num_metrics + _NUM_SHORTFALLS + num_percepts
        self.heads = SelectorHeads(num_features, architecture.head_dim, architecture.ensemble_heads)
        self.register_buffer("metric_mean", torch.zeros(len(KIND_SLUGS), num_metrics))
        self.register_buffer("metric_std", torch.ones(len(KIND_SLUGS), num_metrics))
        self.register_buffer("percept_mean", torch.zeros(num_percepts))
        self.register_buffer("percept_std", torch.ones(num_percepts))
        self.register_buffer("temperature", torch.ones(len(KIND_SLUGS)))
        used = [config.quality_metrics.artifact_detection or name not in ARTEFACT_METRICS for name in QUALITY_METRICS]
        self.register_buffer("metric_used", torch.tensor(used, dtype=torch.float32))

    def load_pretrained(self) -> None:
        """Start encoder and perception from the weights the configuration names; nothing where it names none.

        The perception lies beside the encoder; a file that comes without one leaves it random, and so does, with a
        warning, one of another width.
        """
        name = self.config.architecture.pretrained
        if name is None:
            return
        load_pretrained(self.encoder, name)
        path = encoder_file(name).with_name(PERCEPTION_FILE_NAME)
        if not path.exists():
            return
        _, state = read_network(path, role="perception")
        own = self.perception.state_dict()
        if state.keys() == own.keys() and all(own[key].shape == state[key].shape for key in own):
            fill(self.perception, {key: value.float() for key, value in state.items()}, path)
        else:
            logger.warning(
                "%s does not fit perception_dim %d: the selector begins without it and needs more ratings.",
                path,
                self.config.architecture.perception_dim,
            )

    def measure(self, images: Tensor) -> Tensor:
        """Raw quality metrics (B, M) of images at the size the network reads."""
        return measure(prepare(images, self.config.image_size))

    @torch.no_grad()
    def fit_metrics(self, metrics: Tensor, kinds: Tensor, *, smallest_group: int = 8) -> None:
        """Set mean and deviation of the raw metrics (B, M) per kind (B,); small kinds take the pooled ones."""
        self.metric_mean.copy_(metrics.mean(0).expand_as(self.metric_mean))
        self.metric_std.copy_(metrics.std(0, correction=0).clamp(min=1e-3).expand_as(self.metric_std))
        for kind in kinds.unique().tolist():
            group = metrics[kinds == kind]
            if len(group) >= smallest_group:
                self.metric_mean[kind] = group.mean(0)
                self.metric_std[kind] = group.std(0, correction=0).clamp(min=1e-3)

    def metric_features(self, metrics: Tensor, kinds: Tensor) -> Tensor:
        """Standardised metrics z, their distance |z| from what is usual, and the two shortfalls: (B, 2 M + 2)."""
        standard = (metrics - self.metric_mean[kinds]) / self.metric_std[kinds]
        standard = standard.clamp(-_METRIC_LIMIT, _METRIC_LIMIT) * self.metric_used
        thresholds = self.config.quality_metrics
        snr_missing = _shortfall(metrics[:, _SNR].exp(), thresholds.snr_threshold)
        contrast_missing = _shortfall(metrics[:, _CONTRAST], thresholds.contrast_threshold)
        return torch.cat([standard, standard.abs(), snr_missing[:, None], contrast_missing[:, None]], dim=1)

    @torch.no_grad()
    def fit_percepts(self, percepts: Tensor) -> None:
        """Set mean and deviation of the percepts (B, P + NUM_STRENGTHS)."""
        self.percept_mean.copy_(percepts.mean(0))
        self.percept_std.copy_(percepts.std(0, correction=0).clamp(min=1e-3))

    def perceive(self, images: Tensor) -> Tensor:
        """Percepts (B, P + NUM_STRENGTHS) of prepared images."""
        return self.perception(encode(self.encoder, images))

    def features(self, percepts: Tensor, metrics: Tensor, kinds: Tensor) -> Tensor:
        """What the heads read, (B, F): standardised metrics and percepts."""
        standard = ((percepts - self.percept_mean) / self.percept_std).clamp(-_METRIC_LIMIT, _METRIC_LIMIT)
        return torch.cat([self.metric_features(metrics, kinds), self.dropout(standard)], dim=1)

    def linear_penalties(self, num_images: int, *, knows_strengths: bool) -> Tensor:
        """(F,) ridge penalty of each feature's linear weight, for a loss that is a mean over ``num_images``.

        The metrics speak louder where they are alone.
        """
        other = OTHER_PENALTY if knows_strengths else ALONE_PENALTY
        penalties = torch.full((self.heads.linear_weight.shape[1],), other)
        penalties[-NUM_STRENGTHS:] = STRENGTH_PENALTY
        return penalties / num_images

    def penalty(self, num_images: int) -> Tensor:
        """Ridge penalty of the heads over a frozen encoder: of the linear part that of its first fit, of the networks
        one that leaves them near nothing until many ratings speak for them."""
        linear = self.linear_penalties(num_images, knows_strengths=True).to(self.heads.linear_weight.device)
        squares = (linear[:, None] * self.heads.linear_weight.square()).sum()
        squares = squares + NETWORK_PENALTY / num_images * self.heads.weight_out.square().sum()
        return squares / (2 * self.config.architecture.ensemble_heads)

    def forward(self, images: Tensor, metrics: Tensor, kinds: Tensor) -> Tensor:
        """Conditional logits (B, K, 2) of prepared images, raw metrics (B, M) and kind indices (B,)."""
        return self.heads(self.features(self.perceive(images), metrics, kinds))

    def probabilities(self, logits: Tensor, kinds: Tensor) -> Tensor:
        """Calibrated P(r > 1) of each head, (B, K), from logits (B, K, 2)."""
        return torch.sigmoid(logits[..., 0].float() / self.temperature[kinds][:, None])

    @torch.no_grad()
    def score(self, images: Tensor, kind_slugs: Sequence[str]) -> SelectorScores:
        """Scores of images (B, 1|3, H, W) in [0, 1]; the same image scores the same in any batch."""
        if len(kind_slugs) != len(images):
            raise ValueError(f"{len(images)} images but {len(kind_slugs)} kinds.")
        was_training = self.training
        self.eval()
        prepared = prepare(images.to(self.temperature.device), self.config.image_size)
        kinds = kind_indices(kind_slugs, prepared.device)
        each_head = self.probabilities(self(prepared, measure(prepared), kinds), kinds)
        self.train(was_training)
        return SelectorScores.of_heads(each_head)

    def save(self, path: Path) -> None:
        save_network(path, self, role="selector", config=dataclasses.asdict(self.config))

    @classmethod
    def load(cls, path: Path) -> Self:
        """The selector of a file, in evaluation mode on the CPU; raises NetworkFileError."""
        config, state = read_network(path, role="selector")
        selector = cls(SelectorConfig.from_dict(config))
        fill(selector, state, path)
        return selector.eval()


def _shortfall(value: Tensor, threshold: float) -> Tensor:
    """How far under the threshold, as a share of it, [0, 1]; a threshold of 0 is never undercut."""
    if threshold == 0:
        return torch.zeros_like(value)
    return (1 - value / threshold).clamp(0, 1)
