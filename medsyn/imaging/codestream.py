"""Looks into compressed DICOM data before a decoder does, so that a small file cannot ask for a lot of memory."""

import struct
import zlib

from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medsyn.imaging.request import MAX_FILE_BYTES, ReadRequest

_JPEG_START = b"\xff\xd8"
_J2K_SIZE = b"\xff\x4f\xff\x51"  # start of codestream, then the SIZ marker that must follow it
# Start-of-frame markers of JPEG (ITU-T T.81 table B.1) and JPEG-LS (T.87): those whose segment holds the size.
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_BARE_MARKERS = frozenset([0x01, *range(0xD0, 0xD9)])  # markers without a segment
_CHUNK_BYTES = 1 << 20


def check_frame(request: ReadRequest, encoded: bytes, rows: int, columns: int) -> None:
    """Refuse a compressed frame that says another size than the DICOM header."""
    size = _jpeg_size(encoded) if encoded.startswith(_JPEG_START) else _j2k_size(encoded)
    if size is not None and size != (rows, columns):
        raise request.refuse(
            f"its compressed frame is {size[1]} x {size[0]} pixels large, its header says {columns} x {rows}"
        )


def _j2k_size(encoded: bytes) -> tuple[int, int] | None:
    """(rows, columns) by the SIZ segment (ITU-T T.800 A.5.1); None for what is no JPEG 2000 stream."""
    start = encoded.find(_J2K_SIZE, 0, 4096)
    if start < 0 or len(encoded) < start + 24:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", encoded, start + 8)
    return bottom - top, right - left


def _jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """(rows, columns) by the frame header, found by walking over the segments before it."""
    position = 2
    while position + 9 <= len(encoded):
        if encoded[position] != 0xFF:
            return None
        marker = encoded[position + 1]
        if marker in _FRAME_MARKERS:
            return struct.unpack_from(">HH", encoded, position + 5)
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _BARE_MARKERS:
            position += 2
        else:
            position += 2 + struct.unpack_from(">H", encoded, position + 2)[0]
    return None


def check_deflated(request: ReadRequest) -> None:
    """Refuse a deflated DICOM file that unfolds beyond the limit; others pass at once."""
    with request.path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return
        meta = read_file_meta_info(request.path)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        # Preamble and prefix, the 12 bytes of the group length element itself, and the group.
        file.seek(132 + 12 + int(meta.FileMetaInformationGroupLength))
        _check_unfolded(request, file)


def _check_unfolded(request: ReadRequest, file) -> None:
    inflater, unfolded = zlib.decompressobj(-zlib.MAX_WBITS), 0
    pending = file.read(_CHUNK_BYTES)
    while pending and not inflater.eof:
        unfolded += len(inflater.decompress(pending, _CHUNK_BYTES))
        if unfolded > MAX_FILE_BYTES:
            raise request.refuse(f"it unfolds to more than the limit of {MAX_FILE_BYTES:,} bytes")
        pending = inflater.unconsumed_tail or file.read(_CHUNK_BYTES)
