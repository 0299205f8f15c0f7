"""A dataset of ten small pictures, models to fine-tune on it, and the runs themselves, in this process."""

import contextlib
import csv
import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from generation.diffusion.loading import ModelSource, load_generator
from generation.diffusion.presets import TEST, build_pipeline
from tests.tiny_models import build_tiny_stable_diffusion
from training.finetuning.train import main
from training.run_directory import RunDirectory

CAPTIONS = [
    ("Fundus: left eye, exudates", "Fundus"),
    ("Fundus: exudates", "Fundus"),
    ("Chest X-ray: clear, normal", "X-Ray"),
    ("Brain MRI: tumour", "MRI"),
    ("OCT: fluid", "OCT"),
]


def write_base(folder: Path) -> Path:
    """data.csv with two pictures of each caption, and random models of 32 px: model, stable-diffusion."""
    rng = np.random.default_rng(0)
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "Text", "modality"])
        for index, (caption, modality) in enumerate(CAPTIONS * 2):
            Image.fromarray(rng.integers(0, 255, (36, 30, 3), dtype=np.uint8)).save(folder / f"{index}.png")
            writer.writerow([f"{index}.png", caption, modality])
    preset = dataclasses.replace(TEST, recommended_steps=2, recommended_guidance=2.0)
    pipeline = build_pipeline(preset, captions_for_vocabulary=[caption for caption, _ in CAPTIONS], seed=0)
    pipeline.save_pretrained(folder / "model")
    build_tiny_stable_diffusion(seed=0).save_pretrained(folder / "stable-diffusion")
    return folder


def command(base: Path, output: Path, *flags: str) -> list[str]:
    """The flags of a short run; those given come last and win."""
    exact = () if "--recipe" in flags else ("--mixed_precision", "no")
    flags = flags if {"--max_train_steps", "--recipe"} & set(flags) else (*flags, "--max_train_steps", "4")
    return [
        *exact,
        *("--pretrained_model_name_or_path", str(base / "model"), "--train_data_dir", str(base / "data.csv")),
        *("--output_dir", str(output), "--latent_cache_dir", str(base / "cache"), "--report_to", "none"),
        *("--train_batch_size", "4", "--learning_rate", "1e-3", *flags),
    ]


def tune(base: Path, output: Path, *flags: str) -> int:
    """Run the training command here; its exit code."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return main(command(base, output, *flags))


@contextlib.contextmanager
def a_process(
    base: Path, output: Path, *flags: str, before: Callable[[], None] = lambda: None
) -> Iterator[BaseProcess]:
    """The training command in a process of its own, forked from this one so that nothing is imported again."""

    def work() -> None:
        before()
        os._exit(tune(base, output, *flags))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in RunDirectory(output).metrics()]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def largest_difference(first: Path, second: Path) -> float:
    """Between two folders of the same tensors."""
    ours, theirs = tensors(first), tensors(second)
    assert ours.keys() == theirs.keys() and ours
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours)


def drawn(base: Path, model: Path | None, checkpoint: Path | None = None, seed: int = 0) -> np.ndarray:
    """A quick picture (H, W, 3) by a model with a checkpoint put in."""
    source = ModelSource(str(model or base / "model"), None if checkpoint is None else str(checkpoint))
    generator = load_generator(source, device="cpu", precision="float32")
    images = generator.generate(["OCT: fluid"], [seed], num_inference_steps=2, guidance_scale=2.0)
    return np.asarray(images[0]).astype(int)
