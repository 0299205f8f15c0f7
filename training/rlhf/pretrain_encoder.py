"""Train medsyn-encoder, the weights that selector and policy start from, on phantoms drawn here. No rating is needed.

    python -m training.rlhf.pretrain_encoder --output generation/weights/medsyn-encoder

Three tasks share one pass over degraded phantoms:

    which of several captions is the image's own?   the policy's fusion, text tokens of medsyn-tiny; the wrong ones
                                                    are the other findings, sides and sequences of its kind, and two
                                                    of other kinds (InfoNCE with hard negatives)
    how strongly was it degraded, and how?          generic degradations (training.rlhf.degradations)
    which words has the caption?                    from the mean token: features of other uses need what is there

The degradations are not the defects that benchmarks plant. ``--no_degradations`` leaves them and their task out.
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

from generation.diffusion.phantoms import FINDINGS, all_captions, class_of_caption, random_phantom
from generation.embedded_model import EMBEDDED_MODEL_DIR
from generation.scoring.architecture import PolicyArchitecture, SelectorArchitecture, VisionArchitecture
from generation.scoring.encoder import ENCODER_FILE, encode
from generation.scoring.network_file import save_network
from generation.scoring.policy import FUSION_FILE_NAME, Policy, PolicyConfig
from generation.scoring.selector import NUM_STRENGTHS, PERCEPTION_FILE_NAME, Perception
from medsyn.artifacts import write_json
from training.rlhf.degradations import DEGRADATIONS, degrade
from training.rlhf.text_features import PromptFeatures, encode_prompts

IMAGE_SIZE = 128  # pixels
WARMUP_SHARE = 0.05  # of the steps
OTHER_KINDS = 2  # captions of other kinds among the candidates
STRENGTH_WEIGHT = 4.0  # of the degradations' mean squared error, summed over the degradations
MATCH_WEIGHT = 0.5  # of the cross-entropy of each candidate by itself, which gives the logit its zero
WORD_WEIGHT = 0.5
_EVALUATION_BATCH = 64
_WORD_BREAKS = str.maketrans(",:;.", "    ")
logger = logging.getLogger("training.rlhf")


def words_of(caption: str) -> list[str]:
    return caption.lower().translate(_WORD_BREAKS).split()


def vocabulary() -> list[str]:
    """Every word of the phantoms' captions, sorted."""
    return sorted(set(itertools.chain.from_iterable(words_of(caption) for caption in all_captions())))


class PretrainingNetwork(nn.Module):
    """The policy with its encoder, the selector's perception, and a linear head for words."""

    def __init__(self, policy: Policy, perception_dim: int, num_words: int):
        super().__init__()
        width = policy.config.architecture.embed_dim
        self.policy = policy
        self.perception = Perception(width, perception_dim)
        self.words = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_words))

    def forward(self, images: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, S, S) in [0, 1] and C candidate captions each, text (B, C, L, D_text), mask (B, C, L).

        Gives the candidates' logits (B, C), the strengths (B, len(DEGRADATIONS)) and the words' logits (B, W).
        """
        tokens = encode(self.policy.encoder, images)
        matches = self.policy.fuse_each(self.policy.image_projection(tokens), text, mask)
        strengths = self.perception(tokens)[:, -NUM_STRENGTHS:]
        return matches, strengths, self.words(tokens.mean(1))


class CandidateCaptions:
    """Draws, for each image, its own caption and wrong ones: one of every other class of its kind, two of others."""

    def __init__(self, captions: Sequence[str]):
        classes = [class_of_caption(text) for text in captions]
        self._texts = [
            torch.tensor([i for i, each in enumerate(classes) if each == phantom_class]) for phantom_class in FINDINGS
        ]
        place = {phantom_class: number for number, phantom_class in enumerate(FINDINGS)}
        self._class_of = [place[each] for each in classes]
        kinds = [phantom_class.kind for phantom_class in FINDINGS]
        self._same = [[j for j, kind in enumerate(kinds) if kind == own and j != i] for i, own in enumerate(kinds)]
        self._other = [[j for j, kind in enumerate(kinds) if kind != own] for own in kinds]
        self.most = 1 + max(map(len, self._same)) + OTHER_KINDS

    def draw(self, own: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Positions of captions (B, C), the image's own first, and which of them stand for something (B, C) bool."""
        drawn = torch.zeros(len(own), self.most, dtype=torch.int64)
        real = torch.zeros(len(own), self.most, dtype=torch.bool)
        for row, caption in enumerate(own.tolist()):
            number = self._class_of[caption]
            others = [self._other[number][i] for i in self._numbers(len(self._other[number]), OTHER_KINDS, generator)]
            texts = [self._texts[each] for each in (*self._same[number], *others)]
            wrong = [int(each[self._numbers(len(each), 1, generator)[0]]) for each in texts]
            drawn[row, : 1 + len(wrong)] = torch.tensor([caption, *wrong])
            real[row, : 1 + len(wrong)] = True
        return drawn, real

    @staticmethod
    def _numbers(below: int, count: int, generator: torch.Generator) -> list[int]:
        return torch.randint(below, (count,), generator=generator).tolist()


@dataclasses.dataclass(frozen=True)
class Phantoms:
    pixels: Tensor  # (N, 3, S, S) uint8
    words: Tensor  # (N, W) float32, 1 where the caption has the word
    captions: Tensor  # (N,) int64, positions in all_captions()

    def images(self, index: Tensor) -> Tensor:
        return self.pixels[index].float() / 255


def draw_phantoms(count: int, *, seed: int, words: list[str]) -> Phantoms:
    """Phantoms without planted defects, their captions, and which words these hold."""
    place = {word: number for number, word in enumerate(words)}
    number_of = {text: number for number, text in enumerate(all_captions())}
    pixels = torch.empty(count, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    targets, captions = torch.zeros(count, len(words)), torch.zeros(count, dtype=torch.int64)
    for number in tqdm(range(count), desc="Drawing phantoms"):
        phantom = random_phantom(seed + number, IMAGE_SIZE)
        pixels[number] = torch.from_numpy(phantom.pixels).permute(2, 0, 1)
        targets[number, [place[word] for word in words_of(phantom.caption)]] = 1
        captions[number] = number_of[phantom.caption]
    return Phantoms(pixels, targets, captions)


@dataclasses.dataclass(frozen=True)
class Batch:
    images: Tensor  # (B, 3, S, S) in [0, 1], degraded
    strengths: Tensor  # (B, len(DEGRADATIONS))
    words: Tensor  # (B, W)
    captions: Tensor  # (B, C) candidates, the image's own first
    is_candidate: Tensor  # (B, C) bool


def make_batch(
    phantoms: Phantoms,
    index: Tensor,
    candidates: CandidateCaptions,
    generator: torch.Generator,
    *,
    with_degradations: bool,
) -> Batch:
    images = phantoms.images(index)
    strengths = torch.zeros(len(index), len(DEGRADATIONS))
    if with_degradations:
        images, strengths = degrade(images, generator)
    return Batch(images, strengths, phantoms.words[index], *candidates.draw(phantoms.captions[index], generator))


def pretraining_loss(network: PretrainingNetwork, batch: Batch, features: PromptFeatures) -> Tensor:
    matches, strengths, words = network(batch.images, *features[batch.captions])
    own = torch.zeros_like(matches)
    own[:, 0] = 1
    alone = F.binary_cross_entropy_with_logits(matches, own, reduction="none")
    alone = alone[:, 0].mean() + (alone[:, 1:] * batch.is_candidate[:, 1:]).sum() / batch.is_candidate[:, 1:].sum()
    among = F.cross_entropy(matches.masked_fill(~batch.is_candidate, -torch.inf), own.argmax(1))
    seen = (strengths - batch.strengths).square().sum(1).mean()
    naming = F.binary_cross_entropy_with_logits(words, batch.words) * batch.words.shape[1] / 10
    return among + MATCH_WEIGHT * alone + STRENGTH_WEIGHT * seen + WORD_WEIGHT * naming


@dataclasses.dataclass(frozen=True)
class Schedule:
    num_steps: int
    batch_size: int  # images
    learning_rate: float
    seed: int
    with_degradations: bool = True


def pretrain(network: PretrainingNetwork, phantoms: Phantoms, features: PromptFeatures, schedule: Schedule) -> None:
    """``num_steps`` steps of AdamW under half a cosine."""
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=schedule.learning_rate, weight_decay=0.05, betas=(0.9, 0.95)
    )
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        schedule.learning_rate,
        total_steps=schedule.num_steps,
        pct_start=WARMUP_SHARE,
        cycle_momentum=False,
    )
    generator = torch.Generator().manual_seed(schedule.seed)
    candidates = CandidateCaptions(all_captions())
    network.train()
    progress = tqdm(range(schedule.num_steps), desc="Pretraining", mininterval=5)
    for _ in progress:
        index = torch.randint(len(phantoms.pixels), (schedule.batch_size,), generator=generator)
        batch = make_batch(phantoms, index, candidates, generator, with_degradations=schedule.with_degradations)
        loss = pretraining_loss(network, batch, features)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rates.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    network.eval()


@torch.no_grad()
def measure(network: PretrainingNetwork, phantoms: Phantoms, features: PromptFeatures, *, seed: int) -> dict:
    """On phantoms never seen: words found, own caption ranked first, correlation of the degradations' strengths."""
    generator, candidates = torch.Generator().manual_seed(seed), CandidateCaptions(all_captions())
    found, first, told, true = 0.0, [], [], []
    for index in torch.arange(len(phantoms.pixels)).split(_EVALUATION_BATCH):
        clean = make_batch(phantoms, index, candidates, generator, with_degradations=False)
        matches, _, words = network(clean.images, *features[clean.captions])
        matches = matches.masked_fill(~clean.is_candidate, -torch.inf)
        first.append((matches.argmax(1) == 0).float())
        for row, target in zip(words, clean.words, strict=True):
            found += target[row.topk(int(target.sum())).indices].sum().item()
        spoilt = make_batch(phantoms, index, candidates, generator, with_degradations=True)
        told.append(network(spoilt.images, *features[spoilt.captions])[1])
        true.append(spoilt.strengths)
    told, true = torch.cat(told), torch.cat(true)
    correlations = [torch.corrcoef(torch.stack(pair))[0, 1].item() for pair in zip(told.T, true.T, strict=True)]
    return {
        "word_accuracy_unseen": round(found / phantoms.words.sum().item(), 4),
        "own_caption_first_unseen": round(torch.cat(first).mean().item(), 4),
        "strength_correlation_unseen": {
            name: round(value, 3) for name, value in zip(DEGRADATIONS, correlations, strict=True)
        },
    }


def save(
    network: PretrainingNetwork, folder: Path, features: PromptFeatures, architecture: VisionArchitecture
) -> None:
    """Three files in half precision: the encoder, the selector's perception, the policy's fusion."""
    vision = {item.name: getattr(architecture, item.name) for item in dataclasses.fields(VisionArchitecture)}
    network = network.half()
    save_network(
        folder / "encoder.safetensors",
        network.policy.encoder,
        role="encoder",
        config={**vision, "pretrained": None},
    )
    save_network(folder / PERCEPTION_FILE_NAME, network.perception, role="perception", config={})
    fusion = nn.ModuleDict({name: part for name, part in network.policy.named_children() if name != "encoder"})
    fusion.register_parameter("log_scale", network.policy.log_scale)
    digest = {"text_encoder_sha256": features.encoder_sha256}
    save_network(folder / FUSION_FILE_NAME, fusion, role="fusion", config=digest)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.rlhf.pretrain_encoder", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--output", type=Path, default=ENCODER_FILE.parent, help="folder for the three files")
    parser.add_argument("--num_images", type=int, default=3000, help="phantoms drawn")
    parser.add_argument("--num_steps", type=int, default=1200)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no_degradations", action="store_true", help="learn from captions alone")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    started = time.monotonic()
    words, features = vocabulary(), encode_prompts(EMBEDDED_MODEL_DIR, all_captions())
    torch.manual_seed(options.seed)
    architecture = PolicyArchitecture(dropout=0.0, pretrained=None)
    policy = Policy(PolicyConfig(IMAGE_SIZE, features.tokens.shape[2], features.encoder_sha256, architecture))
    network = PretrainingNetwork(policy, SelectorArchitecture().perception_dim, len(words))
    phantoms = draw_phantoms(options.num_images, seed=options.seed + 10_000_000, words=words)
    schedule = Schedule(
        options.num_steps, options.batch_size, options.learning_rate, options.seed, not options.no_degradations
    )
    pretrain(network, phantoms, features, schedule)
    unseen = draw_phantoms(300, seed=options.seed + 20_000_000, words=words)
    report = {
        **measure(network, unseen, features, seed=options.seed),
        "num_images": options.num_images,
        **dataclasses.asdict(schedule),
        "seconds": round(time.monotonic() - started),
    }
    save(network, options.output, features, architecture)
    write_json(options.output / "training.json", report)
    logger.info("%s", report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
