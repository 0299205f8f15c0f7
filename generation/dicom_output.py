"""A generated picture as DICOM: Secondary Capture Image Storage, marked as synthetic, showing no patient. Pure.

Follows DICOM PS3.3: the Secondary Capture Image IOD (A.8.1), Synthetic Data (0008,001C) of the SOP Common Module
(C.12.1), and the Purpose of Reference "Synthesizing Equipment" (DCM 109100, PS3.16 CID 7005) in the Contributing
Equipment Sequence. CID 7203 has no code for an image made from a text, so its derivation is told in words.

There is no date in the object and its UIDs come from the picture's sha256: equal inputs give equal bytes.
"""

import io
import json
import re
import uuid
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from medsyn.modalities import BREAST_MRI, FUNDUS, OCT, Kind, parse_prompt

PRIVATE_CREATOR = "MEDSYN GENERATION 1"
PRIVATE_GROUP = 0x0099
# Elements of the private block, by their last byte. DICOM has no attribute of its own for these facts.
PRIVATE_PROMPT, PRIVATE_SEED, PRIVATE_WEIGHTS, PRIVATE_SELECTOR, PRIVATE_POLICY, PRIVATE_PNG_SHA256 = range(1, 7)

_NAMESPACE = uuid.UUID("9b7282dc-c20f-49f2-a112-555289314faf")  # of this module's UIDs, drawn once at random
_IMPLEMENTATION = "implementation"
_LO_CHARACTERS, _ST_CHARACTERS, _LT_CHARACTERS = 64, 1024, 10240  # the longest values of these types (PS3.5 6.2)

# The modality that the image imitates (PS3.3 C.7.3.1.1.1); in this IOD it names the source, not the SOP class.
_MODALITY_CODES = {"OCT": "OPT", "Fundus": "OP", "X-Ray": "DX", "CT": "CT", "MRI": "MR"}
_BODY_PARTS = {  # Defined terms of PS3.16 annex L; bare CT:, MRI: and X-ray: prompts leave it open.
    "oct": "EYE",
    "fundus": "EYE",
    "chest_xray": "CHEST",
    "chest_ct": "CHEST",
    "brain_mri": "BRAIN",
    "breast_mri": "BREAST",
}
_LIMBS = "shoulder|arm|elbow|forearm|wrist|hand|finger|thumb|hip|thigh|femur|knee|leg|ankle|foot|heel|toe"
# Kinds that show one of a pair, and what may stand behind the side's name there.
_EYE_WORDS, _LIMB_WORDS = "eye|fundus|retina|macula", f"(?:{_LIMBS})s?"
_SIDE_NAMES = {"L": ("left", "OS"), "R": ("right", "OD")}


def instance_uid(png_sha256: str) -> str:
    """The SOP Instance UID of the picture whose PNG has this digest."""
    return _uid("instance", png_sha256)


def as_dicom(png: bytes, facts: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """The DICOM file of a PNG file, and the facts of its sidecar: their sha256 is that of the file beside them."""
    content = dicom_bytes(png, facts)
    digest = sha256(png).hexdigest()
    own = {
        "format": "dicom",
        "sha256": sha256(content).hexdigest(),
        "png_sha256": digest,
        "sop_instance_uid": instance_uid(digest),
    }
    return content, {**facts, **own}


def dicom_bytes(png: bytes, facts: Mapping[str, Any]) -> bytes:
    """The picture of a PNG file as a DICOM file: MONOCHROME2 if its three channels are equal, else RGB, 8 bit.

    ``facts`` are those of the image's sidecar: "synthetic" (the statement of origin), "prompt", "seed", "model" and
    "weights_sha256" (by role), and "scores" (selector, policy) where it was judged. Raises PromptError for a prompt
    outside the grammar, KeyError for a missing fact.
    """
    digest = sha256(png).hexdigest()
    kind = parse_prompt(facts["prompt"]).kind
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    _identify(dataset, digest)
    _describe_no_patient(dataset, digest)
    _describe_study(dataset, digest, kind, facts)
    _describe_equipment(dataset, facts)
    _describe_origin(dataset, facts)
    _put_pixels(dataset, png)
    _put_private_block(dataset, digest, facts)
    return _encode(dataset)


def laterality(kind: Kind, description: str) -> str | None:
    """The Laterality (0020,0060) of an image: "L" or "R" where the prompt says so of the body part, "" where a part
    of a pair may be shown but nobody knows which, None where the body part is no pair.

    The side of a finding is not the side of the picture: an axial breast MRI shows both breasts, whichever is ill.
    A prompt that speaks of both sides leaves it open.
    """
    if kind == BREAST_MRI:
        return ""
    if kind in (OCT, FUNDUS):
        return _named_side(description, _EYE_WORDS)
    return _named_side(description, _LIMB_WORDS) if kind.is_bare else None


def _named_side(description: str, parts: str) -> str:
    """Returns "L" or "R" where ``description`` names exactly one side, and names it of one of the ``parts``."""
    named = {side for side, words in _SIDE_NAMES.items() if _speaks_of(description, words)}
    if len(named) != 1 or re.search(r"\b(both|bilateral|OU)\b", description):
        return ""
    (side,) = named
    word, letters = _SIDE_NAMES[side]
    of_part = re.search(rf"\b{word}\s+(?:{parts})\b", description, re.IGNORECASE)
    return side if of_part or (parts == _EYE_WORDS and re.search(rf"\b{letters}\b", description)) else ""


def _speaks_of(description: str, words: tuple[str, str]) -> bool:
    word, letters = words
    return bool(re.search(rf"\b{word}\b", description, re.IGNORECASE) or re.search(rf"\b{letters}\b", description))


# --- modules of the IOD ---


def _identify(dataset: Dataset, digest: str) -> None:
    """SOP Common Module."""
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = instance_uid(digest)
    dataset.InstanceCreatorUID = _uid(_IMPLEMENTATION, "")
    dataset.SyntheticData = "YES"


def _describe_no_patient(dataset: Dataset, digest: str) -> None:
    """Patient Module: the name says that there is nobody, the ID is the image's own so that no two are mixed up."""
    dataset.PatientName = "SYNTHETIC^NO PATIENT"
    dataset.PatientID = f"SYNTHETIC-{digest[:16].upper()}"
    dataset.TypeOfPatientID = "TEXT"
    dataset.PatientBirthDate = ""
    dataset.PatientSex = ""
    dataset.PatientComments = "Synthetic image: there is no patient."
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "Synthetic image: there never was a patient"


def _describe_study(dataset: Dataset, digest: str, kind: Kind, facts: Mapping[str, Any]) -> None:
    """General Study and General Series Modules; each image is a study of its own, without date."""
    dataset.StudyInstanceUID = _uid("study", digest)
    dataset.SeriesInstanceUID = _uid("series", digest)
    for keyword in ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"):
        setattr(dataset, keyword, "")
    dataset.StudyID = digest[:16].upper()
    dataset.StudyDescription = _line(f"SYNTHETIC {kind.prefix}")
    dataset.SeriesDescription = _line(facts["prompt"])
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = 1
    dataset.PatientOrientation = ""
    dataset.Modality = _MODALITY_CODES[kind.modality]
    if kind.slug in _BODY_PARTS:
        dataset.BodyPartExamined = _BODY_PARTS[kind.slug]
    side = laterality(kind, parse_prompt(facts["prompt"]).description)
    if side is not None:
        dataset.Laterality = side


def _describe_equipment(dataset: Dataset, facts: Mapping[str, Any]) -> None:
    """General Equipment, SC Equipment and the Contributing Equipment Sequence: the generator, and nothing else."""
    generator = _equipment(facts)
    dataset.update(generator)
    dataset.ConversionType = "SYN"  # synthetic image
    dataset.SecondaryCaptureDeviceManufacturer = generator.Manufacturer
    dataset.SecondaryCaptureDeviceManufacturerModelName = generator.ManufacturerModelName
    dataset.SecondaryCaptureDeviceSoftwareVersions = generator.SoftwareVersions
    purpose = Dataset()
    purpose.CodeValue = "109100"
    purpose.CodingSchemeDesignator = "DCM"
    purpose.CodeMeaning = "Synthesizing Equipment"
    contributor = _equipment(facts)
    contributor.PurposeOfReferenceCodeSequence = [purpose]
    contributor.ContributionDescription = _text(f"Drew the image from this text: {facts['prompt']}", _ST_CHARACTERS)
    dataset.ContributingEquipmentSequence = [contributor]


def _equipment(facts: Mapping[str, Any]) -> Dataset:
    """The generator as a device; its weights are its software."""
    equipment = Dataset()
    equipment.Manufacturer = "MedSyn"
    equipment.ManufacturerModelName = _line(str(facts["model"]))
    digests = facts["weights_sha256"]
    equipment.SoftwareVersions = [_line(f"{role} {digests[role][:32]}") for role in sorted(digests)] or ""
    return equipment


def _describe_origin(dataset: Dataset, facts: Mapping[str, Any]) -> None:
    """General Image, General Reference and SC Image Modules: what kind of picture it is and where it comes from."""
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.ContentQualification = "RESEARCH"
    dataset.BurnedInAnnotation = "NO"
    dataset.RecognizableVisualFeatures = "NO"
    dataset.LossyImageCompression = "00"
    drawn = f"Drawn by {facts['model']} from a text and the seed {facts['seed']}, from no other image."
    dataset.DerivationDescription = _text(f"{facts['synthetic']} {drawn}", _ST_CHARACTERS)
    dataset.ImageComments = _text(f"{facts['synthetic']}\r\nPrompt: {facts['prompt']}", _LT_CHARACTERS)


def _put_pixels(dataset: Dataset, png: bytes) -> None:
    """Image Pixel Module, and for grey levels a VOI window that changes nothing."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    is_grey = bool((pixels == pixels[..., :1]).all())
    dataset.SamplesPerPixel = 1 if is_grey else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if is_grey else "RGB"
    if is_grey:
        pixels = pixels[..., 0]
        # The linear window of PS3.3 C.11.2.1.2.1 with these values maps x to x / 255.
        dataset.WindowCenter, dataset.WindowWidth = 128, 256
    else:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    content = pixels.tobytes()
    dataset.add_new("PixelData", "OB", content + b"\0" * (len(content) % 2))


def _put_private_block(dataset: Dataset, digest: str, facts: Mapping[str, Any]) -> None:
    block = dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True)
    block.add_new(PRIVATE_PROMPT, "UT", facts["prompt"])
    block.add_new(PRIVATE_SEED, "LO", str(facts["seed"]))  # seeds may be larger than IS holds
    block.add_new(PRIVATE_WEIGHTS, "UT", json.dumps(facts["weights_sha256"], sort_keys=True))
    scores = facts.get("scores")
    if scores:
        block.add_new(PRIVATE_SELECTOR, "FD", float(scores["selector"]))
        block.add_new(PRIVATE_POLICY, "FD", float(scores["policy"]))
    block.add_new(PRIVATE_PNG_SHA256, "LO", digest)


# --- encoding ---


def _encode(dataset: Dataset) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid(_IMPLEMENTATION, "")
    meta.ImplementationVersionName = "MEDSYN_1"
    dataset.file_meta = meta
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def _uid(role: str, digest: str) -> UID:
    """A UID below 2.25, the arc of UUIDs (PS3.5 B.2)."""
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, f'{role}/{digest}').int}")


def _line(text: str) -> str:
    """As a value of LO: one line, without the backslash that separates values."""
    return _text(text.replace("\\", "/"), _LO_CHARACTERS)


def _text(text: str, limit: int) -> str:
    """Printable characters and line ends, cut with three dots where the type holds no more."""
    clean = "".join(letter if letter.isprintable() or letter in "\r\n" else " " for letter in text).strip()
    return clean if len(clean) <= limit else clean[: limit - 3].rstrip() + "..."
