"""`manage.py check_dataset`: faults with lines, counts, doubles of every sort, and that it ends as it should."""

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from PIL import Image, ImageFilter

from generation.embedded_model import EMBEDDED_MODEL_DIR
from training.datasets.caption_tokens import TokenizerError, count_tokens
from training.datasets.contact_sheet import choose_rows, contact_sheet
from training.datasets.duplicates import NearPair, clusters, fingerprints, mirrored, near_pairs
from training.datasets.survey import survey
from training.finetuning.dataset import read_rows, sort_out

REAL = Path(__file__).resolve().parents[3] / "shared" / "realdata"
HEADER = "path,Text,modality,patient"


def scene(seed: int, size: int = 64) -> Image.Image:
    """A picture with shapes of all sizes, another for each seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((size, size), Image.BICUBIC)
    return coarse.filter(ImageFilter.GaussianBlur(1))


def jpeg(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write(folder: Path, *rows: str, header: str = HEADER) -> Path:
    (folder / "data.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "data.csv"


@pytest.fixture
def dataset(tmp_path) -> Path:
    """Line 2 and its doubles: 3 the same file, 4 smaller, 5 mirrored; 6 and 7 others; 8 almost empty, 9 constant."""
    first = scene(1)
    first.save(tmp_path / "a.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "small.jpg").write_bytes(jpeg(first.resize((48, 48)), 60))
    first.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirror.png")
    for seed in (2, 3):
        scene(seed).save(tmp_path / f"{seed}.png")
    dot = np.zeros((64, 64), dtype=np.uint8)
    dot[:4, :4] = 255
    Image.fromarray(dot).save(tmp_path / "dot.png")
    Image.fromarray(np.full((64, 64), 9, dtype=np.uint8)).save(tmp_path / "flat.png")
    return write(
        tmp_path,
        'a.png,"Fundus: drusen, left eye",Fundus,p1',
        'copy.png,"Fundus: drusen, left eye",Fundus,p2',
        "small.jpg,Fundus: drusen,Fundus,p1",
        'mirror.png,"Fundus: drusen, left eye",Fundus,p1',
        "2.png,Brain MRI: mass,MRI,p3",
        "3.png,Breast MRI: mass,MRI,p3",
        "dot.png,OCT: normal findings,OCT,p4",
        "flat.png,OCT: normal findings,OCT,",
    )


def check(path: Path, *flags: str) -> str:
    out = io.StringIO()
    call_command("check_dataset", str(path), *flags, stdout=out, stderr=out)
    return out.getvalue()


def test_counts_captions_and_doubles(dataset):
    found = survey(dataset, model=EMBEDDED_MODEL_DIR)
    assert found.faults == ()
    assert found.kinds == {"Fundus": 4, "Brain MRI": 1, "Breast MRI": 1, "OCT": 2}
    assert found.modalities == {"Fundus": 4, "MRI": 2, "OCT": 2}
    assert found.formats == {"png": 7, "jpeg": 1}
    assert found.sizes == {(64, 64): 7, (48, 48): 1}
    assert found.groups == {"p1": 3, "p2": 1, "p3": 2, "p4": 1}
    assert (found.words.smallest, found.words.largest) == (2, 4)
    assert found.num_sided == 3
    assert found.same_files == [[2, 3]]
    assert found.near_groups == [[2, 4, 5]]
    assert {(pair.first, pair.second): pair.is_mirrored for pair in found.near_pairs}[0, 3] is True


def test_warnings_name_lines_and_reasons(dataset):
    warned = {(warning.lines, warning.reason.split(":")[0]) for warning in survey(dataset).warnings}
    assert ((2, 3), "the same file in different groups") in warned
    assert ((8,), "the image is almost empty") in warned
    assert any(lines == (2, 5) and "yet both captions name the same side" in reason for lines, reason in warned)
    assert ((9,), "every pixel of the image is the same") in warned
    assert any(lines == (2, 4) and "different captions" in reason for lines, reason in warned)
    assert not any(lines in [(6,), (7,), (6, 7)] for lines, _ in warned)


def test_the_command_reports_writes_and_succeeds_when_there_are_only_warnings(dataset, tmp_path):
    said = check(dataset, "--json", str(tmp_path / "out.json"), "--contact_sheet", str(tmp_path / "sheet.png"))
    assert "8 usable rows, no faults, 6 warnings" in said
    assert "medsyn-tiny, which reads 64: no captions would be cut" in said
    assert str(EMBEDDED_MODEL_DIR) not in said
    facts = json.loads((tmp_path / "out.json").read_text())
    assert facts["usable_rows"] == 8
    assert facts["same_files"] == [[2, 3]]
    assert facts["near_duplicates"]["groups"] == [[2, 4, 5]]
    assert facts["groups"]["p1"] == 3
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * 160
        assert sheet.height > 4 * 160, "four kinds, one below the other"


def test_every_fault_is_listed_with_its_line_and_ends_in_an_error(dataset, tmp_path):
    (tmp_path / "words.png").write_text("no picture")
    lines = dataset.read_text().splitlines()
    lines += [
        "gone.png,OCT: normal,OCT,p9",
        "words.png,OCT: normal,OCT,p9",
        "a.png,Fundus: mild, sharp disc,Fundus,p1",
    ]
    lines += ["a.png,Lung: mass,CT,p1", "a.png,OCT: normal,PET,p1", "a.png,OCT: normal,MRI,p1"]
    out = io.StringIO()
    with pytest.raises(CommandError, match="6 rows cannot be trained on"):
        call_command("check_dataset", str(write(tmp_path, *lines[1:])), stdout=out)
    said = out.getvalue()
    for line, reason in (
        (10, "there is no such file"),
        (11, "its content is not PNG"),
        (12, "5 fields instead of 4"),
        (13, "begins with an unknown prefix"),
        (14, "Unknown modality 'PET'"),
        (15, "contradicts the caption"),
    ):
        (found,) = [text for text in said.splitlines() if text.strip().startswith(f"line {line} ")]
        assert reason in found


@pytest.mark.parametrize(("header", "problem"), [("file,caption", "must name the columns"), ("", "is empty")])
def test_what_is_no_dataset_is_refused_in_one_sentence(tmp_path, header, problem):
    (tmp_path / "data.csv").write_text(header)
    with pytest.raises(CommandError, match=problem):
        check(tmp_path / "data.csv")
    with pytest.raises(CommandError, match="There is no dataset CSV"):
        check(tmp_path / "other.csv")


def test_a_dataset_without_one_usable_row_is_still_described(tmp_path):
    out = io.StringIO()
    path = write(tmp_path, "gone.png,OCT: normal,OCT,p9")
    with pytest.raises(CommandError, match="1 row cannot"):
        call_command(
            "check_dataset", str(path), "--contact_sheet", str(tmp_path / "sheet.png"), stdout=out, stderr=out
        )
    assert "no usable rows, 1 fault," in out.getvalue()
    assert "no contact sheet" in out.getvalue()
    assert not (tmp_path / "sheet.png").exists()


def test_an_interrupted_check_leaves_the_other_images_unopened(dataset):
    opened = []

    def look(row):
        opened.append(row.line)
        if row.line == 3:
            raise KeyboardInterrupt
        time.sleep(0.01)  # an image takes as long: without it all are open before the main thread hears of the third
        return row

    rows, _ = read_rows(dataset, image_column="path", caption_column="Text")
    with pytest.raises(KeyboardInterrupt):
        sort_out(rows * 500, look, num_threads=1, description="Opening")
    assert len(opened) < 400


# --- tokens ---


def test_tokens_are_those_of_the_models_tokenizer_and_the_cut_is_counted():
    captions = ["OCT: drusen", "Fundus: " + "exudates, " * 40]
    tokens = count_tokens(EMBEDDED_MODEL_DIR, captions)
    assert tokens.counts[0] == len(["[CLS]", "oct", ":", "drusen", "[SEP]"])
    assert tokens.counts[1] == 4 + 2 * 40
    assert (tokens.model, tokens.limit, tokens.num_cut) == ("medsyn-tiny", 64, 1)


@pytest.mark.slow
def test_older_tokenizer_files_are_counted_by_transformers(tmp_path):
    """A CLIP tokenizer of vocab.json and merges.txt, as Stable Diffusion folders have it."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [":"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 12, "unk_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokens = count_tokens(tmp_path, ["oct: hole", "oct: drusen"])
    assert tokens.counts == (2 + len("oct:hole"), 2 + len("oct:drusen"))
    assert (tokens.limit, tokens.num_cut) == (12, 0)


def test_a_model_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match="has no folder tokenizer"):
        count_tokens(tmp_path, ["OCT: drusen"])


# --- near-duplicates ---


def thumbnail(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("L").resize((32, 32), Image.BILINEAR))


def variants(picture: Image.Image) -> dict[str, Image.Image]:
    noise = np.random.default_rng(0).normal(0, 8, (picture.height, picture.width, 3))
    pixels = np.asarray(picture, dtype=float)
    return {
        "jpeg": Image.open(io.BytesIO(jpeg(picture, 20))),
        "smaller": picture.resize((picture.width // 2, picture.height // 2), Image.BICUBIC),
        "darker": Image.fromarray((pixels * 0.8).astype(np.uint8)),
        "noisy": Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)),
        "mirrored": picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    }


@pytest.mark.parametrize("change", ["jpeg", "smaller", "darker", "noisy", "mirrored"])
def test_a_changed_copy_is_found_and_nothing_else(change):
    others = [thumbnail(scene(seed)) for seed in range(10, 40)]
    copy = thumbnail(variants(scene(15))[change])
    pairs, found_all = near_pairs(np.stack([*others, copy]))
    assert found_all
    assert [(pair.first, pair.second, pair.is_mirrored) for pair in pairs] == [(5, 30, change == "mirrored")]


def test_all_pairs_are_found_as_by_comparing_each_with_each():
    """Blends of few pictures: many pairs near the threshold."""
    rng = np.random.default_rng(3)
    originals = np.stack([thumbnail(scene(seed)) for seed in range(12)]).astype(float)
    shares = rng.dirichlet([0.25] * 12, 1100)  # more pictures than a tile has rows
    pictures = np.rint(np.tensordot(shares, originals, axes=1)).astype(np.uint8)
    prints = fingerprints(pictures).astype(np.float32)
    straight, flipped = prints @ prints.T, prints @ mirrored(prints).T
    expected = np.triu(np.maximum(straight, flipped), 1)
    pairs, _ = near_pairs(pictures)
    found = {(pair.first, pair.second) for pair in pairs}
    sure = set(zip(*map(np.ndarray.tolist, np.nonzero(expected >= 0.9701)), strict=True))
    possible = set(zip(*map(np.ndarray.tolist, np.nonzero(expected >= 0.9699)), strict=True))
    assert len(sure) > 400
    assert sure <= found <= possible


def test_flat_pictures_are_like_no_other():
    flat = np.full((3, 32, 32), 40, dtype=np.uint8)
    assert near_pairs(flat) == ([], True)
    assert near_pairs(flat[:0]) == ([], True)


def test_pairs_hang_together_in_clusters():
    pairs = [NearPair(*ends, 0.98, False) for ends in ((0, 4), (4, 7), (2, 3))]
    assert clusters(9, pairs) == [[0, 4, 7], [2, 3]]


def test_a_crowd_of_look_alikes_ends_the_search_and_says_so(monkeypatch):
    from training.datasets import duplicates

    monkeypatch.setattr(duplicates, "MAX_PAIRS", 10)
    pairs, found_all = near_pairs(np.stack([thumbnail(scene(1))] * 20))
    assert len(pairs) > 10
    assert not found_all


# --- the contact sheet ---


def test_the_contact_sheet_shows_the_rows_it_chose(dataset):
    rows = [image.row for image in survey(dataset).images]
    chosen = choose_rows(rows, per_kind=2, seed=0)
    assert {kind: len(members) for kind, members in chosen.items()} == {
        "Brain MRI": 1,
        "Breast MRI": 1,
        "Fundus": 2,
        "OCT": 2,
    }
    sheet = np.asarray(contact_sheet(rows, per_kind=2))
    tile = sheet[8 + 26 : 8 + 26 + 160, 8 : 8 + 160]
    shown = np.asarray(Image.open(dataset.parent / "2.png").resize((160, 160), Image.BILINEAR), dtype=float)
    assert np.abs(tile - shown).mean() < 3, "the first band is Brain MRI, whose only image is 2.png"
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet([])


# --- real images ---


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/realdata is not there")
def test_real_fundus_and_ct_images(tmp_path):
    """Real volumes and slices cut from them are found as doubles; patients' left and right eyes are not."""
    lines = (REAL / "metadata.csv").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines[1:] if line.startswith(("fundus_dr_srahim/", "chest_ct_dicom_lungpetctdx/"))]
    path = tmp_path / "data.csv"
    path.write_text("\n".join([lines[0], *(f"{REAL}/{line}" for line in wanted[:60] + wanted[-60:])]) + "\n")
    found = survey(path)
    assert not found.faults
    by_line = {image.row.line: image.row.path for image in found.images}
    doubles = [{by_line[line].parent.parent.name for line in group} for group in found.near_groups]
    assert {"chest_ct_dicom_lungpetctdx"} in doubles
    num_fundus = sum("fundus" in str(found.images[pair.first].row.path) for pair in found.near_pairs)
    assert num_fundus <= 1
