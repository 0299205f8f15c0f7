"""torch.compile of a pipeline's UNet, where this machine can."""

import torch

from generation.diffusion.text_to_image import TextToImage


def compile_unet(pipeline: TextToImage) -> str:
    """Have the UNet compiled at its first call; returns the sentence to tell people.

    Where there is no working compiler, nothing is changed and the sentence says so. Weights, names and saved files
    stay what they are; results differ by rounding.
    """
    trouble = _trouble_with_compiling(pipeline.device)
    if trouble:
        return f"The UNet is not compiled, and draws as without --compile: {trouble}"
    pipeline.unet.compile()
    return "The UNet is compiled at its first call."


def _trouble_with_compiling(device: torch.device) -> str:
    """Why nothing can be compiled for ``device``; "" where a small function was."""
    try:
        torch.compile(_trial)(torch.ones(8, device=device))
    except (RuntimeError, OSError) as error:
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    return ""


def _trial(values: torch.Tensor) -> torch.Tensor:
    return (values.sin() + 1).sum()
