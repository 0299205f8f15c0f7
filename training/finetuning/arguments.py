"""The flags of ``training.finetuning.train``: one line each, checked before anything is loaded."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from generation.parameters import SCHEDULERS
from medsyn.modalities import PromptError, parse_prompt
from training.finetuning.recipes import RECIPES

DEFAULT_MODEL = "medsyn-tiny"
LATEST = "latest"
PREDICTION_TYPES = ("epsilon", "v_prediction")
MIXED_PRECISIONS = ("auto", "no", "fp16", "bf16")
LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


def _flag(default: Any, text: str, **argparse_options: Any) -> Any:
    """A field that is also a flag: its default, its help text and what else argparse should know."""
    return field(default=default, metadata={"help": text, **argparse_options})


@dataclass(frozen=True)
class Arguments:
    """One fine-tuning run. Names are those of diffusers' training scripts where it has the same thing."""

    train_data_dir: Path = _flag(None, "dataset CSV with the columns path,Text,modality", required=True)
    output_dir: Path = _flag(None, "run directory: checkpoints, metrics, validation images", required=True)
    pretrained_model_name_or_path: str = _flag(
        DEFAULT_MODEL, "model to start from: medsyn-tiny, a MedSyn or Stable Diffusion 1.x folder, or a hub id"
    )
    recipe: str = _flag(None, "named settings for all flags that are not given", choices=tuple(RECIPES))
    latent_cache_dir: Path = _flag(None, "latents and text features (default: latent_cache in the run directory)")
    # data
    image_column: str = _flag("path", "CSV column of the image files")
    caption_column: str = _flag("Text", "CSV column of the prompts")
    resolution: int = _flag(None, "side of the training images in pixels (default: the model's own)")
    center_crop: bool = _flag(False, "fill the square with the image's centre instead of padding it")
    random_flip: bool = _flag(False, "mirror half of the images whose caption names no side")
    caption_dropout: float = _flag(0.1, "share of captions left out, which trains the unconditional branch")
    max_train_samples: int = _flag(None, "train on this many rows, drawn by the seed")
    held_out_share: float = _flag(
        0.0, "share of the rows, whole patients, kept from training: the memory index is held against their images"
    )
    latent_sample: bool = _flag(False, "draw latents from the VAE's posterior at every step instead of its mode")
    skip_bad_rows: bool = _flag(False, "go on without the rows that cannot be used")
    dataloader_num_workers: int = _flag(0, "processes that read the cache; 0 reads in the training process")
    # optimisation
    train_batch_size: int = _flag(8, "images per device and micro-batch")
    gradient_accumulation_steps: int = _flag(1, "micro-batches per step")
    gradient_checkpointing: bool = _flag(False, "recompute activations: less memory, more time")
    num_train_epochs: int = _flag(100, "passes over the data, unless --max_train_steps is given")
    max_train_steps: int = _flag(None, "optimiser steps in all")
    learning_rate: float = _flag(1e-4, "peak learning rate of AdamW")
    scale_lr: bool = _flag(False, "multiply the learning rate by the images per step")
    max_grad_norm: float = _flag(1.0, "gradients are clipped to this norm")
    lr_scheduler: str = _flag("constant", "course of the learning rate", choices=LR_SCHEDULERS)
    lr_warmup_steps: int = _flag(0, "steps of linear warm-up; plain constant has none")
    prediction_type: str = _flag(
        None, "what the UNet learns to predict (default: what it does already)", choices=PREDICTION_TYPES
    )
    snr_gamma: float = _flag(None, "min-SNR loss weighting (Hang et al. 2023), usually 5")
    noise_offset: float = _flag(0.0, "scale of noise that is constant over an image's channel")
    input_perturbation: float = _flag(0.0, "scale of noise that the UNet sees but is not to predict, usually 0.1")
    mixed_precision: str = _flag("auto", "auto: bf16 where the device computes in it", choices=MIXED_PRECISIONS)
    allow_tf32: bool = _flag(False, "let GPUs round the factors of float32 products to 10 bits: faster")
    use_8bit_adam: bool = _flag(False, "8-bit AdamW; needs bitsandbytes and CUDA")
    use_ema: bool = _flag(False, "keep and serve a moving average of the trained weights")
    enable_xformers_memory_efficient_attention: bool = _flag(False, "needs xformers and CUDA")
    train_text_encoder: bool = _flag(False, "train the text encoder too; its features are then not cached")
    use_lora: bool = _flag(False, "train low-rank adapters of the attention layers instead of all weights")
    rank: int = _flag(8, "rank of the adapters of --use_lora")
    seed: int = _flag(0, "decides data order, noise, dropout and validation images")
    # what is kept and shown
    validation_prompts: tuple[str, ...] = _flag((), "prompts to draw while training", nargs="+")
    validation_epochs: int = _flag(1, "draw them every so many epochs")
    validation_steps: int = _flag(None, "draw them every so many steps instead")
    num_validation_images: int = _flag(4, "images per prompt")
    validation_scheduler: str = _flag("dpm", "sampler of the validation images", choices=SCHEDULERS)
    checkpointing_steps: int = _flag(500, "save checkpoint-N every so many steps")
    checkpoints_total_limit: int = _flag(None, "keep only the newest checkpoints")
    resume_from_checkpoint: str = _flag(None, "a checkpoint of any run, or 'latest' of this one", metavar="PATH")
    save_precision: str = _flag("float32", "type of the final pipeline's weights", choices=("float32", "float16"))
    report_to: str = _flag(
        "tensorboard", "where curves go beside metrics.jsonl", choices=("tensorboard", "wandb", "none")
    )

    @property
    def images_per_step_and_device(self) -> int:
        return self.train_batch_size * self.gradient_accumulation_steps

    @property
    def cache_folder(self) -> Path:
        return self.latent_cache_dir or self.output_dir / "latent_cache"

    def as_json(self) -> dict[str, Any]:
        values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        return values | {"validation_prompts": list(self.validation_prompts)}


# Smallest value that makes sense; None stands for "not given" and passes.
_AT_LEAST = {
    "resolution": 8, "max_train_samples": 1, "dataloader_num_workers": 0, "train_batch_size": 1,
    "gradient_accumulation_steps": 1, "num_train_epochs": 1, "max_train_steps": 1, "lr_warmup_steps": 0,
    "noise_offset": 0, "input_perturbation": 0, "rank": 1, "seed": 0, "validation_epochs": 1, "validation_steps": 1,
    "num_validation_images": 1,
    "checkpointing_steps": 1, "checkpoints_total_limit": 1,
}  # fmt: skip
_ABOVE_ZERO = ("learning_rate", "max_grad_norm", "snr_gamma")


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """The command line's arguments; a wrong one ends the process with exit code 2 and says which."""
    parser = argparse.ArgumentParser(
        prog="accelerate launch -m training.finetuning.train",
        description="Fine-tune a MedSyn or Stable Diffusion pipeline on a dataset CSV.",
        allow_abbrev=False,
    )
    add_flags(parser)
    arguments = from_options(vars(parser.parse_args(argv)))
    for problem in problems_of(arguments):
        parser.error(problem)
    return arguments


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Every field of Arguments as a flag of ``parser``; those not given are absent from what it parses."""
    for item in fields(Arguments):
        names = dict.fromkeys([f"--{item.name}", f"--{item.name.replace('_', '-')}"])  # either spelling
        options = {**item.metadata, "help": _help(item)}
        if isinstance(item.default, bool):
            options["action"] = argparse.BooleanOptionalAction  # --no-... takes a recipe's flag back
        else:
            options["type"] = item.type if item.type in (int, float, Path) else str
        parser.add_argument(*names, dest=item.name, default=argparse.SUPPRESS, **options)


def _help(item: Field) -> str:
    text = item.metadata["help"].replace("%", "%%")
    has_default = item.default not in (None, (), False) and not item.metadata.get("required")
    return f"{text} (default: {item.default})" if has_default else text


def from_options(options: Mapping[str, Any]) -> Arguments:
    """Arguments from parsed flags, the recipe's where none was given; options of anything else are left aside."""
    given = {item.name: options[item.name] for item in fields(Arguments) if item.name in options}
    values = {**RECIPES.get(given.get("recipe"), {}), **given}
    return Arguments(**values | {"validation_prompts": tuple(values.get("validation_prompts", ()))})


def with_recipe(arguments: Arguments) -> Arguments:
    """The recipe's values in all fields that are at their defaults: for forms, which send every field."""
    defaults = {item.name: item.default for item in fields(Arguments)}
    recipe = RECIPES.get(arguments.recipe, {})
    return replace(arguments, **{
        name: value for name, value in recipe.items() if getattr(arguments, name) == defaults[name]
    })  # fmt: skip


def problems_of(arguments: Arguments) -> list[str]:
    """What is wrong with the values, a sentence each that begins with its flag."""
    problems = []
    for name, least in _AT_LEAST.items():
        value = getattr(arguments, name)
        if value is not None and value < least:
            problems.append(f"--{name} {value} is too small: at least {least}.")
    for name in _ABOVE_ZERO:
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            problems.append(f"--{name} {value} must be above 0.")
    if not 0 <= arguments.held_out_share <= 0.5:
        problems.append(f"--held_out_share {arguments.held_out_share} is a share: from 0 to 0.5.")
    if not 0 <= arguments.caption_dropout <= 1:
        problems.append(f"--caption_dropout {arguments.caption_dropout} is a share: from 0 to 1.")
    return problems + [problem for prompt in arguments.validation_prompts if (problem := _prompt_problem(prompt))]


def _prompt_problem(prompt: str) -> str:
    try:
        parse_prompt(prompt)
    except PromptError as error:
        return f"--validation_prompts: {error}"
    return ""
