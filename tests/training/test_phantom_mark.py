"""Images of a generator that has seen patients are not called phantoms."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from generation.diffusion.presets import TEST, build_pipeline
from generation.embedded_model import draws_phantoms
from training.finetuning import train as finetuning
from training.finetuning.dataset import are_phantoms, read_rows
from training.simulation.phantom_dataset import write_phantom_dataset


@pytest.fixture
def phantoms(tmp_path) -> Path:
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    return write_phantom_dataset(tmp_path / "phantoms", num_images=6, seed=1, size=32)


def without_marks(dataset: Path, *names: str) -> None:
    """The same pictures in files that do not say what they are, as photographs'."""
    for name in names:
        with Image.open(dataset.parent / name) as picture:
            bare = picture.convert("RGB")
        bare.info.clear()
        bare.save(dataset.parent / name)


def test_a_data_set_is_of_phantoms_where_every_file_says_so(phantoms):
    rows, _ = read_rows(phantoms)
    assert are_phantoms(rows)
    without_marks(phantoms, "00003.png")
    assert not are_phantoms(rows)
    (phantoms.parent / "00000.png").write_bytes(bytes(128) + b"DICM")
    assert not are_phantoms(rows[:1])


def test_fine_tuning_on_other_images_drops_the_mark(phantoms, tmp_path):
    without_marks(phantoms, "00002.png")
    preset, captions = replace(TEST, draws_phantoms=True), [row.text for row in read_rows(phantoms)[0]]
    build_pipeline(preset, captions_for_vocabulary=captions, seed=0).save_pretrained(tmp_path / "base")
    flags = ["--train_data_dir", phantoms, "--output_dir", tmp_path / "tuned", "--max_train_steps", "1"]
    flags += ["--pretrained_model_name_or_path", tmp_path / "base", "--train_batch_size", "2", "--report_to", "none"]
    assert draws_phantoms(tmp_path / "base")
    assert finetuning.main([str(flag) for flag in flags]) == 0
    assert not draws_phantoms(tmp_path / "tuned" / "pipeline")
    index = json.loads((tmp_path / "tuned" / "pipeline" / "model_index.json").read_text())
    assert index["recommended_steps"] == preset.recommended_steps, "what else was recommended stays"
