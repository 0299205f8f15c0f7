"""A dataset of phantoms on disk, in the format that fine-tuning reads: PNG files and metadata.csv."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from generation.diffusion.phantoms import random_phantom
from generation.embedded_model import PHANTOM_STATEMENT
from medsyn.artifacts import atomic_folder


def write_phantom_dataset(folder: Path, *, num_images: int, seed: int, size: int) -> Path:
    """Draw ``num_images`` phantoms of ``size`` pixels, seeds from ``seed`` on, and return the path of metadata.csv.

    The folder appears when it is whole.
    """
    with atomic_folder(folder, num_images=num_images, seed=seed, size=size) as temporary:
        rows = [_draw(temporary, number, seed + number, size) for number in tqdm(range(num_images), desc="Phantoms")]
        with (temporary / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "Text", "modality"), *rows])
    return folder / "metadata.csv"


def _draw(folder: Path, number: int, seed: int, size: int) -> tuple[str, str, str]:
    """Write one phantom and return its row."""
    phantom, name = random_phantom(seed, size), f"{number:05d}.png"
    save_phantom(phantom.pixels, folder / name)
    return name, phantom.caption, phantom.phantom_class.kind.modality


def save_phantom(pixels: np.ndarray, path: Path) -> None:
    """A PNG of uint8 pixels (H, W, 3) that says what it is: who learns from such files alone draws phantoms."""
    text = PngInfo()
    text.add_text("Comment", PHANTOM_STATEMENT)
    Image.fromarray(pixels).save(path, pnginfo=text)
