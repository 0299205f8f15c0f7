"""Small medical files made on the spot: what the imaging tests read."""

from pathlib import Path

import nibabel
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # every 12-bit value once


def write_dicom(path: Path, stored: np.ndarray, **elements) -> Path:
    """A native DICOM file of ``stored`` (H, W), (F, H, W) or (H, W, 3); ``elements`` are set or, if None, removed."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.Modality = "CT"
    dataset.PhotometricInterpretation = "MONOCHROME2"
    is_colour = stored.ndim == 3 and stored.shape[-1] == 3
    dataset.SamplesPerPixel = 3 if is_colour else 1
    if is_colour:
        dataset.PlanarConfiguration = 0
    elif stored.ndim == 3:
        dataset.NumberOfFrames = stored.shape[0]
    dataset.Rows, dataset.Columns = stored.shape[:2] if is_colour else stored.shape[-2:]
    dataset.BitsAllocated = dataset.BitsStored = stored.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.tobytes()
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def hounsfield(path: Path, values: np.ndarray, **elements) -> Path:
    """A CT slice of the given HU, stored unsigned with the usual intercept of -1024."""
    stored = (np.asarray(values) + 1024).astype(np.uint16)
    return write_dicom(path, stored, RescaleSlope="1", RescaleIntercept="-1024", **elements)


def lookup_table(entries: np.ndarray, first_mapped: int, bits: int) -> Sequence:
    """A LUT sequence with one table."""
    item = Dataset()
    item.LUTDescriptor = [len(entries), first_mapped, bits]
    item.LUTData = entries.astype("<u2").tobytes()
    item["LUTDescriptor"].VR = "SS" if first_mapped < 0 else "US"
    item["LUTData"].VR = "OW"
    return Sequence([item])


def item_of(**elements) -> Sequence:
    """A sequence of one item with these elements."""
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return Sequence([item])


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray | None) -> Path:
    nibabel.Nifti1Image(voxels, affine).to_filename(path)
    return path


def damaged(source: Path, target: Path, *, cut: int | None = None, flips: dict[int, int] | None = None) -> Path:
    """A copy of ``source`` that ends after ``cut`` bytes or has other bytes at the places in ``flips``."""
    content = bytearray(source.read_bytes()[:cut])
    for place, byte in (flips or {}).items():
        content[place] = byte
    target.write_bytes(content)
    return target
