"""Images of a job as one ZIP, named as `manage.py generate` names them, each with its sidecar, and a manifest.

manifest.json says what the job was and, for each file, its SHA-256 and where the image comes from: whoever has the
ZIP can check every file and draw every image again.
"""

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Iterable
from typing import IO, Any

from generation.models import GeneratedImage, GenerationJob, Release
from generation.output_folder import FORMATS, in_format
from medsyn.artifacts import json_bytes
from medsyn.modalities import kind_from_name

MANIFEST_NAME = "manifest.json"
_MEMORY_BYTES = 16 << 20  # beyond this the archive is built on disk


def file_name(image: GeneratedImage, number: int) -> str:
    """chest_xray_0.png, or Brain_MRI_1_selector_0.85_policy_0.92.png where it was judged."""
    kind = kind_from_name(image.prompt.kind)
    if image.selector_score is None or image.policy_score is None:
        return f"{kind.slug}_{number}.png"
    scores = f"selector_{image.selector_score:.2f}_policy_{image.policy_score:.2f}"
    return f"{kind.prefix.replace(' ', '_')}_{number + 1}_{scores}.png"


def build_archive(job: GenerationJob, images: Iterable[GeneratedImage], image_format: str = "png") -> IO[bytes]:
    """The ZIP of these images of the job, ready to be read, in a format of FORMATS.

    Raises FileNotFoundError where an image's file is gone, or its sidecar, which DICOM cannot be written without.
    """
    target = tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES)  # noqa: SIM115  the response reads and closes it
    try:
        _fill(target, job, images, image_format)
    except BaseException:
        target.close()
        raise
    target.seek(0)
    return target


def _fill(target: IO[bytes], job: GenerationJob, images: Iterable[GeneratedImage], image_format: str) -> None:
    # PNGs do not get smaller; the pixels of DICOM are not compressed yet.
    compression = zipfile.ZIP_STORED if image_format == "png" else zipfile.ZIP_DEFLATED
    entries = []
    with zipfile.ZipFile(target, "w", compression=compression) as archive:
        for number, image in enumerate(images):
            content, sidecar = _files(image, image_format)
            stem = file_name(image, number).removesuffix(".png")
            name = stem + FORMATS[image_format]
            archive.writestr(name, content)
            if sidecar is not None:
                archive.writestr(f"{stem}.json", sidecar)
            entries.append({"file": name, "sha256": hashlib.sha256(content).hexdigest()} | _image_facts(image))
        archive.writestr(MANIFEST_NAME, json_bytes(_job_facts(job) | {"format": image_format, "images": entries}))


def _files(image: GeneratedImage, image_format: str) -> tuple[bytes, bytes | None]:
    """The image and its sidecar as they go into the archive."""
    png, sidecar = image.path.read_bytes(), image.path.with_suffix(".json")
    if image_format == "png":
        return png, sidecar.read_bytes() if sidecar.exists() else None
    content, facts = in_format(image_format, png, json.loads(sidecar.read_text(encoding="utf-8")))
    return content, json_bytes(facts)


def _job_facts(job: GenerationJob) -> dict[str, Any]:
    return {
        "job": job.pk,
        "mode": job.mode,
        "state": job.state,
        "release": _release_facts(job.release),
        "prompts": list(job.job_prompts.values_list("prompt__text", flat=True)),
        "num_images": job.num_images,
        "seed": job.seed,
        "parameters": job.parameters,
        "spent": {name: value for name, value in job.spent.items() if name != "places"},
        "created_at": job.created_at.isoformat(),
    }


def _release_facts(release: Release | None) -> dict[str, Any] | None:
    if release is None:
        return None
    return {"name": release.name, "digest": release.digest, "is_simulated": release.is_simulated}


def _image_facts(image: GeneratedImage) -> dict[str, Any]:
    """Everything needed to draw the image again, and what the filter said of it."""
    return {
        "id": str(image.public_id),
        "png_sha256": image.sha256,  # as recorded when it was made
        "prompt": image.prompt.text,
        "kind": image.prompt.kind,
        "seed": image.seed,
        "position": image.position,
        "attempt": image.attempt,
        "verdict": image.verdict,
        "scores": {"selector": image.selector_score, "policy": image.policy_score},
        "release": image.release.digest if image.release else None,
        "model": image.model_name,
        "weights_sha256": image.weights_sha256,
        "is_phantom": image.is_phantom,
        "unet_evaluations": image.unet_evaluations,
        "parameters": image.parameters,
    }
