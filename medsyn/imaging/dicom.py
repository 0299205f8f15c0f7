"""DICOM: one frame, decoded from any transfer syntax, rescaled, windowed, turned upright, with square pixels.

Order of the grey-scale pipeline (DICOM PS3.4 N.2): stored value -> modality LUT or rescale slope and intercept ->
VOI LUT or window -> inversion of MONOCHROME1. Where a file names several windows the first one counts. Pixel padding
is black and takes no part in percentiles.
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.uid import ImplicitVRLittleEndian

from medsyn.imaging import codestream, geometry
from medsyn.imaging.reading import Reading
from medsyn.imaging.request import ReadRequest
from medsyn.imaging.windowing import (
    PRESETS,
    Window,
    apply_lookup,
    is_chest_kind,
    preset_name,
    rule_window,
)

_PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_GREY = ("MONOCHROME1", "MONOCHROME2")
_WINDOW_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def read_dicom(request: ReadRequest) -> Reading:
    """Read one frame (the middle one unless ``request.frame`` names another) of a DICOM file."""
    dataset = _read_dataset(request)
    frame_count = int(dataset.get("NumberOfFrames") or 1)
    if frame_count < 1:
        raise request.refuse(f"NumberOfFrames is {frame_count}")
    frame = request.pick(frame_count, request.frame, "frame")
    stored = _decode(request, dataset, frame, frame_count)
    spacing = _spacing(dataset, frame)
    lay_out = functools.partial(_lay_out, request, dataset, frame, spacing)
    bits = int(dataset.get("BitsStored", dataset.BitsAllocated))
    if dataset.PhotometricInterpretation in _GREY:
        return _grey_levels(request, dataset, frame, stored, bits=bits, lay_out=lay_out)
    return Reading(_colours(dataset, stored), None, request.path, "dicom", bits, lay_out)


def holds_deep_dicom(request: ReadRequest) -> bool:
    """Whether the file is grey with more than 8 bits, by the elements before its pixels."""
    codestream.check_deflated(request)
    wanted = ["PhotometricInterpretation", "BitsStored", "BitsAllocated"]
    header = pydicom.dcmread(request.path, force=True, stop_before_pixels=True, specific_tags=wanted)
    bits = int(header.get("BitsStored", None) or header.get("BitsAllocated", None) or 0)
    return header.get("PhotometricInterpretation") in _GREY and bits > 8


def _read_dataset(request: ReadRequest) -> Dataset:
    """Everything in the file, its header checked against the limits."""
    codestream.check_deflated(request)
    dataset = pydicom.dcmread(request.path, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # what files without a preamble are written in
    if not any(keyword in dataset for keyword in _PIXEL_KEYWORDS):
        raise request.refuse("this DICOM file has no pixel data: it is a report, a directory, or cut short")
    for keyword in ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation"):
        if dataset.get(keyword) is None:
            raise request.refuse(f"the DICOM element {keyword} is missing, without which its pixels mean nothing")
    request.check_size(int(dataset.Rows), int(dataset.Columns))
    return dataset


def _decode(request: ReadRequest, dataset: Dataset, frame: int, frame_count: int) -> np.ndarray:
    """Stored values (H, W) or (H, W, 3), bits above the stored ones (old overlays) cleared."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        encoded = get_frame(dataset.PixelData, frame, number_of_frames=frame_count)
        codestream.check_frame(request, encoded, int(dataset.Rows), int(dataset.Columns))
    stored = _decompress(request, dataset, frame)
    if stored.dtype.kind == "f":
        return stored
    unused = stored.dtype.itemsize * 8 - int(dataset.get("BitsStored", dataset.BitsAllocated))
    high_bit = int(dataset.get("HighBit", dataset.get("BitsStored", 0) - 1))
    if unused <= 0 or high_bit != int(dataset.BitsStored) - 1:
        return stored
    # Up and down again: clears the unused bits of unsigned values and extends the sign of signed ones.
    return np.right_shift(np.left_shift(stored, unused), unused)


def _decompress(request: ReadRequest, dataset: Dataset, frame: int) -> np.ndarray:
    try:
        return pixel_array(dataset, index=frame)
    except BaseException as error:
        # The RLE decoder is Rust: on broken data it panics, which Python sees as a BaseException of its own.
        if isinstance(error, Exception) or type(error).__name__ != "PanicException":
            raise
        raise request.refuse(f"its compressed pixels are broken ({error})") from error


def _values_of(dataset: Dataset, frame: int, keyword: str, sequence: str) -> Any:
    """An element of the frame: of its functional group, of the shared group, or of the dataset; None if absent."""
    for holder in _holders(dataset, frame, sequence):
        if holder.get(keyword) is not None:
            return holder[keyword].value
    return None


def _holders(dataset: Dataset, frame: int, sequence: str) -> Iterator[Dataset]:
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    groups = [*per_frame[frame : frame + 1], *(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]]
    for group in groups:
        yield from (group.get(sequence) or [])[:1]
    yield dataset


def _grey_levels(request: ReadRequest, dataset: Dataset, frame: int, stored: np.ndarray, **given: Any) -> Reading:
    if stored.ndim != 2:
        raise request.refuse(f"{dataset.PhotometricInterpretation} pixels came out with shape {stored.shape}")
    values = _modality_values(request, dataset, frame, stored)
    if not np.isfinite(values).all():
        raise request.refuse(f"{np.count_nonzero(~np.isfinite(values))} pixels are not finite numbers")
    padding = _padding(dataset, stored)
    lookup = next(iter(_values_of(dataset, frame, "VOILUTSequence", "FrameVOILUTSequence") or []), None)
    window = None
    if lookup is not None and request.window is None:
        table, first_mapped, bits = _lookup_table(dataset, lookup, values)
        values = (apply_lookup(values, table, first_mapped) / np.float32(2**bits - 1)).clip(0, 1)
    else:
        window = _choose_window(request, dataset, frame, values, padding)
    return Reading(
        values,
        window,
        request.path,
        "dicom",
        is_hounsfield=_is_hounsfield(dataset, frame),
        is_inverted=dataset.PhotometricInterpretation == "MONOCHROME1",
        padding=padding,
        **given,
    )


def _modality_values(request: ReadRequest, dataset: Dataset, frame: int, stored: np.ndarray) -> np.ndarray:
    """Stored to rescaled values (HU for CT), float wide enough to keep every one apart."""
    values = stored.astype(np.float32 if stored.dtype.itemsize <= 2 else np.float64)
    lookup = next(iter(dataset.get("ModalityLUTSequence") or []), None)
    if lookup is not None:
        table, first_mapped, _ = _lookup_table(dataset, lookup, values)
        return apply_lookup(values, table, first_mapped)
    slope, intercept = _rescale(dataset, frame)
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise request.refuse(f"RescaleSlope {slope:g} and RescaleIntercept {intercept:g} leave no picture")
    return values * values.dtype.type(slope) + values.dtype.type(intercept)


def _rescale(dataset: Dataset, frame: int) -> tuple[float, float]:
    sequence = "PixelValueTransformationSequence"
    slope = _values_of(dataset, frame, "RescaleSlope", sequence)
    intercept = _values_of(dataset, frame, "RescaleIntercept", sequence)
    return (1.0 if slope is None else float(slope)), (0.0 if intercept is None else float(intercept))


def _lookup_table(dataset: Dataset, item: Dataset, values: np.ndarray) -> tuple[np.ndarray, int, int]:
    """The float32 table of a LUT sequence item, the value its first entry stands for, and the bits of its entries."""
    count, first_mapped, bits = (int(number) for number in item.LUTDescriptor)
    count = count or 1 << 16  # 0 stands for 65536, which does not fit
    if first_mapped > 0x7FFF and values.min() < 0:
        first_mapped -= 1 << 16  # a signed number read as an unsigned one
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        data = np.frombuffer(data, dtype=f"{order}u2")
    table = np.asarray(data, dtype=np.float32).ravel()[:count]
    return table, first_mapped, bits


def _padding(dataset: Dataset, stored: np.ndarray) -> np.ndarray | None:
    """Where the stored values are pixel padding: (H, W) bool, or None where the file names no padding value."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return (stored >= low) & (stored <= high)


def _choose_window(
    request: ReadRequest, dataset: Dataset, frame: int, values: np.ndarray, padding: np.ndarray | None
) -> Window:
    """The window asked for, else the file's first, else the rule by modality."""
    is_hounsfield = _is_hounsfield(dataset, frame)
    if isinstance(request.window, str):
        if not is_hounsfield:
            raise request.refuse(f"the window {request.window!r} is in Hounsfield units, which these pixels are not")
        return Window(*PRESETS[preset_name(request.window)])
    if request.window is not None:
        return Window(*request.window)
    own = _own_window(dataset, frame)
    if own is not None:
        return own
    is_chest = is_chest_kind(request.kind) or str(dataset.get("BodyPartExamined") or "").upper() == "CHEST"
    return rule_window(values, is_hounsfield=is_hounsfield, is_chest=is_chest, padding=padding)


def _is_hounsfield(dataset: Dataset, frame: int) -> bool:
    """CT values are in HU only where the file says how to make them from unsigned stored values, or are signed."""
    if dataset.get("Modality") != "CT":
        return False
    rescaled = _values_of(dataset, frame, "RescaleIntercept", "PixelValueTransformationSequence") is not None
    return rescaled or bool(dataset.get("PixelRepresentation"))


def _own_window(dataset: Dataset, frame: int) -> Window | None:
    sequence = "FrameVOILUTSequence"
    centre = _first_number(_values_of(dataset, frame, "WindowCenter", sequence))
    width = _first_number(_values_of(dataset, frame, "WindowWidth", sequence))
    if centre is None or width is None or not np.isfinite([centre, width]).all() or width <= 0:
        return None
    function = str(_values_of(dataset, frame, "VOILUTFunction", sequence) or "LINEAR").upper()
    return Window(centre, width, function if function in _WINDOW_FUNCTIONS else "LINEAR")


def _first_number(value: Any) -> float | None:
    if value is None or value == "":
        return None
    first = value if isinstance(value, str | int | float) else next(iter(value), None)
    return None if first is None else float(first)


def _colours(dataset: Dataset, stored: np.ndarray) -> np.ndarray:
    """RGB in [0, 1]; the decoder has turned YBR into RGB already, a palette is applied here."""
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        coloured = apply_color_lut(stored, dataset)[..., :3]
        return coloured.astype(np.float32) / np.float32(np.iinfo(coloured.dtype).max)
    largest = 2 ** int(dataset.BitsStored) - 1
    return np.clip(stored.astype(np.float32) / np.float32(largest), 0, 1)


def _lay_out(
    request: ReadRequest, dataset: Dataset, frame: int, spacing: tuple[float, float], pixels: np.ndarray
) -> np.ndarray:
    """The frame as the radiologist sees it, with square pixels; as stored where no direction is given."""
    directions = _values_of(dataset, frame, "ImageOrientationPatient", "PlaneOrientationSequence")
    if directions is not None and len(directions) == 6:
        vectors = np.array([float(number) for number in directions])
        if np.isfinite(vectors).all() and np.linalg.norm(np.cross(vectors[:3], vectors[3:])) >= 0.5:
            pixels, spacing = geometry.turn_upright(pixels, spacing, vectors[:3], vectors[3:])
    size = geometry.square_size(*pixels.shape[:2], spacing)
    request.check_size(*size)
    return geometry.to_square_pixels(pixels, size)


def _spacing(dataset: Dataset, frame: int) -> tuple[float, float]:
    """(row, column) spacing in mm, or a ratio; (1, 1) where the file tells none that makes sense."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        value = _values_of(dataset, frame, keyword, "PixelMeasuresSequence")
        if value is not None and len(value) == 2:
            spacing = (float(value[0]), float(value[1]))
            if geometry.is_usable(spacing):
                return spacing
    return 1.0, 1.0
