"""PNG and JPEG: EXIF orientation obeyed, transparency laid on black, 16-bit grey kept in full."""

import numpy as np
from PIL import Image, ImageOps

from medsyn.imaging.reading import Reading
from medsyn.imaging.request import ReadRequest
from medsyn.imaging.windowing import Window, bit_depth


def read_raster(request: ReadRequest) -> Reading:
    """Read a PNG or JPEG file; a window, if one is given, is in stored values and for grey pictures only."""
    if request.frame not in (None, 0):
        raise request.refuse(f"frame {request.frame} was asked for, but a PNG or JPEG file has one picture")
    with Image.open(request.path, formats=("PNG", "JPEG")) as picture:
        request.check_size(picture.height, picture.width)
        name = "png" if picture.format == "PNG" else "jpeg"
        upright = ImageOps.exif_transpose(picture)
        values, bits = _samples(upright)
    if request.window is None:
        return Reading(values / np.float32(2**bits - 1), None, request.path, name, bits)
    if isinstance(request.window, str):
        raise request.refuse(
            f"the window {request.window!r} is in Hounsfield units, which {name.upper()} does not keep"
        )
    if values.ndim == 3:
        raise request.refuse("a window was asked for, but the picture is in colour")
    return Reading(values, Window(*request.window), request.path, name, bits)


def _samples(picture: Image.Image) -> tuple[np.ndarray, int]:
    """Stored samples, float32 (H, W) or (H, W, 3), and how many bits they use."""
    if picture.mode.startswith("I"):  # 16-bit grey, in Pillow's "I;16" or "I"
        values = np.asarray(picture).astype(np.float32)
        return values, bit_depth(float(values.max()))
    if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L"), dtype=np.float32), 8
    if picture.mode == "LA":
        return np.asarray(_on_black(picture).convert("L"), dtype=np.float32), 8
    if "A" in picture.mode or "transparency" in picture.info:
        picture = _on_black(picture)
    return np.asarray(picture.convert("RGB"), dtype=np.float32), 8


def _on_black(picture: Image.Image) -> Image.Image:
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)


def holds_deep_raster(request: ReadRequest) -> bool:
    """Whether the file is grey with 16 bits. Pillow opens every other mode, also 16-bit colour, with 8."""
    with Image.open(request.path, formats=("PNG", "JPEG")) as picture:
        return picture.mode.startswith("I")
