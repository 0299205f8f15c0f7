"""Images of a job as one ZIP, named as `manage.py generate` names them, each with its sidecar."""

import tempfile
import zipfile
from collections.abc import Iterable
from typing import IO

from generation.models import GeneratedImage
from medsyn.modalities import kind_from_name

_MEMORY_BYTES = 16 << 20  # beyond this the archive is built on disk


def file_name(image: GeneratedImage, number: int) -> str:
    """chest_xray_0.png, or Brain_MRI_1_selector_0.85_policy_0.92.png where it was judged."""
    kind = kind_from_name(image.prompt.kind)
    if image.selector_score is None or image.policy_score is None:
        return f"{kind.slug}_{number}.png"
    scores = f"selector_{image.selector_score:.2f}_policy_{image.policy_score:.2f}"
    return f"{kind.prefix.replace(' ', '_')}_{number + 1}_{scores}.png"


def build_archive(images: Iterable[GeneratedImage]) -> IO[bytes]:
    """The ZIP, ready to be read. PNGs are stored as they are: they do not get smaller."""
    target = tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES)  # noqa: SIM115  the response reads and closes it
    with zipfile.ZipFile(target, "w", compression=zipfile.ZIP_STORED) as archive:
        for number, image in enumerate(images):
            name = file_name(image, number)
            archive.write(image.path, name)
            sidecar = image.path.with_suffix(".json")
            if sidecar.exists():
                archive.write(sidecar, name.removesuffix(".png") + ".json")
    target.seek(0)
    return target
