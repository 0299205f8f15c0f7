"""Images of a job as one ZIP, named as `manage.py generate` names them, each with its sidecar."""

import json
import tempfile
import zipfile
from collections.abc import Iterable
from typing import IO

from generation.models import GeneratedImage
from generation.output_folder import FORMATS, in_format
from medsyn.artifacts import json_bytes
from medsyn.modalities import kind_from_name

_MEMORY_BYTES = 16 << 20  # beyond this the archive is built on disk


def file_name(image: GeneratedImage, number: int) -> str:
    """chest_xray_0.png, or Brain_MRI_1_selector_0.85_policy_0.92.png where it was judged."""
    kind = kind_from_name(image.prompt.kind)
    if image.selector_score is None or image.policy_score is None:
        return f"{kind.slug}_{number}.png"
    scores = f"selector_{image.selector_score:.2f}_policy_{image.policy_score:.2f}"
    return f"{kind.prefix.replace(' ', '_')}_{number + 1}_{scores}.png"


def build_archive(images: Iterable[GeneratedImage], image_format: str = "png") -> IO[bytes]:
    """The ZIP, ready to be read, its images in a format of FORMATS.

    Raises FileNotFoundError where an image's file is gone, or its sidecar, which DICOM cannot be written without.
    """
    target = tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES)  # noqa: SIM115  the response reads and closes it
    try:
        _fill(target, images, image_format)
    except BaseException:
        target.close()
        raise
    target.seek(0)
    return target


def _fill(target: IO[bytes], images: Iterable[GeneratedImage], image_format: str) -> None:
    # PNGs do not get smaller; the pixels of DICOM are not compressed yet.
    compression = zipfile.ZIP_STORED if image_format == "png" else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(target, "w", compression=compression) as archive:
        for number, image in enumerate(images):
            name = file_name(image, number)
            if image_format == "png":
                _add_as_it_is(archive, image, name)
            else:
                _add_converted(archive, image, name, image_format)


def _add_as_it_is(archive: zipfile.ZipFile, image: GeneratedImage, name: str) -> None:
    archive.write(image.path, name)
    sidecar = image.path.with_suffix(".json")
    if sidecar.exists():
        archive.write(sidecar, name.removesuffix(".png") + ".json")


def _add_converted(archive: zipfile.ZipFile, image: GeneratedImage, name: str, image_format: str) -> None:
    facts = json.loads(image.path.with_suffix(".json").read_text(encoding="utf-8"))
    content, facts = in_format(image_format, image.path.read_bytes(), facts)
    archive.writestr(name.removesuffix(".png") + FORMATS[image_format], content)
    archive.writestr(name.removesuffix(".png") + ".json", json_bytes(facts))
