"""Several processes: one training over gloo gives the weights of one process, and two may fill one cache at once."""

import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch

from generation.diffusion.loading import ModelSource, load_generator
from medsyn.artifacts import folder_files
from tests.training.finetuning_runs import largest_difference, losses, tune
from training.finetuning.dataset import load_dataset
from training.finetuning.latent_cache import LatentCache
from training.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("one_thread")
FORK = multiprocessing.get_context("fork")  # nothing is imported again


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_together(*works) -> list[int]:
    """Each function in a process of its own, all at once; their exit codes."""

    def ending(work) -> None:
        os._exit(work())

    processes = [FORK.Process(target=ending, args=(work,)) for work in works]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        process.kill()
    return [process.exitcode for process in processes]


def tune_as(rank: int, port: int, base: Path, output: Path, *flags: str) -> int:
    """One of two processes, told of the other as torchrun does it."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    return tune(base, output, *flags)


def tune_in_two(base: Path, output: Path, *flags: str) -> list[int]:
    port = free_port()
    return run_together(*(lambda rank=rank: tune_as(rank, port, base, output, *flags) for rank in range(2)))


FLAGS = (
    *("--max_train_steps", "3", "--noise_offset", "0.1", "--input_perturbation", "0.1", "--snr_gamma", "5"),
    *("--random_flip", "--caption_dropout", "0.3", "--latent_sample", "--use_ema"),
)


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [(), ("--use_lora", "--train_text_encoder")], ids=["whole", "adapters"])
def test_two_processes_give_the_weights_of_one(base, tmp_path, adapters):
    """Also with accumulation in both: 2 processes x 2 micro-batches x 2 images, against one batch of 8."""
    shared = ("--train_batch_size", "2", "--gradient_accumulation_steps", "2", "--checkpointing_steps", "1")
    assert tune_in_two(base, tmp_path / "two", *FLAGS, *adapters, *shared) == [0, 0]
    assert tune(base, tmp_path / "one", *FLAGS, *adapters, "--train_batch_size", "8") == 0
    assert RunDirectory(tmp_path / "two").read_config()["num_processes"] == 2
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    for part in ("unet", "conditioner", "text_encoder"):
        folders = [tmp_path / name / "pipeline" / part for name in ("two", "one")]
        assert largest_difference(*folders) < 2e-5
    assert largest_difference(tmp_path / "two" / "pipeline" / "unet", base / "model" / "unet") > 1e-4


def test_two_processes_resume_bit_for_bit(base, tmp_path):
    flags = (*FLAGS, "--train_batch_size", "2", "--checkpointing_steps", "1")
    assert tune_in_two(base, tmp_path / "whole", *flags) == [0, 0]
    assert tune_in_two(base, tmp_path / "parts", *flags, "--max_train_steps", "1") == [0, 0]
    assert tune_in_two(base, tmp_path / "parts", *flags, "--resume_from_checkpoint", "latest") == [0, 0]
    assert folder_files(tmp_path / "parts" / "pipeline") == folder_files(tmp_path / "whole" / "pipeline")


def test_what_one_process_finds_wrong_ends_both(base, tmp_path):
    assert tune_in_two(base, tmp_path, "--train_data_dir", str(base / "nowhere.csv")) == [1, 1]


def test_two_processes_fill_one_cache(base, tmp_path):
    """Both want everything, in opposite order; every entry is whole, and of the same bits as one process makes."""
    pipeline = load_generator(ModelSource(str(base / "model")), device="cpu").pipeline
    rows, _ = load_dataset(base / "data.csv")
    caches = {
        name: LatentCache.for_pipeline(tmp_path / name, pipeline, resolution=32, fit="pad")
        for name in ("alone", "shared")
    }
    texts = [row.text for row in rows]

    def fill(cache: LatentCache, step: int) -> int:
        torch.set_num_threads(1)
        cache.fill_latents(pipeline, rows[::step], flips=True, quiet=True)
        cache.fill_text_features(pipeline, texts[::step], quiet=True)
        return 0

    assert run_together(*(lambda step=step: fill(caches["shared"], step) for step in (1, -1))) == [0, 0]
    fill(caches["alone"], 1)
    assert folder_files(tmp_path / "shared") == folder_files(tmp_path / "alone") != {}
    assert caches["shared"].fill_latents(pipeline, rows, flips=True) == 0, "nothing is left to do"
