"""Images as a reader may see them: encoded anew, all of a study in one form.

A study has *full depth* if every one of its images is a grey picture of more than 8 bits (DICOM, NIfTI, 16-bit PNG):
its pictures are 16-bit grey PNG with the chunk ``viEw`` (below), and the reader chooses the window. If one is not,
every picture is 8-bit RGB PNG, windowed as medsyn.imaging.load does. So neither headers, address, name, type nor bit
depth differ between real and generated images that are rated beside each other; the files' own metadata is gone.

What a determined reader can still see: the pixels, hence width and height, whether there is any colour, how many grey
levels are in use, the length of the compressed reply; the time of the first reply to anybody, which has to decode the
file; in a study of full depth the range of values and the window that the file itself asks for; and that such a study
holds no picture of 8 bits, as generators make them.

``viEw`` (ancillary, private, safe to copy): little-endian float64 slope, intercept (value = sample * slope +
intercept), centre and width of the first window, then two bytes: unit (0: %, 1: HU) and whether the window is DICOM's
LINEAR (1) or LINEAR_EXACT (0).
"""

import logging
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from django.conf import settings
from django.http import Http404, HttpResponse

from generation.models import GeneratedImage
from medsyn.artifacts import write_bytes
from ratings.models import Study

CHUNK = b"viEw"
CHUNK_LAYOUT = "<4d2B"
_log = logging.getLogger(__name__)
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_VERSION = 2  # of the encoding: raise it with every change of the bytes
_COMPRESSION = 1  # of zlib: a third of the time of 6, for some 10 % more bytes, which are sent once


def have_full_depth(images: Iterable[GeneratedImage]) -> bool:
    """Whether every image is grey of more than 8 bits; reads files until one is not."""
    return all(_is_deep(image) for image in images)


def _is_deep(image: GeneratedImage) -> bool:
    from medsyn.imaging import ImageReadError, is_deep  # heavy imports only when an image is asked for

    try:
        return is_deep(image.path)
    except ImageReadError:
        return False  # the form that every picture has


def image_reply(image: GeneratedImage, study: Study) -> HttpResponse:
    """The picture as a reader of the study gets it, with the same headers for every picture. Http404 where the file
    is missing or broken; the log says why."""
    from medsyn.imaging import ImageReadError

    try:
        content = reader_png(image, full_depth=study.has_full_depth)
    except ImageReadError as error:
        _log.error("Image %s cannot be shown to readers: %s", image.public_id, error)
        raise Http404("This image cannot be read.") from error
    response = HttpResponse(content, content_type="image/png")
    response["Cache-Control"] = "private, max-age=86400, immutable"
    response["Content-Disposition"] = 'inline; filename="image.png"'
    return response


def reader_png(image: GeneratedImage, *, full_depth: bool) -> bytes:
    """The picture as PNG in one of the two forms, kept on disk once it has been made. A copy is found by the image's
    sha256 and the file's size and time, so that a file that was replaced is read again; the folder may be emptied at
    any time. Raises ImageReadError where the file is missing or broken."""
    path = _copy_of(image, full_depth)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        content = _full_depth_png(image) if full_depth else _rgb_png(image)
        write_bytes(path, content)
        return content


def _copy_of(image: GeneratedImage, full_depth: bool) -> Path:
    from medsyn.imaging import ImageReadError

    try:
        found = image.path.stat()
    except OSError as error:
        raise ImageReadError(image.path, "there is no such file") from error
    form = "deep" if full_depth else "rgb"
    kind = image.prompt.kind  # decides the window
    name = f"{image.sha256}-{found.st_size:x}-{found.st_mtime_ns:x}-{kind}-{form}-{_VERSION}.png"
    return settings.VAR_DIR / "cache" / "reader_images" / image.sha256[:2] / name


def _full_depth_png(image: GeneratedImage) -> bytes:
    """16 bits of grey; colours, which have no such depth, as 8-bit RGB."""
    from medsyn.imaging import load_values

    found = load_values(image.path, modality=image.prompt.parsed.kind.prefix)
    if found is None:
        return _rgb_png(image)
    numbers = (found.slope, found.intercept, *found.window.pair)
    view = struct.pack(CHUNK_LAYOUT, *numbers, found.unit == "HU", found.window.function == "LINEAR")
    return _png(found.samples, _chunk(CHUNK, view))


def _rgb_png(image: GeneratedImage) -> bytes:
    """8 bits of three channels, of grey pictures too; no chunk beside the pixels."""
    from medsyn.imaging import load

    return _png(load(image.path, modality=image.prompt.parsed.kind.prefix).to_rgb())


def _png(pixels: np.ndarray, extra: bytes = b"") -> bytes:
    """PNG (ISO/IEC 15948) of uint16 (H, W) or uint8 (H, W, 3). Every row has the filter Sub: to try all five, as
    libraries do, takes two to three times as long on either side for some 10 % fewer bytes."""
    rows, columns = pixels.shape[:2]
    depth, colour, step = (16, 0, 2) if pixels.dtype == np.uint16 else (8, 2, 3)
    plain = (pixels.astype(">u2") if depth == 16 else np.ascontiguousarray(pixels)).view(np.uint8).reshape(rows, -1)
    filtered = np.ones((rows, plain.shape[1] + 1), dtype=np.uint8)  # 1, for Sub, before each row
    filtered[:, 1 : 1 + step] = plain[:, :step]
    np.subtract(plain[:, step:], plain[:, :-step], out=filtered[:, 1 + step :])
    header = struct.pack(">2I5B", columns, rows, depth, colour, 0, 0, 0)
    packed = zlib.compress(filtered, _COMPRESSION)
    return _SIGNATURE + _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
