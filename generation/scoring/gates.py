"""Gates: small judgements, while an image is drawn, of whether it will pass (METHOD.md 5).

A gate looks at the clean latents as they seem after a step, at how far guidance pushed there, at the step and at the
prompt, and estimates the odds that the finished image passes selector and policy. After the steps of ``plan.gates``
a trajectory is drawn no further where the *evidence* of its way, the logarithm of those odds over the odds that its
prompt alone has, lies under that gate's threshold. So a hard prompt is not starved for being hard: foreseeing that
saves no work for whoever asked for it (METHOD.md 5: correlations within prompt, never pooled). Gates only reject, so
images stay independent draws of what is served. They belong to one pipeline, one way of sampling and one quality
threshold; elsewhere their promises mean nothing and they are not used (`GatePlan.why_not`).
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from generation.diffusion.conditioning import Conditioning
from generation.diffusion.trajectories import Trajectory
from generation.scoring.gate_plan import GatePlan
from generation.scoring.network_file import fill, read_network, save_network
from medsyn.modalities import ALL_KINDS, parse_prompt

_KIND_SLUGS = tuple(kind.slug for kind in ALL_KINDS)


@dataclass(frozen=True)
class GateConfig:
    """The shape of the network."""

    latent_channels: int
    text_dim: int  # width of the prompt's `text_summary`
    width: int = 24  # channels of the first convolution
    hidden: int = 64


@dataclass(frozen=True)
class Views:
    """What gates see of B trajectories."""

    latents: Tensor  # (B, C, h, w), the clean latents as they look
    distance: Tensor  # (B,) root mean square of conditional minus unconditional output; 0 in steps without guidance
    progress: Tensor  # (B,) steps done, as a share of all
    kinds: Tensor  # (B,) position of the kind in ALL_KINDS
    text: Tensor  # (B, D) pooled conditioning of the prompt

    def __len__(self) -> int:
        return len(self.progress)

    def at(self, index: Tensor) -> "Views":
        return Views(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    @classmethod
    def joined(cls, parts: Sequence["Views"]) -> "Views":
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


def text_summary(conditioning: Conditioning) -> Tensor:
    """(B, D): the mean of the tokens that may be attended to."""
    tokens, mask = conditioning.tokens.float(), conditioning.mask
    if mask is None:
        return tokens.mean(1)
    weight = mask[..., None].to(tokens)
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)


class Gates(nn.Module):
    """The network, with the plan of its use. Logits: selector's score, policy's score, passing, passing by prompt."""

    def __init__(self, config: GateConfig, plan: GatePlan | None = None):
        super().__init__()
        self.config, self.plan = config, plan
        widths = (config.latent_channels, config.width, 2 * config.width, 3 * config.width)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(after // 8, after), nn.SiLU()
            )
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.kind = nn.Embedding(len(_KIND_SLUGS), 8)
        self.text = nn.Linear(config.text_dim, 16)
        self.prior = nn.Linear(len(_KIND_SLUGS) + config.text_dim, 1)  # what the prompt alone says of passing
        seen = 2 * sum(widths) + 8 + 16 + 2 + 8
        self.head = nn.Sequential(
            nn.LayerNorm(seen),
            nn.Linear(seen, config.hidden),
            nn.SiLU(),
            nn.Dropout(0.2),
            nn.Linear(config.hidden, 3),
        )

    def forward(self, views: Views) -> Tensor:
        """Logits (B, 4)."""
        x = views.latents
        statistics = _moments(x)
        for stage in self.stages:
            x = stage(x)
            statistics += _moments(x)
        parts = [*statistics, self.kind(views.kinds), self.text(views.text)]
        guided = views.distance > 0
        size = torch.where(guided, views.distance.clamp(min=1e-6).log(), torch.zeros_like(views.distance))
        parts += [guided.float()[:, None], size[:, None], _waves(views.progress)]
        prompt = torch.cat([nn.functional.one_hot(views.kinds, len(_KIND_SLUGS)).float(), views.text], dim=1)
        return torch.cat([self.head(torch.cat(parts, dim=1)), self.prior(prompt)], dim=1)

    @torch.no_grad()
    def evidence(self, views: Views) -> Tensor:
        """(B,) log odds of passing less those of the prompt; each row computed by itself.

        So an answer does not depend on who else is asked about.
        """
        self.eval()
        rows = [self(views.at(torch.tensor([row], device=views.progress.device))) for row in range(len(views))]
        return evidence_in(torch.cat(rows))

    def threshold_after(self, step: int) -> float | None:
        """Of the gate that stands after this step; None where there is none."""
        return next((gate.threshold for gate in self.plan.gates if gate.step == step), None)

    def save(self, path: Path) -> None:
        config = dataclasses.asdict(self.config) | {"plan": dataclasses.asdict(self.plan)}
        save_network(path, self, role="gates", config=config)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The gates of a file, in evaluation mode on the CPU; raises NetworkFileError."""
        config, state = read_network(path, role="gates")
        plan = GatePlan.from_dict(config.pop("plan"))
        gates = cls(GateConfig(**config), plan)
        fill(gates, state, path)
        return gates.eval()


def evidence_in(logits: Tensor) -> Tensor:
    """(B, 4) -> (B,)."""
    return logits[:, 2] - logits[:, 3]


def _moments(x: Tensor) -> list[Tensor]:
    """Mean and deviation of each channel, (B, C) twice; the root never meets 0, where it has no slope."""
    return [x.mean((2, 3)), (x.var((2, 3), correction=0) + 1e-6).sqrt()]


def _waves(progress: Tensor) -> Tensor:
    """(B,) in 0..1 -> (B, 8) sines and cosines."""
    angles = progress[:, None] * math.pi * torch.tensor([1.0, 2.0, 4.0, 8.0], device=progress.device)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def view_of(trajectory: Trajectory, text: Tensor) -> Views:
    """What a gate sees of a trajectory now, B = 1; ``text`` (1, D) is the `text_summary` of its prompt."""
    latents = trajectory.clean_estimate[None].float()
    device = latents.device
    return Views(
        latents,
        torch.tensor([trajectory.guidance_distance], dtype=torch.float32, device=device),
        torch.tensor([trajectory.done / trajectory.total], dtype=torch.float32, device=device),
        torch.tensor([_KIND_SLUGS.index(parse_prompt(trajectory.prompt).kind.slug)], device=device),
        text.to(device),
    )
