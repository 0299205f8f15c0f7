"""Low-rank adapters (LoRA, Hu et al. 2021): put into a network's attention, stored apart from it, merged into it.

An adapter belongs to the weights that it was trained on; its file names their digest. The file is the one that
diffusers writes too, so that ``load_lora_weights`` of a plain StableDiffusionPipeline reads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FILE_NAME = "pytorch_lora_weights.safetensors"
FOLDER_NAME = "lora"  # in a checkpoint

# The projections of attention, by every name that UNet, CLIP and BERT have for them.
_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj", "query", "key", "value")


class AdapterError(ValueError):
    """An adapter file is damaged, none, or does not fit the network."""


@dataclass(frozen=True)
class Adapter:
    """Low-rank weights of one or more networks."""

    tensors: Mapping[str, Tensor]  # "unet.down_blocks...to_q.lora_A.weight" (r, D_in), lora_B (D_out, r)
    rank: int
    sample_size: int  # side of the latents that it was trained at
    base_weights_sha256: str  # digest of the model that it was trained on

    @property
    def network_names(self) -> list[str]:
        """Of the networks that it changes: unet, text_encoder."""
        return sorted({name.partition(".")[0] for name in self.tensors})

    @classmethod
    def of(cls, networks: Mapping[str, nn.Module], rank: int, base_weights_sha256: str) -> Self:
        """What the networks' adapters hold now."""
        from peft import get_peft_model_state_dict  # takes a second to import, and most models have no adapter

        tensors = {
            f"{name}.{key}": tensor.detach().float().cpu().contiguous()
            for name, network in networks.items()
            for key, tensor in get_peft_model_state_dict(network).items()
        }
        return cls(tensors, rank, networks["unet"].config.sample_size, base_weights_sha256)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises AdapterError for a file that is no adapter of this kind."""
        path = folder / FILE_NAME
        try:
            with safe_open(path, framework="pt") as file:
                record = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return cls(tensors, int(record["rank"]), int(record["sample_size"]), record["base_weights_sha256"])
        except (OSError, SafetensorError) as error:
            raise AdapterError(f"The adapter {path} cannot be read: {error}") from None
        except KeyError as error:
            raise AdapterError(
                f"{path} does not say its {error}: it was not written by MedSyn's fine-tuning."
            ) from None

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "format": "pt",
            "rank": str(self.rank),
            "sample_size": str(self.sample_size),
            "base_weights_sha256": self.base_weights_sha256,
        }
        save_file(dict(self.tensors), folder / FILE_NAME, metadata=record)

    def put_into(self, networks: Mapping[str, nn.Module]) -> None:
        """Into networks that have adapters of this rank; raises AdapterError where tensors do not fit."""
        from peft import set_peft_model_state_dict

        for name, network in networks.items():
            own = {
                key.removeprefix(f"{name}."): value
                for key, value in self.tensors.items()
                if key.startswith(f"{name}.")
            }
            try:
                outcome = set_peft_model_state_dict(network, own)
            except RuntimeError as error:
                raise AdapterError(f"The adapter does not fit the {name}: {error}") from None
            absent = [key for key in outcome.missing_keys if "lora_" in key] + list(outcome.unexpected_keys)
            if absent or not own:
                raise AdapterError(f"The adapter does not fit the {name}: {', '.join(absent[:5]) or 'it has none'}.")


def add_adapter(network: nn.Module, rank: int, seed: int) -> None:
    """Give every attention projection a low-rank side path, B zero, so that the output stays as it is.

    Afterwards only the adapter's weights require gradients. A is drawn from ``seed``; the global generator is left
    untouched. The scale is 1 (alpha = rank).
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(_TARGETS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, network)


def switch_adapter(network: nn.Module, *, on: bool) -> None:
    """Let the side paths take part or not; off, the network computes as it did without them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in network.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.enable_adapters(on)


def merge_adapter(network: nn.Module) -> None:
    """Add B A to the weights and take the side paths away: the network is again of its own class alone."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(network.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, layer.get_base_layer())
    del network.peft_config


def merge_into(networks: Mapping[str, nn.Module], adapter: Adapter) -> None:
    """The adapter's change becomes part of the networks' weights; raises AdapterError where it does not fit.

    The size that it was trained at becomes that of the UNet, as it does when all weights are trained.
    """
    adapted = {name: networks[name] for name in adapter.network_names}
    for network in adapted.values():
        add_adapter(network, adapter.rank, seed=0)
    adapter.put_into(adapted)
    for network in adapted.values():
        merge_adapter(network)
    networks["unet"].register_to_config(sample_size=adapter.sample_size)
