"""DICOM output: valid by an independent validator, marked synthetic, the same pixels, the same bytes again."""

import hashlib
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from generation.dicom_output import PRIVATE_CREATOR, PRIVATE_GROUP, as_dicom, dicom_bytes, laterality
from generation.output_folder import OutputFolder
from medsyn.imaging import load
from medsyn.modalities import ALL_KINDS, BREAST_MRI, CHEST_XRAY, KINDS, parse_prompt

DCIODVFY = shutil.which("dciodvfy")
# The standard has Synthetic Data since 2023; the dicom3tools of Debian 12, 13 and sid (2024-01) do not know it yet.
TOO_NEW = re.compile(r"^Error - .*not a recognized standard attribute.*0008,0x001c", re.IGNORECASE)
STATEMENT = "Synthetic: a procedural phantom, not a medical image. It shows no patient."
DIGESTS = {"generator": "0a" * 32, "selector": "1b" * 32, "policy": "2c" * 32}


def png_of(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def facts_of(prompt: str, **changes) -> dict:
    facts = {"synthetic": STATEMENT, "prompt": prompt, "seed": 2**62 + 1, "model": "medsyn-tiny"}
    scores = {"selector": 0.85, "policy": 0.92}
    return facts | {"weights_sha256": DIGESTS, "scores": scores} | changes


@pytest.fixture
def colour() -> np.ndarray:
    """An odd number of bytes: the pixel data have to be padded."""
    return np.random.default_rng(1).integers(0, 256, (33, 31, 3), dtype=np.uint8)


@pytest.fixture
def grey(colour) -> np.ndarray:
    return np.repeat(colour[..., :1], 3, axis=2)


def read(content: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(content))


def body_part(kind) -> str:
    return "abdomen, axial" if kind.is_bare else "normal findings, left side"


@pytest.mark.skipif(
    DCIODVFY is None, reason="dciodvfy is not on this machine: install the Debian package dicom3tools"
)
@pytest.mark.parametrize("kind", ALL_KINDS, ids=lambda kind: kind.slug)
def test_an_independent_validator_finds_no_error(kind, grey, colour, tmp_path):
    for name, pixels in (("grey", grey), ("colour", colour)):
        path = tmp_path / f"{name}.dcm"
        path.write_bytes(dicom_bytes(png_of(pixels), facts_of(f"{kind.prefix}: {body_part(kind)}")))
        said = subprocess.run([DCIODVFY, path], capture_output=True, text=True, check=False).stderr
        assert "SCImage" in said, f"it did not see a Secondary Capture object: {said}"
        assert [line for line in said.splitlines() if "Error" in line and not TOO_NEW.match(line)] == []


@pytest.mark.skipif(
    DCIODVFY is None, reason="dciodvfy is not on this machine: install the Debian package dicom3tools"
)
def test_the_validator_is_one_that_finds_errors(grey, tmp_path):
    dataset = read(dicom_bytes(png_of(grey), facts_of("OCT: drusen")))
    del dataset.ConversionType
    dataset.save_as(tmp_path / "broken.dcm")
    said = subprocess.run([DCIODVFY, tmp_path / "broken.dcm"], capture_output=True, text=True, check=False).stderr
    assert re.search("Error - Missing attribute Type 1 .*ConversionType", said)


def test_our_own_reader_gives_the_pixels_of_the_png(grey, colour, tmp_path):
    for name, pixels in (("grey", grey), ("colour", colour)):
        png, dicom = tmp_path / f"{name}.png", tmp_path / f"{name}.dcm"
        png.write_bytes(png_of(pixels))
        dicom.write_bytes(dicom_bytes(png.read_bytes(), facts_of("Chest CT: clear lungs")))
        assert np.array_equal(load(dicom, modality="Chest CT").to_rgb(), load(png).to_rgb())
        assert np.array_equal(load(dicom).to_rgb(), pixels)


def test_grey_pictures_are_monochrome_and_colours_are_rgb(grey, colour):
    assert read(dicom_bytes(png_of(grey), facts_of("OCT: drusen"))).PhotometricInterpretation == "MONOCHROME2"
    colour[...] = 128
    colour[-1, -1, 2] = 129
    dataset = read(dicom_bytes(png_of(colour), facts_of("OCT: drusen")))
    assert (dataset.PhotometricInterpretation, dataset.SamplesPerPixel) == ("RGB", 3)
    assert dataset.pixel_array[-1, -1].tolist() == [128, 128, 129]


def test_it_says_that_it_is_synthetic_and_names_no_patient(grey):
    dataset = read(dicom_bytes(png_of(grey), facts_of("Chest X-ray: normal")))
    assert dataset.SyntheticData == "YES"
    assert dataset.ConversionType == "SYN"
    assert dataset.ContentQualification == "RESEARCH"
    assert list(dataset.ImageType) == ["DERIVED", "SECONDARY"]
    (contributor,) = dataset.ContributingEquipmentSequence
    (purpose,) = contributor.PurposeOfReferenceCodeSequence
    assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("109100", "DCM")
    assert "SYNTHETIC" in str(dataset.PatientName)
    assert dataset.PatientID.startswith("SYNTHETIC-")
    for text in (dataset.DerivationDescription, dataset.ImageComments):
        assert STATEMENT in text, "phantoms must be called phantoms"
    dates = [element for element in dataset.iterall() if element.VR in ("DA", "TM", "DT") and element.value]
    names = [element.keyword for element in dataset.iterall() if element.VR == "PN" and element.value]
    assert (dates, names, dataset.PatientBirthDate, dataset.PatientSex) == ([], ["PatientName"], "", "")


def test_where_it_comes_from_can_be_read_back(grey):
    prompt = "Brain MRI: masse à gauche \\ 左, T2"
    png = png_of(grey)
    dataset = read(dicom_bytes(png, facts_of(prompt)))
    block = dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)
    assert block[1].value == prompt
    assert int(block[2].value) == 2**62 + 1
    assert json.loads(block[3].value) == DIGESTS
    assert (block[4].value, block[5].value) == (0.85, 0.92)
    assert block[6].value == hashlib.sha256(png).hexdigest()
    assert dataset.ManufacturerModelName == "medsyn-tiny"
    assert prompt in dataset.ImageComments


def test_equal_inputs_give_equal_bytes_and_another_picture_another_uid(grey, colour):
    facts = facts_of("Fundus: drusen, right eye")
    assert dicom_bytes(png_of(grey), facts) == dicom_bytes(png_of(grey), facts)
    one, other = (read(dicom_bytes(png_of(pixels), facts)) for pixels in (grey, colour))
    uids = [
        getattr(each, keyword)
        for each in (one, other)
        for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
    ]
    assert len(set(uids)) == 6
    assert all(re.fullmatch(r"2\.25\.[1-9]\d{0,38}", uid) and len(uid) <= 64 for uid in uids)
    assert one.PatientID != other.PatientID
    assert one.file_meta.MediaStorageSOPInstanceUID == one.SOPInstanceUID


def test_a_long_prompt_is_kept_whole_and_cut_only_where_dicom_holds_less(grey):
    prompt = "CT: abdomen " + "x" * 20_000
    dataset = read(dicom_bytes(png_of(grey), facts_of(prompt)))
    assert dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)[1].value == prompt
    assert len(dataset.SeriesDescription) == 64
    assert dataset.SeriesDescription.endswith("...")
    assert len(dataset.ContributingEquipmentSequence[0].ContributionDescription) <= 1024


@pytest.mark.parametrize(
    ("prompt", "side"),
    [
        ("Fundus: hard exudates, left eye", "L"),
        ("Fundus: Right eye photograph", "R"),
        ("OCT: drusen, OS", "L"),
        ("OCT: drusen, os", ""),
        ("Fundus: exudates left of the disc", ""),
        ("Fundus: left and right eye", ""),
        ("Fundus: both eyes, left eye worse", ""),
        ("X-ray: fracture of the left wrist", "L"),
        ("X-ray: spine, bending right", ""),
        ("Breast MRI: mass in the left breast", ""),
        ("Chest X-ray: left pleural effusion", None),
    ],
)
def test_the_side_is_that_of_the_body_part_never_of_the_finding(prompt, side):
    parsed = parse_prompt(prompt)
    assert laterality(parsed.kind, parsed.description) == side


def test_modality_and_body_part_are_those_that_the_image_imitates(grey):
    found = {}
    for kind in KINDS:
        dataset = read(dicom_bytes(png_of(grey), facts_of(f"{kind.prefix}: normal")))
        found[kind.slug] = (dataset.Modality, dataset.BodyPartExamined)
    assert found == {
        "oct": ("OPT", "EYE"),
        "fundus": ("OP", "EYE"),
        "chest_xray": ("DX", "CHEST"),
        "chest_ct": ("CT", "CHEST"),
        "brain_mri": ("MR", "BRAIN"),
        "breast_mri": ("MR", "BREAST"),
    }


# --- the folder ---


def test_the_sidecar_of_a_dicom_file_carries_its_own_digest(grey, tmp_path):
    png = png_of(grey)
    path = OutputFolder(tmp_path, "dicom").add(CHEST_XRAY, None, png, facts_of("Chest X-ray: normal", sha256="png's"))
    assert path.name == "chest_xray_0.dcm"
    facts = json.loads((tmp_path / "chest_xray_0.json").read_text())
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts["png_sha256"] == hashlib.sha256(png).hexdigest()
    assert facts["sop_instance_uid"] == pydicom.dcmread(path).SOPInstanceUID
    assert path.read_bytes() == as_dicom(png, facts_of("Chest X-ray: normal"))[0]


def test_formats_share_their_numbers_so_that_no_sidecar_is_overwritten(grey, tmp_path):
    png, facts = png_of(grey), facts_of("Breast MRI: normal")
    for image_format in ("png", "dicom", "dicom", "png"):
        OutputFolder(tmp_path, image_format).add(BREAST_MRI, None, png, facts)
    images = sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".json")
    assert images == ["breast_mri_0.png", "breast_mri_1.dcm", "breast_mri_2.dcm", "breast_mri_3.png"]
    assert len(list(tmp_path.glob("*.json"))) == 4


def test_an_image_that_cannot_be_written_leaves_no_sidecar(grey, tmp_path, monkeypatch):
    from generation import output_folder

    real = output_folder.write_new

    def full_disk(target: Path, content: bytes) -> bool:
        if target.suffix == ".png":
            raise OSError(28, "No space left on device")
        return real(target, content)

    monkeypatch.setattr(output_folder, "write_new", full_disk)
    with pytest.raises(OSError, match="No space left"):
        OutputFolder(tmp_path).add(CHEST_XRAY, None, png_of(grey), facts_of("Chest X-ray: normal"))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'tiff' is unknown. Use one of: png, dicom"):
        OutputFolder(tmp_path / "out", "tiff")
    assert not (tmp_path / "out").exists()
