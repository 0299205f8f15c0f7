"""The imperfect generator of the experiments: what it is trained on, and that it comes out as a pipeline."""

import csv

import numpy as np
import pytest
from PIL import Image

from generation.diffusion.pipeline import MedSynPipeline
from generation.embedded_model import EMBEDDED_MODEL_DIR, draws_phantoms
from training.simulation.pool import draw_pool
from training.simulation.weak_generator import make_weak_generator, write_pool_dataset


def test_the_dataset_is_the_pool(tmp_path):
    path = write_pool_dataset(tmp_path / "dataset", num_images=6, seed=1, mismatch_rate=0.5)
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    pool = draw_pool(6, seed=31_000_000, mismatch_rate=0.5)
    assert [row["Text"] for row in rows] == list(pool.prompts)
    for row, pixels in zip(rows, pool.pixels, strict=True):
        assert np.array_equal(np.asarray(Image.open(path.parent / row["path"])), pixels)
    before = path.stat().st_mtime_ns
    write_pool_dataset(tmp_path / "dataset", num_images=6, seed=1, mismatch_rate=0.5)
    assert path.stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_it_becomes_a_pipeline_with_other_weights_than_it_began_with(tmp_path):
    folder = make_weak_generator(tmp_path, num_images=16, num_steps=2)
    weak = MedSynPipeline.from_pretrained(folder)
    before = dict(MedSynPipeline.from_pretrained(EMBEDDED_MODEL_DIR).unet.named_parameters())
    moved = [name for name, value in weak.unet.named_parameters() if not value.float().equal(before[name].float())]
    assert moved
    assert weak.image_size == 128
    assert draws_phantoms(folder), "its data set says what it is"
