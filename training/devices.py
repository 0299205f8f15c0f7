"""Which device a training process of this worker computes on, named so that it is the same to every worker.

Asked before a run is claimed, without torch: the driver's files tell whether there is an NVIDIA GPU.
"""

import os
import platform
from pathlib import Path

from django.conf import settings

_DRIVER_FILES = (Path("/proc/driver/nvidia/gpus"), Path("/dev/dxg"))  # Linux; Linux inside Windows
CPU = "cpu"


def device_of(wants_gpu: bool) -> str:
    """``<host>/cpu`` or ``<host>/cuda:<number or UUID>``: what training.runner would start a process on here."""
    gpu = _gpu() if wants_gpu else None
    return f"{platform.node()}/{CPU if gpu is None else f'cuda:{gpu}'}"


def _gpu() -> str | None:
    """The GPU by the name that the driver knows it by, not by its place among those visible here."""
    if settings.DEVICE == CPU:
        return None
    number = int(settings.DEVICE.removeprefix("cuda:")) if settings.DEVICE.startswith("cuda:") else None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = None if visible is None else [name.strip() for name in visible.split(",") if name.strip()]
    if number is None and (names == [] or not any(path.exists() for path in _DRIVER_FILES)):
        return None
    return names[number or 0] if names and (number or 0) < len(names) else str(number or 0)


def short_name(device: str) -> str:
    """``cpu of <host>`` for people; empty where the run was never claimed."""
    host, _, name = device.partition("/")
    return f"{name} of {host}" if name else device
