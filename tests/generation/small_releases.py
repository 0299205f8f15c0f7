"""Releases with a folder of one small file: what pages show of them needs no more."""

import json

from django.utils import timezone

from generation.models import Release
from medsyn.artifacts import atomic_folder


def make_release(name: str, *, active: bool = False, threshold: float = 0.6, **manifest) -> Release:
    """A release with a real folder, small."""
    release = Release(digest=name[0] * 64, name=name, quality_threshold=threshold)
    with atomic_folder(release.folder, digest=release.digest, **manifest) as folder:
        (folder / "weights.safetensors").write_bytes(name.encode())
    release.manifest = json.loads((release.folder / "manifest.json").read_text())
    release.is_active, release.activated_at = active, timezone.now() if active else None
    release.save()
    if active:
        release.activations.create(activated_at=release.activated_at)
    return release
