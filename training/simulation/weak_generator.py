"""An imperfect generator for experiments: medsyn-tiny trained on spoilt and partly mislabelled phantoms.

    python -m training.simulation.weak_generator --output FOLDER

medsyn-tiny follows its captions so well that there is little for a filter to do. This one learns from a pool
(training.simulation.pool) in which most phantoms carry planted defects and some show another finding than they are
captioned with, as a generator trained on a careless archive would; FOLDER/pipeline draws such images.
"""

import argparse
import csv
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from medsyn.artifacts import atomic_folder
from medsyn.modalities import parse_prompt
from training.finetuning.train import main as finetune
from training.simulation.phantom_dataset import save_phantom
from training.simulation.pool import draw_pool

PIPELINE_NAME = "pipeline"
MISMATCH_RATE = 0.15
_SEED_STRIDE = 1_000_000  # phantoms of different seeds never meet
_FIRST_SEED = 30_000_000  # away from what medsyn-tiny, its encoder and the judge have seen


def write_pool_dataset(folder: Path, *, num_images: int, seed: int, mismatch_rate: float = MISMATCH_RATE) -> Path:
    """Write a pool as a dataset (PNG files and metadata.csv) and return the path of metadata.csv.

    The folder appears when it is whole; one that is there already is kept.
    """
    if not folder.exists():
        pool = draw_pool(num_images, seed=_FIRST_SEED + seed * _SEED_STRIDE, mismatch_rate=mismatch_rate)
        with atomic_folder(folder, num_images=num_images, seed=seed, mismatch_rate=mismatch_rate) as temporary:
            rows = []
            for number, (pixels, prompt) in enumerate(zip(pool.pixels, pool.prompts, strict=True)):
                name = f"{number:05d}.png"
                save_phantom(pixels, temporary / name)
                rows.append((name, prompt, parse_prompt(prompt).kind.modality))
            with (temporary / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("path", "Text", "modality"), *rows])
    return folder / "metadata.csv"


def make_weak_generator(
    folder: Path, *, num_images: int = 3000, num_steps: int = 500, learning_rate: float = 1e-4, seed: int = 0
) -> Path:
    """Train it in ``folder`` and return the pipeline's folder; goes on where it was stopped."""
    dataset = write_pool_dataset(folder / "dataset", num_images=num_images, seed=seed)
    options = {
        "train_data_dir": dataset,
        "output_dir": folder,
        "train_batch_size": 16,
        "max_train_steps": num_steps,
        "learning_rate": learning_rate,
        "lr_scheduler": "cosine",
        "checkpointing_steps": 250,
        "checkpoints_total_limit": 1,
        "save_precision": "float16",
        "report_to": "none",
        "resume_from_checkpoint": "latest",
        "seed": seed,
    }
    status = finetune([word for name, value in options.items() for word in (f"--{name}", str(value))])
    if status:
        raise RuntimeError(f"Fine-tuning in {folder} ended with exit code {status}; its log says why.")
    return folder / PIPELINE_NAME


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.simulation.weak_generator", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--output", type=Path, required=True, help="folder: dataset, checkpoints, pipeline")
    parser.add_argument("--num_images", type=int, default=3000)
    parser.add_argument("--num_steps", type=int, default=500)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    make_weak_generator(
        options.output,
        num_images=options.num_images,
        num_steps=options.num_steps,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
