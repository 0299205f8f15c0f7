"""`manage.py build_dataset`: rows from folders, captions, groups, and what it leaves out."""

import csv
import io
import re
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from PIL import Image

from training.datasets.building import BuildError, GroupRule
from training.datasets.captioning import CaptionError, Captions, fold, read_mapping
from training.datasets.folder_layout import FoundImage, Skipped, as_words, find_images
from training.finetuning.dataset import load_dataset

FILES = (
    "train/Chest_X-Ray/Pleural_Effusion/p1_left_0.png",
    "train/Chest_X-Ray/NORMAL/p2_right_1.png",
    "train/chest xray/NORMAL/p3_left_2.jpg",
    "OCT/DME/p4/scan.png",
    "OCT/CNV/p4/scan, second.png",
    "fundus/No_DR/p5/12_L.png",
    "fundus/No_DR/p5/12_R.png",
)


@pytest.fixture
def folder(tmp_path) -> Path:
    base = tmp_path / "images"
    for seed, name in enumerate(FILES):
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return base


def build(folder: Path, *flags: str, verbosity: int = 1) -> str:
    out = io.StringIO()
    call_command("build_dataset", str(folder), *flags, stdout=out, verbosity=verbosity)
    return out.getvalue()


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def captions_of(folder: Path) -> dict[str, str]:
    return {row["path"]: row["Text"] for row in rows_of(folder)}


def found(path: str, **options) -> FoundImage | Skipped:
    """How a path is classified, without files on disk."""
    from training.datasets.folder_layout import _classified

    return _classified(PurePosixPath(path), options.get("kind"), options.get("exclude", ()))


# --- rows ---


def test_rows_are_sorted_relative_and_loadable(folder):
    said = build(folder)
    rows = rows_of(folder)
    assert [row["path"] for row in rows] == sorted(FILES)
    assert {row["path"]: (row["Text"], row["modality"]) for row in rows} == {
        "OCT/CNV/p4/scan, second.png": ("OCT: CNV", "OCT"),
        "OCT/DME/p4/scan.png": ("OCT: DME", "OCT"),
        "fundus/No_DR/p5/12_L.png": ("Fundus: no DR", "Fundus"),
        "fundus/No_DR/p5/12_R.png": ("Fundus: no DR", "Fundus"),
        "train/Chest_X-Ray/NORMAL/p2_right_1.png": ("Chest X-ray: normal", "X-Ray"),
        "train/Chest_X-Ray/Pleural_Effusion/p1_left_0.png": ("Chest X-ray: pleural effusion", "X-Ray"),
        "train/chest xray/NORMAL/p3_left_2.jpg": ("Chest X-ray: normal", "X-Ray"),
    }
    assert "7 rows" in said
    loaded, bad = load_dataset(folder / "metadata.csv")
    assert (len(loaded), bad) == (7, [])


def test_what_it_writes_passes_check_dataset(folder):
    build(folder, "--group_from", r"p\d+")
    out = io.StringIO()
    call_command("check_dataset", str(folder / "metadata.csv"), stdout=out)
    assert "7 usable rows, no faults" in out.getvalue()
    assert "5 groups of 1 to 2 (median 1) images" in out.getvalue()


def test_a_metadata_file_is_replaced_only_when_asked_and_equal_folders_give_equal_bytes(folder):
    build(folder)
    first = (folder / "metadata.csv").read_bytes()
    with pytest.raises(CommandError, match="is there already. Give --overwrite"):
        build(folder, "--template", "{kind}: {name}")
    assert (folder / "metadata.csv").read_bytes() == first
    build(folder, "--overwrite")
    assert (folder / "metadata.csv").read_bytes() == first, "its own file is no image of the dataset"
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["metadata.csv"]


def test_what_is_left_out_is_reported_with_its_reason(folder):
    (folder / "OCT" / "CNV" / "notes.txt").write_text("x")
    (folder / "OCT" / "CNV" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nxx")
    (folder / "OCT" / "loose.png").write_bytes((folder / FILES[3]).read_bytes())
    (folder / "other" / "CNV").mkdir(parents=True)
    (folder / "other" / "CNV" / "a.png").write_bytes((folder / FILES[3]).read_bytes())
    (folder / "OCT" / ".hidden.png").write_bytes(b"x")
    (folder / "OCT" / "CNV" / "mask_1.png").write_bytes((folder / FILES[3]).read_bytes())
    said = build(folder, "--exclude", "*/mask_*")
    for reason, name in (
        ("its name does not end in one of .png", "OCT/CNV/notes.txt"),
        ("cannot be read", "OCT/CNV/broken.png"),
        ("it lies in no class folder, which the caption asks for", "OCT/loose.png"),
        ("no folder on its path names a kind of image", "other/CNV/a.png"),
        ("excluded by */mask_*", "OCT/CNV/mask_1.png"),
    ):
        (line,) = [line for line in said.splitlines() if reason in line]
        assert line.startswith("Skipped 1: ")
        assert line.endswith(name)
    assert ".hidden.png" not in said
    assert len(rows_of(folder)) == 7


def test_nothing_usable_is_an_error_and_writes_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CommandError, match="holds no files. Expected: modality/class"):
        build(tmp_path / "empty")
    with pytest.raises(CommandError, match="There is no folder"):
        build(tmp_path / "missing")
    (tmp_path / "empty" / "a.txt").write_text("x")
    with pytest.raises(CommandError, match="none of 1 files can be used"):
        build(tmp_path / "empty")
    assert not (tmp_path / "empty" / "metadata.csv").exists()


# --- folders ---


@pytest.mark.parametrize("name", ["Chest X-ray", "chest_xray", "CHEST-XRAY", "ChestXray", "CXR"])
def test_modality_folders_may_be_spelt_in_many_ways(name):
    image = found(f"data/{name}/normal/a.PNG")
    assert (image.kind.slug, image.class_folder, image.stem) == ("chest_xray", "normal", "a")


def test_a_volume_keeps_no_ending_in_its_name_and_a_named_kind_needs_no_folder():
    from medsyn.modalities import BRAIN_MRI

    image = found("tumour/sub-01.nii.gz", kind=BRAIN_MRI)
    assert (image.kind, image.class_folder, image.stem) == (BRAIN_MRI, "tumour", "sub-01")


@pytest.mark.parametrize("name", [" OCT/CNV/a.png", "OCT/CNV/a\n.png", "OCT/CNV/\udce9.png"])
def test_names_that_a_csv_would_change_are_left_out(name):
    assert "rename it" in found(name).reason


def test_files_come_in_the_order_of_their_paths(folder):
    paths = [str(one.path) for one in find_images(folder)]
    assert paths == sorted(paths)
    assert len(paths) == len(FILES)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Pleural_Effusion", "pleural effusion"),
        ("NORMAL", "normal"),
        ("DME", "DME"),
        ("No_DR", "no DR"),
        ("non-small-cell", "non-small-cell"),
        ("T2", "T2"),
        ("a", "a"),
    ],
)
def test_class_names_become_words(name, words):
    assert as_words(name) == words


# --- captions ---


def test_sides_come_in_only_where_the_template_asks(folder):
    said = build(folder, "--template", "{kind}: {class}, {side} eye", "--exclude", "train/*")
    assert captions_of(folder) == {
        "fundus/No_DR/p5/12_L.png": "Fundus: no DR, left eye",
        "fundus/No_DR/p5/12_R.png": "Fundus: no DR, right eye",
    }
    assert "Skipped 2: it has no side in its path, which the caption asks for" in said


def test_a_path_that_names_both_sides_names_none():
    with pytest.raises(CaptionError, match="no side"):
        Captions("{kind}: {class}, {side}").caption(found("fundus/left_right/a.png"))
    assert Captions("{kind}: {side}").caption(found("right/fundus/OS/a.png")) == "Fundus: left", (
        "above does not count"
    )


def test_named_groups_of_a_pattern_are_fields(folder):
    build(folder, "--template", "{kind}: {class}, patient {who}", "--pattern", r"p(?P<who>\d)")
    assert captions_of(folder)["OCT/DME/p4/scan.png"] == "OCT: DME, patient 4"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{kind}: {clas}", "asks for {clas}. Known fields: kind, class, side, name."),
        ("{kind}: {class", "is no template"),
        ("{kind}: {class!r}", "plain names in braces"),
        ("{kind}: {0}", "plain names in braces"),
    ],
)
def test_a_wrong_template_is_refused_before_anything_is_read(tmp_path, template, problem):
    (tmp_path / "x").mkdir()
    with pytest.raises(CommandError, match=re.escape(problem)):
        build(tmp_path / "x", "--template", template)


def test_a_template_without_kind_is_told_to_name_one(folder):
    with pytest.raises(CommandError, match="has no prefix"):
        build(folder, "--template", "{class}")


def test_a_caption_may_not_contradict_its_folder():
    with pytest.raises(CaptionError, match="says OCT, the folder says Fundus"):
        Captions("OCT: {class}").caption(found("fundus/x/a.png"))


def test_a_mapping_gives_captions_by_class_several_in_turn(folder, tmp_path):
    mapping = tmp_path / "captions.csv"
    mapping.write_text(
        'class,caption\nno-dr,"no diabetic retinopathy, {side} eye"\nNormal,clear lungs\n'
        "normal,Chest X-ray: no finding\nDME,OCT: macular oedema\nAMD,drusen\n"
    )
    said = build(folder, "--mapping", str(mapping))
    texts = captions_of(folder)
    assert texts["fundus/No_DR/p5/12_L.png"] == "Fundus: no diabetic retinopathy, left eye"
    assert texts["OCT/DME/p4/scan.png"] == "OCT: macular oedema"
    normal = {texts[path] for path in texts if "NORMAL" in path}
    assert normal <= {"Chest X-ray: clear lungs", "Chest X-ray: no finding"}
    assert "Skipped 1: the mapping has no caption for the class 'CNV'" in said
    assert "Classes of the mapping without an image: amd" in said


def test_a_class_with_several_captions_uses_them_all_and_the_same_again():
    captions = Captions(mapping={"normal": ("one", "two", "three")})
    texts = [captions.caption(found(f"OCT/normal/{number}.png")) for number in range(60)]
    assert set(texts) == {"OCT: one", "OCT: two", "OCT: three"}
    assert texts == [captions.caption(found(f"OCT/normal/{number}.png")) for number in range(60)]


def test_yaml_mappings_may_tell_kinds_apart(tmp_path):
    path = tmp_path / "captions.yaml"
    path.write_text("normal: nothing found\nOCT:\n  normal: [thin retina, flat retina]\n")
    mapping = read_mapping(path)
    assert mapping == {"normal": ("nothing found",), "oct/normal": ("thin retina", "flat retina")}
    captions = Captions(mapping=mapping)
    assert captions.caption(found("fundus/normal/a.png")) == "Fundus: nothing found"
    assert captions.caption(found("oct/normal/a.png")) in ("OCT: thin retina", "OCT: flat retina")
    assert fold("OCT/No_DR") == "oct/nodr"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", "class,text\nx,y\n", "the first line must be class,caption"),
        ("a.csv", "class,caption\nx,mild, sharp\n", "line 2: a class and a caption are needed"),
        ("a.csv", "class,caption\n", "names no class"),
        ("a.yaml", "- x\n", "lines of the form class: caption"),
        ("a.yaml", "x: [\n", "is not valid YAML"),
        ("a.yaml", "x: 3\n", "must have a caption or a list of captions"),
        ("a.yaml", "x: '{sid}'\n", "asks for {sid}"),
    ],
)
def test_a_wrong_mapping_is_refused_with_its_place(folder, tmp_path, name, content, problem):
    (tmp_path / name).write_text(content)
    with pytest.raises(CommandError, match=re.escape(problem)):
        build(folder, "--mapping", str(tmp_path / name))


def test_template_and_mapping_exclude_each_other(folder, tmp_path):
    with pytest.raises(CommandError, match="leave one out"):
        build(folder, "--template", "{kind}: x", "--mapping", str(tmp_path / "a.csv"))


# --- groups ---


@pytest.mark.parametrize(
    ("rule", "path", "group"),
    [
        ("-1", "OCT/DME/p4/scan.png", "p4"),
        ("2", "OCT/DME/p4/scan.png", "DME"),
        (r"p\d+", "OCT/DME/p4/scan.png", "p4"),
        (r"/p(\d+)", "OCT/DME/p4/scan.png", "4"),
        (r"(x)|p(?P<group>\d+)", "OCT/DME/p4/scan.png", "4"),
    ],
)
def test_groups_come_from_a_folder_or_a_pattern(rule, path, group):
    assert GroupRule.parse(rule).group(PurePosixPath(path)) == group


@pytest.mark.parametrize("rule", ["4", "-4", "q\\d"])
def test_a_path_without_a_group_is_left_out(rule):
    with pytest.raises(CaptionError, match="names no group"):
        GroupRule.parse(rule).group(PurePosixPath("OCT/DME/p4/scan.png"))


@pytest.mark.parametrize(("rule", "problem"), [("0", "counted from 1"), ("(", "no regular expression")])
def test_a_wrong_group_rule_is_refused(rule, problem):
    with pytest.raises(BuildError, match=problem):
        GroupRule.parse(rule)


def test_the_group_column_is_what_training_reads(folder):
    build(folder, "--group_from", r"p\d+")
    rows, _ = load_dataset(folder / "metadata.csv")
    assert {row.group for row in rows} == {"p1", "p2", "p3", "p4", "p5"}
