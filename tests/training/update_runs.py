"""Small updates of a random generator of 32 px, in this process."""

from dataclasses import replace
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

from generation.diffusion.phantoms import all_captions
from generation.diffusion.presets import TEST, build_pipeline
from generation.memorisation import FILE_NAME, SIDE, MemoryIndex
from generation.scoring.architecture import PolicyArchitecture, SelectorArchitecture
from generation.scoring.policy import Policy, PolicyConfig, text_encoder_sha256
from generation.scoring.selector import Selector, SelectorConfig
from tests.training.rlhf_files import SMALL
from training.rlhf.generator_update.process import main

SMALL_RUN = {
    "num_synthetic": 40, "num_real": 24, "num_reference": 24, "sample_size": 32, "max_steps": 6,
    "train_batch_size": 4, "checkpointing_steps": 2, "rank": 2, "mixed_precision": "no", "num_inference_steps": 2,
    "guidance_scale": 1.0, "precision": "bfloat16",
}  # fmt: skip


def write_pieces(folder: Path) -> Path:
    """generator/, selector.safetensors, policy.safetensors."""
    pipeline = build_pipeline(replace(TEST, draws_phantoms=True), captions_for_vocabulary=all_captions(), seed=0)
    pipeline.save_pretrained(folder / "generator")
    picture = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    MemoryIndex(picture, ("eyes",), ("1.png",), ("0" * 64,), torch.tensor([0.5]), ("fundus",)).save(
        folder / "generator" / FILE_NAME
    )
    Selector(SelectorConfig(32, SelectorArchitecture(**SMALL, head_dim=8, ensemble_heads=3))).save(
        folder / "selector.safetensors"
    )
    width = pipeline.text_encoder.config.hidden_size
    architecture = PolicyArchitecture(**SMALL, fusion_dim=16)
    Policy(PolicyConfig(32, width, text_encoder_sha256(pipeline.text_encoder), architecture)).save(
        folder / "policy.safetensors"
    )
    return folder


def update(pieces: Path, directory: Path, **settings) -> int:
    """Run the command here; its exit code."""
    AcceleratorState._reset_state(reset_partial_state=True)
    values = {
        "generator": pieces / "generator",
        "selector_file": pieces / "selector.safetensors",
        "policy_file": pieces / "policy.safetensors",
        **SMALL_RUN,
        **settings,
    }
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return main(["--run_directory", str(directory), *flags])
