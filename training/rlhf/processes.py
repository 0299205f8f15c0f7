"""Several processes that train one network: each takes its share of every batch, gradients are summed, one writes.

Started by ``accelerate launch --num_processes N -m training.rlhf.train ...``; without it there is one process and
nothing here does anything. Losses are divided by the whole batch's weight, so the sum of the shares' gradients is the
gradient of the batch.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, reduce
from torch import Tensor

from training.run_directory import RunDirectory


@dataclass(frozen=True)
class Processes:
    rank: int = 0
    count: int = 1

    @classmethod
    def launched(cls, *, use_cuda: bool) -> tuple["Processes", torch.device]:
        """These processes and this one's device, as accelerate's launcher says; alone without a launcher."""
        has_gpu = use_cuda and torch.cuda.is_available()
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(), torch.device("cuda" if has_gpu else "cpu")
        state = PartialState(cpu=not has_gpu)
        return cls(state.process_index, state.num_processes), state.device

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def share(self, values: Tensor) -> Tensor:
        """Every count-th entry, from this process' own on."""
        return values[self.rank :: self.count]

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by its sum over the processes; a parameter without one here counts as zero."""
        if self.count == 1:
            return
        learnt = [parameter for parameter in parameters if parameter.requires_grad]
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in learnt]
        total = reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="sum")
        for parameter, part in zip(learnt, total.split([each.numel() for each in learnt]), strict=True):
            parameter.grad = part.view_as(parameter).clone()

    def total(self, value: float, device: torch.device) -> float:
        """The sum of each process' number."""
        if self.count == 1:
            return value
        return reduce(torch.tensor(value, dtype=torch.float64, device=device), reduction="sum").item()

    def from_first(self, values: Tensor, device: torch.device) -> Tensor:
        """The first process' values, on the CPU: decisions by a threshold must fall alike everywhere."""
        if self.count == 1:
            return values
        return broadcast(values.to(device).contiguous(), from_process=0).cpu()


class WatchedRun(RunDirectory):
    """The run directory as the processes see it that do not write."""

    def log(self, **values: object) -> None:
        """Nothing: the first process logs."""

    def rewind(self, step: int) -> None:
        """Nothing: the first process cuts the log back."""
