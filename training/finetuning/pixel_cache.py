"""Decoded pictures of a dataset, kept on disk as uint8 and read through memory maps.

An entry is named by the digest of the file's bytes and of all that turned them into pixels, so it is never stale and
runs may share one folder. Every entry is a file of its own and appears whole or not at all: an interrupted run goes
on where it was, and two processes may fill one cache.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from medsyn.artifacts import ArtifactError, digest_of, write_bytes
from medsyn.imaging import load
from training.finetuning.dataset import Row

_FORMAT = 1  # part of every key: raise it when images are read in another way


@dataclass(frozen=True)
class PixelCache:
    """Square pictures of one size."""

    folder: Path
    resolution: int  # side, pixels
    fit: str  # "pad" or "crop"

    def path(self, row: Row) -> Path:
        kind = row.prompt.kind.prefix  # decides the window that a CT is shown through
        key = digest_of([_FORMAT, "pixels", row.image_sha256, kind, self.resolution, self.fit])
        return self.folder / key[:2] / f"{key}.npy"  # no folder grows beyond a few thousand entries

    def fill(self, rows: Sequence[Row], *, quiet: bool = False, num_threads: int = 4) -> int:
        """Decode what is missing; returns how many."""
        missing = list({path: row for row in rows if not (path := self.path(row)).exists()}.values())
        with ThreadPoolExecutor(num_threads) as threads:
            done = threads.map(self._decode, missing)
            hidden = quiet or not missing
            for _ in tqdm(done, total=len(missing), desc="Decoding images", unit="image", disable=hidden):
                pass
        return len(missing)

    def _decode(self, row: Row) -> None:
        pixels = load(row.path, modality=row.prompt.kind.prefix).to_rgb(self.resolution, fit=self.fit)
        buffer = io.BytesIO()
        np.save(buffer, pixels)
        write_bytes(self.path(row), buffer.getvalue())

    def pixels(self, row: Row) -> np.ndarray:
        """uint8 (S, S, 3), mapped: only what is looked at is read. Raises ArtifactError for a missing entry."""
        path = self.path(row)
        try:
            pixels = np.load(path, mmap_mode="r")
        except FileNotFoundError:
            raise ArtifactError(f"The cache entry {path} is gone. Start again to decode it.") from None
        except (ValueError, EOFError) as error:
            raise ArtifactError(f"The cache entry {path} is damaged ({error}). Delete it.") from None
        expected = (self.resolution, self.resolution, 3)
        if pixels.shape != expected or pixels.dtype != np.uint8:
            raise ArtifactError(f"The cache entry {path} is damaged: {pixels.dtype} {pixels.shape}. Delete it.")
        return pixels
