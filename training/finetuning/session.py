"""A fine-tuning run between two steps: everything that the training loop works with."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from generation.diffusion.text_to_image import TextToImage
from generation.memorisation import MemoryIndex
from training.finetuning.arguments import Arguments
from training.finetuning.batches import Batch, CachedExamples, batches
from training.finetuning.dataset import Row
from training.finetuning.optimization import make_schedule, peak_learning_rate
from training.finetuning.trackers import Tracker
from training.finetuning.trained_parts import TrainedParts
from training.finetuning.validation import Validation
from training.run_directory import RunDirectory


class TrainingError(RuntimeError):
    """Training cannot begin or go on; the message says what to change."""


class Denoiser(nn.Module):
    """The parts that learn, as one module: what accelerate wraps.

    They stay in eval mode. All that train mode would change is dropout inside a text encoder, whose mask would depend
    on how a step's images are spread over micro-batches and processes.
    """

    def __init__(self, pipeline: TextToImage, parts: TrainedParts) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts.modules)
        self._pipeline = pipeline
        self.eval()

    def forward(self, latents: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        """(B, C, h, w) noisy latents, (B,) -> the UNet's output (B, C, h, w)."""
        text = batch.text or self._pipeline.encode_text(batch.captions)
        return self._pipeline.denoise(latents, timesteps, self._pipeline.condition(text, batch.modality_ids))


@dataclass
class Session:
    """A run between two steps."""

    arguments: Arguments
    accelerator: Accelerator
    directory: RunDirectory
    pipeline: TextToImage
    parts: TrainedParts  # those that learn, unwrapped
    model: nn.Module  # the Denoiser, as accelerate wraps it
    optimizer: Any
    noise_scheduler: DDPMScheduler
    ema: EMAModel | None
    examples: CachedExamples
    validation: Validation
    provenance: dict[str, Any]  # for manifests
    num_rows: int
    real_rows: list[Row]  # what the generator must not give back: all rows, but for the synthetic ones of an update
    held_out: list[Row]  # rows kept from training, of other patients
    memory: MemoryIndex | None  # of the generator that the training begins with
    total_steps: int
    phase_start: int = 0  # step of the other run's checkpoint that this run began with; 0 for none
    step: int = 0  # optimiser steps done
    tracker: Tracker | None = None  # open while the loop runs

    @property
    def images_per_step(self) -> int:
        return self.arguments.images_per_step_and_device * self.accelerator.num_processes

    def batches(self) -> Iterator[Batch]:
        """The micro-batches that are left, of this process."""
        accumulation = self.arguments.gradient_accumulation_steps
        return batches(
            self.examples,
            range(self.step * accumulation, self.total_steps * accumulation),
            batch_size=self.arguments.train_batch_size,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            num_workers=self.arguments.dataloader_num_workers,
        )

    def schedule(self) -> torch.optim.lr_scheduler.LambdaLR:
        """The learning rate's course over this run's own steps: a phase warms up where it begins."""
        return make_schedule(
            self.arguments,
            self.optimizer,
            peak=peak_learning_rate(self.arguments, self.accelerator.num_processes),
            steps_done=self.step - self.phase_start,
            total_steps=self.total_steps - self.phase_start,
        )
