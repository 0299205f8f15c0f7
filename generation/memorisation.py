"""Is a generated image a copy of a patient? Nearest training image, and how unusual so near a one is. Pure torch.

The similarity of two pictures is their largest normalised cross-correlation over mirror images, crops down to 90 %
of the side, and shifts, computed on grey pictures of SIDE pixels whose local contrast is made even: otherwise the
border of a fundus against its black surround, which all fundi share, would speak louder than their vessels.

Most training images are out of question at a coarser look: NEIGHBOURS survive it and are compared in full.

    p(x) = (1 + #{held-out images at least as similar to their nearest training image}) / (1 + n)

with n held-out real images of *other patients*, of the same kind where there are enough. x is blocked where
p <= LEVEL: of fresh images, as unlike the training images as a new patient's, a share LEVEL is blocked by mistake and
no more (conformal p-value, Vovk et al. 2005). This finds copies; it is not differential privacy.

Shapes: B images, N training images, S = SIDE, s = _COARSE.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from medsyn.artifacts import ArtifactError, atomic_path

FILE_NAME = "memory_index.safetensors"  # in the pipeline's folder: it belongs to what the generator was trained on
SIDE = 64  # pixels at which pictures are compared
LEVEL = 0.01  # p-value from which an image is blocked
MIN_HELD_OUT = 200  # held-out images of all kinds together, without which nothing can be blocked
MIN_OWN_KIND = 99  # held-out images with which a kind is judged by its own: the smallest number that reaches LEVEL
NEIGHBOURS = 8  # training images that are compared in full
SCALES = (1.0, 0.95, 0.9)  # of the side: how much of the training image a copy may show
_FORMAT = 2
_COARSE = 32  # pixels of the first look
_FAINTEST = 1e-3  # length below which a thumbnail has no structure to compare
_CUT = 0.06  # of the side at each border: what a copy of full size may be shifted by
_FINE, _LOCAL = 0.8, 3.0  # pixels of SIDE: noise below the one is smoothed away, contrast is made even over the other
_FLAT = 0.03  # grey, [0, 1]: local deviation that counts as texture; weaker ones are not blown up
_STRONGEST = 3.0  # local deviations at which an edge is clipped
_CHUNK = 256  # training images compared at a time


@dataclass(frozen=True)
class Resemblance:
    """An image's nearest training image."""

    position: int  # in the index
    dataset: str  # folder of the data set
    name: str  # path in it
    sha256: str  # of the training image's file
    similarity: float  # -1..1
    p_value: float | None  # None where too few images were held out to tell
    is_copy: bool  # p_value <= LEVEL


@dataclass(frozen=True)
class MemoryIndex:
    """Training images, small, and how near other patients' images come to them."""

    pictures: Tensor  # (N, S, S) uint8 grey
    datasets: tuple[str, ...]  # (N,) folders of the data sets when trained on: where an administrator may look
    names: tuple[str, ...]  # (N,) paths in them
    sha256s: tuple[str, ...]  # (N,) of the files
    held_out_similarity: Tensor  # (n,) float32: of each held-out image to its nearest training image
    held_out_kinds: tuple[str, ...]  # (n,) slugs

    def __len__(self) -> int:
        return len(self.names)

    def null_for(self, kind: str) -> Tensor:
        """Held-out similarities (m,) of the kind, of all kinds where it has fewer than MIN_OWN_KIND."""
        own = torch.tensor([held == kind for held in self.held_out_kinds], dtype=torch.bool)
        return self.held_out_similarity[own] if int(own.sum()) >= MIN_OWN_KIND else self.held_out_similarity

    def p_value(self, similarity: float, kind: str) -> float | None:
        """p of an image of that kind; None where fewer than MIN_HELD_OUT images were held out in all."""
        if len(self.held_out_similarity) < MIN_HELD_OUT:
            return None
        null = self.null_for(kind)
        return (1 + int((null >= similarity).sum())) / (1 + len(null))

    def judge(self, images: Tensor, kinds: Sequence[str]) -> list[Resemblance]:
        """What each of the images (B, 1|3, H, W) in [0, 1], of these kinds (B slugs), resembles most."""
        similarity, position = nearest(images, self.pictures)
        return [self._resemblance(s, p, kind) for s, p, kind in zip(similarity, position, kinds, strict=True)]

    def _resemblance(self, similarity: Tensor, position: Tensor, kind: str) -> Resemblance:
        value, place = float(similarity), int(position)
        p_value = self.p_value(value, kind)
        is_copy = p_value is not None and p_value <= LEVEL
        return Resemblance(
            place, self.datasets[place], self.names[place], self.sha256s[place], value, p_value, is_copy
        )

    def save(self, path: Path) -> None:
        folders = sorted(set(self.datasets))
        header = {
            "format": _FORMAT,
            "folders": folders,
            "folder_of": [folders.index(folder) for folder in self.datasets],
            "names": self.names,
            "sha256s": self.sha256s,
            "held_out_kinds": self.held_out_kinds,
        }
        tensors = {"pictures": self.pictures.contiguous(), "held_out_similarity": self.held_out_similarity}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"memory_index": json.dumps(header, sort_keys=True)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """The index of a file; raises ArtifactError where it is none, or of another format."""
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("memory_index", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{path} cannot be read ({error}). Build the memory index again.") from error
        if header.get("format") != _FORMAT:
            raise ArtifactError(f"{path} is no memory index of this version. Build it again.")
        return cls(
            pictures=tensors["pictures"],
            datasets=tuple(header["folders"][number] for number in header["folder_of"]),
            names=tuple(header["names"]),
            sha256s=tuple(header["sha256s"]),
            held_out_similarity=tensors["held_out_similarity"],
            held_out_kinds=tuple(header["held_out_kinds"]),
        )


def small_pictures(images: Tensor) -> Tensor:
    """Images (B, 1|3, H, W) in [0, 1] to what an index keeps of them: uint8 grey (B, S, S)."""
    return (_grey(images, SIDE)[:, 0] * 255).round().to(torch.uint8)


@torch.inference_mode()
def nearest(images: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Of images (B, 1|3, H, W) in [0, 1] the largest similarity (B,) to pictures (N, S, S) uint8, and whose (B,)."""
    if not len(pictures):
        raise ValueError("The memory index holds no picture: there is nothing to compare with.")
    grey = _grey(images, SIDE)
    candidates = _coarse(grey, pictures).topk(min(NEIGHBOURS, len(pictures)), dim=1).indices  # (B, K)
    count = candidates.shape[1]
    others = pictures[candidates.flatten()].float()[:, None] / 255
    values = _correlation(grey.repeat_interleave(count, 0), others).view(-1, count)
    best = values.max(1)
    return best.values, candidates.gather(1, best.indices[:, None])[:, 0]


def thumbnail_correlation(images: Tensor, pictures: Tensor) -> Tensor:
    """Largest correlation (B,) of z-scored 32 x 32 thumbnails over mirror images and shifts of up to 2 pixels.

    The usual test for copies (Akbar et al. 2023), for comparison: crops and changed contrast escape it.
    """
    thumbnails = F.interpolate(_grey(images, SIDE), (_COARSE, _COARSE), mode="bilinear", antialias=True)
    return _template_similarity(thumbnails[:, :, 2:-2, 2:-2], pictures).amax(1)


def _grey(images: Tensor, side: int) -> Tensor:
    """(B, 1, side, side) of images (B, 1|3, H, W)."""
    grey = images.float().mean(1, keepdim=True)
    return F.interpolate(grey, (side, side), mode="bilinear", antialias=True).clamp(0, 1)


def _coarse(grey: Tensor, pictures: Tensor) -> Tensor:
    """(B, N) similarity of thumbnails, whole (with shifts) or as a 90 % crop, mirrored or not."""
    whole = F.interpolate(grey, (_COARSE, _COARSE), mode="bilinear", antialias=True)[:, :, 2:-2, 2:-2]
    cropped = F.interpolate(grey, [round(0.9 * _COARSE)] * 2, mode="bilinear", antialias=True)
    return torch.maximum(_template_similarity(whole, pictures), _template_similarity(cropped, pictures))


def _template_similarity(templates: Tensor, pictures: Tensor) -> Tensor:
    """(B, N) largest correlation of templates (B, 1, c, c), mirrored or not, anywhere in the thumbnails (N, s, s)."""
    size = templates.shape[-1]
    views = torch.cat([templates, templates.flip(-1)])
    wanted = _unit(views.flatten(1)).view(-1, 1, size, size)
    found = []
    for chunk in pictures.split(_CHUNK):
        thumbnails = F.interpolate(chunk.float()[:, None] / 255, (_COARSE, _COARSE), mode="bilinear", antialias=True)
        thumbnails = thumbnails - thumbnails.mean((2, 3), keepdim=True)  # keeps the squares below exact
        # A view has mean 0, so its product with a window is that with the window less its mean.
        products = F.conv2d(thumbnails, wanted)  # (n, 2 B, shifts, shifts)
        means, squares = (F.avg_pool2d(each, size, stride=1) for each in (thumbnails, thumbnails.square()))
        lengths = ((squares - means.square()).clamp(min=0) * size**2).sqrt().clamp(min=_FAINTEST)
        both = (products / lengths).amax((2, 3)).view(len(chunk), 2, -1)
        found.append(both.amax(1).T)
    return torch.cat(found, dim=1)


def _unit(vectors: Tensor) -> Tensor:
    """Mean 0 and length 1 along the last dimension; flat ones become (nearly) 0."""
    centred = vectors - vectors.mean(-1, keepdim=True)
    return centred / centred.norm(dim=-1, keepdim=True).clamp(min=_FAINTEST)


def _evened(grey: Tensor) -> Tensor:
    """Pictures (P, 1, H, W) less their surroundings, over the local deviation."""
    smooth = _blurred(grey, _FINE)
    detail = smooth - _blurred(smooth, _LOCAL)
    deviation = _blurred(detail.square(), _LOCAL).clamp(min=0).sqrt()
    return (detail / (deviation + _FLAT)).clamp(-_STRONGEST, _STRONGEST)


def _blurred(grey: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, the border's values going on beyond it."""
    reach = round(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=grey.dtype, device=grey.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    rows = F.conv2d(F.pad(grey, (reach, reach, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    return F.conv2d(F.pad(rows, (0, 0, reach, reach), mode="replicate"), kernel.view(1, 1, -1, 1))


def _correlation(grey: Tensor, others: Tensor) -> Tensor:
    """(P,) largest correlation of pictures (P, 1, S, S) with their others (P, 1, S, S) over SCALES, mirrors, shifts.

    Cross-correlation in the Fourier domain; mean and length of the windows come from sums over them (Lewis 1995).
    """
    target = _evened(others)[:, 0]
    padded = (2 * SIDE, 2 * SIDE)
    spectrum, energy = torch.fft.rfft2(target, s=padded), torch.fft.rfft2(target.square(), s=padded)
    best = torch.full((len(grey),), -1.0)
    for scale in SCALES:
        template = _template(grey, scale)
        side = template.shape[-1]
        room = SIDE - side + 1  # shifts along one side
        box = torch.fft.rfft2(torch.ones(side, side), s=padded).conj()
        sums = torch.fft.irfft2(spectrum * box, s=padded)[:, :room, :room]
        squares = torch.fft.irfft2(energy * box, s=padded)[:, :room, :room]
        lengths = (squares - sums.square() / side**2).clamp(min=1e-3).sqrt()
        for view in (template, template.flip(-1)):
            view = view - view.mean((1, 2), keepdim=True)
            product = torch.fft.irfft2(spectrum * torch.fft.rfft2(view, s=padded).conj(), s=padded)
            values = (product[:, :room, :room] / lengths).amax((1, 2))
            best = torch.maximum(best, values / view.norm(dim=(1, 2)).clamp(min=1e-2))
    return best.clamp(-1, 1)


def _template(grey: Tensor, scale: float) -> Tensor:
    """(P, c, c) what is looked for: the picture at that share of the side; at full size less its borders."""
    side = round(scale * SIDE)
    resized = grey if side == SIDE else F.interpolate(grey, (side, side), mode="bilinear", antialias=True)
    evened = _evened(resized)[:, 0]
    cut = round(_CUT * SIDE) if side == SIDE else 0
    return evened[:, cut : side - cut, cut : side - cut]
