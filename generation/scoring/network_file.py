"""A scoring network in one safetensors file: the weights, and in the header the configuration that fits them."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from medsyn.artifacts import atomic_path


class NetworkFileError(RuntimeError):
    """The file is missing, broken, or holds another kind of network."""


def save_network(path: Path, network: nn.Module, *, role: str, config: dict[str, Any]) -> None:
    """Write weights and configuration; ``role`` is "selector", "policy" or "encoder"."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    # One string: the header's own order of several keys differs from run to run, and equal weights must
    # give equal bytes.
    header = {"medsyn": json.dumps({"role": role, "config": config}, sort_keys=True)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def read_network(path: Path, *, role: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and the state dict of a file; raises NetworkFileError."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("medsyn", "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise NetworkFileError(f"{path} is not there. Train one: python -m training.rlhf.train.") from None
    except (SafetensorError, OSError) as error:
        raise NetworkFileError(f"{path} cannot be read as safetensors ({error}). Restore the file.") from None
    if header.get("role") != role:
        found = header.get("role", "something else")
        raise NetworkFileError(f"{path} holds {found}, not a {role}. Give the {role}'s checkpoint.")
    return header["config"], state


def fill(network: nn.Module, state: dict[str, Any], path: Path) -> None:
    """Load ``state`` strictly; raises NetworkFileError that names the first tensors that do not fit."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        first_lines = " ".join(str(error).split())[:300]
        raise NetworkFileError(f"{path} belongs to another architecture: {first_lines}") from None
