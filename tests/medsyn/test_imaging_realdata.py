"""Every row of ../shared/realdata, read and compared: files of one picture in several formats must agree."""

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from medsyn.imaging import PRESETS, load
from medsyn.modalities import parse_prompt

REALDATA = Path(__file__).resolve().parents[3] / "shared" / "realdata"

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not (REALDATA / "metadata.csv").exists(), reason="../shared/realdata is absent"),
]


def agreement(first, second, size=None):
    """Pearson correlation of two grey pictures."""
    return np.corrcoef(first.to_grey(size).ravel(), second.to_grey(size).ravel())[0, 1]


def test_every_row_is_read():
    with (REALDATA / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    def read(row):
        image = load(REALDATA / row["path"], modality=parse_prompt(row["Text"]).kind.prefix)
        grey = np.rint(image.pixels[::2, ::2] * 255).astype(np.uint8)
        # A picture wrapped, left black or cut into two levels has few levels or no spread.
        return row["path"], image, np.count_nonzero(np.bincount(grey.ravel())), float(grey.std())

    with ThreadPoolExecutor(2) as pool:
        read_rows = list(pool.map(read, rows))
    assert len(read_rows) == len(rows) > 1400
    flat = [(path, levels, spread) for path, _, levels, spread in read_rows if levels < 50 or spread < 5]
    assert not flat
    assert {image.format for _, image, _, _ in read_rows} == {"png", "jpeg", "dicom", "nifti"}


def test_one_slice_in_seven_transfer_syntaxes_is_pixel_identical():
    files = sorted((REALDATA / "dicom_misc/dicom").glob("CTImage*.dcm"))
    images = [load(path) for path in files]
    assert len(images) == 7
    assert all(np.array_equal(image.pixels, images[0].pixels) for image in images)
    assert images[0].window == (40, 400)


def test_oct_pictures_in_nifti_equal_the_png_of_the_same_scan():
    pairs = [
        (path, REALDATA / "oct_keshav/images" / path.name.replace("_0000.nii.gz", ".png"))
        for path in sorted((REALDATA / "oct_keshav/nifti").iterdir())
    ]
    compared = 0
    for nifti, png in pairs:
        scan = load(nifti, modality="OCT")
        # Upright: the bright layers of the retina run across the picture, so rows differ more than columns do.
        grey = scan.to_grey().astype(float)
        assert grey.mean(axis=1).std() > grey.mean(axis=0).std(), nifti.name
        if png.exists():
            picture = load(png)
            size = picture.pixels.shape[:2]
            assert np.corrcoef(scan.to_grey(size).ravel(), picture.to_grey().ravel())[0, 1] > 0.99, nifti.name
            compared += 1
    assert (len(pairs), compared) == (12, 11)


@pytest.mark.parametrize(
    "name", ["chris_t1", "chris_PD", "MR_Gd", "MNI152_2009_template", "DCM2NIIX_regression_test_4"]
)
def test_slices_of_brain_volumes_agree_with_the_pictures_made_from_them(name):
    folder = REALDATA / "brain_mri_nifti_niivue"
    (volume,) = (folder / "nifti").glob(f"{name}.nii*")
    for picture in sorted((folder / "images").glob(f"{name}_z*.png"))[::3]:
        index = int(picture.stem[-3:])
        assert agreement(load(volume, slice_index=index), load(picture)) > 0.97, picture.name


@pytest.mark.parametrize("patient", ["A0001", "A0002"])
def test_chest_volumes_lie_as_the_dicom_slices_of_the_same_patient(patient):
    folder = REALDATA / "chest_ct_dicom_lungpetctdx"
    path = folder / f"nifti/{patient}_lung_2x_downsampled.nii.gz"
    affine = nibabel.load(path).affine
    for slice_path in sorted((folder / "dicom").glob(f"{patient}_s[02]_*.dcm")):
        height_mm = float(pydicom.dcmread(slice_path).ImagePositionPatient[2])
        index = round((height_mm - affine[2, 3]) / affine[2, 2])
        volume = load(path, modality="Chest CT", slice_index=index)
        assert volume.window == PRESETS["lung"]
        assert agreement(volume, load(slice_path, window="lung"), size=256) > 0.97, slice_path.name


def test_chest_dicom_windows_are_the_ones_their_captions_name():
    folder = REALDATA / "chest_ct_dicom_lungpetctdx/dicom"
    assert {load(path).window for path in folder.glob("A0001_s0_*.dcm")} == {(-600, 1600)}
    assert {load(path).window for path in folder.glob("A0002_s3_*.dcm")} == {(40, 350)}
