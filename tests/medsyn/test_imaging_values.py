"""Full depth for the viewer: neighbouring values stay apart, and the first window shows what load() shows."""

import nibabel
import numpy as np
import pytest
from PIL import Image

from medsyn.imaging import ImageReadError, is_deep, load, load_values
from tests.medsyn.imaging_files import RAMP, hounsfield, lookup_table, write_dicom, write_nifti

HU = np.arange(-1024, 3072).reshape(64, 64)


def values_of(image) -> np.ndarray:
    return image.samples * image.slope + image.intercept


def shown(image) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1 (LINEAR) and C.11.2.1.3.2 (LINEAR_EXACT), written out anew."""
    value, centre, width = values_of(image), image.window.centre, image.window.width
    if image.window.function == "LINEAR":
        return np.clip((value - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    return np.clip((value - centre) / width + 0.5, 0, 1)


def test_twelve_bits_of_hounsfield_units_arrive_one_by_one(tmp_path):
    image = load_values(hounsfield(tmp_path / "a.dcm", HU, WindowCenter="40", WindowWidth="400"))
    assert image.samples.dtype == np.uint16 and image.unit == "HU"
    assert np.array_equal(values_of(image), HU)
    assert (image.window.pair, image.window.function) == ((40, 400), "LINEAR")


@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"WindowCenter": "40", "WindowWidth": "400"},
        {"WindowCenter": "40.5", "WindowWidth": "2", "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": "40", "WindowWidth": "1"},
        {"WindowCenter": "40", "WindowWidth": "400", "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": "40", "WindowWidth": "400", "PhotometricInterpretation": "MONOCHROME1"},
        {"PixelPaddingValue": 0, "WindowCenter": "40", "WindowWidth": "9000"},
        {"VOILUTSequence": lookup_table((np.arange(4096) ** 2 // 4096).astype(np.uint16), -1024, 12)},
        {"PixelSpacing": ["2", "1"]},
        {"ImageOrientationPatient": ["-1", "0", "0", "0", "-1", "0"]},
    ],
    ids=str,
)
def test_the_first_window_shows_what_the_picture_shows(tmp_path, elements):
    path = hounsfield(tmp_path / "a.dcm", HU, **elements)
    picture, image = load(path, modality="Chest CT").pixels, load_values(path, modality="Chest CT")
    assert image.samples.shape == picture.shape
    if elements.get("WindowWidth") == "1":  # a threshold, in the middle of which one value lies
        assert np.mean(np.rint(shown(image)) == picture) > 0.999
    elif "PixelSpacing" in elements:  # windowed before or after it is stretched: the same within the window
        assert np.mean(np.abs(shown(image) - picture) < 1 / 255) > 0.95
    else:
        assert np.abs(shown(image) - picture).max() < 1 / 510


def test_inverted_and_sigmoid_scales_are_no_hounsfield_units(tmp_path):
    window = {"WindowCenter": "40", "WindowWidth": "400"}
    for elements in ({"VOILUTFunction": "SIGMOID"}, {"PhotometricInterpretation": "MONOCHROME1"}):
        image = load_values(hounsfield(tmp_path / "a.dcm", HU, **window, **elements))
        assert (image.unit, image.window.pair) == ("%", (50, 100))


def test_other_modalities_count_in_per_cent_of_the_first_showing(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, Modality="MR", WindowCenter="1000", WindowWidth="501")
    image = load_values(path)
    assert (image.unit, image.window.pair) == ("%", (50, 100))
    value = values_of(image)
    assert len(np.unique(image.samples)) == RAMP.size
    assert np.abs(value - (RAMP - 749.5) / 500 * 100).max() < 0.01


def test_all_of_sixteen_bits_and_of_a_float_range_survive(tmp_path):
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(every).save(tmp_path / "a.png")
    assert np.array_equal(load_values(tmp_path / "a.png").samples, every)
    voxels = np.linspace(-1000, 500, 4096).reshape(64, 64, 1).astype(np.float32)
    image = load_values(write_nifti(tmp_path / "a.nii.gz", voxels, np.diag([1.0, 1, 2, 1])), modality="CT")
    assert image.unit == "HU" and len(np.unique(image.samples)) == 4096
    assert np.sort(values_of(image).ravel()) == pytest.approx(np.sort(voxels.ravel()), abs=1500 / 65535)


def test_flat_and_padded_pictures(tmp_path):
    flat = load_values(hounsfield(tmp_path / "a.dcm", np.full((8, 8), 30)))
    assert values_of(flat).tolist() == np.full((8, 8), 30).tolist()
    padded = np.full((8, 8), 30)
    padded[0] = -2000 + 1024  # stored as 48 after the intercept of -1024
    path = hounsfield(tmp_path / "b.dcm", padded, PixelPaddingValue=48, WindowCenter="0", WindowWidth="100")
    image = load_values(path)
    assert values_of(image)[0].max() < -49 and values_of(image)[1:].min() == 30


def test_colours_have_no_values_and_depth_is_told_by_the_header(tmp_path):
    colours = np.random.default_rng(5).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "rgb.png")
    Image.fromarray(colours[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(colours).save(tmp_path / "rgb.jpg")
    Image.fromarray(RAMP).save(tmp_path / "deep.png")
    write_dicom(tmp_path / "rgb.dcm", colours, PhotometricInterpretation="RGB")
    write_dicom(tmp_path / "grey.dcm", colours[..., 0])
    hounsfield(tmp_path / "deep.dcm", HU)
    write_nifti(tmp_path / "deep.nii.gz", RAMP[..., None].astype(np.int16), None)
    nibabel.Nifti1Image(RAMP[..., None].astype(np.uint8), np.eye(4)).to_filename(tmp_path / "grey.nii")
    deep = {path.name: is_deep(path) for path in tmp_path.iterdir()}
    assert {name for name, holds in deep.items() if holds} == {"deep.png", "deep.dcm", "deep.nii.gz"}
    assert load_values(tmp_path / "rgb.png") is None and load_values(tmp_path / "rgb.dcm") is None
    assert len(np.unique(load_values(tmp_path / "grey.png").samples)) == len(np.unique(colours[..., 0]))


def test_broken_files_are_refused_by_name(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    for look in (is_deep, load_values):
        with pytest.raises(ImageReadError, match=r"a\.png"):
            look(tmp_path / "a.png")
        with pytest.raises(ImageReadError, match="no such file"):
            look(tmp_path / "b.png")
