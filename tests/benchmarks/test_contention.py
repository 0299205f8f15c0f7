"""Do several torch processes share the cores without stalling each other? Ratios from one run:

.venv/bin/python -m pytest tests/benchmarks/test_contention.py -m benchmark -s
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 3  # two workers and a training process

# Small layers, as in medsyn-tiny: many short parallel regions, where threads that spin hurt most.
WORK = """
import sys, time, torch
torch.set_num_threads(int(sys.argv[1]))
layer = torch.nn.Sequential(*[torch.nn.Conv2d(64, 64, 3, padding=1) for _ in range(4)])
images = torch.randn(4, 64, 32, 32)
with torch.inference_mode():
    layer(images)
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    for _ in range(60):
        layer(images)
    print(time.perf_counter() - started, flush=True)
"""


def seconds_of(num_processes: int, num_threads: int, wait_policy: str) -> float:
    """Seconds of the slowest of ``num_processes`` that begin together."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads), "OMP_WAIT_POLICY": wait_policy}
    command = [sys.executable, "-c", WORK, str(num_threads)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(num_processes)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    slowest = max(float(process.stdout.readline()) for process in processes)
    for process in processes:
        process.communicate()
    return slowest


@pytest.mark.benchmark
def test_three_processes_share_the_cores():
    started = time.perf_counter()
    alone = seconds_of(1, 1, "PASSIVE")
    ours = seconds_of(PROCESSES, 1, "PASSIVE")
    spinning = seconds_of(PROCESSES, os.cpu_count(), "ACTIVE")
    fair = max(1.0, PROCESSES / os.cpu_count())  # what sharing alone costs
    print(
        f"\n{PROCESSES} processes, {os.cpu_count()} cores, against one alone: {ours / alone:.2f}x with our settings, "
        f"{spinning / alone:.2f}x with all cores' threads spinning; fair sharing would be {fair:.2f}x "
        f"({time.perf_counter() - started:.0f} s)"
    )
    assert ours / alone < 2 * fair
    assert ours < spinning * 1.1
