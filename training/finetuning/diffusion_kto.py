"""Diffusion-KTO: synthetic images that are wanted and others that are not, beside a replay of real ones.

    L = E_real[ l(x) ] + 4 / beta E_syn[ 1 - sigmoid(w(x) (g(x) - z)) ],    g(x) = beta (l_ref(x) - l(x))

l is the diffusion loss of one image, l_ref that of the generator which training began with, under the same noise;
w is +1 for a wanted image and -1 for an unwanted one. g stands for the log ratio of both generators' densities, z for
their divergence: the batch's mean of g, at least 0, through which no gradient flows. An image that has moved by about
1 / beta counts less and less, so unwanted images cannot be driven away without end.

Source: Li, Kallidromitis, Gokul, Kato, Kozuka, Aligning Diffusion Models by Optimizing Human Utility (2024),
arXiv:2404.04465, with the replay of METHOD.md section 6. The factor 4 / beta is ours: in the first step the gradient
is that of w(x) l(x), whatever beta is, so rates and the balance with the real half carry over from
``reward_weighted``.
"""

import torch
from torch import Tensor

from training.finetuning import train
from training.finetuning.batches import Batch
from training.finetuning.session import Session


def kto_loss(losses: Tensor, reference: Tensor, weights: Tensor, beta: float) -> Tensor:
    """The synthetic half's mean loss: losses of the trained and of the first generator (B,), weights (B,), signed."""
    gain = beta * (reference - losses)
    centre = gain.detach().mean().clamp(min=0)
    utility = torch.sigmoid(weights.sign() * (gain - centre))
    return 4 / beta * (weights.abs() * (1 - utility)).mean()


class KtoLoss:
    """The objective as the training loop's ``Work`` takes it, and its parts as figures of the last step."""

    def __init__(self, beta: float) -> None:
        self._beta = beta
        self._parts: list[tuple[Tensor, ...]] = []

    def __call__(self, session: Session, batch: Batch) -> Tensor:
        with torch.no_grad(), session.parts.untrained():
            reference = train.losses_of(session, batch.take(slice(1, None, 2)))
        losses = train.losses_of(session, batch)
        weights = batch.weights[1::2].to(losses.device)
        real, synthetic = losses[0::2].mean(), losses[1::2]
        preference = kto_loss(synthetic, reference, weights, self._beta)
        moved = (weights.sign() * (reference - synthetic)).mean()
        self._parts.append((real.detach(), preference.detach(), moved.detach()))
        return real + preference

    def figures(self) -> dict[str, float]:
        """Means over the micro-batches since the last call. ``preferred``: by how much wanted images became likelier,
        and unwanted ones less likely, in units of the diffusion loss."""
        names = ("real_loss", "synthetic_loss", "preferred")
        values = [torch.stack(part).mean().item() for part in zip(*self._parts, strict=True)]
        self._parts.clear()
        return dict(zip(names, values, strict=True))
