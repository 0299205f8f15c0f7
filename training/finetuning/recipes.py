"""Named settings of whole fine-tuning runs. A flag that is given beside ``--recipe`` wins over the recipe's value."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# Common to all phases: what makes Stable Diffusion 1.5 fit on one GPU of 12 GB.
_TWELVE_GIGABYTES = {
    "train_batch_size": 1,
    "gradient_checkpointing": True,
    "mixed_precision": "fp16",
    "use_8bit_adam": True,
    "num_validation_images": 9,
    "validation_scheduler": "euler_a",
}
# From the second phase on: timesteps weighted, and dark and bright images made reachable.
_WEIGHTED = {"lr_scheduler": "cosine", "snr_gamma": 5.0, "noise_offset": 0.03}


def _phase(**values: Any) -> Mapping[str, Any]:
    return MappingProxyType(_TWELVE_GIGABYTES | values)


# Fundus photographs on one GPU of 12 GB, in phases of rising resolution. Each goes on from the last checkpoint of the
# phase before (--resume_from_checkpoint), and max_train_steps counts from the first phase on. The third phase lowers
# its learning rate halfway, hence its two parts.
RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "fundus-1": _phase(
        resolution=256, max_train_steps=5_000, learning_rate=1e-5, lr_scheduler="constant",
        gradient_accumulation_steps=32,
    ),
    "fundus-2": _phase(
        **_WEIGHTED, resolution=256, max_train_steps=10_000, learning_rate=1e-5, lr_warmup_steps=500,
        gradient_accumulation_steps=48,
    ),
    "fundus-3a": _phase(
        **_WEIGHTED, resolution=320, max_train_steps=12_000, learning_rate=8e-6, gradient_accumulation_steps=64,
    ),
    "fundus-3b": _phase(
        **_WEIGHTED, resolution=320, max_train_steps=18_000, learning_rate=5e-6, gradient_accumulation_steps=64,
    ),
    "fundus-4": _phase(
        **_WEIGHTED | {"noise_offset": 0.05}, resolution=384, max_train_steps=20_000, learning_rate=3e-6,
        lr_warmup_steps=300, gradient_accumulation_steps=96, validation_scheduler="dpm",
    ),
})  # fmt: skip
