"""The dataset CSV: what is read, and that everything wrong is told at once with its line."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsyn.artifacts import file_sha256
from training.finetuning.dataset import DatasetError, load_dataset, names_a_side

FUNDUS = "Fundus: mild, sharp optic disc"


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a.png", "b.png"):
        pixels = np.random.default_rng(len(name)).integers(0, 255, (24, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def write(folder: Path, *lines: str, header: str = "path,Text,modality") -> Path:
    path = folder / "data.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def bad_lines(path: Path, **options) -> str:
    with pytest.raises(DatasetError) as caught:
        load_dataset(path, **options)
    return str(caught.value)


def test_a_caption_with_commas_quotes_and_newlines_comes_back_whole(folder):
    path = folder / "data.csv"
    caption = 'Chest X-ray: "ground glass", upper\nzone, mild'
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["path", "Text", "modality"], ["a.png", caption, "X-Ray"], ["b.png", FUNDUS, "Fundus"]])
    rows, bad = load_dataset(path)
    assert not bad
    assert [row.line for row in rows] == [2, 4]
    assert rows[0].text == 'Chest X-ray: "ground glass", upper zone, mild'
    assert rows[0].path == folder / "a.png"
    assert rows[0].image_sha256 == file_sha256(folder / "a.png")


def test_an_unquoted_comma_is_reported_with_its_line(folder):
    message = bad_lines(write(folder, f'a.png,"{FUNDUS}",Fundus', f"b.png,{FUNDUS},Fundus"))
    assert "line 3: 4 fields instead of 3" in message
    assert "double quotes" in message
    assert "line 2" not in message


def test_every_bad_row_is_told_at_once_with_its_line(folder):
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "words.png").write_text("not a picture")
    path = write(
        folder,
        "a.png,Fundus: fine,Fundus",
        "gone.png,Fundus: fine,Fundus",
        "cut.png,Fundus: fine,Fundus",
        "words.png,Fundus: fine,Fundus",
        "a.png,,Fundus",
        "a.png,no prefix here,Fundus",
        "a.png,Knee scan: meniscus,Fundus",
        "a.png,Fundus:  ,Fundus",
        "a.png,Fundus: fine,Ultrasound",
        "a.png,Fundus: fine,MRI",
        "a.png,Brain MRI: tumour,Breast MRI",
        'a.png,"Fundus: fine"x,Fundus',
        ",Fundus: fine,Fundus",
        "a.png,Fundus: fine,",
        "b.png,Chest CT: nodule,CT",
    )
    message = bad_lines(path)
    assert "13 bad rows" in message
    reasons = {
        int(line.split("line ")[1].split(":")[0]): line for line in message.splitlines() if "line " in line[:8]
    }
    assert sorted(reasons) == list(range(3, 16))
    expected = {
        3: "no such file", 4: "cut.png", 5: "words.png", 6: "empty", 7: "prefix", 8: "unknown prefix", 9: "nothing",
        10: "Ultrasound", 11: "contradicts", 12: "contradicts", 13: "quot", 14: "path is empty",
        15: "modality is empty",
    }  # fmt: skip
    for line, words in expected.items():
        assert words in reasons[line]
    rows, bad = load_dataset(path, skip_bad_rows=True)
    assert [row.line for row in rows] == [2, 16]
    assert len(bad) == 13


def test_a_quote_never_closed_is_a_broken_row(folder):
    message = bad_lines(write(folder, "a.png,Fundus: fine,Fundus", 'b.png,"Fundus: fine,Fundus'))
    assert "line 3: broken quoting" in message


def test_columns_by_other_names(folder):
    path = write(folder, "a.png,cxr: clear lungs,CXR,p7", header="file,caption,modal,patient_id")
    rows, _ = load_dataset(path, image_column="file", caption_column="caption")
    assert (rows[0].text, rows[0].prompt.modality, rows[0].group) == ("Chest X-ray: clear lungs", "X-Ray", "p7")
    assert "path,Text,modality" in bad_lines(path)


@pytest.mark.parametrize("header", ["path,Text", "path,Text,modality,score", "path,Text,modality,modal", "a;b;c"])
def test_another_header_is_refused(folder, header):
    assert "must name the columns" in bad_lines(write(folder, header=header))


def test_a_file_that_is_none(folder):
    assert "no dataset CSV at" in bad_lines(folder / "none.csv")
    assert "is a folder" in bad_lines(folder)
    (folder / "empty.csv").write_text("\n")
    assert "is empty" in bad_lines(folder / "empty.csv")
    (folder / "latin.csv").write_bytes("path,Text,modality\na.png,Fundus: Ödem,Fundus\n".encode("latin-1"))
    assert "line 2: not UTF-8" in bad_lines(folder / "latin.csv")


def test_without_a_usable_row_even_skipping_stops(folder):
    path = write(folder, "gone.png,Fundus: fine,Fundus")
    assert "No usable row" in bad_lines(path, skip_bad_rows=True)
    assert "no rows below its header" in bad_lines(write(folder), skip_bad_rows=True)


def test_a_sample_is_drawn_by_the_seed(folder):
    path = write(folder, *(f"a.png,Fundus: number {index},Fundus" for index in range(20)))

    def lines(seed: int) -> list[int]:
        return [row.line for row in load_dataset(path, max_rows=5, seed=seed)[0]]

    assert len(lines(1)) == 5
    assert lines(1) == lines(1) != lines(2)


@pytest.mark.parametrize(
    ("caption", "is_sided"),
    [
        ("left eye, no diabetic retinopathy", True),
        ("Right pleural effusion", True),
        ("left-sided mass", True),
        ("effusion, right > left", True),
        ("laterality marker visible", True),
        ("dextrocardia", True),
        ("OD, cup-to-disc 0.4", True),
        ("consolidation in RLL", True),
        ("bilateral effusion", False),
        ("bright lesion, upright view", False),
        ("od and os in small letters", False),
        ("normal lung fields without infiltrates", False),
    ],
)
def test_captions_that_name_a_side(caption, is_sided):
    assert names_a_side(caption) is is_sided
