"""No tensor is forgotten on the processor: the networks' work on another device, which refuses to mix with it."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("work", ["rate", "generate", "finetune", "improve"])
def test_all_of_it_runs_on_another_device(work, tmp_path):
    command = [sys.executable, "-m", "tests.training.device_work", work, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "operations on pretended:0" in done.stdout


def test_the_device_refuses_what_a_gpu_refuses():
    code = """
import torch
from tests.pretended_device import DEVICE, pretended
with pretended():
    here, there = torch.ones(3), torch.ones(3, device=DEVICE)
    mixed = [
        lambda: here + there,
        lambda: torch.cat([here, there]),
        lambda: here[torch.tensor([0]).to(DEVICE)],
        lambda: torch.nn.Linear(3, 3)(there),
        lambda: there.numpy(),
        lambda: torch.randn(3, device=DEVICE, generator=torch.Generator()),
    ]
    for number, operation in enumerate(mixed):
        try:
            operation()
        except (RuntimeError, TypeError):
            continue
        raise SystemExit(f"number {number} was not refused")
    assert (there * torch.tensor(2.0)).tolist() == [2, 2, 2] and there[torch.tensor([0])].device == DEVICE
    assert there.cpu().device.type == "cpu" and here.to(DEVICE).device == DEVICE
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
