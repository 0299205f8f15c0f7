"""Two-stage training of selector and policy.

    stage 1   both learn from all rated images
    stage 2   before each epoch the selector drops the images it scores under the threshold; the policy learns from
              the others with importance ratios pi_selected / pi; the selector goes on with all images, those on
              which it and the policy disagree counting up to twice

A pretrained encoder stays frozen, and its output is computed once, except in stage 2 of a run with many ratings
(training.unfreeze_from). An encoder that begins random is trained from the first step.

Everything random comes from (seed, epoch), so an epoch can be repeated from the weights and optimizer state it
started with: a resumed run equals one never stopped, bit for bit.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from generation.scoring.encoder import encode, prepare
from generation.scoring.policy import Policy, PolicyConfig
from generation.scoring.selector import Selector, SelectorConfig, SelectorScores
from training.rlhf.calibration import fit_offset, fit_temperature
from training.rlhf.config import ConfigError, RLHFConfig
from training.rlhf.dataset import RatedImages, augment
from training.rlhf.encoded_images import encode_images
from training.rlhf.linear_start import LinearStart, draw_folds
from training.rlhf.optimization import NEW_LAYER_FACTOR, is_pretrained, make_optimizer, rate_share
from training.rlhf.other_prompts import OtherPrompts
from training.rlhf.policy_loss import (
    advantages,
    baselines,
    contrast_loss,
    importance_ratios,
    policy_loss,
    rewards,
)
from training.rlhf.processes import Processes
from training.rlhf.selector_loss import corn_loss, corn_row_weights
from training.rlhf.splits import Split
from training.rlhf.text_features import PromptFeatures

FUSION_FACTOR = 3.0  # the policy's fusion, where it comes pretrained
FITTED_FACTOR = 1.0  # the selector's heads over a frozen encoder: they begin fitted, and faster they drift away
MAX_GRAD_NORM = 1.0
CONTRAST_WEIGHT = 3.0  # with 1 quality saturates the scores before the prompt is learnt
_SCORING_BATCH = 64  # images
_SEED_STRIDE = 1_000_003  # a prime, so that (seed, epoch) pairs do not meet
SELECTOR_FILE = "selector_checkpoint.safetensors"
POLICY_FILE = "policy_checkpoint.safetensors"
STATE_FILE = "training_state.pt"


@dataclass(frozen=True)
class EpochResult:
    """What one epoch did; losses are None where nothing was trained."""

    policy_loss: float | None
    selector_loss: float | None


@dataclass(frozen=True)
class Scores:
    """Of every rated item, in evaluation mode and without augmentation."""

    good: Tensor  # (N,) P(r > 1), mean over heads
    serving: Tensor  # (N,) mean - std
    alignment: Tensor  # (N,) policy with the item's own prompt, calibrated: by this images are served
    acceptance: Tensor  # (N,) the same as it learns, around 0.5: training goes by this
    other_acceptance: Tensor  # (N,) with another prompt; nan where there is none


class Trainer:
    def __init__(
        self,
        config: RLHFConfig,
        rated: RatedImages,
        soft_labels: Tensor,
        split: Split,
        features: PromptFeatures,
        *,
        image_size: int,
        device: torch.device | None = None,
        selector: Selector | None = None,
        policy: Policy | None = None,
        processes: Processes | None = None,
        relabel: Callable[[Tensor], Tensor] | None = None,
    ):
        """``relabel``: labels (N, 3) of all items by ratings and an image prior (N, 3); None: those given."""
        self.config, self.rated, self.split, self.features = config, rated, split, features
        self.soft_labels = soft_labels
        self.device = device or torch.device("cpu")
        self.processes = processes or Processes()
        self.epoch = 0
        self.step = 0
        self.first_stage2_epoch = _first_stage2_epoch(config, selector is not None)
        torch.manual_seed(config.training.seed)
        self.selector = (selector or self._new_selector(image_size)).to(self.device)
        self._fusion_is_pretrained = False
        self.policy = (policy or self._new_policy(image_size)).to(self.device)
        self.metrics = self._measure_all()
        self.bootstrap = self._bootstrap_weights()
        self.percepts: Tensor | None = None  # (N, P) where the selector's encoder is frozen
        self.tokens: Tensor | None = None  # (N, T, D) where the policy's is
        self._freeze()
        if selector is None:
            self._fit_linear_model(relabel)
        if self._fusion_is_pretrained:
            self._begin_undecided()
        self.optimizers = {
            "selector": make_optimizer(self.selector, NEW_LAYER_FACTOR if self.percepts is None else FITTED_FACTOR),
            "policy": make_optimizer(self.policy, FUSION_FACTOR if self._fusion_is_pretrained else NEW_LAYER_FACTOR),
        }
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.device.precision == "float16")
        self.advantage = self._advantages(torch.ones(len(rated), dtype=torch.bool))
        self.other_prompts = OtherPrompts(rated)
        self.scores: Scores | None = None  # after the latest epoch

    # --- set-up ---

    def _new_selector(self, image_size: int) -> Selector:
        settings = self.config.selector
        selector = Selector(SelectorConfig(image_size, settings.architecture, settings.quality_metrics))
        selector.load_pretrained()
        return selector

    def _new_policy(self, image_size: int) -> Policy:
        text_dim = self.features.tokens.shape[2]
        architecture = self.config.policy_model.architecture
        policy = Policy(PolicyConfig(image_size, text_dim, self.features.encoder_sha256, architecture))
        self._fusion_is_pretrained = policy.load_pretrained()
        return policy

    @torch.no_grad()
    def _measure_all(self) -> Tensor:
        """Raw quality metrics (N, M). Of the images as they are: turning an image smooths its noise away."""
        batches = torch.arange(len(self.rated)).split(_SCORING_BATCH)
        return torch.cat([self.selector.measure(self.rated.images(batch)) for batch in batches])

    @property
    def _unfreezes_in_stage_2(self) -> bool:
        return len(self.rated.grades) >= self.config.training.unfreeze_from

    def _freeze(self) -> None:
        """Encode all images once with the pretrained encoders, which shall not learn for now."""
        if self.first_stage2_epoch == 1 and self._unfreezes_in_stage_2:
            return
        self.selector.eval()
        self.policy.eval()
        if is_pretrained(self.policy):
            self.policy.encoder.requires_grad_(False)
            self.tokens = self._encode(self.policy, lambda images: encode(self.policy.encoder, images))
        if is_pretrained(self.selector):
            self.selector.encoder.requires_grad_(False)
            self.selector.perception.requires_grad_(False)
            if self.tokens is not None and _are_equal(self.selector.encoder, self.policy.encoder):
                self.percepts = self._perceive(self.tokens)
            else:
                self.percepts = self._encode(self.selector, self.selector.perceive)

    def _encode(self, network: Selector | Policy, encoding: Callable[[Tensor], Tensor]) -> Tensor | None:
        return encode_images(self.rated, encoding, image_size=network.config.image_size, device=self.device)

    @torch.no_grad()
    def _perceive(self, tokens: Tensor) -> Tensor:
        parts = tokens.split(_SCORING_BATCH)
        return torch.cat([self.selector.perception(part.to(self.device)).cpu() for part in parts])

    def _unfreeze(self) -> None:
        """Let pretrained encoders learn from now on."""
        self.percepts = self.tokens = None
        for part in (self.selector.encoder, self.selector.perception, self.policy.encoder):
            part.requires_grad_(True)

    def _fit_linear_model(self, relabel: Callable[[Tensor], Tensor] | None) -> None:
        """Standardise metrics and percepts on the training images; let the heads' linear part begin where it fits."""
        train = self.split.train
        percepts = None if self.percepts is None else self.percepts[train].to(self.device)
        metrics, kinds = self.metrics[train].to(self.device), self.rated.kinds[train].to(self.device)
        start = LinearStart.of(self.selector, metrics, kinds, percepts)
        if relabel is not None:
            folds = draw_folds(self.rated.groups[train.numpy()], seed=self.config.training.seed)
            again = start.label_again(self.soft_labels, train, folds, relabel)
            self.soft_labels = self.processes.from_first(again, self.device)
        if self.config.training.stage1.train_selector:
            start.fit(self.soft_labels[train].to(self.device), self.bootstrap[train].to(self.device))

    @torch.no_grad()
    def _begin_undecided(self) -> None:
        """Shift a pretrained policy's logit so that its mean over the training images is 0: most is learnt there."""
        self.policy.eval()
        logits = [
            self._fuse(self._tokens(items), [self.rated.prompt_index[items]])
            for items in self.split.train.split(_SCORING_BATCH)
        ]
        self.policy.head[-1].bias -= torch.cat(logits).mean()

    def _bootstrap_weights(self) -> Tensor:
        """(N, K) how often each head's own sample, drawn with repetition from the training images, holds an item."""
        generator = torch.Generator().manual_seed(self.config.training.seed)
        heads, train = self.selector.config.architecture.ensemble_heads, self.split.train
        weights = torch.zeros(len(self.rated), heads)
        for head in range(heads):
            drawn = train[torch.randint(len(train), (len(train),), generator=generator)]
            weights[:, head] = torch.bincount(drawn, minlength=len(self.rated)).float()
        return weights

    def _advantages(self, learns: Tensor) -> Tensor:
        """(N,) A of each item; baselines know only the training images that the policy ``learns`` from, (N,) bool.

        With the baselines of all images, those left after stage 2 dropped the poor would nearly all have A > 0, and
        every score would rise.
        """
        reward, train = rewards(self.soft_labels), self.split.train[learns[self.split.train]]
        advantage = torch.zeros(len(self.rated))
        if len(train):
            baseline = baselines(reward[train], self.rated.prompt_index[train], self.rated.kinds[train])
            advantage[train] = advantages(reward[train], baseline)
        return advantage

    # --- schedule ---

    @property
    def max_epochs(self) -> int:
        return self.config.training.max_epochs

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.split.train) / self.config.training.batch_size)

    @property
    def max_steps(self) -> int:
        return self.max_epochs * self.steps_per_epoch

    def stage_of(self, epoch: int) -> int:
        """1 or 2; epochs count from 1."""
        return 2 if epoch >= self.first_stage2_epoch else 1

    def _set_learning_rates(self, epoch: int, progress: float) -> None:
        """A short warm-up, then half a cosine, over each stage; ``progress``: share of this epoch's steps done."""
        training = self.config.training
        if self.stage_of(epoch) == 1:
            rate, first, last = training.stage1.learning_rate, 1, min(self.first_stage2_epoch - 1, self.max_epochs)
        else:
            rate, first, last = training.stage2.learning_rate, self.first_stage2_epoch, self.max_epochs
        done = (epoch - first + progress) / (last - first + 1)
        rate *= rate_share(done)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate_factor"]

    def learning_rates(self) -> dict[str, float]:
        return {
            f"{network}_{group['name']}_learning_rate": group["lr"]
            for network, optimizer in self.optimizers.items()
            for group in optimizer.param_groups
        }

    # --- one epoch ---

    def train_epoch(self, after_step: Callable[[], None] = lambda: None) -> EpochResult:
        """Train the next epoch; ``after_step`` is called after every step and may raise to stop."""
        if self.scores is None:
            self.scores = self.score_all()
        epoch = self.epoch + 1
        if self.stage_of(epoch) == 2 and self._unfreezes_in_stage_2:
            self._unfreeze()
        seed = self.config.training.seed + _SEED_STRIDE * epoch
        torch.manual_seed(seed)  # dropout
        generator = torch.Generator().manual_seed(seed)
        passed, weights = self._selection(epoch)
        self.advantage = self._advantages(passed)
        losses: dict[str, list[float]] = {"selector": [], "policy": []}
        order = self.split.train[torch.randperm(len(self.split.train), generator=generator)]
        batches = order.split(self.config.training.batch_size)
        self.selector.train()
        self.policy.train()
        for number, items in enumerate(batches):
            self._set_learning_rates(epoch, number / len(batches))
            images = self._images_to_learn_from(items, generator)
            if self._selector_learns(epoch):
                losses["selector"].append(self._step_selector(images, items, weights))
            if passed[items].any():
                losses["policy"].append(self._step_policy(images, items, passed, epoch, generator))
            self.step += 1
            after_step()
        self.epoch = epoch
        means = {name: sum(values) / len(values) if values else None for name, values in losses.items()}
        self.scores = self.score_all(calibrate=True)
        return EpochResult(means["policy"], means["selector"])

    def _images_to_learn_from(self, items: Tensor, generator: torch.Generator) -> Tensor | None:
        """Augmented pixels (B, 3, S, S); None where both networks read what was encoded once."""
        if self.percepts is not None and self.tokens is not None:
            return None
        return augment(self.rated.images(items), self.config.data.augmentation, generator)

    def _selector_learns(self, epoch: int) -> bool:
        return self.stage_of(epoch) == 2 or self.config.training.stage1.train_selector

    def _selection(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Which items the policy learns from (N,) bool, and each item's weight for the selector (N,)."""
        if self.stage_of(epoch) == 1:
            return torch.ones(len(self.rated), dtype=torch.bool), torch.ones(len(self.rated))
        weights = 1 + (self.scores.acceptance - self.scores.good).abs()
        return self._passes(), weights / weights[self.split.train].mean()

    def _passes(self) -> Tensor:
        return self.scores.good >= self.config.training.stage2.selector_threshold

    def _autocast(self) -> torch.autocast:
        precision = self.config.device.precision
        return torch.autocast(self.device.type, getattr(torch, precision), enabled=precision != "float32")

    def _step_selector(self, images: Tensor | None, items: Tensor, weights: Tensor) -> float:
        row_weights = self.bootstrap[items] * weights[items, None]
        total = corn_row_weights(self.soft_labels[items], row_weights).sum().item()
        mine = self.processes.share(torch.arange(len(items)))
        loss = torch.zeros((), device=self.device)
        if len(mine):
            own = items[mine]
            with self._autocast():
                if self.percepts is None:
                    prepared = prepare(images[mine].to(self.device), self.selector.config.image_size)
                    percepts = self.selector.perceive(prepared)
                else:
                    percepts = self.percepts[own].to(self.device)
                metrics, kinds = self.metrics[own].to(self.device), self.rated.kinds[own].to(self.device)
                logits = self.selector.heads(self.selector.features(percepts, metrics, kinds))
            labels = self.soft_labels[own].to(self.device)
            loss = corn_loss(logits, labels, row_weights[mine].to(self.device), total=total)
        if self.percepts is not None:  # few ratings: without it the heads learn the raters' noise
            loss = loss + self.selector.penalty(len(self.split.train)) / self.processes.count
        return self._update("selector", self.selector, loss)

    def _step_policy(
        self, images: Tensor | None, items: Tensor, passed: Tensor, epoch: int, generator: torch.Generator
    ) -> float:
        keep = passed[items].nonzero()[:, 0]
        items = items[keep]
        others = self.other_prompts.draw(items, generator)
        mine = self.processes.share(torch.arange(len(items)))
        loss = torch.zeros((), device=self.device)
        if len(mine):
            own = items[mine]
            with self._autocast():
                if self.tokens is None:
                    prepared = prepare(images[keep[mine]].to(self.device), self.policy.config.image_size)
                    tokens = encode(self.policy.encoder, prepared)
                else:
                    tokens = self.tokens[own].to(self.device)
                logits = self._fuse(tokens, [self.rated.prompt_index[own], *(other[mine] for other in others)])
            loss = self._policy_loss(logits, own, epoch) / len(items)
        return self._update("policy", self.policy, loss)

    def _policy_loss(self, logits: Tensor, items: Tensor, epoch: int) -> Tensor:
        """Sum over the images, from logits (B, 1 + others) of accepting under the own and under other prompts."""
        own = logits[:, 0]
        ratios = None
        if self.stage_of(epoch) == 2:
            ratios = importance_ratios(self.scores.good[items].to(self.device), torch.sigmoid(own.detach()))
        loss = policy_loss(own, self.advantage[items].to(self.device), ratios).sum()
        # A poor image need not match its own prompt: its score shall fall, so the contrast counts by P(r > 1).
        not_poor = (1 - self.soft_labels[items, 0]).to(self.device)
        for other in logits[:, 1:].unbind(1):
            loss = loss + CONTRAST_WEIGHT * (not_poor * contrast_loss(own, other)).sum()
        return loss

    def _tokens(self, items: Tensor) -> Tensor:
        """The policy's encoder on images as they are, (B, T, D)."""
        if self.tokens is not None:
            return self.tokens[items].to(self.device)
        images = self.rated.images(items).to(self.device)
        return encode(self.policy.encoder, prepare(images, self.policy.config.image_size))

    def _percepts(self, items: Tensor) -> Tensor:
        """The selector's percepts of images as they are, (B, P)."""
        if self.percepts is not None:
            return self.percepts[items].to(self.device)
        images = self.rated.images(items).to(self.device)
        return self.selector.perceive(prepare(images, self.selector.config.image_size))

    def _fuse(self, tokens: Tensor, prompts: list[Tensor]) -> Tensor:
        """Logits (B, C) of images with C prompts each."""
        text, mask = self.features[torch.stack(prompts, dim=1)]
        seen = self.policy.image_projection(tokens)
        return self.policy.fuse_each(seen, text.to(self.device), mask.to(self.device)).float()

    def _update(self, name: str, network: nn.Module, loss: Tensor) -> float:
        """One step on the sum of the processes' losses; gives that sum."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        if loss.requires_grad:
            self.scaler.scale(loss).backward()
        self.processes.sum_gradients(network.parameters())
        self.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), MAX_GRAD_NORM)
        self.scaler.step(optimizer)
        self.scaler.update()
        return self.processes.total(loss.item(), self.device)

    # --- measuring ---

    @torch.no_grad()
    def score_all(self, *, calibrate: bool = False) -> Scores:
        """Score every item in evaluation mode; ``calibrate`` fits the selector's temperatures and the policy's offset
        first."""
        self.selector.eval()
        self.policy.eval()
        generator = torch.Generator().manual_seed(self.config.training.seed)
        other = self.other_prompts.draw(torch.arange(len(self.rated)), generator)
        parts = [self._score_batch(items, other) for items in torch.arange(len(self.rated)).split(_SCORING_BATCH)]
        columns = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
        logits, fused = (self.processes.from_first(column, self.device) for column in columns)
        if calibrate:
            fold, train = self.split.calibration, self.split.train
            not_poor = 1 - self.soft_labels[:, 0]
            temperatures = fit_temperature(logits[fold, :, 0], not_poor[fold], self.rated.kinds[fold])
            self.selector.temperature.copy_(temperatures)
            self.policy.offset.fill_(fit_offset(fused[train, 0], not_poor[train]))
        kinds = self.rated.kinds.to(self.device)
        selector = SelectorScores.of_heads(self.selector.probabilities(logits.to(self.device), kinds).cpu())
        alignment = self.policy.alignment(fused[:, 0].to(self.device)).cpu()
        accepted = torch.sigmoid(fused)
        another = accepted[:, 1] if other else torch.full_like(alignment, math.nan)
        return Scores(selector.mean, selector.serving, alignment, accepted[:, 0], another)

    def _score_batch(self, items: Tensor, other: list[Tensor]) -> tuple[Tensor, Tensor]:
        metrics, kinds = self.metrics[items].to(self.device), self.rated.kinds[items].to(self.device)
        logits = self.selector.heads(self.selector.features(self._percepts(items), metrics, kinds))
        prompts = [self.rated.prompt_index[items], *(each[items] for each in other[:1])]
        return logits.float(), self._fuse(self._tokens(items), prompts)

    def pass_rate(self) -> float:
        """Share of the training images that the selector does not drop."""
        return self._passes()[self.split.train].float().mean().item()

    # --- state ---

    def save(self, folder: Path) -> None:
        """Write both networks and what resuming needs into ``folder``."""
        self.selector.save(folder / SELECTOR_FILE)
        self.policy.save(folder / POLICY_FILE)
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
        }
        torch.save(state, folder / STATE_FILE)

    def load(self, folder: Path) -> None:
        """Continue from a folder that ``save`` wrote."""
        selector, policy = Selector.load(folder / SELECTOR_FILE), Policy.load(folder / POLICY_FILE)
        self.selector.load_state_dict(selector.state_dict())
        self.policy.load_state_dict(policy.state_dict())
        # From a GPU too: each optimizer moves its state to where its weights are.
        state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)  # noqa: TID251 (weights_only)
        self.epoch, self.step = state["epoch"], state["step"]
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if self.stage_of(self.epoch) == 2 and self._unfreezes_in_stage_2:
            self._unfreeze()  # the encoders of these weights are no longer those that were frozen
        self.scores = self.score_all()


def _first_stage2_epoch(config: RLHFConfig, has_selector: bool) -> int:
    training = config.training
    if training.stage == 1:
        return training.max_epochs + 1
    if has_selector:
        return 1
    faults = []
    if training.max_epochs < 2:
        faults.append("training.max_epochs is 1: two stages need at least 2, or a trained selector to begin with")
    if not training.stage1.train_selector:
        faults.append(
            "training.stage1.train_selector is false, so stage 2 would drop images by an untrained selector. "
            "Give --selector_checkpoint, or set it to true"
        )
    if faults:
        raise ConfigError("training", faults)
    return training.max_epochs // 2 + 1


def _are_equal(first: nn.Module, second: nn.Module) -> bool:
    """Whether two networks are the same function: equal weights of equal names."""
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(
        value.shape == other[name].shape and torch.equal(value, other[name]) for name, value in one.items()
    )
