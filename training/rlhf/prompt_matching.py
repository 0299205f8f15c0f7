"""Does the policy read the prompt? How an image scores with its own prompt and with those of other images."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from generation.scoring.encoder import prepare
from generation.scoring.policy import Policy
from training.rlhf.dataset import RatedImages
from training.rlhf.evaluation import Estimate, auc, bootstrap
from training.rlhf.text_features import PromptFeatures

_BATCH = 64  # images


@dataclass(frozen=True)
class PromptScores:
    """Alignment of n images with the P prompts that they were made for."""

    alignment: np.ndarray  # (n, P)
    own: np.ndarray  # (n,) position of each image's own prompt
    is_other: np.ndarray  # (n, P) bool: not the image's own prompt
    is_same_kind: np.ndarray  # (n, P) bool: of the image's own kind


@torch.no_grad()
def score_every_prompt(policy: Policy, rated: RatedImages, items: Tensor, features: PromptFeatures) -> PromptScores:
    """Score the images of ``items`` with each other's prompts; an image's tokens are computed once."""
    prompts = rated.prompt_index[items].unique()
    policy.eval()
    device = policy.log_scale.device
    alignment = torch.empty(len(items), len(prompts))
    for places in torch.arange(len(items)).split(_BATCH):
        images = prepare(rated.images(items[places]).to(device), policy.config.image_size)
        tokens = policy.image_tokens(images)
        for column, prompt in enumerate(prompts.tolist()):
            text, mask = features[torch.full((len(places),), prompt)]
            logits = policy.fuse(tokens, text.to(device), mask.to(device))
            alignment[places, column] = policy.alignment(logits).cpu()
    kind_of_prompt = torch.zeros(len(rated.prompts), dtype=torch.int64)
    kind_of_prompt[rated.prompt_index] = rated.kinds
    own = torch.searchsorted(prompts, rated.prompt_index[items]).numpy()
    return PromptScores(
        alignment.numpy(),
        own,
        np.arange(len(prompts)) != own[:, None],
        kind_of_prompt[prompts].numpy() == rated.kinds[items].numpy()[:, None],
    )


def matched_prompt_auc(scores: PromptScores, among: np.ndarray, *, seed: int) -> Estimate:
    """AUC of images with their own prompts against images with other prompts, bootstrapped over images.

    ``among`` (n, P) bool: the other prompts that count; those of one image together weigh as much as its own. Images
    without one are left out; no value where none is left.
    """
    among = among & scores.is_other
    images = np.nonzero(among.any(1))[0]
    if len(images) == 0:
        return Estimate(None, None, None)
    own = scores.alignment[np.arange(len(scores.own)), scores.own]

    def statistic(drawn: np.ndarray) -> float | None:
        rows = images[drawn]
        row, prompt = np.nonzero(among[rows])
        others = scores.alignment[rows[row], prompt]
        weights = 1 / among[rows].sum(1)[row]
        labels = np.repeat([1, 0], [len(rows), len(others)])
        return auc(np.concatenate([own[rows], others]), labels, np.concatenate([np.ones(len(rows)), weights]))

    return bootstrap(statistic, len(images), seed=seed)
