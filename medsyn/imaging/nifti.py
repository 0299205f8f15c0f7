"""NIfTI: one slice of a volume turned the radiological way, or a 2-D picture that was stored as a volume.

A *picture* is flat (one slice) or has a colour axis of three, and lies nowhere in a scanner: no affine at all, or one
without rotation and with its origin at zero. ITK (SimpleITK, nnU-Net) runs the first picture axis along the columns
and negates x and y in the affine; NumPy code that hands an image array to nibabel has rows first and leaves the
identity, or no affine. The values of a picture keep their scale (0 to 1, or the bit depth that holds them).

Everything else is a *volume*. It gives one slice: axial, in the middle, of volume 0 where there are several, unless
asked otherwise. Where the file has no affine, nibabel's default holds (x to the left). Values are taken for
Hounsfield units where the kind is CT and the slice has values below zero.
"""

import functools
import gzip
import math
from typing import BinaryIO

import nibabel
import numpy as np
from nibabel.nifti1 import Nifti1Header, Nifti1Image

from medsyn.imaging import geometry
from medsyn.imaging.reading import Reading
from medsyn.imaging.request import MAX_VOLUME_BYTES, SLICE_AXES, ReadRequest
from medsyn.imaging.windowing import (
    PRESETS,
    Window,
    bit_depth,
    is_chest_kind,
    preset_name,
    rule_window,
)

HEADER_BYTES = 540  # of the larger of the two headers
_CLASSES = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}  # by the header's size in bytes
_MAGIC_AT = {348: 344, 540: 4}
_MAX_OFFSET_BYTES = 16 << 20  # from the start to the voxels: room for the extensions of real files
_VECTOR_INTENT = 1007  # NIFTI_INTENT_VECTOR: ITK puts colours on the fifth axis


def header_size(beginning: bytes) -> int | None:
    """Size of the NIfTI header that the (unpacked) ``beginning`` of a file is, in either byte order; None if none."""
    for order in ("little", "big"):
        size = int.from_bytes(beginning[:4], order)
        if size in _CLASSES and beginning[_MAGIC_AT[size] :][:2] in (b"n+", b"ni"):
            return size
    return None


def read_nifti(request: ReadRequest) -> Reading:
    """Read one picture or slice of a .nii or .nii.gz file."""
    with request.path.open("rb") as file:
        opener = gzip.open if file.read(2) == b"\x1f\x8b" else open
    with opener(request.path, "rb") as stream:
        image = _open_image(request, stream)
        is_picture = _is_unlocated(image) and (_is_flat(image) or _colour_axis(image.header) is not None)
        values, spacing = _picture(request, image) if is_picture else _slice(request, image)
    if not np.isfinite(values).all():
        bad = np.count_nonzero(~np.isfinite(values))
        raise request.refuse(f"{bad} pixels are not finite numbers. Write them as the background's value")
    size = geometry.square_size(*values.shape[:2], spacing)
    request.check_size(*size)
    given = {"bits": _bits(image.header), "lay_out": functools.partial(geometry.to_square_pixels, size=size)}
    if values.ndim == 3:
        return Reading(_colours(request, image, values), None, request.path, "nifti", **given)
    is_hounsfield = _is_hounsfield(request, values)
    window = _choose_window(request, image, values, is_picture, is_hounsfield)
    return Reading(values, window, request.path, "nifti", is_hounsfield=is_hounsfield, **given)


def holds_deep_nifti(request: ReadRequest) -> bool:
    """Whether the voxels are single numbers of more than 8 bits, and no colours of a picture. A volume of three
    slices may look like one: then the answer is no, for a picture that turns out to have no depth would differ from
    those around it."""
    with request.path.open("rb") as file:
        opener = gzip.open if file.read(2) == b"\x1f\x8b" else open
    with opener(request.path, "rb") as stream:
        beginning = stream.read(HEADER_BYTES)
    size = header_size(beginning)
    if size is None:
        raise request.refuse("it is packed by gzip, but what it holds is not NIfTI")
    header = _CLASSES[size].header_class(beginning[:size])
    dtype = header.get_data_dtype()
    return not dtype.fields and dtype.itemsize > 1 and _colour_axis(header) is None


def _open_image(request: ReadRequest, stream: BinaryIO) -> Nifti1Image:
    """The image with its voxels still in the stream, its header checked against the limits."""
    beginning = stream.read(HEADER_BYTES)
    size = header_size(beginning)
    if size is None:
        raise request.refuse("it is packed by gzip, but what it holds is not NIfTI")
    if beginning[_MAGIC_AT[size] :][:2] == b"ni":
        raise request.refuse("it is the header of a .hdr/.img pair. Save the pair as one .nii file")
    image_class = _CLASSES[size]
    _check_header(request, image_class.header_class(beginning[:size]), isinstance(stream, gzip.GzipFile))
    stream.seek(0)
    return image_class.from_stream(stream)


def _check_header(request: ReadRequest, header: Nifti1Header, is_packed: bool) -> None:
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    if not shape or min(shape) < 1:
        raise request.refuse(f"its header says that it has shape {tuple(int(n) for n in shape)}")
    if dtype.kind == "c":
        raise request.refuse("its voxels are complex numbers. Save their magnitude")
    if not 0 <= float(header["vox_offset"]) <= _MAX_OFFSET_BYTES:
        raise request.refuse(f"its header puts the voxels at byte {float(header['vox_offset']):g}")
    volumes = 1 + (request.frame or 0)
    needed = math.prod(int(n) for n in shape[:3]) * dtype.itemsize * volumes
    promised = float(header["vox_offset"]) + math.prod(int(n) for n in shape) * dtype.itemsize
    stored = request.path.stat().st_size
    if not is_packed and stored < promised:
        raise request.refuse(f"it is cut short: {stored:,} bytes of the {promised:,.0f} that its header promises")
    if needed > MAX_VOLUME_BYTES:
        raise request.refuse(f"a volume of shape {shape[:3]} needs more than the limit of {MAX_VOLUME_BYTES:,} bytes")


def _bits(header: Nifti1Header) -> int:
    dtype = header.get_data_dtype()
    return 8 if dtype.fields else dtype.itemsize * 8


def _has_codes(header: Nifti1Header) -> bool:
    return bool(header["qform_code"] or header["sform_code"])


def _is_unlocated(image: Nifti1Image) -> bool:
    """Whether the picture lies nowhere in a scanner's space."""
    affine = image.affine[:3]
    off_diagonal = affine[:, :3] - np.diag(np.diag(affine))
    return not _has_codes(image.header) or (not off_diagonal.any() and not affine[:, 3].any())


def _is_rows_first(image: Nifti1Image) -> bool:
    return not _has_codes(image.header) or bool((np.diag(image.affine)[:2] > 0).all())


def _is_flat(image: Nifti1Image) -> bool:
    return sum(length > 1 for length in image.shape) == 2


def _colour_axis(header: Nifti1Header) -> int | None:
    """Where the three colours of a picture lie among its axes longer than one: 0 or 2; None: it has no such axis."""
    shape = header.get_data_shape()
    lengths = [length for length in shape if length > 1]
    is_vector = len(shape) == 5 and int(header["intent_code"]) == _VECTOR_INTENT
    if len(lengths) != 3 or not (is_vector or len(shape) == 3):
        return None
    return 2 if lengths[2] == 3 else 0 if lengths[0] == 3 else None


def _picture(request: ReadRequest, image: Nifti1Image) -> tuple[np.ndarray, tuple[float, float]]:
    """Values (H, W) or (H, W, 3) of a 2-D picture, and its (row, column) spacing."""
    if request.frame not in (None, 0):
        raise request.refuse(f"volume {request.frame} was asked for, but the file is a 2-D picture")
    colour_axis = _colour_axis(image.header)
    axes = [axis for axis, length in enumerate(image.shape) if length > 1]
    plane = axes if colour_axis is None else [axis for axis in axes if axis != axes[colour_axis]]
    request.check_size(*(image.shape[axis] for axis in plane))
    values = _colours_last(np.asarray(image.dataobj).squeeze())
    if colour_axis is not None:
        values = np.moveaxis(values, colour_axis, -1)
    zooms = image.header.get_zooms()
    spacing = (float(zooms[plane[0]]), float(zooms[plane[1]]))
    if _is_rows_first(image):
        return values, spacing
    return np.swapaxes(values, 0, 1), spacing[::-1]


def _colours_last(values: np.ndarray) -> np.ndarray:
    """RGB24 voxels (H, W) of three bytes each become (H, W, 3); others stay."""
    if not values.dtype.fields:
        return values
    return np.stack([values[name] for name in ("R", "G", "B")], axis=-1)


def _slice(request: ReadRequest, image: Nifti1Image) -> tuple[np.ndarray, tuple[float, float]]:
    """Values (H, W) of one slice seen the radiological way, and its (row, column) spacing in mm."""
    shape = (*image.shape, 1, 1)[: max(3, len(image.shape))]
    if any(length > 1 for length in shape[4:]):
        raise request.refuse(f"it has shape {shape}: more than four axes. Save one volume of it")
    # Reading a slice keeps the axes that are left, so the affine's columns still name their directions.
    cut: list[int | slice] = [slice(None)] * 3
    axis, index = _slice_position(request, image, shape)
    cut[axis] = index
    volume = request.pick(shape[3] if len(shape) > 3 else 1, request.frame or 0, "volume")
    trailing = (volume, *(0 for _ in shape[4:])) if len(shape) > 3 else ()
    first, second = (other for other in range(3) if other != axis)
    request.check_size(shape[first], shape[second])
    stored = image.dataobj[(*cut, *trailing)[: len(image.shape)]]
    values = _colours_last(np.asarray(stored)).reshape(shape[first], shape[second], *_colour_shape(image))
    steps = image.affine[:3, :3] * geometry.RAS_TO_LPS[:, None]
    spacing = (float(np.linalg.norm(steps[:, first])), float(np.linalg.norm(steps[:, second])))
    return geometry.turn_upright(values, spacing, steps[:, second] / spacing[1], steps[:, first] / spacing[0])


def _colour_shape(image: Nifti1Image) -> tuple[int, ...]:
    return (3,) if image.get_data_dtype().fields else ()


def _slice_position(request: ReadRequest, image: Nifti1Image, shape: tuple[int, ...]) -> tuple[int, int]:
    """The array axis to cut and the index on it, for the patient axis and slice that the request names."""
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-12:
        raise request.refuse("its affine is not invertible, so that nobody knows which way up it is")
    orientation = nibabel.io_orientation(image.affine)  # per array axis: patient axis (R, A, S) and direction
    singles = [axis for axis in range(3) if shape[axis] == 1]
    if request.slice_axis is None and singles:
        axis = singles[-1]
    else:
        patient_axis = SLICE_AXES.index(request.slice_axis or "axial")
        axis = int(np.flatnonzero(orientation[:, 0] == patient_axis)[0])
    count, wanted = shape[axis], request.slice_index
    if request.slice_fraction is not None:
        wanted = round(request.slice_fraction * (count - 1))
    index = request.pick(count, wanted, "slice")
    return axis, index if orientation[axis, 1] > 0 else count - 1 - index


def _colours(request: ReadRequest, image: Nifti1Image, values: np.ndarray) -> np.ndarray:
    """RGB in [0, 1], float32."""
    if request.window is not None:
        raise request.refuse("a window was asked for, but the picture is in colour")
    scale = _picture_scale(image, values)
    if scale is None:
        raise request.refuse(
            f"its colours run from {values.min():g} to {values.max():g}, which is no scale of colours"
        )
    return (values / scale).astype(np.float32)


def _is_hounsfield(request: ReadRequest, values: np.ndarray) -> bool:
    """Air and fat lie below zero in every CT slice: one without negative values was not kept in HU."""
    return request.kind is not None and request.kind.modality == "CT" and float(values.min()) < 0


def _choose_window(
    request: ReadRequest, image: Nifti1Image, values: np.ndarray, is_picture: bool, is_hounsfield: bool
) -> Window:
    """The window asked for, else the scale of a picture, else the rule by modality."""
    if isinstance(request.window, str):
        if not is_hounsfield:
            raise request.refuse(f"the window {request.window!r} is in Hounsfield units, which these voxels are not")
        return Window(*PRESETS[preset_name(request.window)])
    if request.window is not None:
        return Window(*request.window)
    scale = _picture_scale(image, values) if is_picture else None
    if scale is not None:
        return Window(scale / 2, scale)
    return rule_window(values, is_hounsfield=is_hounsfield, is_chest=is_chest_kind(request.kind))


def _picture_scale(image: Nifti1Image, values: np.ndarray) -> float | None:
    """What is white in a picture: 1 for fractions, else the largest number of its bit depth; None: no scale."""
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 65535:
        return None
    if high <= 1 and image.get_data_dtype().kind == "f":
        return 1.0
    return float(2 ** bit_depth(high) - 1)
