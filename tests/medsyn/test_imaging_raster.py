"""PNG and JPEG: orientation, bit depths, transparency, colours."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from medsyn.imaging import MAX_PIXELS, ImageReadError, load

GREY = np.random.default_rng(0).integers(0, 256, (12, 20)).astype(np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (12, 20, 3)).astype(np.uint8)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def test_grey_and_colour_both_give_three_channels(tmp_path):
    """The predecessors' scorers crashed on RGB."""
    grey, colour = load(save(tmp_path / "g.png", GREY)), load(save(tmp_path / "c.png", COLOUR))
    assert grey.pixels.shape == (12, 20)
    assert np.array_equal(grey.to_rgb(), np.repeat(GREY[..., None], 3, axis=2))
    assert np.array_equal(colour.to_rgb(), COLOUR)
    assert (grey.format, grey.bits, grey.window) == ("png", 8, None)


@pytest.mark.parametrize(("largest", "bits"), [(65535, 16), (16383, 14), (4095, 12), (1023, 10), (255, 8)])
def test_sixteen_bit_png_keeps_every_level(tmp_path, largest, bits):
    ramp = np.linspace(0, largest, 256 * 16).round().astype(np.uint16).reshape(64, 64)
    image = load(save(tmp_path / "a.png", ramp))
    assert image.bits == bits
    assert image.pixels == pytest.approx(ramp / (2**bits - 1), abs=1e-6)
    assert (np.diff(image.pixels.ravel()) >= 0).all()
    assert len(np.unique(image.pixels)) == len(np.unique(ramp))


def test_a_window_applies_to_stored_grey_values(tmp_path):
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    image = load(save(tmp_path / "a.png", ramp), window=(1000, 500))
    assert image.pixels == pytest.approx(np.interp(ramp, [750, 1250], [0, 1]), abs=1e-6)
    with pytest.raises(ImageReadError, match="Hounsfield"):
        load(tmp_path / "a.png", window="lung")
    with pytest.raises(ImageReadError, match="in colour"):
        load(save(tmp_path / "c.png", COLOUR), window=(100, 50))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(tmp_path, orientation):
    """All eight orientations, each written as its definition says, come out alike."""
    scene = np.zeros((32, 48), dtype=np.uint8)
    scene[:8, :16] = 255
    as_stored = {
        1: scene,
        2: scene[:, ::-1],
        3: scene[::-1, ::-1],
        4: scene[::-1],
        5: scene.T,
        6: np.rot90(scene),
        7: scene[::-1, ::-1].T,
        8: np.rot90(scene, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.jpg", np.ascontiguousarray(as_stored), exif=exif, quality=95)
    image = load(path)
    assert image.format == "jpeg"
    assert np.abs(image.to_grey().astype(int) - scene).max() < 20


def test_transparency_lies_on_black(tmp_path):
    alpha = np.full((12, 20, 1), 255, np.uint8)
    alpha[:, 10:] = 0
    shown = load(save(tmp_path / "a.png", np.concatenate([COLOUR, alpha], axis=2))).to_rgb()
    assert np.array_equal(shown[:, :10], COLOUR[:, :10])
    assert not shown[:, 10:].any()
    grey = load(save(tmp_path / "b.png", np.stack([GREY, alpha[..., 0]], axis=2)))
    assert grey.pixels.ndim == 2
    assert np.array_equal(grey.to_grey()[:, :10], GREY[:, :10])


def test_palette_bilevel_and_cmyk(tmp_path):
    palette = Image.fromarray(COLOUR).quantize(16)
    palette.save(tmp_path / "p.png")
    assert np.array_equal(load(tmp_path / "p.png").to_rgb(), np.asarray(palette.convert("RGB")))
    Image.fromarray(GREY).convert("1").save(tmp_path / "b.png")
    assert set(np.unique(load(tmp_path / "b.png").to_grey())) == {0, 255}
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    cmyk.save(tmp_path / "k.jpg")
    assert load(tmp_path / "k.jpg").pixels[8, 8] == pytest.approx([1, 0, 0], abs=0.05)


def test_a_wrong_extension_does_not_matter(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.dcm", format="PNG")
    assert load(tmp_path / "a.dcm").format == "png"


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path):
    side = int(MAX_PIXELS**0.5) + 100

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageReadError, match="more than the limit"):
        load(tmp_path / "a.png")


def test_other_formats_and_frames_are_refused(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, "GIF")
    (tmp_path / "a.png").write_bytes(stream.getvalue())
    with pytest.raises(ImageReadError, match="not PNG, JPEG, DICOM or NIfTI; it begins with b'GIF8"):
        load(tmp_path / "a.png")
    with pytest.raises(ImageReadError, match="has one picture"):
        load(save(tmp_path / "b.png", GREY), frame=1)
