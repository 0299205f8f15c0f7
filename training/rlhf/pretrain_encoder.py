"""Train medsyn-encoder, the vision encoder that selector and policy start from, on phantoms drawn here.

    python -m training.rlhf.pretrain_encoder --output generation/weights/medsyn-encoder

Two tasks share one pass: name the words of the caption from the mean token, and paint masked patches in (SimMIM, Xie
et al. 2022) from the others. The phantoms carry no planted defect: what simulated experts judge by is not seen here.
"""

import argparse
import dataclasses
import itertools
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from generation.diffusion.phantoms import all_captions, random_phantom
from generation.scoring.architecture import VisionArchitecture
from generation.scoring.encoder import ENCODER_FILE, build_encoder
from generation.scoring.network_file import save_network
from medsyn.artifacts import write_json

IMAGE_SIZE = 128  # pixels
MASK_SHARE = 0.4  # of the patches of a masked image
MASKED_IMAGES = 0.5  # share of a batch that is masked; the others are seen whole, as they will be in use
WARMUP_SHARE = 0.05  # of the steps
_WORD_BREAKS = str.maketrans(",:;.", "    ")
logger = logging.getLogger("training.rlhf")


def words_of(caption: str) -> list[str]:
    return caption.lower().translate(_WORD_BREAKS).split()


def vocabulary() -> list[str]:
    """Every word of the phantoms' captions, sorted."""
    return sorted(set(itertools.chain.from_iterable(words_of(caption) for caption in all_captions())))


class PretrainingNetwork(nn.Module):
    """The encoder, a mask token, and a linear head for each task."""

    def __init__(self, architecture: VisionArchitecture, num_words: int):
        super().__init__()
        width, patch = architecture.embed_dim, architecture.patch_size
        self.patch_size = patch
        self.encoder = build_encoder(architecture, IMAGE_SIZE)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.words = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_words))
        self.pixels = nn.Linear(width, 3 * patch * patch)

    def forward(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1], mask (B, N) bool -> word logits (B, W), painted patches (B, N, 3 p p)."""
        tokens = self.encoder.patch_embed(images)
        tokens = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)
        tokens = self.encoder.norm_pre(self.encoder._pos_embed(tokens))
        tokens = self.encoder.norm(self.encoder.blocks(tokens))
        return self.words(tokens.mean(1)), self.pixels(tokens)

    def patches(self, images: Tensor) -> Tensor:
        """(B, N, 3 p p) the pixels that belong to each token."""
        return F.unfold(images, self.patch_size, stride=self.patch_size).transpose(1, 2)


@dataclasses.dataclass(frozen=True)
class Phantoms:
    pixels: Tensor  # (N, 3, S, S) uint8
    words: Tensor  # (N, W) float32, 1 where the caption has the word


def draw_phantoms(count: int, *, seed: int, words: list[str]) -> Phantoms:
    """Phantoms without planted defects, and which words their captions hold."""
    place = {word: number for number, word in enumerate(words)}
    pixels = torch.empty(count, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    targets = torch.zeros(count, len(words))
    for number in tqdm(range(count), desc="Drawing phantoms"):
        phantom = random_phantom(seed + number, IMAGE_SIZE)
        pixels[number] = torch.from_numpy(phantom.pixels).permute(2, 0, 1)
        targets[number, [place[word] for word in words_of(phantom.caption)]] = 1
    return Phantoms(pixels, targets)


def pretraining_loss(network: PretrainingNetwork, images: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of the words, plus the mean absolute error of the masked patches."""
    logits, painted = network(images, mask)
    naming = F.binary_cross_entropy_with_logits(logits, words) * words.shape[1] / 10
    error = (painted - network.patches(images)).abs().mean(2)
    return naming + (error * mask).sum() / mask.sum().clamp(min=1)


def pretrain(
    architecture: VisionArchitecture,
    phantoms: Phantoms,
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> PretrainingNetwork:
    """The network after ``num_steps`` steps of AdamW under half a cosine."""
    torch.manual_seed(seed)
    network = PretrainingNetwork(architecture, phantoms.words.shape[1]).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.05, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=num_steps, pct_start=WARMUP_SHARE, cycle_momentum=False
    )
    generator = torch.Generator().manual_seed(seed)
    num_patches = network.encoder.patch_embed.num_patches
    progress = tqdm(range(num_steps), desc="Pretraining")
    for _ in progress:
        batch = torch.randint(len(phantoms.pixels), (batch_size,), generator=generator)
        images = phantoms.pixels[batch].float() / 127.5 - 1
        mask = torch.rand(batch_size, num_patches, generator=generator) < MASK_SHARE
        mask &= torch.rand(batch_size, 1, generator=generator) < MASKED_IMAGES
        loss = pretraining_loss(network, images, phantoms.words[batch], mask)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    return network.eval()


@torch.no_grad()
def word_accuracy(network: PretrainingNetwork, phantoms: Phantoms) -> float:
    """Share of unseen phantoms' caption words found among as many best-scored words."""
    found, total = 0.0, 0.0
    unmasked = torch.zeros(len(phantoms.pixels), network.encoder.patch_embed.num_patches, dtype=torch.bool)
    for pixels, words, mask in zip(
        phantoms.pixels.split(64), phantoms.words.split(64), unmasked.split(64), strict=True
    ):
        logits, _ = network(pixels.float() / 127.5 - 1, mask)
        for row, target in zip(logits, words, strict=True):
            best = row.topk(int(target.sum())).indices
            found, total = found + target[best].sum().item(), total + target.sum().item()
    return found / total


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.rlhf.pretrain_encoder", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--output", type=Path, default=ENCODER_FILE.parent, help="folder for encoder.safetensors")
    parser.add_argument("--num_images", type=int, default=2500, help="phantoms drawn")
    parser.add_argument("--num_steps", type=int, default=400)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    started = time.monotonic()
    words, architecture = vocabulary(), VisionArchitecture(dropout=0.0)
    phantoms = draw_phantoms(options.num_images, seed=options.seed + 10_000_000, words=words)
    network = pretrain(
        architecture,
        phantoms,
        num_steps=options.num_steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    unseen = draw_phantoms(300, seed=options.seed + 20_000_000, words=words)
    report = {
        "word_accuracy_unseen": round(word_accuracy(network, unseen), 4),
        "num_images": options.num_images,
        "num_steps": options.num_steps,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "seed": options.seed,
        "seconds": round(time.monotonic() - started),
    }
    save_network(
        options.output / "encoder.safetensors",
        network.encoder.half(),
        role="encoder",
        config=dataclasses.asdict(dataclasses.replace(architecture, pretrained=None)),
    )
    write_json(options.output / "training.json", report)
    logger.info("%s", report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
