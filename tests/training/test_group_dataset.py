"""`manage.py group_dataset`: patients from a table and from the pictures; no patient is parted afterwards."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from PIL import Image

from tests.training.test_check_dataset import scene
from training.finetuning.dataset import hold_out, load_dataset


@pytest.fixture
def dataset(tmp_path) -> Path:
    """1 and its doubles: copy.png the same file, small.png the same picture; 2 to 5 others; the last a Brain MRI."""
    for seed in range(1, 6):
        scene(seed).save(tmp_path / f"{seed}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "1.png").read_bytes())
    scene(1).resize((48, 48)).save(tmp_path / "small.png")
    names = ("1", "copy", "small", "2", "3", "4")
    rows = [f'{name}.png,"Fundus: left eye, drusen",Fundus' for name in names]
    rows.append("5.png,Brain MRI: mass,MRI")
    (tmp_path / "data.csv").write_text("\n".join(["path,Text,modality", *rows]) + "\n")
    return tmp_path / "data.csv"


def group(csv_path: Path, *flags: str) -> tuple[str, dict[str, str]]:
    """What it printed, and the group of each file."""
    out = io.StringIO()
    output = csv_path.parent / "out" / "grouped.csv"
    output.parent.mkdir(exist_ok=True)
    call_command("group_dataset", str(csv_path), str(output), *flags, stdout=out, stderr=out)
    with output.open(newline="") as file:
        return out.getvalue(), {Path(row["path"]).name: row["group"] for row in csv.DictReader(file)}


def table(dataset: Path, text: str) -> str:
    path = dataset.parent / "patients.csv"
    path.write_text(text)
    return str(path)


def test_patients_of_a_table_and_nearly_equal_pictures_are_one_group(dataset):
    patients = table(dataset, "source,path,patient\nx,2.png,ann\nx,3.png,ann\nx,small.png,bob\nx,gone.png,cy\n")
    printed, groups = group(dataset, "--patients", patients)
    assert groups["2.png"] == groups["3.png"] == "ann"
    assert groups["1.png"] == groups["copy.png"] == groups["small.png"] == "bob", "what is known names the others"
    assert groups["4.png"] == groups["5.png"] == ""
    assert "7 rows in 4 groups" in printed
    assert "1 groups fewer" in printed, "the file of 1 and copy was one already; bob's picture joins it"
    assert "of 4 rows no patient is known" in printed


def test_two_names_of_one_patient_become_one(dataset):
    patients = table(dataset, "path,patient_id\n1.png,zoe\nsmall.png,bob\n2.png,bob\n")
    _, groups = group(dataset, "--patients", patients)
    assert groups["1.png"] == groups["copy.png"] == groups["small.png"] == groups["2.png"] == "zoe"


def test_without_a_table_the_pictures_alone_tell(dataset):
    _, groups = group(dataset, "--kinds", "fundus")
    assert "5.png" not in groups
    assert groups["1.png"].startswith("file ")
    assert groups["1.png"] == groups["copy.png"] == groups["small.png"] != groups["2.png"] == ""


def test_what_is_written_is_a_dataset_that_keeps_doubles_on_one_side(dataset):
    group(dataset)
    rows, bad = load_dataset(dataset.parent / "out" / "grouped.csv")
    assert len(rows) == 7 and bad == [] and rows[0].text == "Fundus: left eye, drusen"
    doubles = {"1.png", "copy.png", "small.png"}
    for seed in range(20):
        sides = [{row.path.name for row in side} for side in hold_out(rows, 0.4, seed)]
        assert all(doubles <= side or not doubles & side for side in sides)


def test_a_csv_may_be_replaced_and_keeps_its_own_groups(dataset):
    text = dataset.read_text().replace("modality\n", "modality,patient\n").replace("Fundus\n", "Fundus,p1\n", 1)
    text = text.replace("Fundus\n", "Fundus,\n").replace("MRI\n", "MRI,p9\n")
    dataset.write_text(text)
    call_command("group_dataset", str(dataset), str(dataset), stdout=io.StringIO())
    with dataset.open(newline="") as file:
        groups = [row["group"] for row in csv.DictReader(file)]
    assert groups == ["p1", "p1", "p1", "", "", "", "p9"]


def test_what_cannot_be_grouped_is_refused_and_nothing_is_written(dataset):
    with pytest.raises(CommandError, match="must name path and one of group, patient, patient_id; it reads: a,b"):
        group(dataset, "--patients", table(dataset, "a,b\n1,2\n"))
    with pytest.raises(CommandError, match="cannot be read"):
        group(dataset, "--patients", str(dataset.parent / "nowhere.csv"))
    with pytest.raises(CommandError, match="Unknown modality 'knee'"):
        group(dataset, "--kinds", "knee")
    with dataset.open("a") as file:
        file.write("gone.png,Fundus: drusen,Fundus\n")
    with pytest.raises(CommandError, match=r"(?s)1 bad row:.*line 9.*Correct or remove"):
        group(dataset)
    assert not (dataset.parent / "out" / "grouped.csv").exists()


def test_a_crowd_of_look_alikes_is_refused(dataset, monkeypatch):
    monkeypatch.setattr("training.datasets.duplicates.MAX_PAIRS", 1)
    Image.fromarray(np.asarray(scene(1)) // 2).save(dataset.parent / "2.png")
    with pytest.raises(CommandError, match="nearly all pictures look alike"):
        group(dataset)
