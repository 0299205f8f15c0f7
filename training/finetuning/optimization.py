"""The optimizer and the course of its learning rate."""

from collections.abc import Iterable

import torch
from diffusers.optimization import get_scheduler
from torch import nn

from training.finetuning.arguments import Arguments

_WEIGHT_DECAY = 1e-2


class OptimizerUnavailable(RuntimeError):
    """The optimizer that was asked for cannot be had on this machine."""


def make_optimizer(arguments: Arguments, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, or its 8-bit variant; raises OptimizerUnavailable."""
    options = {"lr": arguments.learning_rate, "weight_decay": _WEIGHT_DECAY}
    if arguments.use_8bit_adam:
        return _adam_8bit()(parameters, **options)
    return torch.optim.AdamW(parameters, fused=True, **options)


def _adam_8bit() -> type[torch.optim.Optimizer]:
    if not torch.cuda.is_available():
        raise OptimizerUnavailable(
            "--use_8bit_adam needs a CUDA GPU, and torch sees none. Leave the flag out, or take a recipe's back with "
            "--no-use_8bit_adam."
        )
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise OptimizerUnavailable(
            f"--use_8bit_adam needs bitsandbytes: pip install bitsandbytes ({error})"
        ) from None
    return AdamW8bit


def peak_learning_rate(arguments: Arguments, num_processes: int) -> float:
    """The rate given, with --scale_lr times the images of a step."""
    if not arguments.scale_lr:
        return arguments.learning_rate
    return arguments.learning_rate * arguments.images_per_step_and_device * num_processes


def make_schedule(
    arguments: Arguments, optimizer: torch.optim.Optimizer, *, peak: float, steps_done: int, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The course of the learning rate over ``total_steps``, standing at ``steps_done``; nothing of it is stored."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = peak
    return get_scheduler(
        arguments.lr_scheduler,
        optimizer,
        num_warmup_steps=arguments.lr_warmup_steps,
        num_training_steps=total_steps,
        last_epoch=steps_done - 1,  # the scheduler takes one step when it is made
    )
