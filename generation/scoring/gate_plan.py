"""What gates promise, where they stand, and when they are used. Imports no torch: pages and services read it too."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open

from generation.parameters import SAMPLING
from medsyn.intervals import wilson

GATES_NAME = "gates_checkpoint.safetensors"
UNGATED_SHARE = 0.05  # of the candidates no gate may stop: they keep the estimate of recall honest
SMALLEST_GAIN = 1.15  # gates that save less are switched off
# What a call must share with the trajectories that gates were trained on.
SAMPLING_KEYS = (*SAMPLING, "quality_threshold")


@dataclass(frozen=True)
class Gate:
    step: int  # after so many steps of the run
    threshold: float  # evidence (log odds ratio) under which a trajectory ends


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def share_estimate(hits: int, number: int) -> Estimate:
    """A share with its 95 % Wilson interval (1927); 0 between 0 and 1 where nothing was counted."""
    if number == 0:
        return Estimate(0.0, 0.0, 1.0)
    return Estimate(hits / number, *wilson(hits, number))


@dataclass(frozen=True)
class GatePlan:
    """When the gates are asked, and what was measured of them on trajectories that chose nothing."""

    sampling: dict[str, Any]  # SAMPLING_KEYS of the trajectories they were trained on
    gates: tuple[Gate, ...]
    promised_recall: float  # share of passing images that they let through, at least, 0..1
    recall: Estimate
    gain: Estimate  # UNet evaluations per accepted image without gates, over the same with them
    recall_by_kind: dict[str, float]  # of kinds with an accepted image
    rank_correlation: list[float]  # within prompt, of the evidence after step 1, 2, ... with the final score
    trajectories: int
    # Digests of what they belong to: "generator", "selector", "policy".
    weights_sha256: dict[str, str] = field(default_factory=dict)
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


class GatesFileError(ValueError):
    """The file is missing or holds no gates."""


def read_plan(path: Path) -> GatePlan:
    """The plan in a gates file, without its network; raises GatesFileError."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get("medsyn", "{}"))
    except (FileNotFoundError, SafetensorError, OSError) as error:
        raise GatesFileError(f"{path} cannot be read ({error}). Train gates: manage.py train_gates.") from None
    if header.get("role") != "gates":
        raise GatesFileError(f"{path} holds no gates. Give the file that manage.py train_gates wrote.")
    return GatePlan.from_dict(header["config"]["plan"])
