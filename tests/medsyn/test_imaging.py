"""One load(): what it refuses, what its picture can do; broken files of every format; no doors left open."""

import pickle  # noqa: TID251 - how data loaders carry errors between processes
import random
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import JPEG2000Lossless, RLELossless

from medsyn.imaging import ImageReadError, MedicalImage, load
from medsyn.imaging.windowing import Window, apply_window, percentile_window
from medsyn.modalities import UnknownModality
from tests.medsyn.imaging_files import RAMP, damaged, hounsfield, write_dicom, write_nifti


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"Patient: none\n" * 40, "begins with b'Patient: none"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read"),
        (b"\xff\xd8\xff\xe0", "cannot be read"),
        (bytes(128) + b"DICM", "cannot be read|no pixel data"),
        (b"\x08\x00\x05\x00", "cannot be read|no pixel data"),
        (b"\x1f\x8b\x08\x00", "cannot be read"),
        (b"\x5c\x01\x00\x00", "begins with"),
    ],
)
@pytest.mark.parametrize("name", ["a.dcm", "a.nii.gz"])
def test_what_is_no_image_is_refused_with_file_and_reason(tmp_path, content, reason, name):
    path = tmp_path / name
    path.write_bytes(content)
    if content == b"\x08\x00\x05\x00" and name != "a.dcm":
        reason = "begins with"
    with pytest.raises(ImageReadError, match=reason) as caught:
        load(path)
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: ")


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(ImageReadError, match="no such file"):
        load(tmp_path / "missing.png")
    with pytest.raises(ImageReadError, match="not a file"):
        load(tmp_path)
    with pytest.raises(ImageReadError, match="limit"):
        huge = tmp_path / "huge.dcm"
        with huge.open("wb") as file:
            file.truncate(3 << 30)  # sparse: takes no room
        load(huge)


def test_the_callers_mistakes_are_value_errors_before_the_file_is_touched():
    for arguments in (
        {"window": "spleen"},
        {"window": (40, 0)},
        {"window": (float("nan"), 1)},
        {"slice_axis": "diagonal"},
        {"slice_index": 1, "slice_fraction": 0.5},
        {"slice_fraction": 1.5},
    ):
        with pytest.raises(ValueError) as caught:
            load("nowhere.png", **arguments)
        assert not isinstance(caught.value, ImageReadError)
    with pytest.raises(UnknownModality):
        load("nowhere.png", modality="Ultrasound")


def test_the_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(ImageReadError("a.png", "it is broken")))
    assert (str(error), error.path.name, error.reason) == ("a.png: it is broken", "a.png", "it is broken")


def medical_image(pixels):
    return MedicalImage(np.asarray(pixels, dtype=np.float32), source=None, format="png", bits=8)


@pytest.mark.parametrize("colours", [(), (3,)])
def test_pad_and_crop_keep_the_proportions(colours):
    pixels = np.zeros((40, 80, *colours))
    pixels[10:30, 30:50] = 1  # a square in the middle, 20 x 20
    for fit, side in (("pad", 16), ("crop", 32)):
        shown = medical_image(pixels).to_rgb(64, fit=fit)
        assert shown.shape == (64, 64, 3) and shown.dtype == np.uint8
        rows, columns = np.nonzero(shown[..., 0] > 127)
        assert np.ptp(rows) + 1 == pytest.approx(side, abs=1)
        assert np.ptp(columns) + 1 == pytest.approx(side, abs=1)
        assert rows.mean() == pytest.approx(31.5, abs=1)
    assert not medical_image(np.ones((40, 80, *colours))).to_rgb(64)[:15].any()
    assert medical_image(np.ones((40, 80, *colours))).to_rgb(64, fit="crop").min() == 255
    assert medical_image(pixels).to_grey((30, 90)).shape == (30, 90)


def test_shrinking_averages_instead_of_picking():
    board = np.indices((256, 256)).sum(axis=0) % 2
    assert medical_image(board).to_grey(32)[4:-4, 4:-4] == pytest.approx(127.5, abs=3)


def test_sizes_that_make_no_sense():
    image = medical_image(np.zeros((4, 4)))
    with pytest.raises(ValueError, match="'pad' or 'crop'"):
        image.to_rgb(8, fit="stretch")
    with pytest.raises(ValueError, match="at least one pixel"):
        image.to_rgb(0)
    assert medical_image(np.ones((1, 1000))).to_rgb(16).shape == (16, 16, 3)


def test_grey_of_colours_is_luma():
    pixels = np.eye(3, dtype=np.float32)[None]  # one row: red, green, blue
    assert medical_image(pixels).to_grey().tolist() == [[76, 150, 29]]


def test_percentiles_of_blank_and_sparse_pictures():
    blank = np.full((8, 8), 5.0)
    assert not apply_window(blank, percentile_window(blank)).any()
    sparse = np.zeros((64, 64))
    sparse[0, 0] = 9
    assert apply_window(sparse, percentile_window(sparse)).max() == 1
    everything_padded = percentile_window(sparse, np.ones_like(sparse, dtype=bool))
    assert everything_padded.width == 9


def test_fractional_windows_are_exact_whatever_they_are_called():
    values = np.linspace(0, 1, 11)
    assert apply_window(values, Window(0.5, 0.5, "LINEAR")) == pytest.approx(np.interp(values, [0.25, 0.75], [0, 1]))


def sources(folder):
    """A whole file of every format and way of compressing."""
    native = hounsfield(folder / "native.dcm", RAMP.astype(int) - 1024)
    for name, syntax in (("rle.dcm", RLELossless), ("j2k.dcm", JPEG2000Lossless)):
        dataset = pydicom.dcmread(write_dicom(folder / name, RAMP, Modality="MR"))
        dataset.compress(syntax)
        dataset.save_as(folder / name)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 65536, (32, 32)).astype(np.uint16)).save(folder / "a.png")
    Image.fromarray(rng.integers(0, 256, (40, 60, 3)).astype(np.uint8)).save(folder / "a.jpg")
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    affine[:3, 3] = 9
    volume = rng.normal(size=(16, 16, 8)).astype(np.float32)
    return [
        native,
        *(folder / name for name in ("rle.dcm", "j2k.dcm", "a.png", "a.jpg")),
        write_nifti(folder / "a.nii", volume, affine),
        write_nifti(folder / "a.nii.gz", volume, affine),
    ]


def read_or_refuse(path) -> bool:
    """Whether a damaged file is still an image; any error but ImageReadError goes up to the test."""
    try:
        image = load(path, modality="CT")
    except ImageReadError:
        return False
    assert np.isfinite(image.pixels).all() and image.pixels.min() >= 0 and image.pixels.max() <= 1
    return True


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_truncated_files_are_refused(tmp_path):
    for source in sources(tmp_path):
        size = source.stat().st_size
        assert read_or_refuse(source)
        cuts = [size * step // 50 for step in range(50)]
        kept = [cut for cut in cuts if read_or_refuse(damaged(source, tmp_path / f"cut_{source.name}", cut=cut))]
        if source.name == "a.nii.gz":
            kept = [cut for cut in kept if cut < size / 2]  # the middle slice can be whole
        assert not kept, f"{source.name} of {size} bytes was read from its first {kept}"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_flipped_bytes_give_an_image_or_a_refusal(tmp_path):
    rng = random.Random(2)
    for source in sources(tmp_path):
        size = source.stat().st_size
        for turn in range(60):
            reach = size if turn % 2 else min(size, 700)  # every other time in the header
            flips = {rng.randrange(reach): rng.randrange(256) for _ in range(rng.choice([1, 4, 16]))}
            read_or_refuse(damaged(source, tmp_path / f"flipped_{source.name}", flips=flips))


def test_imaging_knows_neither_django_nor_torch():
    code = "import sys, medsyn.imaging; sys.exit(any(name in sys.modules for name in ('django', 'torch', 'celery')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
