"""DICOM files written here, read back and compared with the formulas of the standard."""

import io

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from medsyn.imaging import PRESETS, ImageReadError, load
from tests.medsyn.imaging_files import RAMP, hounsfield, item_of, lookup_table, write_dicom

HU = RAMP.astype(np.int32) - 1024  # -1024 ... 3071


def exact(values, centre, width):
    """PS3.3 C.11.2.1.3.2, written as its two knees."""
    low, high = centre - width / 2, centre + width / 2
    return np.interp(values, [low, high], [0, 1])


def linear(values, centre, width):
    """PS3.3 C.11.2.1.2.1: x <= c - 0.5 - (w-1)/2 is black, x > c - 0.5 + (w-1)/2 is white."""
    return np.interp(values, [centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2], [0, 1])


def test_rescaled_values_go_through_the_window_of_the_file(tmp_path):
    path = hounsfield(tmp_path / "a.dcm", HU, WindowCenter=["-600", "40"], WindowWidth=["1200", "350"])
    image = load(path)
    assert image.pixels.dtype == np.float32
    assert image.pixels == pytest.approx(linear(HU, -600, 1200), abs=1e-6)
    assert (image.window, image.format, image.bits) == ((-600, 1200), "dicom", 16)


def test_ct_window_keeps_more_than_two_hundred_grey_levels(tmp_path):
    """The predecessors cast a window of 0 to 1 to bytes and kept two levels."""
    image = load(hounsfield(tmp_path / "a.dcm", HU), modality="Chest CT")
    assert len(np.unique(image.to_grey())) > 200


@pytest.mark.parametrize(
    ("elements", "modality", "preset"),
    [
        ({}, "Chest CT", "lung"),
        ({"BodyPartExamined": "CHEST"}, "CT", "lung"),
        ({"BodyPartExamined": "CHEST"}, None, "lung"),
        ({}, "CT", "soft tissue"),
        ({"BodyPartExamined": "ABDOMEN"}, "CT", "soft tissue"),
        ({}, None, "soft tissue"),
        ({"WindowCenter": "40", "WindowWidth": "0"}, "Chest CT", "lung"),
    ],
)
def test_ct_without_a_window_is_shown_by_rule(tmp_path, elements, modality, preset):
    image = load(hounsfield(tmp_path / "a.dcm", HU, **elements), modality=modality)
    assert image.window == PRESETS[preset]
    assert image.pixels == pytest.approx(exact(HU, *PRESETS[preset]), abs=1e-6)


@pytest.mark.parametrize("name", ["lung", "soft tissue", "Soft_Tissue", "bone"])
def test_a_preset_overrides_the_window_of_the_file(tmp_path, name):
    path = hounsfield(tmp_path / "a.dcm", HU, WindowCenter="0", WindowWidth="10")
    assert load(path, window=name).window == PRESETS[name.lower().replace("_", " ")]


def test_a_window_in_numbers_overrides_everything(tmp_path):
    path = hounsfield(tmp_path / "a.dcm", HU, WindowCenter="0", WindowWidth="10")
    assert load(path, window=(100, 50)).pixels == pytest.approx(exact(HU, 100, 50), abs=1e-6)


def test_linear_exact_and_sigmoid_follow_the_standard(tmp_path):
    window = {"WindowCenter": "100", "WindowWidth": "300"}
    path = hounsfield(tmp_path / "a.dcm", HU, VOILUTFunction="LINEAR_EXACT", **window)
    assert load(path).pixels == pytest.approx(exact(HU, 100, 300), abs=1e-6)
    path = hounsfield(tmp_path / "a.dcm", HU, VOILUTFunction="SIGMOID", **window)
    assert load(path).pixels == pytest.approx(1 / (1 + np.exp(-4.0 * (HU - 100) / 300)), abs=1e-5)


def test_window_of_width_one_is_a_threshold(tmp_path):
    path = hounsfield(tmp_path / "a.dcm", HU, WindowCenter="100", WindowWidth="1")
    assert np.array_equal(load(path).pixels, (HU > 99.5).astype(np.float32))


def test_monochrome1_is_inverted(tmp_path):
    window = {"WindowCenter": "2048", "WindowWidth": "4096", "Modality": "CR"}
    plain = load(write_dicom(tmp_path / "a.dcm", RAMP, **window))
    inverted = load(write_dicom(tmp_path / "b.dcm", RAMP, PhotometricInterpretation="MONOCHROME1", **window))
    assert inverted.pixels == pytest.approx(1 - plain.pixels, abs=1e-6)
    assert inverted.pixels[0, 0] == 1


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint8])
def test_the_whole_range_stays_monotone(tmp_path, dtype):
    """The predecessors wrapped 12- and 16-bit values modulo 256."""
    limits = np.iinfo(dtype)
    ramp = np.linspace(limits.min, limits.max, 4096).round().astype(dtype).reshape(64, 64)
    pixels = load(write_dicom(tmp_path / "a.dcm", ramp, Modality="MR")).pixels.ravel()
    assert (np.diff(pixels) >= 0).all()
    assert (pixels[0], pixels[-1]) == (0, 1)
    assert (np.diff(pixels[100:-100].astype(float)) > 0).sum() > (200 if dtype == np.uint8 else 3800)


def test_padding_is_black_and_takes_no_part_in_percentiles(tmp_path):
    stored = np.random.default_rng(0).integers(1000, 2000, (64, 64)).astype(np.uint16)
    stored[:, :40] = 60000
    bare = load(write_dicom(tmp_path / "a.dcm", stored[:, 40:], Modality="MR"))
    padded = load(write_dicom(tmp_path / "b.dcm", stored, Modality="MR", PixelPaddingValue=60000))
    assert padded.window == pytest.approx(bare.window)
    assert np.array_equal(padded.pixels[:, 40:], bare.pixels)
    assert not padded.pixels[:, :40].any()


def test_padding_range_and_signed_padding_and_inversion(tmp_path):
    stored = np.full((8, 8), 100, dtype=np.int16)
    stored[0], stored[1], stored[2] = -2000, -1990, 500
    path = write_dicom(
        tmp_path / "a.dcm",
        stored,
        Modality="CR",
        PhotometricInterpretation="MONOCHROME1",
        PixelPaddingValue=-2000,
        PixelPaddingRangeLimit=-1990,
    )
    pixels = load(path).pixels
    assert not pixels[:2].any()
    assert (pixels[3:] == 1).all() and (pixels[2] == 0).all()


def test_voi_lookup_table_replaces_the_window(tmp_path):
    table = (np.linspace(0, 1, 256) ** 2 * 4095).round()
    path = hounsfield(tmp_path / "a.dcm", HU, VOILUTSequence=lookup_table(table, -100, 12), WindowCenter="0")
    image = load(path)
    expected = table[np.clip(HU + 100, 0, 255)] / 4095
    assert image.pixels == pytest.approx(expected, abs=1e-6)
    assert image.window is None
    assert load(path, window="bone").window == PRESETS["bone"]


def test_modality_lookup_table_comes_before_the_window(tmp_path):
    table = np.arange(4096)[::-1]
    path = write_dicom(
        tmp_path / "a.dcm",
        RAMP,
        Modality="CR",
        ModalityLUTSequence=lookup_table(table, 0, 16),
        WindowCenter="2048",
        WindowWidth="4096",
    )
    assert load(path).pixels == pytest.approx(linear(4095 - RAMP.astype(int), 2048, 4096), abs=1e-6)


def test_bits_above_the_stored_ones_are_cleared(tmp_path):
    """Old scanners kept overlays there."""
    window = {"WindowCenter": "2048", "WindowWidth": "4096", "BitsStored": 12, "HighBit": 11, "Modality": "MR"}
    clean = load(write_dicom(tmp_path / "a.dcm", RAMP, **window))
    overlaid = RAMP | np.where(np.arange(64) % 2, 0xF000, 0).astype(np.uint16)
    assert np.array_equal(load(write_dicom(tmp_path / "b.dcm", overlaid, **window)).pixels, clean.pixels)
    assert clean.bits == 12


def test_twelve_signed_bits_get_their_sign(tmp_path):
    values = np.arange(-2048, 2048, dtype=np.int16).reshape(64, 64)
    stored = values & 0x0FFF
    path = write_dicom(
        tmp_path / "a.dcm", stored, BitsStored=12, HighBit=11, WindowCenter="0", WindowWidth="4096", Modality="MR"
    )
    assert load(path).pixels == pytest.approx(linear(values, 0, 4096), abs=1e-6)


def test_ct_without_rescale_is_not_taken_for_hounsfield_units(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    low, high = np.percentile(RAMP, [0.5, 99.5])
    assert load(path, modality="Chest CT").window == pytest.approx(((low + high) / 2, high - low))
    with pytest.raises(ImageReadError, match="Hounsfield"):
        load(path, modality="Chest CT", window="lung")


def test_middle_frame_unless_named(tmp_path):
    frames = np.stack([np.full((4, 4), 10 * k, dtype=np.uint8) for k in range(5)])
    path = write_dicom(tmp_path / "a.dcm", frames, Modality="US", WindowCenter="128", WindowWidth="256")
    assert load(path).pixels[0, 0] == pytest.approx(linear(20, 128, 256))
    assert load(path, frame=4).pixels[0, 0] == pytest.approx(linear(40, 128, 256))
    for wrong in (5, -1):
        with pytest.raises(ImageReadError, match="has 5, numbered from 0"):
            load(path, frame=wrong)


def test_enhanced_frames_bring_their_own_rescale_window_spacing_and_direction(tmp_path):
    groups = []
    for k in range(3):
        group = Dataset()
        group.PixelValueTransformationSequence = item_of(RescaleSlope="2", RescaleIntercept=str(-1000 + k))
        group.FrameVOILUTSequence = item_of(WindowCenter=str(100 * k), WindowWidth="400")
        groups.append(group)
    shared = item_of(
        PixelMeasuresSequence=item_of(PixelSpacing=["2", "1"]),
        PlaneOrientationSequence=item_of(ImageOrientationPatient=["1", "0", "0", "0", "-1", "0"]),
    )
    stored = np.arange(3 * 64, dtype=np.uint16).reshape(3, 8, 8) + 400
    path = write_dicom(
        tmp_path / "a.dcm",
        stored,
        PerFrameFunctionalGroupsSequence=groups,
        SharedFunctionalGroupsSequence=shared,
    )
    image = load(path, frame=2)
    assert image.window == (200, 400)
    assert image.pixels.shape == (16, 8)
    # The first stored row looks to the front's far end: it lies at the bottom once upright.
    assert image.pixels[-1, 0] == pytest.approx(linear(stored[2, 0, 0] * 2 - 998, 200, 400), abs=1e-6)


@pytest.mark.parametrize(
    ("direction", "undo"),
    [
        ([1, 0, 0, 0, 1, 0], lambda a: a),  # axial as usual
        ([-1, 0, 0, 0, 1, 0], np.fliplr),
        ([-1, 0, 0, 0, -1, 0], lambda a: np.rot90(a, 2)),  # prone
        ([0, 1, 0, 1, 0, 0], np.transpose),
        ([0, 1, 0, 0, 0, -1], lambda a: a),  # sagittal as usual
        ([0, -1, 0, 0, 0, 1], lambda a: np.rot90(a, 2)),
        ([1, 0, 0, 0, 0, -1], lambda a: a),  # coronal as usual
        ([1, 0, 0, 0, 0, 1], np.flipud),
        ([0.98, 0.17, 0.1, -0.17, 0.98, 0.05], lambda a: a),  # oblique, nearly axial
        ([0, 0, 0, 0, 0, 0], lambda a: a),  # says nothing
    ],
)
def test_slices_are_turned_the_radiological_way(tmp_path, direction, undo):
    stored = np.arange(16, dtype=np.uint8).reshape(4, 4)
    path = write_dicom(
        tmp_path / "a.dcm",
        stored,
        Modality="MR",
        ImageOrientationPatient=direction,
        WindowCenter="8",
        WindowWidth="16",
    )
    assert load(path).pixels == pytest.approx(linear(undo(stored.astype(int)), 8, 16), abs=1e-6)


@pytest.mark.parametrize(
    ("elements", "shape"),
    [
        ({"PixelSpacing": ["2.0", "1.0"]}, (40, 10)),
        ({"PixelSpacing": ["0.5", "1.0"]}, (20, 20)),
        ({"PixelAspectRatio": ["3", "1"]}, (60, 10)),
        ({"PixelSpacing": ["0.000", "0.000"]}, (20, 10)),
        ({"PixelSpacing": ["1.0", "1.001"]}, (20, 10)),
        ({"ImagerPixelSpacing": ["0.2", "0.1"]}, (40, 10)),
    ],
)
def test_pixels_become_square(tmp_path, elements, shape):
    path = write_dicom(tmp_path / "a.dcm", np.zeros((20, 10), np.uint8), **elements)
    assert load(path).pixels.shape == shape


def test_absurd_spacing_is_refused(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.zeros((400, 400), np.uint8), PixelSpacing=["5000", "0.001"])
    with pytest.raises(ImageReadError, match="more than the limit"):
        load(path)


COLOURS = np.random.default_rng(1).integers(0, 256, (16, 16, 3)).astype(np.uint8)


def test_rgb_colours_are_kept(tmp_path):
    image = load(write_dicom(tmp_path / "a.dcm", COLOURS, PhotometricInterpretation="RGB", Modality="OP"))
    assert np.array_equal(image.to_rgb(), COLOURS)
    assert image.window is None


def test_ybr_becomes_rgb(tmp_path):
    ybr = np.asarray(Image.fromarray(COLOURS).convert("YCbCr"))
    image = load(write_dicom(tmp_path / "a.dcm", ybr, PhotometricInterpretation="YBR_FULL", Modality="US"))
    expected = np.asarray(Image.fromarray(ybr, mode="YCbCr").convert("RGB")).astype(int)
    assert np.abs(image.to_rgb().astype(int) - expected).max() <= 1


def test_palette_becomes_rgb(tmp_path):
    table = np.random.default_rng(2).integers(0, 65536, (3, 256)).astype("<u2")
    elements = {"PhotometricInterpretation": "PALETTE COLOR", "Modality": "US"}
    for name, entries in zip(("Red", "Green", "Blue"), table, strict=True):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        elements[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = load(write_dicom(tmp_path / "a.dcm", stored, **elements))
    assert image.pixels == pytest.approx(table.T[stored] / 65535, abs=1e-6)


def test_jpeg_frames_in_ybr_come_out_in_rgb(tmp_path):
    rows, columns = np.indices((32, 32)) * 8
    smooth = np.stack([rows, columns, np.full((32, 32), 90)], axis=-1)
    stream = io.BytesIO()
    Image.fromarray(smooth.astype(np.uint8)).save(stream, "JPEG", quality=95, subsampling=2)
    path = write_dicom(tmp_path / "a.dcm", smooth.astype(np.uint8), PhotometricInterpretation="YBR_FULL_422")
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.save_as(path)
    assert np.abs(load(path).to_rgb().astype(int) - smooth).mean() < 3


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_frames_equal_native_ones(tmp_path, syntax):
    frames = np.stack([RAMP, RAMP[::-1], RAMP.T])
    path = write_dicom(tmp_path / "a.dcm", frames, Modality="MR")
    native = [load(path, frame=k).pixels for k in range(3)]
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax)
    dataset.save_as(path)
    assert all(np.array_equal(load(path, frame=k).pixels, native[k]) for k in range(3))


def test_a_frame_larger_than_its_header_says_is_refused_before_decoding(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    dataset = pydicom.dcmread(path)
    dataset.compress(JPEG2000Lossless)
    dataset.Rows = 32
    dataset.save_as(path)
    with pytest.raises(ImageReadError, match="64 x 64 pixels large, its header says 64 x 32"):
        load(path)


def test_broken_rle_is_refused(tmp_path):
    """The Rust decoder panics on a run that goes on behind the frame."""
    path = write_dicom(tmp_path / "a.dcm", np.zeros((8, 8), np.uint16))
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    segment = b"\x81\x00" * 9  # nine runs of 128 bytes each, for a plane of 64
    header = b"".join(number.to_bytes(4, "little") for number in (2, 64, 64 + len(segment), *[0] * 13))
    dataset.PixelData = encapsulate([header + segment + segment])
    dataset.save_as(path)
    with pytest.raises(ImageReadError, match="compressed pixels are broken"):
        load(path)


def test_a_file_without_preamble_is_read(tmp_path):
    path = hounsfield(tmp_path / "a.dcm", HU)
    expected = load(path).pixels
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    bare = io.BytesIO()
    pydicom.dcmwrite(bare, dataset, implicit_vr=True, little_endian=True, enforce_file_format=False)
    whole = bare.getvalue()
    path.write_bytes(whole[whole.index(b"\x08\x00\x16\x00") :])
    assert np.array_equal(load(path).pixels, expected)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"PixelData": None}, "no pixel data"),
        ({"Rows": None}, "Rows is missing"),
        ({"PhotometricInterpretation": None}, "PhotometricInterpretation is missing"),
        ({"Rows": 0}, "0 pixels large"),
        ({"Rows": 60000, "Columns": 60000}, "more than the limit"),
        ({"RescaleSlope": "0", "RescaleIntercept": "1"}, "leave no picture"),
        ({"Rows": 65}, "cannot be read"),
        ({"WindowCenter": "40", "WindowWidth": "wide"}, "cannot be read"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_makes_no_picture_is_refused_by_name(tmp_path, elements, reason):
    path = tmp_path / "broken.dcm"
    width = elements.pop("WindowWidth", None)
    write_dicom(path, RAMP, **elements, **({"WindowWidth": "7777"} if width else {}))
    if width:
        path.write_bytes(path.read_bytes().replace(b"7777", b"wide"))
    with pytest.raises(ImageReadError, match=reason) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_float_pixels_and_not_a_number(tmp_path):
    values = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)
    path = write_dicom(tmp_path / "a.dcm", RAMP, Modality="MR", BitsAllocated=32, BitsStored=None, HighBit=None)
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.FloatPixelData = values.tobytes()
    dataset.save_as(path)
    assert (np.diff(load(path).pixels.ravel()) >= 0).all()
    values[0, 0] = np.nan
    dataset.FloatPixelData = values.tobytes()
    dataset.save_as(path)
    with pytest.raises(ImageReadError, match="1 pixels are not finite"):
        load(path)


def test_a_deflated_bomb_is_refused(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", np.zeros((512, 512), np.uint16), Modality="MR")
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    assert load(path).pixels.shape == (512, 512)
    monkeypatch.setattr("medsyn.imaging.codestream.MAX_FILE_BYTES", 500_000)
    with pytest.raises(ImageReadError, match="unfolds to more than"):
        load(path)
