"""Copies of image files without what could name a patient; every pixel stays as it is. Pure.

DICOM: what is not in ``_KEPT`` goes. The list holds what the pixels need to be read, shown and turned upright, so
that nothing unknown slips through: all attributes of the Basic Application Level Confidentiality Profile (DICOM
PS3.15, table E.1-1), all private ones, overlays and free texts are among the removed. UIDs are made anew from the
kept content, so that equal images stay equal and none leads back to an archive. NIfTI: the free texts of the header
and all header extensions. PNG and JPEG: every block that is not picture, colour or geometry (texts, EXIF, XMP, IPTC);
the EXIF orientation stays. What is written *in the pixels* is not seen by any of this.
"""

import gzip
import io
import struct
import uuid
import zlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, ImplicitVRLittleEndian

METHOD = "MedSyn: all but picture, window and geometry removed"  # as DICOM's DeidentificationMethod, at most 64 long
MAX_UNPACKED_BYTES = 2 << 30  # of a packed NIfTI file
_CHUNK_BYTES = 1 << 20
_NAMESPACE = uuid.UUID("5e1d9a0c-2c57-4bb4-8a2f-0d6c6fbe1f37")  # of the UIDs made here, drawn once at random

# DICOM attributes outside the picture's own group that are kept: what reading, windowing and turning it needs.
_KEPT = frozenset(
    [
        "SpecificCharacterSet",
        "ImageType",
        "SOPClassUID",
        "Modality",
        "ConversionType",
        "SyntheticData",
        "NumberOfFrames",
        "BodyPartExamined",
        "ViewPosition",
        "Laterality",
        "ImageLaterality",
        "FrameLaterality",
        "PatientPosition",
        "SliceThickness",
        "SpacingBetweenSlices",
        "ImagerPixelSpacing",
        "NominalScannedPixelSpacing",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PatientOrientation",
        "SliceLocation",
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
        "PixelMeasuresSequence",
        "PlanePositionSequence",
        "PlaneOrientationSequence",
        "FrameVOILUTSequence",
        "PixelValueTransformationSequence",
        "FrameAnatomySequence",
    ]
)
_PICTURE_GROUPS = (0x0028, 0x7FE0)  # image pixel, LUTs and windows; pixel data
# Of the picture's group texts and UIDs go too: none is needed to read a picture, but for the unit of its values.
_TEXT_KINDS = frozenset(["LO", "LT", "PN", "SH", "ST", "UC", "UI", "UR", "UT"])
_KEPT_TEXT = "RescaleType"
_TEXT_AT = {  # NIfTI header size -> (offset, bytes) of its free texts
    348: ((4, 10), (14, 18), (148, 80), (228, 24), (328, 16)),  # data_type, db_name, descrip, aux_file, intent_name
    540: ((240, 80), (320, 24), (508, 16), (525, 15)),  # descrip, aux_file, intent_name, unused
}
_VOXELS_AT = {348: (108, "f"), 540: (168, "q")}  # NIfTI header size -> offset and type of vox_offset
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = frozenset(b"IHDR PLTE IDAT IEND tRNS cHRM gAMA iCCP sBIT sRGB bKGD pHYs cICP".split())
# JPEG segments without which the picture looks otherwise: JFIF density, colour profile, Adobe's colour transform.
_JPEG_KEPT = {0xE0: b"JFIF\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}
_ORIENTATION = 0x0112


def write_scrubbed(source: Path, target: Path, *, file_format: str) -> frozenset[str]:
    """Write a copy of ``source`` without identifying data; returns the names of what was removed.

    ``file_format``: as MedicalImage.format of the read file, "png", "jpeg", "dicom" or "nifti". A file that holds
    nothing to remove is copied byte for byte; equal files give equal copies. Raises ValueError for content that
    breaks its format.
    """
    if file_format == "nifti":
        return _scrub_nifti(source, target)
    if file_format == "dicom":
        return _scrub_dicom(source, target)
    content = source.read_bytes()
    parts, removed = (_png_parts if file_format == "png" else _jpeg_parts)(content, _orientation(content))
    target.write_bytes(b"".join(parts))
    return frozenset(removed)


# --- DICOM ---


def _scrub_dicom(source: Path, target: Path) -> frozenset[str]:
    original = pydicom.dcmread(source, force=True)
    if str(original.get("BurnedInAnnotation") or "").upper() == "YES":
        raise ValueError("it says that text is written into its pixels (BurnedInAnnotation). Blacken it first")
    removed: set[str] = set()
    kept = _kept_of(original, removed)
    kept.PatientName = kept.PatientID = kept.PatientBirthDate = kept.PatientSex = ""
    kept.StudyDate = kept.StudyTime = kept.AccessionNumber = kept.ReferringPhysicianName = kept.StudyID = ""
    kept.PatientIdentityRemoved = "YES"
    kept.DeidentificationMethod = METHOD
    syntax = original.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)
    kept.set_original_encoding(*original.original_encoding, original.original_character_set)
    _identify(kept, syntax)
    with target.open("wb") as file:
        dcmwrite(file, kept, enforce_file_format=True)
    return frozenset(removed)


def _kept_of(dataset: Dataset, removed: set[str]) -> Dataset:
    """A dataset of what is kept, sequences likewise; the keywords of everything else go to ``removed``."""
    kept = Dataset()
    for element in dataset:
        if not _is_kept(element):
            removed.add("private elements" if element.tag.is_private else element.keyword or "unknown elements")
        elif element.VR == "SQ":
            kept.add_new(element.tag, "SQ", [_kept_of(item, removed) for item in element.value])
        else:
            kept.add(element)
    return kept


def _is_kept(element: pydicom.DataElement) -> bool:
    if element.tag.is_private or not element.keyword:
        return False
    is_of_picture = element.tag.group in _PICTURE_GROUPS
    return element.keyword in _KEPT or (
        is_of_picture and (element.VR not in _TEXT_KINDS or element.keyword == _KEPT_TEXT)
    )


def _identify(dataset: Dataset, syntax: UID) -> None:
    """UIDs and file meta information from the kept content alone."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", "1.2.840.10008.5.1.4.1.1.7")  # Secondary Capture
    meta.MediaStorageSOPInstanceUID = "2.25.0"
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.file_meta = meta
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    digest = sha256(buffer.getbuffer()).hexdigest()
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(dataset, keyword, f"2.25.{uuid.uuid5(_NAMESPACE, f'{keyword}/{digest}').int}")
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID


# --- NIfTI ---


def _scrub_nifti(source: Path, target: Path) -> frozenset[str]:
    with source.open("rb") as raw:
        is_packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream: BinaryIO = gzip.GzipFile(fileobj=raw) if is_packed else raw
        header, removed = _blank_header(stream)
        with target.open("wb") as file:
            if not is_packed:
                _copy(header, stream, file)
                return removed
            # No name and no time in the wrapping: equal volumes give equal files.
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed:
                _copy(header, stream, packed)
    return removed


def _blank_header(stream: BinaryIO) -> tuple[bytes, frozenset[str]]:
    """Everything before the voxels, free texts and extensions zeroed, and what was removed."""
    beginning = stream.read(348)
    order = "<" if int.from_bytes(beginning[:4], "little") in _TEXT_AT else ">"
    (size,) = struct.unpack_from(order + "i", beginning)
    beginning += stream.read(size - len(beginning))
    offset, kind = _VOXELS_AT[size]
    voxels_at = int(struct.unpack_from(order + kind, beginning, offset)[0])
    header, removed = bytearray(beginning), set()
    for start, length in _TEXT_AT[size]:
        if any(header[start : start + length]):
            removed.add("header texts")
            header[start : start + length] = bytes(length)
    rest = stream.read(max(0, voxels_at - size))
    if any(rest):
        removed.add("header extensions")
    return bytes(header) + bytes(len(rest)), frozenset(removed)


def _copy(header: bytes, stream: BinaryIO, file: BinaryIO) -> None:
    file.write(header)
    written = len(header)
    while chunk := stream.read(_CHUNK_BYTES):
        written += len(chunk)
        if written > MAX_UNPACKED_BYTES:
            raise ValueError(f"it unpacks to more than the limit of {MAX_UNPACKED_BYTES:,} bytes")
        file.write(chunk)


# --- PNG and JPEG ---


def _orientation(content: bytes) -> int:
    """EXIF orientation, 1 to 8; 1 where the file tells none."""
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as picture:
        found = picture.getexif().get(_ORIENTATION, 1)
    return found if found in range(1, 9) else 1


def _exif(orientation: int) -> bytes:
    """An EXIF block that says nothing but which way up the picture is."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, _ORIENTATION, 3, 1, orientation, 0, 0)


def _png_parts(content: bytes, orientation: int) -> tuple[list[bytes], set[str]]:
    parts, removed = [_PNG_START], set()
    for name, chunk in _png_chunks(content):
        if name in _PNG_KEPT:
            parts.append(chunk)
        else:
            removed.add(f"PNG {name.decode('ascii', 'replace')}")
        if name == b"IHDR" and orientation != 1:
            block = b"eXIf" + _exif(orientation)
            parts.append(struct.pack(">I", len(block) - 4) + block + struct.pack(">I", zlib.crc32(block)))
        if name == b"IEND":
            return parts, removed
    raise ValueError("its PNG data is cut short")


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and bytes of every chunk, its length and checksum included."""
    position = len(_PNG_START)
    while position + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, position)
        yield content[position + 4 : position + 8], content[position : position + 12 + length]
        position += 12 + length


def _jpeg_parts(content: bytes, orientation: int) -> tuple[list[bytes], set[str]]:
    parts, removed = [content[:2]], set()
    if orientation != 1:
        block = b"Exif\0\0" + _exif(orientation)
        parts.append(b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block)
    for marker, segment in _jpeg_segments(content):
        is_application = 0xE0 <= marker <= 0xEF
        if marker == 0xFE or (is_application and not segment[4:].startswith(_JPEG_KEPT.get(marker, b"\0none"))):
            removed.add("JPEG comment" if marker == 0xFE else f"JPEG APP{marker - 0xE0}")
        else:
            parts.append(segment)
        if marker == 0xD9:
            return parts, removed
    raise ValueError("its JPEG data is cut short")


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and bytes of every segment up to the end of the image, coded data with the segment before it."""
    position = 2
    while position + 2 <= len(content):
        while content[position : position + 2] == b"\xff\xff":  # fill bytes
            position += 1
        if position + 2 > len(content):
            return
        if content[position] != 0xFF:
            raise ValueError(f"its JPEG data has no marker at byte {position}")
        marker, start = content[position + 1], position
        if marker == 0xD9:
            yield marker, content[start : start + 2]
            return
        position += 2
        if marker != 0x01 and not 0xD0 <= marker <= 0xD7:
            position += struct.unpack_from(">H", content, position)[0] if position + 2 <= len(content) else 2
        if marker == 0xDA:
            position = _end_of_scan(content, position)
        yield marker, content[start:position]


def _end_of_scan(content: bytes, position: int) -> int:
    """Where the next marker after coded data stands: 0xFF that no 0 (stuffing) and no restart marker follows."""
    while True:
        position = content.find(b"\xff", position)
        if position < 0 or position + 1 >= len(content):
            raise ValueError("its JPEG data is cut short")
        follower = content[position + 1]
        if follower != 0 and not 0xD0 <= follower <= 0xD7:
            return position
        position += 2
