"""What tests of training share: an administrator's browser; of fine-tuning, one dataset with its models and cache."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def staff(alice, signed_in):
    """The browser of an administrator."""
    return signed_in(alice)


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A folder with data.csv, model and stable-diffusion; see finetuning_runs.write_base."""
    from tests.training.finetuning_runs import write_base  # torch: only where a test asks for it

    return write_base(tmp_path_factory.mktemp("finetuning"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in a subprocess (sums over other numbers of threads round otherwise), and a fresh accelerator."""
    import torch
    from accelerate.state import AcceleratorState

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    torch.set_num_threads(threads)
