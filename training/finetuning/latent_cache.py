"""VAE posteriors and text features, computed once and kept on disk under the digest of what they were made from.

A key names the content (the file's bytes, the caption) and everything that turned it into the tensor (weights,
resolution, fit, mirroring), so an entry is never stale and several runs may share one folder. Every entry is a
safetensors file of its own, written to a temporary name and renamed: an interrupted run continues where it was, two
processes may fill one cache, each entry is whole or absent.

Tensors are stored in float16 where their values allow it: rounding by 2**-12 of the value on average is a hundredth
of the noise of the first diffusion timestep.

Images and captions are encoded one at a time. The bits of a convolution may depend on the batch around an image, and
an entry must not depend on where an earlier run was interrupted.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from generation.diffusion.conditioning import TextFeatures
from generation.diffusion.text_to_image import TextToImage
from medsyn.artifacts import ArtifactError, digest_of, write_bytes
from medsyn.imaging import load
from training.finetuning.dataset import Row

_FORMAT = 2  # part of every key: raise it when images are read or entries are laid out in another way
_OF_THE_LAST_CALL = ("padding", "truncation")  # settings that a tokenizer keeps from whoever called it last
_IMAGES_AHEAD = 32  # decoded pictures held in memory at once


class TensorStore:
    """A folder of named tensors under content keys."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.safetensors"  # no folder grows beyond a few thousand entries

    def __contains__(self, key: str) -> bool:
        return self._path(key).exists()

    def write(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Store under ``key``, rounded to float16 unless a value would overflow there."""
        write_bytes(self._path(key), save({name: _compact(tensor) for name, tensor in tensors.items()}))

    def read(self, key: str) -> dict[str, Tensor]:
        """The tensors of an entry in float32; raises ArtifactError where it is gone or damaged."""
        try:
            return {name: tensor.float() for name, tensor in load_file(self._path(key)).items()}
        except FileNotFoundError:
            raise ArtifactError(f"The cache entry {self._path(key)} is gone. Start again to compute it.") from None
        except SafetensorError as error:
            raise ArtifactError(f"The cache entry {self._path(key)} is damaged ({error}). Delete it.") from None


def _compact(tensor: Tensor) -> Tensor:
    tensor = tensor.float().cpu().contiguous()
    half = tensor.half()
    return half if half.isfinite().all() else tensor


def weights_sha256(module: nn.Module) -> str:
    """sha256 over a module's parameters and buffers: their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class LatentCache:
    """Latents of a dataset's images, and text features of its captions, for one pipeline and one geometry."""

    store: TensorStore
    vae_sha256: str
    text_encoder_sha256: str  # of the text encoder and its tokenizer
    resolution: int  # side of the square images, pixels
    fit: str  # "pad" or "crop"

    @classmethod
    def for_pipeline(cls, folder: Path, pipeline: TextToImage, *, resolution: int, fit: str) -> "LatentCache":
        vae = digest_of([weights_sha256(pipeline.vae), dict(pipeline.vae.config)])
        tokenizer = json.loads(pipeline.tokenizer.backend_tokenizer.to_str())
        lasting = {name: value for name, value in tokenizer.items() if name not in _OF_THE_LAST_CALL}
        text = digest_of([weights_sha256(pipeline.text_encoder), lasting, pipeline.max_tokens])
        return cls(TensorStore(folder), vae, text, resolution, fit)

    def latent_key(self, row: Row, flipped: bool) -> str:
        kind = row.prompt.kind.prefix  # decides the window that a CT is shown through
        return digest_of(
            [_FORMAT, "latent", row.image_sha256, kind, self.resolution, self.fit, flipped, self.vae_sha256]
        )

    def text_key(self, text: str) -> str:
        return digest_of([_FORMAT, "text", text, self.text_encoder_sha256])

    def latent(self, row: Row, flipped: bool) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior, (C, h, w) each, float32, in units of normalised latents."""
        moments = self.store.read(self.latent_key(row, flipped))
        return moments["mean"], (0.5 * moments["log_variance"]).exp()

    def text_features(self, text: str) -> Tensor:
        """(L, D_text), float32; L is the length of this text, without padding."""
        return self.store.read(self.text_key(text))["tokens"]

    def fill_latents(
        self, pipeline: TextToImage, rows: Sequence[Row], *, flips: bool, quiet: bool = False, num_threads: int = 4
    ) -> int:
        """Encode what is missing, with ``flips`` the mirrored images of rows that may flip too; returns how many."""
        wanted = [(row, False) for row in rows] + [(row, True) for row in rows if flips and row.may_flip]
        missing = self._missing(wanted, lambda item: self.latent_key(*item))
        pictures = self._pictures(list(missing.values()), num_threads)
        for key, pixels in _progress(zip(missing, pictures, strict=True), len(missing), "Encoding images", quiet):
            image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
            with torch.no_grad():
                mean, log_variance = pipeline.latent_posterior(image)
            self.store.write(key, {"mean": mean[0], "log_variance": log_variance[0]})
        return len(missing)

    def fill_text_features(self, pipeline: TextToImage, texts: Iterable[str], *, quiet: bool = False) -> int:
        """Encode the captions that are missing; returns how many."""
        missing = self._missing(texts, self.text_key)
        for key, text in _progress(missing.items(), len(missing), "Encoding captions", quiet):
            with torch.no_grad():
                features: TextFeatures = pipeline.encode_text([text])
            self.store.write(key, {"tokens": features.tokens[0]})
        return len(missing)

    def _missing(self, items: Iterable, key_of: Callable) -> dict:
        """By key, each once."""
        by_key = {key_of(item): item for item in items}
        return {key: item for key, item in by_key.items() if key not in self.store}

    def _pictures(self, items: Sequence[tuple[Row, bool]], num_threads: int) -> Iterator[np.ndarray]:
        """uint8 (S, S, 3), decoded in threads, a few ahead of the encoder."""
        with ThreadPoolExecutor(num_threads) as threads:
            for start in range(0, len(items), _IMAGES_AHEAD):
                yield from threads.map(self._picture, items[start : start + _IMAGES_AHEAD])

    def _picture(self, item: tuple[Row, bool]) -> np.ndarray:
        row, flipped = item
        pixels = load(row.path, modality=row.prompt.kind.prefix).to_rgb(self.resolution, fit=self.fit)
        return np.ascontiguousarray(pixels[:, ::-1]) if flipped else pixels


def _progress(items: Iterable, total: int, name: str, quiet: bool) -> Iterable:
    return tqdm(items, total=total, desc=name, disable=quiet or not total)
