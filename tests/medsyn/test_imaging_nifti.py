"""NIfTI files written here: volumes with a known mark, and pictures by the conventions of ITK and NumPy."""

import gzip
import struct

import nibabel
import numpy as np
import pytest

from medsyn.imaging import PRESETS, ImageReadError, load
from tests.medsyn.imaging_files import damaged, write_nifti

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)  # rows, columns, colours
ITK = np.diag([-1.0, -1.0, 1.0, 1.0])  # what ITK writes for a picture with its identity direction (LPS)


def body(value_right=100.0, value_front=200.0, value_head=300.0):
    """RAS voxels (24, 30, 36) of 10 with bright blocks at the patient's right, front and head."""
    voxels = np.full((24, 30, 36), 10, dtype=np.float32)
    voxels[18:, 13:17, 16:20] = value_right
    voxels[10:14, 24:, 16:20] = value_front
    voxels[10:14, 13:17, 30:] = value_head
    return voxels


def oriented(codes: str, spacing=(1.0, 1.0, 1.0)):
    """The same body stored with other axes ("LPS", "PIR" ...): voxels and affine."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -20
    image = nibabel.Nifti1Image(body(), affine)
    start, end = nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(codes)
    turned = image.as_reoriented(nibabel.orientations.ornt_transform(start, end))
    return np.asarray(turned.dataobj), turned.affine


def places(pixels):
    """Which of the blocks of body() is seen where: (row, column) of the centres of mass, by brightness."""
    return {
        level: tuple(np.argwhere(np.isclose(pixels, grey, atol=0.01)).mean(axis=0).round().astype(int))
        for level, grey in ((100, 0.3), (200, 0.6), (300, 0.9))
        if np.isclose(pixels, grey, atol=0.01).any()
    }


SHOW = {"window": (500 / 3, 1000 / 3)}  # 0 is black, 100 is 0.3, 200 is 0.6, 300 is 0.9


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PIR", "ASL", "SRA", "IPL"])
def test_any_storage_order_is_seen_the_radiological_way(tmp_path, codes):
    path = write_nifti(tmp_path / "a.nii.gz", *oriented(codes))
    axial = load(path, slice_axis="axial", **SHOW).pixels
    assert axial.shape == (30, 24)
    seen = places(axial)
    assert seen[100][1] < 6, "the patient's right is on the left of the picture"
    assert seen[200][0] < 6, "the front is at the top"
    coronal = load(path, slice_axis="coronal", **SHOW).pixels
    assert coronal.shape == (36, 24)
    assert places(coronal)[300][0] < 6, "the head is at the top"
    assert places(coronal)[100][1] < 6
    sagittal = load(path, slice_axis="sagittal", **SHOW).pixels
    assert sagittal.shape == (36, 30)
    assert places(sagittal)[300][0] < 6
    assert places(sagittal)[200][1] < 6, "the face looks to the left"


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA"])
def test_slices_are_counted_from_the_feet_the_back_and_the_left(tmp_path, codes):
    path = write_nifti(tmp_path / "a.nii", *oriented(codes))
    ras = body() * 0.003
    for index in (0, 7, 35):
        expected = ras[::-1, ::-1, index].T
        assert load(path, slice_index=index, **SHOW).pixels == pytest.approx(expected, abs=1e-6)
    assert load(path, slice_axis="coronal", slice_index=25, **SHOW).pixels == pytest.approx(
        ras[::-1, 25, ::-1].T, abs=1e-6
    )
    assert np.array_equal(load(path, slice_fraction=1.0).pixels, load(path, slice_index=35).pixels)
    assert np.array_equal(load(path, slice_fraction=0.2).pixels, load(path, slice_index=7).pixels)
    assert np.array_equal(load(path).pixels, load(path, slice_index=18).pixels)
    with pytest.raises(ImageReadError, match="slice 36 was asked for, but the file has 36"):
        load(path, slice_index=36)


def test_oblique_volumes_take_the_nearest_plane(tmp_path):
    voxels, affine = oriented("RAS")
    angle = np.radians(20)
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine[:3, :3] = tilt @ affine[:3, :3]
    seen = places(load(write_nifti(tmp_path / "a.nii", voxels, affine), **SHOW).pixels)
    assert seen[100][1] < 6 and seen[200][0] < 6


def test_thick_slices_are_stretched_to_square_pixels(tmp_path):
    path = write_nifti(tmp_path / "a.nii", *oriented("LPS", spacing=(1.0, 1.0, 3.0)))
    assert load(path).pixels.shape == (30, 24)
    assert load(path, slice_axis="coronal").pixels.shape == (108, 24)


def test_ct_volumes_are_in_hounsfield_units(tmp_path):
    voxels = np.linspace(-1000, 1000, 8 * 8 * 3).reshape(8, 8, 3).astype(np.int16)
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    affine[:3, 3] = 7
    path = write_nifti(tmp_path / "a.nii", voxels, affine)
    chest = load(path, modality="Chest CT")
    assert chest.window == PRESETS["lung"]
    expected = np.interp(voxels[::-1, ::-1, 1].T, [-1350, 150], [0, 1])
    assert chest.pixels == pytest.approx(expected, abs=1e-6)
    assert load(path, modality="CT").window == PRESETS["soft tissue"]
    assert load(path, modality="CT", window="bone").window == PRESETS["bone"]
    low, high = np.percentile(voxels[..., 1], [0.5, 99.5])
    assert load(path, modality="MRI").window == pytest.approx(((low + high) / 2, high - low))


def test_ct_kept_as_bytes_is_not_in_hounsfield_units(tmp_path):
    voxels = np.arange(8 * 8 * 4, dtype=np.uint8).reshape(8, 8, 4)
    path = write_nifti(tmp_path / "a.nii", voxels, np.diag([2.0, 2.0, 5.0, 1.0]))
    assert load(path, modality="Chest CT").window[1] < 256
    with pytest.raises(ImageReadError, match="Hounsfield"):
        load(path, modality="Chest CT", window="lung")


def test_scale_factors_of_the_header_count(tmp_path):
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    image = nibabel.Nifti1Image((np.arange(256).reshape(8, 8, 4) * 10).astype(np.int16), affine)
    image.header.set_slope_inter(2.0, -1000.0)
    image.to_filename(tmp_path / "a.nii")
    stored = np.asarray(nibabel.load(tmp_path / "a.nii").dataobj)
    shown = load(tmp_path / "a.nii", window=(0, 9000)).pixels
    assert shown == pytest.approx(stored[::-1, ::-1, 2].T / 9000 + 0.5, abs=1e-6)


def test_sixteen_bit_volumes_stay_monotone(tmp_path):
    ramp = np.linspace(-32768, 32767, 64 * 64).round().astype(np.int16).reshape(64, 64, 1)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[0, 3] = 5
    pixels = load(write_nifti(tmp_path / "a.nii", ramp, affine)).pixels
    assert (np.diff(pixels.T.ravel()) >= 0).all()
    assert len(np.unique(pixels)) > 4000


def test_four_dimensional_files_give_volume_zero_unless_named(tmp_path):
    voxels = np.stack([body() * scale for scale in (1, 2, 3)], axis=-1)
    affine = oriented("RAS")[1]
    path = write_nifti(tmp_path / "a.nii.gz", voxels, affine)
    first = load(write_nifti(tmp_path / "b.nii.gz", body(), affine), **SHOW).pixels
    assert np.array_equal(load(path, **SHOW).pixels, first)
    assert load(path, frame=2, window=(500, 1000)).pixels == pytest.approx(first, abs=1e-6)
    with pytest.raises(ImageReadError, match="volume 3 was asked for, but the file has 3"):
        load(path, frame=3)


def test_more_than_four_axes_are_refused_unless_empty(tmp_path):
    affine = oriented("RAS")[1]
    path = write_nifti(tmp_path / "a.nii", np.zeros((4, 4, 4, 2, 2), np.float32), affine)
    with pytest.raises(ImageReadError, match="more than four axes"):
        load(path)
    path = write_nifti(tmp_path / "a.nii", body()[..., None, None], affine)
    assert load(path).pixels.shape == (30, 24)


@pytest.mark.parametrize("scale", [np.uint8(1), np.float32(1), np.float32(1 / 255)])
@pytest.mark.parametrize(
    ("arrange", "affine"),
    [
        (lambda p: p.transpose(1, 0, 2), ITK),  # ITK, planes written one after the other
        (lambda p: p.transpose(2, 1, 0), ITK),  # ITK, colours interleaved
        (lambda p: p, np.eye(4)),  # nibabel, array as it was
        (lambda p: p.transpose(2, 0, 1), np.eye(4)),
        (lambda p: p, None),
    ],
)
def test_colour_pictures_are_recognised(tmp_path, arrange, affine, scale):
    voxels = arrange(PICTURE) * scale
    image = load(write_nifti(tmp_path / "a.nii.gz", voxels.astype(scale.dtype), affine), modality="Fundus")
    assert np.array_equal(image.to_rgb(), PICTURE)


@pytest.mark.parametrize(
    ("arrange", "affine"),
    [
        (lambda p: p.T, ITK),
        (lambda p: p.T[..., None], ITK),
        (lambda p: p.T[..., None], np.diag([-1.0, -1.0, 999.0, 1.0])),  # nnU-Net
        (lambda p: p, np.eye(4)),
        (lambda p: p[..., None], None),
    ],
)
def test_grey_pictures_keep_their_scale(tmp_path, arrange, affine):
    grey = PICTURE[..., 0] // 2
    for voxels in (arrange(grey), arrange(grey).astype(np.float32), (arrange(grey) / 255).astype(np.float32)):
        image = load(write_nifti(tmp_path / "a.nii", voxels, affine), modality="OCT")
        assert np.array_equal(image.to_grey(), grey)


def test_vector_and_rgb24_pictures_of_itk(tmp_path):
    image = nibabel.Nifti1Image(PICTURE.transpose(1, 0, 2)[:, :, None, None], ITK)
    image.header.set_intent("vector")
    image.to_filename(tmp_path / "a.nii")
    assert np.array_equal(load(tmp_path / "a.nii").to_rgb(), PICTURE)
    packed = np.ascontiguousarray(PICTURE.transpose(1, 0, 2)).view([("R", "u1"), ("G", "u1"), ("B", "u1")])
    for name, affine in (("b.nii", ITK), ("c.nii", np.diag([-2.0, -2.0, 1.0, 1.0]) + np.eye(4, k=3))):
        write_nifti(tmp_path / name, packed, affine)
        assert np.array_equal(load(tmp_path / name).to_rgb(), PICTURE)


def test_three_slices_of_a_scanner_are_a_volume(tmp_path):
    voxels, affine = oriented("LPS")
    image = load(write_nifti(tmp_path / "a.nii", voxels[..., :3], affine))
    assert image.pixels.shape == (30, 24)


def test_nifti_two_and_big_endian_are_read(tmp_path):
    voxels, affine = oriented("LPS")
    expected = load(write_nifti(tmp_path / "a.nii", voxels, affine)).pixels
    nibabel.Nifti2Image(voxels, affine).to_filename(tmp_path / "b.nii")
    assert np.array_equal(load(tmp_path / "b.nii").pixels, expected)
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">f4")
    nibabel.Nifti1Image(voxels, affine, header).to_filename(tmp_path / "c.nii")
    assert np.array_equal(load(tmp_path / "c.nii").pixels, expected)


def refusal(path, **arguments) -> str:
    with pytest.raises(ImageReadError) as caught:
        load(path, **arguments)
    assert str(path) in str(caught.value)
    return caught.value.reason


def test_not_a_number_is_refused_with_the_count(tmp_path):
    voxels, affine = oriented("RAS")
    voxels[3:5, 3, 18] = np.nan
    path = write_nifti(tmp_path / "a.nii", voxels, affine)
    assert "2 pixels are not finite" in refusal(path)
    assert load(path, slice_index=17).pixels.shape == (30, 24)


def test_headers_that_make_no_sense_are_refused(tmp_path):
    path = write_nifti(tmp_path / "a.nii", *oriented("RAS"))
    assert "shape" in refusal(damaged(path, tmp_path / "b.nii", flips={42: 0, 43: 0}))
    assert "voxels at byte" in refusal(damaged(path, tmp_path / "c.nii", flips={110: 0x7F, 111: 0x4F}))
    assert "cut short" in refusal(damaged(path, tmp_path / "d.nii", cut=-1))
    assert ".hdr/.img pair" in refusal(damaged(path, tmp_path / "e.nii", flips={345: ord("i")}))
    singular = nibabel.Nifti1Image(body(), None)
    singular.header["sform_code"] = 1
    singular.header["srow_x"] = singular.header["srow_y"] = singular.header["srow_z"] = [1, 1, 1, 3]
    path.write_bytes(singular.header.binaryblock + bytes(4) + body().tobytes(order="F"))
    damaged(path, path, flips=dict(zip(range(108, 112), struct.pack("<f", 352), strict=True)))
    damaged(path, path, flips=dict(zip(range(344, 348), b"n+1\0", strict=True)))
    assert "not invertible" in refusal(path)


def test_complex_voxels_and_odd_colours_are_refused(tmp_path):
    affine = oriented("RAS")[1]
    assert "complex" in refusal(write_nifti(tmp_path / "a.nii", body().astype(np.complex64), affine))
    path = write_nifti(tmp_path / "b.nii", PICTURE.astype(np.float32) - 200, np.eye(4))
    assert "no scale of colours" in refusal(path)
    path = write_nifti(tmp_path / "c.nii", PICTURE, np.eye(4))
    assert "in colour" in refusal(path, window=(0, 10))
    assert "2-D picture" in refusal(path, frame=1)


def test_a_packed_bomb_is_refused_by_its_header(tmp_path):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((20000, 20000, 20000))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(1000)))
    assert "more than the limit" in refusal(path)
    path.write_bytes(gzip.compress(b"hello" * 200))
    assert "not NIfTI" in refusal(path)
