"""The memory index of a fine-tuning run: who is in it, who is held against it, and where it ends up."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from generation.memorisation import FILE_NAME, MemoryIndex, small_pictures
from medsyn.artifacts import atomic_folder, verify_folder
from medsyn.modalities import parse_prompt
from tests.training.finetuning_runs import tune
from training.finetuning.dataset import DatasetError, Row, load_dataset
from training.finetuning.memory_index import add_to_pipeline, build_index, main

pytestmark = pytest.mark.usefixtures("one_thread")


def write_dataset(folder: Path, pictures: dict[str, tuple[str, np.ndarray]]) -> Path:
    """data.csv of pictures by file name, each with its patient."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "Text", "modality", "patient"])
        for name, (patient, pixels) in pictures.items():
            Image.fromarray(pixels).save(folder / name)
            writer.writerow([name, "OCT: fluid", "OCT", patient])
    return folder / "data.csv"


def picture(seed: int) -> np.ndarray:
    """Random structure that survives scaling: uint8 (128, 128, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 255, (16, 16), dtype=np.uint8)
    return np.repeat(np.asarray(Image.fromarray(coarse).resize((128, 128), Image.BICUBIC))[..., None], 3, axis=2)


def rows(folder: Path, pictures: dict[str, tuple[str, np.ndarray]]) -> list[Row]:
    return load_dataset(write_dataset(folder, pictures))[0]


def test_it_holds_every_training_image_and_the_similarity_of_every_other(tmp_path):
    trained = rows(tmp_path / "a", {f"{n}.png": (f"p{n}", picture(n)) for n in range(3)})
    held_out = rows(tmp_path / "b", {f"{n}.png": (f"q{n}", picture(10 + n)) for n in range(2)})
    index = build_index(trained, held_out)
    assert index.names == ("0.png", "1.png", "2.png")
    assert index.sha256s == tuple(row.image_sha256 for row in trained)
    assert set(map(Path, index.datasets)) == {(tmp_path / "a").resolve()}
    image = torch.from_numpy(picture(1)).permute(2, 0, 1)[None].float() / 255
    assert (index.pictures[1].int() - small_pictures(image)[0].int()).abs().max() <= 1
    assert len(index.held_out_similarity) == 2 and index.held_out_similarity.max() < 0.8
    assert index.held_out_kinds == (parse_prompt("OCT: fluid").kind.slug,) * 2


def test_a_held_out_double_of_a_training_image_is_no_other_patient(tmp_path, caplog):
    trained = rows(tmp_path / "a", {f"{n}.png": (f"p{n}", picture(n)) for n in range(3)})
    double = np.clip(picture(2).astype(int) + 3, 0, 255).astype(np.uint8)
    held_out = rows(tmp_path / "b", {"0.png": ("q0", picture(10)), "1.png": ("q1", double)})
    index = build_index(trained, held_out)
    assert len(index.held_out_kinds) == 1
    assert "1 of 2 held-out images are nearly the same" in caplog.text


def photograph(seed: int) -> np.ndarray:
    """A wide grey field on black with faint structure of its own: framed alike, as fundus photographs are."""
    pixels = np.zeros((80, 128, 3), dtype=np.uint8)
    pixels[4:76, 8:120] = 120 + picture(seed)[4:76, 8:120] // 25
    return pixels


def test_pictures_that_share_a_frame_and_no_more_are_of_other_patients(tmp_path):
    trained = rows(tmp_path / "a", {f"{n}.png": (f"p{n}", photograph(n)) for n in range(4)})
    double = np.clip(photograph(2).astype(int) * 0.9, 0, 255).astype(np.uint8)
    others = {f"{n}.png": (f"q{n}", photograph(10 + n)) for n in range(6)} | {"double.png": ("r", double)}
    assert len(build_index(trained, rows(tmp_path / "b", others)).held_out_kinds) == 6, "the double alone is left out"


def test_an_image_that_an_earlier_training_saw_stands_for_no_other_patient(tmp_path):
    first = rows(tmp_path / "a", {f"{n}.png": (f"p{n}", picture(n)) for n in range(3)})
    earlier = build_index(first, rows(tmp_path / "b", {"0.png": ("q0", picture(10))}))
    again = rows(tmp_path / "c", {"0.png": ("r0", picture(2)), "1.png": ("r1", picture(20))})
    seen, new = rows(tmp_path / "d", {"0.png": ("s0", picture(1)), "1.png": ("s1", picture(30))})
    index = build_index(again, [seen, new], earlier=earlier)
    assert len(index.held_out_kinds) == 1 and index.held_out_similarity.max() < 0.8
    assert index.sha256s == tuple(row.image_sha256 for row in [*first, again[1]])  # the file seen twice stands once


def test_a_patient_on_both_sides_is_refused(tmp_path):
    trained = rows(tmp_path / "a", {"0.png": ("p0", picture(0)), "1.png": ("p1", picture(1))})
    held_out = rows(tmp_path / "b", {"0.png": ("p1", picture(10))})
    with pytest.raises(DatasetError, match=r"line 2 \(0.png\)"):
        build_index(trained, held_out)


def test_fine_tuning_keeps_whole_patients_from_training_and_holds_them_against_the_index(base, tmp_path):
    pictures = {f"{n}.png": (f"p{n // 2}", picture(n)) for n in range(12)}
    data = write_dataset(tmp_path / "data", pictures)
    flags = ("--train_data_dir", str(data), "--held_out_share", "0.3", "--max_train_steps", "1")
    assert tune(base, tmp_path / "run", *flags) == 0
    verify_folder(tmp_path / "run" / "pipeline")
    index = MemoryIndex.load(tmp_path / "run" / "pipeline" / FILE_NAME)
    assert len(index) == 8 and len(index.held_out_kinds) == 4
    trained_patients = {pictures[name][0] for name in index.names}
    assert len(trained_patients) == 4  # of two pictures each: no patient stands on both sides


def test_a_generator_trained_on_goes_on_knowing_whom_it_saw_before(base, tmp_path):
    """Trained again on other images, with other patients held out, and then without any: an update, for one."""
    first, second = (
        write_dataset(tmp_path / name, {f"{n}.png": (f"{name}{n // 2}", picture(start + n)) for n in range(12)})
        for name, start in (("a", 0), ("b", 100))
    )
    share = ("--held_out_share", "0.3", "--max_train_steps", "1")
    assert tune(base, tmp_path / "one", "--train_data_dir", str(first), *share) == 0
    begin = ("--pretrained_model_name_or_path", str(tmp_path / "one" / "pipeline"), "--train_data_dir", str(second))
    assert tune(base, tmp_path / "two", *begin, *share) == 0
    assert tune(base, tmp_path / "three", *begin, "--max_train_steps", "1") == 0
    one, two, three = (MemoryIndex.load(tmp_path / run / "pipeline" / FILE_NAME) for run in ("one", "two", "three"))
    assert (len(one), len(two), len(three)) == (8, 16, 20)
    assert two.names[:8] == three.names[:8] == one.names and set(map(Path, two.datasets)) == {
        first.parent.resolve(),
        second.parent.resolve(),
    }
    assert torch.equal(three.held_out_similarity, one.held_out_similarity)
    image = torch.from_numpy(picture(int(one.names[0].removesuffix(".png")))).permute(2, 0, 1)[None].float() / 255
    (found,) = two.judge(image, ["oct"])
    assert (found.position, Path(found.dataset)) == (0, first.parent.resolve())


def test_without_a_share_there_is_no_index(base, tmp_path):
    assert tune(base, tmp_path / "run", "--max_train_steps", "1") == 0
    assert not (tmp_path / "run" / "pipeline" / FILE_NAME).exists()


def test_the_command_puts_it_into_a_pipeline_whose_manifest_lists_it(base, tmp_path, caplog):
    trained = write_dataset(tmp_path / "a", {f"{n}.png": (f"p{n}", picture(n)) for n in range(3)})
    held_out = write_dataset(tmp_path / "b", {"0.png": ("q0", picture(10))})
    with atomic_folder(tmp_path / "pipeline") as folder:
        (folder / "model_index.json").write_text("{}")
    arguments = ["--train_data_dir", str(trained), "--held_out_data_dir", str(held_out)]
    assert main([*arguments, "--pipeline", str(tmp_path / "pipeline")]) == 0
    assert FILE_NAME in verify_folder(tmp_path / "pipeline")["files"]
    assert len(MemoryIndex.load(tmp_path / "pipeline" / FILE_NAME)) == 3
    assert main([*arguments, "--pipeline", str(tmp_path)]) == 2
    assert "is no pipeline folder" in caplog.text


def test_a_pipeline_without_a_manifest_gets_none(tmp_path):
    index = build_index(
        rows(tmp_path / "a", {"0.png": ("p0", picture(0))}), rows(tmp_path / "b", {"0.png": ("q0", picture(10))})
    )
    add_to_pipeline(index, tmp_path)
    assert not (tmp_path / "manifest.json").exists()
    assert MemoryIndex.load(tmp_path / FILE_NAME).names == ("0.png",)
