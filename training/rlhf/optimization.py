"""How selector and policy are optimised: AdamW, rates for the encoder and for what is new, warm-up and cosine."""

import math

import torch

from generation.scoring.policy import Policy
from generation.scoring.selector import Selector

NEW_LAYER_FACTOR = 10.0  # layers without pretrained weights learn faster than the encoders
WEIGHT_DECAY = 0.05
LAST_RATE_SHARE = 0.05  # of the learning rate, at the end of a stage
FIRST_RATE_SHARE = 0.1  # at its beginning: a first step at full rate can drive all scores to one end for good
WARMUP_SHARE = 0.1  # of a stage's steps


def rate_share(done: float) -> float:
    """Share of a stage's learning rate after a share ``done``, 0..1, of its steps: warm-up, then half a cosine."""
    cosine = LAST_RATE_SHARE + (1 - LAST_RATE_SHARE) * (1 + math.cos(math.pi * done)) / 2
    return cosine * min(1.0, (done + FIRST_RATE_SHARE * WARMUP_SHARE) / WARMUP_SHARE)


def is_pretrained(network: Selector | Policy) -> bool:
    return network.config.architecture.pretrained is not None


def make_optimizer(network: Selector | Policy, new_layer_factor: float) -> torch.optim.AdamW:
    """AdamW with two groups: the encoder (with the perception), and everything that never saw other data."""
    encoder = list(network.encoder.parameters())
    if isinstance(network, Selector):
        encoder += network.perception.parameters()
    in_encoder = {id(parameter) for parameter in encoder}
    new = [parameter for parameter in network.parameters() if id(parameter) not in in_encoder]
    groups = [
        {"params": encoder, "name": "encoder", "rate_factor": 1.0 if is_pretrained(network) else NEW_LAYER_FACTOR},
        {"params": new, "name": "new_layers", "rate_factor": new_layer_factor},
    ]
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=WEIGHT_DECAY)
