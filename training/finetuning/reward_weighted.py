"""The objective of a generator update: chosen synthetic images beside a replay of real ones (METHOD.md section 6).

    L = E_syn[ w(x) l(x) ] + E_real[ l(x) ]

l is the diffusion loss of one image, w its weight: how much the reward makes of it, 0 where it is not learnt from.
Both expectations are means over one half of every batch, so the real images hold the generator where it was, however
many synthetic ones there are. Images of weight 0 are never drawn: drawing them would cost a step and teach nothing.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from training.finetuning import train
from training.finetuning.batches import Batch, CachedExamples, DataOrder, Draw
from training.finetuning.session import Session

_SYNTHETIC_STREAM = 1 << 32  # added to the seed: both halves must not mirror and drop captions in step


@dataclass(frozen=True)
class MixedOrder:
    """Two endless lines of draws, woven into one: real images at even positions, synthetic ones at odd positions."""

    real: DataOrder
    synthetic: DataOrder

    @property
    def seed(self) -> int:
        return self.real.seed

    def draw(self, position: int) -> Draw:
        number, is_synthetic = divmod(position, 2)
        if not is_synthetic:
            return self.real.draw(number)
        draw = self.synthetic.draw(number)
        return replace(draw, row=len(self.real.may_flip) + draw.row)


def mix(examples: CachedExamples, *, num_real: int, weights: Sequence[float]) -> CachedExamples:
    """``examples`` in mixed order: their first ``num_real`` rows are real, the others synthetic with these weights.

    The weights are scaled to a mean size of 1: only their proportions count. Those below 0 are of images that are not
    wanted (``diffusion_kto``). Raises ValueError where a half is empty or a weight is 0.
    """
    num_synthetic = len(examples.rows) - num_real
    if num_real < 1 or num_synthetic < 1:
        raise ValueError(f"{num_real} real and {num_synthetic} synthetic images: a batch needs some of both.")
    if len(weights) != num_synthetic or 0 in weights:
        raise ValueError(f"{num_synthetic} synthetic images need as many weights, none 0; got {list(weights)[:5]}.")
    order = examples.order
    mixed = copy.copy(examples)
    mixed.order = MixedOrder(
        replace(order, may_flip=order.may_flip[:num_real]),
        replace(order, may_flip=order.may_flip[num_real:], seed=order.seed + _SYNTHETIC_STREAM),
    )
    mean = sum(map(abs, weights)) / num_synthetic
    mixed.weights = [1.0] * num_real + [weight / mean for weight in weights]
    return mixed


def halves_of(losses: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and weights (B,) of a batch in mixed order -> E_real[l] and E_syn[w l]; B is even."""
    if len(losses) % 2:
        raise ValueError(f"A batch of {len(losses)} images has no two equal halves.")
    return losses[0::2].mean(), (weights[1::2] * losses[1::2]).mean()


class MixedLoss:
    """The objective as the training loop's ``Work`` takes it, and its two parts as figures of the last step."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor]] = []

    def __call__(self, session: Session, batch: Batch) -> Tensor:
        losses = train.losses_of(session, batch)
        real, synthetic = halves_of(losses, batch.weights.to(losses.device))
        self._parts.append((real.detach(), synthetic.detach()))
        return real + synthetic

    def figures(self) -> dict[str, float]:
        """Means over the micro-batches since the last call, those of this process."""
        real, synthetic = (torch.stack(part).mean().item() for part in zip(*self._parts, strict=True))
        self._parts.clear()
        return {"real_loss": real, "synthetic_loss": synthetic}
