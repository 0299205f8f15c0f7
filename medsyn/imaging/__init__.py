"""Medical image files to upright, windowed pictures: PNG, JPEG, DICOM and NIfTI through one ``load``.

Files are untrusted: sizes are checked before anything is decoded, and every refusal is an ImageReadError that names
the file and the reason. The kind of file is told by its content, never by its name alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medsyn.imaging.dicom import holds_deep_dicom, read_dicom
from medsyn.imaging.image import ImageReadError, MedicalImage
from medsyn.imaging.nifti import HEADER_BYTES, header_size, holds_deep_nifti, read_nifti
from medsyn.imaging.raster import holds_deep_raster, read_raster
from medsyn.imaging.reading import Reading
from medsyn.imaging.request import MAX_FILE_BYTES, MAX_PIXELS, MAX_VOLUME_BYTES, SLICE_AXES, ReadRequest
from medsyn.imaging.values import ValueImage, value_image
from medsyn.imaging.windowing import PRESETS
from medsyn.modalities import kind_from_name

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "MAX_VOLUME_BYTES",
    "PRESETS",
    "SLICE_AXES",
    "ImageReadError",
    "MedicalImage",
    "ValueImage",
    "is_deep",
    "load",
    "load_values",
]

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_GZIP = b"\x1f\x8b"
# First group of a DICOM file without preamble, in little-endian order: identification, or file meta information.
_BARE_DICOM = (b"\x08\x00", b"\x02\x00")
_READERS = {"raster": read_raster, "dicom": read_dicom, "nifti": read_nifti}
_DEPTH = {"raster": holds_deep_raster, "dicom": holds_deep_dicom, "nifti": holds_deep_nifti}


def load(
    path: Path | str,
    *,
    modality: str | None = None,
    window: str | tuple[float, float] | None = None,
    frame: int | None = None,
    slice_axis: str | None = None,
    slice_index: int | None = None,
    slice_fraction: float | None = None,
) -> MedicalImage:
    """Read one picture of a medical image file.

    modality: modality, kind or prompt prefix ("CT", "Chest CT"); decides how values without a window are shown.
    window: a preset of PRESETS (Hounsfield units), (centre, width) in the file's rescaled units, or None: the file's
        own window; without one, chest CT in HU through "lung", other CT through "soft tissue", everything else from
        its 0.5th to its 99.5th percentile. 8-bit pictures and 2-D pictures kept as NIfTI are shown as they are.
    frame: DICOM frame (default: the middle one) or volume of a 4-D NIfTI (default: 0).
    slice_axis, slice_index, slice_fraction: for NIfTI volumes: "axial" (default), "coronal" or "sagittal"; index from
        the feet, the back or the left, or a fraction of the way from there; default: the middle slice.

    Raises ImageReadError for whatever is wrong with the file, ValueError for arguments that make no sense.
    """
    kind = None if modality is None else kind_from_name(modality)
    request = ReadRequest(Path(path), kind, window, frame, slice_axis, slice_index, slice_fraction)
    with _named(request):
        return _read(request).picture()


def load_values(path: Path | str, *, modality: str | None = None) -> ValueImage | None:
    """The picture that load() gives for these arguments in its full depth, for a viewer; None where it is in colour.
    Raises what load() raises."""
    request = ReadRequest(Path(path), None if modality is None else kind_from_name(modality))
    with _named(request):
        return value_image(_read(request))


def is_deep(path: Path | str) -> bool:
    """Whether the file holds a grey picture of more than 8 bits, by its header alone. Raises ImageReadError."""
    request = ReadRequest(Path(path))
    with _named(request):
        return _DEPTH[_format(request)](request)


@contextmanager
def _named(request: ReadRequest) -> Iterator[None]:
    """Every failure within is an ImageReadError that names the file."""
    try:
        yield
    except ImageReadError:
        raise
    except Exception as error:
        # Decoders of broken files raise anything from KeyError to struct.error; the cause stays attached.
        raise request.refuse(f"cannot be read ({type(error).__name__}: {error})") from error


def _read(request: ReadRequest) -> Reading:
    return _READERS[_format(request)](request)


def _format(request: ReadRequest) -> str:
    """The kind of file by its content: "raster", "dicom" or "nifti"."""
    beginning = _beginning(request)
    if beginning.startswith(_PNG) or beginning.startswith(_JPEG):
        return "raster"
    if beginning[128:132] == b"DICM":
        return "dicom"
    if beginning.startswith(_GZIP) or header_size(beginning) is not None:
        return "nifti"
    if request.path.suffix.lower() == ".dcm" and beginning.startswith(_BARE_DICOM):
        return "dicom"
    raise request.refuse(f"its content is not PNG, JPEG, DICOM or NIfTI; it begins with {beginning[:16]!r}")


def _beginning(request: ReadRequest) -> bytes:
    if not request.path.exists():
        raise request.refuse("there is no such file")
    if not request.path.is_file():
        raise request.refuse("it is not a file")
    size = request.path.stat().st_size
    if size == 0:
        raise request.refuse("the file is empty")
    if size > MAX_FILE_BYTES:
        raise request.refuse(f"its {size:,} bytes are more than the limit of {MAX_FILE_BYTES:,}")
    with request.path.open("rb") as file:
        return file.read(HEADER_BYTES)
