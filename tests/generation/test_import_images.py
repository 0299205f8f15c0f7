"""Images from files: nothing that names a patient comes in, nothing comes in by half, nothing comes in twice."""

import csv
import gzip
import io
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from django.core.management import CommandError, call_command
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from generation.deidentification import METHOD, write_scrubbed
from generation.importing import staged
from generation.models import GeneratedImage, Prompt
from medsyn.dataset_csv import read_rows
from medsyn.imaging import load
from tests.factories import GeneratedImageFactory, png_bytes

REALDATA = Path(__file__).resolve().parents[3] / "shared" / "realdata"
SECRET = "DOE^JANE"
# A part of DICOM PS3.15 table E.1-1, each with a value that would tell.
PROFILE = {
    **dict.fromkeys(
        [
            "PatientName",
            "OtherPatientNames",
            "ReferringPhysicianName",
            "PerformingPhysicianName",
            "OperatorsName",
            "NameOfPhysiciansReadingStudy",
            "PhysiciansOfRecord",
            "RequestingPhysician",
        ],
        SECRET,
    ),
    **dict.fromkeys(
        [
            "PatientID",
            "OtherPatientIDs",
            "AccessionNumber",
            "StudyID",
            "InstitutionName",
            "InstitutionAddress",
            "InstitutionalDepartmentName",
            "StationName",
            "StudyDescription",
            "SeriesDescription",
            "ProtocolName",
            "ImageComments",
            "PatientComments",
            "AdditionalPatientHistory",
            "DeviceSerialNumber",
            "EthnicGroup",
            "Occupation",
            "PatientAddress",
            "RequestedProcedureDescription",
            "PerformedProcedureStepID",
            "DerivationDescription",
            "MedicalAlerts",
            "Allergies",
        ],
        "DOE 1234",
    ),
    **dict.fromkeys(["PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"], "19590817"),
    **dict.fromkeys(["StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime"], "081559"),
    **dict.fromkeys(
        ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"], "1.2.3.4.1959"
    ),
    "PatientAge": "067Y",
    "PatientSex": "F",
}


def dicom_file(path: Path, *, pixels: np.ndarray, **more) -> Path:
    """A 16-bit CT slice full of what must not come in, in a sequence and a private block too."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.1959"
    dataset.file_meta.SourceApplicationEntityTitle = "DOE_PACS"
    for name, value in PROFILE.items():
        setattr(dataset, name, value)
    item = Dataset()
    item.PatientID = SECRET
    dataset.OtherPatientIDsSequence = [item]
    dataset.RequestAttributesSequence = [item]
    dataset.private_block(0x0009, "ACME", create=True).add_new(1, "LO", SECRET)
    dataset.Modality, dataset.PhotometricInterpretation = "CT", "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored = 1, 16, 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.WindowCenter, dataset.WindowWidth, dataset.WindowCenterWidthExplanation = 40, 400, SECRET
    dataset.PixelData = pixels.astype("<i2").tobytes()
    for name, value in more.items():
        setattr(dataset, name, value)
    dataset.preamble = SECRET.encode().ljust(128, b"\0")
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def slice_of() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 2000, (12, 10))


def holds_secret(path: Path) -> bool:
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content += gzip.decompress(content)
    return any(word in content for word in (b"DOE", b"JANE", b"1959", b"067Y", b"081559"))


def dataset_csv(folder: Path, rows: list[tuple], header="path,Text,modality") -> Path:
    path = folder / "metadata.csv"
    with path.open("w", newline="") as file:
        file.write(header + "\r\n")
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three PNG files."""
    made = tmp_path / "pictures"
    made.mkdir()
    for number in range(3):
        (made / f"DOE_{number}.png").write_bytes(png_bytes(number))
    return made


def rows_of(folder: Path, patients=("P1", "P1", "P2")) -> Path:
    rows = [
        (f"DOE_{number}.png", f"Fundus: finding, {number}", "Fundus", patient)
        for number, patient in enumerate(patients)
    ]
    return dataset_csv(folder, rows, "path,Text,modality,patient")


def imported(*arguments) -> str:
    out = io.StringIO()
    call_command("import_images", *map(str, arguments), stdout=out, stderr=out)
    return out.getvalue()


def gold_in(told: str) -> list[dict]:
    """The rows of the file that the command names."""
    return list(csv.DictReader(io.StringIO(Path(told.rsplit("set_gold ", 1)[1].strip()).read_text())))


def stored_files(artifact_root: Path) -> list[Path]:
    return [path for path in artifact_root.rglob("*") if path.is_file()]


# What the copies do not hold --------------------------------------------------------------------------------


def test_dicom_keeps_its_depth_and_window_and_nothing_that_names_the_patient(tmp_path, slice_of):
    source, copy = dicom_file(tmp_path / "a.dcm", pixels=slice_of), tmp_path / "b.dcm"
    assert holds_secret(source)
    removed = write_scrubbed(source, copy, file_format="dicom")
    assert not holds_secret(copy) and {"InstitutionName", "private elements", "RequestAttributesSequence"} <= removed
    kept = pydicom.dcmread(copy)
    assert np.array_equal(kept.pixel_array, slice_of) and kept.BitsStored == 16
    assert (kept.PatientIdentityRemoved, kept.DeidentificationMethod) == ("YES", METHOD) and len(METHOD) <= 64
    assert not [name for name in PROFILE if kept.get(name) and not name.endswith("UID")]
    before, after = load(source, modality="Chest CT"), load(copy, modality="Chest CT")
    assert np.array_equal(before.pixels, after.pixels) and before.window == after.window == (40, 400)


def test_no_text_and_no_uid_of_the_pictures_own_group_comes_in(tmp_path, slice_of):
    telling = {
        "PaletteColorLookupTableUID": "1.2.3.4.1959",
        "LargePaletteColorLookupTableUID": "1.2.3.4.1959",
        "FrameOfInterestDescription": SECRET,
        "PartialViewDescription": SECRET,
        "MaskOperationExplanation": SECRET,
        "PixelDataProviderURL": "https://pacs.example.org/DOE",
    }
    source = dicom_file(tmp_path / "a.dcm", pixels=slice_of, RescaleType="HU", **telling)
    assert telling.keys() <= write_scrubbed(source, tmp_path / "b.dcm", file_format="dicom")
    assert not holds_secret(tmp_path / "b.dcm") and pydicom.dcmread(tmp_path / "b.dcm").RescaleType == "HU"


def test_equal_slices_of_other_patients_give_equal_copies_and_other_slices_other_uids(tmp_path, slice_of):
    first = dicom_file(tmp_path / "1.dcm", pixels=slice_of)
    second = dicom_file(tmp_path / "2.dcm", pixels=slice_of, PatientName="ROE^RICHARD", StudyDate="20200101")
    third = dicom_file(tmp_path / "3.dcm", pixels=slice_of + 1)
    copies = [tmp_path / f"{path.stem}-copy.dcm" for path in (first, second, third)]
    for source, copy in zip((first, second, third), copies, strict=True):
        write_scrubbed(source, copy, file_format="dicom")
    assert copies[0].read_bytes() == copies[1].read_bytes()
    uids = [pydicom.dcmread(copy).SOPInstanceUID for copy in (copies[0], copies[2])]
    assert uids[0] != uids[1] and all(uid.startswith("2.25.") for uid in uids)


def test_text_burned_into_the_pixels_is_refused(tmp_path, slice_of):
    source = dicom_file(tmp_path / "a.dcm", pixels=slice_of, BurnedInAnnotation="YES")
    with pytest.raises(ValueError, match="BurnedInAnnotation"):
        write_scrubbed(source, tmp_path / "b.dcm", file_format="dicom")


@pytest.mark.parametrize("name", ["volume.nii", "volume.nii.gz", "second.nii"])
def test_nifti_loses_texts_and_extensions_and_keeps_every_voxel(tmp_path, name):
    voxels = np.random.default_rng(1).integers(-900, 900, (6, 5, 4)).astype(np.int16)
    make = nibabel.Nifti2Image if name == "second.nii" else nibabel.Nifti1Image
    volume = make(voxels, np.diag([2.0, 2.0, 3.0, 1.0]))
    volume.header["descrip"], volume.header["aux_file"] = SECRET.encode(), b"DOE.txt"
    volume.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", SECRET.encode()))
    source, copy = tmp_path / name, tmp_path / f"copy-{name}"
    nibabel.save(volume, source)
    assert holds_secret(source)
    assert write_scrubbed(source, copy, file_format="nifti") == {"header texts", "header extensions"}
    assert not holds_secret(copy)
    after = nibabel.load(copy)
    assert np.array_equal(np.asarray(after.dataobj), voxels) and np.array_equal(after.affine, volume.affine)
    assert len(after.header.extensions) == 0 and after.get_data_dtype() == np.int16


def test_a_packed_volume_that_never_ends_is_refused(tmp_path, monkeypatch):
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 20, 20), np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    monkeypatch.setattr("generation.deidentification.MAX_UNPACKED_BYTES", 5000)
    with pytest.raises(ValueError, match="unpacks to more than"):
        write_scrubbed(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", file_format="nifti")


def test_png_loses_its_texts_and_nothing_else(tmp_path):
    text = PngInfo()
    text.add_text("Author", SECRET)
    Image.open(io.BytesIO(png_bytes(4))).save(tmp_path / "a.png", pnginfo=text, gamma=0.45)
    assert write_scrubbed(tmp_path / "a.png", tmp_path / "b.png", file_format="png") == {"PNG tEXt"}
    assert not holds_secret(tmp_path / "b.png")
    assert np.array_equal(Image.open(tmp_path / "a.png"), Image.open(tmp_path / "b.png"))
    assert write_scrubbed(tmp_path / "b.png", tmp_path / "c.png", file_format="png") == frozenset()
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_goes_and_the_way_up_stays(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, SECRET  # orientation: turned by 90 degrees; description
    source, copy = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 255, (24, 40, 3), dtype=np.uint8))
    picture.save(source, exif=exif, **({"comment": SECRET.encode(), "progressive": True} if suffix == "jpg" else {}))
    source.write_bytes(source.read_bytes() + SECRET.encode())  # behind the picture
    assert holds_secret(source)
    write_scrubbed(source, copy, file_format="jpeg" if suffix == "jpg" else "png")
    assert not holds_secret(copy)
    before, after = load(source).pixels, load(copy).pixels
    assert after.shape[:2] == (40, 24) and np.array_equal(before, after)


def test_broken_pictures_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png_bytes(1)[:-12])
    with pytest.raises(ValueError, match="cut short"):
        write_scrubbed(tmp_path / "a.png", tmp_path / "b.png", file_format="png")
    Image.new("L", (9, 9)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-2])
    with pytest.raises(ValueError, match="cut short"):
        write_scrubbed(tmp_path / "a.jpg", tmp_path / "b.jpg", file_format="jpeg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes() + b"\xff\xff")  # fill bytes before no marker
    with pytest.raises(ValueError, match="cut short"):
        write_scrubbed(tmp_path / "a.jpg", tmp_path / "b.jpg", file_format="jpeg")


# The command ------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_real_images_come_in_under_neutral_names_with_their_pseudonyms(folder, artifact_root):
    told = imported(rows_of(folder), "--real", "--name", "Eye clinic")
    images = list(GeneratedImage.objects.order_by("pk"))
    assert "3 images imported as 'Eye clinic'." in told
    assert [image.patient for image in images] == ["P1", "P1", "P2"]
    assert all(image.is_real and image.source == "imported" and image.batch == "Eye clinic" for image in images)
    assert [image.prompt.text for image in images] == [f"Fundus: finding, {number}" for number in range(3)]
    for number, image in enumerate(images):
        assert image.path.read_bytes() == (folder / f"DOE_{number}.png").read_bytes()  # nothing to remove
        assert image.file == f"images/imported/{image.sha256}.png" and (image.width, image.height) == (16, 16)
    assert not [path for path in stored_files(artifact_root) if "DOE" in path.name]
    queries = GeneratedImage.objects
    assert queries.real().count() == 3 and not queries.synthetic().exists()
    assert [(row["batch"], row["number"]) for row in queries.batches()] == [("Eye clinic", 3)]


@pytest.mark.django_db
def test_what_kind_of_images_they_are_must_be_said(folder):
    with pytest.raises(CommandError, match="--real --synthetic is required"):
        imported(rows_of(folder), "--name", "Eyes")
    with pytest.raises(CommandError, match="procedural phantom is no image of a patient"):
        imported(rows_of(folder), "--real", "--phantoms", "--name", "Eyes")


@pytest.mark.django_db
def test_a_patient_is_kept_of_real_images_only(folder):
    imported(rows_of(folder), "--synthetic", "--phantoms", "--name", "Drawn")
    image = GeneratedImage.objects.first()
    assert (image.patient, image.is_real, image.is_phantom) == ("", False, True)


@pytest.mark.django_db
def test_imported_again_nothing_is_doubled_and_another_text_is_another_image(folder, artifact_root):
    imported(rows_of(folder), "--real", "--name", "One")
    files = stored_files(artifact_root)
    told = imported(rows_of(folder), "--real", "--name", "Two")
    assert "0 images imported as 'Two'; 3 were stored already and keep their batch." in told
    other = dataset_csv(folder, [("DOE_0.png", "Fundus: seen otherwise", "Fundus")])
    imported(other, "--real", "--name", "Three")
    assert GeneratedImage.objects.count() == 4 and stored_files(artifact_root) == files


@pytest.mark.django_db
def test_an_image_cannot_be_real_and_synthetic_nor_of_two_patients(folder):
    imported(rows_of(folder), "--real", "--name", "One")
    with pytest.raises(CommandError, match="line 3: this image is stored already, as a real one"):
        imported(rows_of(folder), "--synthetic", "--name", "Two")
    with pytest.raises(CommandError, match="as one of patient 'P2'"):
        imported(rows_of(folder, ("P1", "P1", "P3")), "--real", "--name", "Three")
    drawn = GeneratedImageFactory(prompt__text="Fundus: drawn")
    (folder / "DOE_0.png").write_bytes(drawn.path.read_bytes())
    with pytest.raises(CommandError, match="as a synthetic one"):
        imported(dataset_csv(folder, [("DOE_0.png", "Fundus: drawn", "Fundus")]), "--real", "--name", "Four")


@pytest.mark.django_db
def test_bad_rows_are_all_told_by_line_and_nothing_comes_in(folder, artifact_root):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    rows = [
        ("DOE_0.png", "Fundus: good", "Fundus", ""),
        ("missing.png", "Fundus: not there", "Fundus", "2"),
        ("broken.png", "Fundus: broken", "Fundus", ""),
        ("DOE_1.png", "No prefix", "Fundus", ""),
        ("DOE_1.png", "Fundus: good", "Fundus", "4"),
    ]
    path = dataset_csv(folder, rows, "path,Text,modality,gold")
    with pytest.raises(CommandError) as caught:
        imported(path, "--synthetic", "--name", "Mixed")
    told = str(caught.value)
    assert "4 bad rows" in told and all(f"line {line}: " in told for line in (3, 4, 5, 6))
    assert "--skip-bad-rows" in told
    assert not GeneratedImage.objects.exists() and not Prompt.objects.exists() and stored_files(artifact_root) == []
    told = imported(path, "--synthetic", "--name", "Mixed", "--skip-bad-rows")
    assert "1 images imported" in told and told.count("left out, line") == 4


@pytest.mark.django_db
def test_an_import_that_fails_at_the_end_leaves_nothing(folder, artifact_root, monkeypatch):
    create = GeneratedImage.objects.create
    calls = []

    def fail(**facts):
        calls.append(facts)
        if len(calls) == 3:
            raise OSError("the disk is full")
        return create(**facts)

    monkeypatch.setattr(GeneratedImage.objects, "create", fail)
    with pytest.raises(CommandError, match="Nothing was imported: the disk is full"):
        imported(rows_of(folder), "--real", "--name", "Eyes")
    assert len(calls) == 3 and not GeneratedImage.objects.exists() and stored_files(artifact_root) == []
    assert not [path for path in artifact_root.rglob(".import-*")]


@pytest.mark.django_db
def test_a_file_that_another_import_stored_meanwhile_stays_when_this_one_fails(folder, artifact_root):
    with staged() as staging, pytest.raises(RuntimeError):
        copy = staging.image_of(folder / "DOE_0.png", None)
        with staging.published([copy]):
            GeneratedImageFactory(imported=True, file=copy.file, sha256=copy.sha256)
            raise RuntimeError
    assert (artifact_root / copy.file).is_file()


@pytest.mark.django_db
def test_a_folder_of_one_prompt_and_a_folder_with_its_own_csv(folder):
    told = imported(folder, "--synthetic", "--name", "Same", "--prompt", "chest x-ray: normal", "--gold", "3")
    assert {image.prompt.text for image in GeneratedImage.objects.all()} == {"Chest X-ray: normal"}
    gold = gold_in(told)
    assert [row["grade"] for row in gold] == ["3"] * 3
    assert {row["image"] for row in gold} == {str(image.public_id) for image in GeneratedImage.objects.all()}
    rows_of(folder)
    assert "3 images imported" in imported(folder, "--synthetic", "--name", "By its CSV")
    (folder / "metadata.csv").unlink()
    with pytest.raises(CommandError, match="Say with --prompt"):
        imported(folder, "--synthetic", "--name", "Same")


@pytest.mark.django_db
def test_known_grades_come_from_the_column(folder):
    rows = [(f"DOE_{number}.png", "OCT: normal", "OCT", grade) for number, grade in enumerate(("1", "", "3"))]
    told = imported(dataset_csv(folder, rows, "path,Text,modality,gold"), "--synthetic", "--name", "Gold")
    gold = gold_in(told)
    assert [row["grade"] for row in gold] == ["1", "3"]


def test_a_dataset_for_training_still_knows_no_gold_column(folder):
    path = dataset_csv(folder, [("DOE_0.png", "OCT: normal", "OCT", "1")], "path,Text,modality,gold")
    with pytest.raises(ValueError, match="the first line must name"):
        read_rows(path)


@pytest.mark.realdata
@pytest.mark.django_db
@pytest.mark.skipif(not REALDATA.is_dir(), reason="../shared/realdata is not there")
def test_thirty_real_images_of_every_format(tmp_path):
    """What the application shows of the copy is what the file shows."""
    lines = (REALDATA / "metadata.csv").read_text(encoding="utf-8").splitlines()
    by_format = {
        suffix: [line for line in lines[1:] if line.split(",", 1)[0].endswith(suffix)]
        for suffix in (".dcm", ".nii.gz", ".jpg", ".png")
    }
    wanted = [line for rows in by_format.values() for line in rows[:: max(1, len(rows) // 8)][:8]][:30]
    path = tmp_path / "data.csv"
    path.write_text("\n".join([lines[0], *(f"{REALDATA}/{line}" for line in wanted)]) + "\n")
    rows, _ = read_rows(path)
    told = imported(path, "--real", "--name", "Real")
    images = {image.prompt.text + image.sha256: image for image in GeneratedImage.objects.all()}
    assert f"{len(images)} images imported" in told and len(images) == len(rows) == 30 and "PatientName" in told
    for row, image in zip(rows, GeneratedImage.objects.order_by("pk"), strict=True):
        kind = row.prompt.kind.prefix
        before, after = load(row.path, modality=kind), load(image.path, modality=kind)
        assert np.array_equal(before.pixels, after.pixels) and before.window == after.window
        if before.format == "dicom":
            kept = pydicom.dcmread(image.path)
            assert not (kept.PatientName or kept.PatientID or kept.PatientBirthDate or kept.get("InstitutionName"))


def test_the_orientation_block_is_one_that_pillow_reads(tmp_path):
    """Independent of write_scrubbed: the chunk's checksum and the TIFF header by hand."""
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("L", (8, 4)).save(tmp_path / "a.png", exif=exif)
    write_scrubbed(tmp_path / "a.png", tmp_path / "b.png", file_format="png")
    content = (tmp_path / "b.png").read_bytes()
    at = content.index(b"eXIf")
    (length,) = struct.unpack(">I", content[at - 4 : at])
    (checksum,) = struct.unpack(">I", content[at + 4 + length : at + 8 + length])
    assert checksum == zlib.crc32(content[at : at + 4 + length])
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.getexif().get(0x0112) == 8
