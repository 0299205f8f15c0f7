"""The flags of ``training.finetuning.train_vae``: one line each, checked before anything is loaded."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from training.finetuning.arguments import DEFAULT_MODEL, LR_SCHEDULERS, MIXED_PRECISIONS


def _flag(
    default: Any, text: str, *, at_least: float | None = None, at_most: float | None = None, **more: Any
) -> Any:
    """A field that is also a flag: its default, help text and range, and what else argparse should know."""
    return field(default=default, metadata={"help": text, "range": (at_least, at_most), "argparse": more})


@dataclass(frozen=True)
class VaeArguments:
    """One training of an autoencoder. Names are those of ``training.finetuning.train`` for what both have."""

    train_data_dir: Path = _flag(None, "dataset CSV with the columns path,Text,modality", required=True)
    output_dir: Path = _flag(None, "run directory: checkpoints, metrics, validation images", required=True)
    pretrained_model_name_or_path: str = _flag(DEFAULT_MODEL, "medsyn-tiny, a pipeline folder or an AutoencoderKL's")
    pixel_cache_dir: Path = _flag(None, "decoded images (default: pixel_cache in the run directory)")
    # data
    image_column: str = _flag("path", "CSV column of the image files")
    caption_column: str = _flag("Text", "CSV column of the prompts")
    resolution: int = _flag(None, "side of the images in pixels (default: the model's own)", at_least=16)
    center_crop: bool = _flag(False, "fill the square with the image's centre instead of padding it")
    random_flip: bool = _flag(False, "mirror half of the images whose caption names no side")
    crops: float = _flag(0.5, "share of batches on crops of half the side", at_least=0, at_most=1)
    max_train_samples: int = _flag(None, "use this many rows, drawn by the seed", at_least=1)
    skip_bad_rows: bool = _flag(False, "go on without the rows that cannot be used")
    holdout: float = _flag(0.1, "share of rows to measure on, split by group; 0: none", at_least=0, at_most=0.5)
    # optimisation
    train_batch_size: int = _flag(4, "images per device and micro-batch", at_least=1)
    gradient_accumulation_steps: int = _flag(1, "micro-batches per step", at_least=1)
    gradient_checkpointing: bool = _flag(False, "recompute activations: less memory, more time")
    max_train_steps: int = _flag(1000, "optimiser steps in all", at_least=1)
    learning_rate: float = _flag(1e-4, "peak learning rate of AdamW", at_least=1e-12)
    max_grad_norm: float = _flag(1.0, "gradients are clipped to this norm", at_least=1e-12)
    lr_scheduler: str = _flag("constant", "course of the learning rate", choices=LR_SCHEDULERS)
    lr_warmup_steps: int = _flag(0, "steps of linear warm-up; plain constant has none", at_least=0)
    kl_weight: float = _flag(1e-3, "of the divergence per latent value from a standard normal", at_least=0)
    decoder_only: bool = _flag(False, "leave encoder and latents as they are: a trained UNet goes on fitting")
    mixed_precision: str = _flag("auto", "auto: bf16 where the device computes in it", choices=MIXED_PRECISIONS)
    use_ema: bool = _flag(False, "keep and serve a moving average of the weights")
    seed: int = _flag(0, "decides the split, the order, crops and noise", at_least=0)
    # what is kept and shown
    validation_steps: int = _flag(500, "measure and draw held-out images every so many steps", at_least=1)
    num_validation_images: int = _flag(4, "images drawn beside their reconstruction", at_least=1)
    checkpointing_steps: int = _flag(500, "save checkpoint-N every so many steps", at_least=1)
    checkpoints_total_limit: int = _flag(None, "keep only the newest checkpoints", at_least=1)
    resume_from_checkpoint: str = _flag(None, "a checkpoint of any run, or 'latest' of this one", metavar="PATH")
    save_precision: str = _flag("float32", "type of the result's weights", choices=("float32", "float16"))
    report_to: str = _flag(
        "tensorboard", "where curves go beside metrics.jsonl", choices=("tensorboard", "wandb", "none")
    )

    @property
    def images_per_step_and_device(self) -> int:
        return self.train_batch_size * self.gradient_accumulation_steps

    @property
    def cache_folder(self) -> Path:
        return self.pixel_cache_dir or self.output_dir / "pixel_cache"

    def as_json(self) -> dict[str, Any]:
        """For config.json; where the cache lies is nobody's business but this call's."""
        values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        del values["pixel_cache_dir"]
        return values


def parse_arguments(argv: Sequence[str] | None = None) -> VaeArguments:
    """The command line's arguments; a wrong one ends the process with exit code 2 and says which."""
    parser = argparse.ArgumentParser(
        prog="accelerate launch -m training.finetuning.train_vae",
        description="Train a model's autoencoder on the images of a dataset CSV.",
        allow_abbrev=False,
    )
    for item in fields(VaeArguments):
        names = dict.fromkeys([f"--{item.name}", f"--{item.name.replace('_', '-')}"])  # either spelling
        options = {"dest": item.name, "default": item.default, "help": item.metadata["help"]}
        if isinstance(item.default, bool):
            parser.add_argument(*names, action="store_true", **options)
        else:
            parser.add_argument(*names, type=item.type, **options, **item.metadata["argparse"])
    arguments = VaeArguments(**vars(parser.parse_args(argv)))
    for item in fields(VaeArguments):
        least, most = item.metadata["range"]
        value = getattr(arguments, item.name)
        if value is not None and least is not None and not least <= value <= (most or float("inf")):
            limits = f"at least {least}" if most is None else f"from {least} to {most}"
            parser.error(f"--{item.name} {value} is out of range: {limits}.")
    return arguments
