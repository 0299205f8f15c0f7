"""Gates: small judgements, while an image is drawn, of whether it will pass (METHOD.md 5).

A gate looks at the clean latents as they seem after a step, at how far guidance pushed there, at the step and at the
prompt, and estimates the chance that the finished image passes selector and policy. After the steps of ``plan.gates``
a trajectory whose chance lies under that gate's threshold is drawn no further. Gates only reject, so images stay
independent draws of what is served. They belong to one pipeline, one way of sampling and one quality threshold;
elsewhere their promises mean nothing and they are not used (`GatePlan.why_not`).
"""

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from generation.scoring.network_file import fill, read_network, save_network
from medsyn.modalities import ALL_KINDS

UNGATED_SHARE = 0.05  # of the candidates no gate may stop: they keep the estimate of recall honest
SMALLEST_GAIN = 1.15  # gates that save less are switched off
# What a call must share with the trajectories that gates were trained on.
SAMPLING_KEYS = (
    "num_inference_steps",
    "guidance_scale",
    "guidance_interval",
    "negative_prompt",
    "scheduler",
    "height",
    "width",
    "quality_threshold",
)
_KIND_SLUGS = tuple(kind.slug for kind in ALL_KINDS)


@dataclass(frozen=True)
class GateConfig:
    """The shape of the network."""

    latent_channels: int
    text_dim: int  # width of the pooled conditioning; 0: none
    width: int = 24  # channels of the first convolution
    hidden: int = 64


@dataclass(frozen=True)
class Gate:
    step: int  # after so many steps of the run
    threshold: float  # chance of passing, 0..1, under which a trajectory ends


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class GatePlan:
    """When the gates are asked, and what was measured of them on trajectories that chose nothing."""

    sampling: dict[str, Any]  # SAMPLING_KEYS of the trajectories they were trained on
    gates: tuple[Gate, ...]
    promised_recall: float  # share of passing images that they let through, at least, 0..1
    recall: Estimate
    gain: Estimate  # UNet evaluations per accepted image without gates, over the same with them
    recall_by_kind: dict[str, float]  # of kinds with an accepted image
    rank_correlation: list[float]  # within prompt, of the chance after step 1, 2, ... with the final score
    trajectories: int
    off_reason: str = ""  # why they are switched off, for people; empty: they are on

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        return cls(
            **{
                **values,
                "gates": tuple(Gate(**gate) for gate in values["gates"]),
                "recall": Estimate(**values["recall"]),
                "gain": Estimate(**values["gain"]),
            }
        )

    def why_not(self, parameters: Mapping[str, Any]) -> str:
        """Why a call with these parameters goes without the gates, for people; empty where they are used."""
        if not parameters["use_gates"]:
            return "The call asked for none."
        if self.off_reason:
            return self.off_reason
        for key in SAMPLING_KEYS:
            trained, asked = _plain(self.sampling[key]), _plain(parameters[key])
            if trained != asked:
                return f"They were trained for {key} = {trained}; this call has {asked}."
        return ""


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def is_ungated(seed: int) -> bool:
    """Whether no gate may stop the candidate with this seed: one in twenty, always the same ones."""
    return random.Random(f"ungated {seed}").random() < UNGATED_SHARE


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


class Gates(nn.Module):
    """The network, with the plan of its use. Outputs three logits: selector's score, policy's score, passing."""

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
        self.text = nn.Linear(config.text_dim, 16) if config.text_dim else None
        seen = 2 * sum(widths) + 8 + (16 if config.text_dim else 0) + 2 + 8
        self.head = nn.Sequential(
            nn.LayerNorm(seen), nn.Linear(seen, config.hidden), nn.SiLU(), nn.Dropout(0.2), nn.Linear(config.hidden, 3)
        )

    def forward(self, views: Views) -> Tensor:
        """Logits (B, 3)."""
        x = views.latents
        statistics = [x.mean((2, 3)), x.std((2, 3))]
        for stage in self.stages:
            x = stage(x)
            statistics += [x.mean((2, 3)), x.std((2, 3))]
        parts = [*statistics, self.kind(views.kinds)]
        if self.text is not None:
            parts.append(self.text(views.text))
        guided = views.distance > 0
        size = torch.where(guided, views.distance.clamp(min=1e-6).log(), torch.zeros_like(views.distance))
        parts += [guided.float()[:, None], size[:, None], _waves(views.progress)]
        return self.head(torch.cat(parts, dim=1))

    @torch.no_grad()
    def chance(self, views: Views) -> Tensor:
        """(B,) estimated chance that the finished image passes, 0..1; each row computed by itself.

        So an answer does not depend on who else is asked about.
        """
        self.eval()
        rows = [self(views.at(torch.tensor([row], device=views.progress.device))) for row in range(len(views))]
        return torch.cat(rows)[:, 2].sigmoid()

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


def _waves(progress: Tensor) -> Tensor:
    """(B,) in 0..1 -> (B, 8) sines and cosines."""
    angles = progress[:, None] * math.pi * torch.tensor([1.0, 2.0, 4.0, 8.0], device=progress.device)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def views_of(
    latents: Sequence[Tensor], distances: Sequence[float], progress: Sequence[float], kind_slugs: Sequence[str],
    text: Tensor,
) -> Views:  # fmt: skip
    """Views of B trajectories; ``latents`` (C, h, w) each, ``text`` (B, D) pooled conditioning."""
    device = latents[0].device
    return Views(
        torch.stack(list(latents)).float(),
        torch.tensor(distances, dtype=torch.float32, device=device),
        torch.tensor(progress, dtype=torch.float32, device=device),
        torch.tensor([_KIND_SLUGS.index(slug) for slug in kind_slugs], device=device),
        text.float().to(device),
    )
