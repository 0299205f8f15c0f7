"""Train the judge from nothing: ``python -m training.simulation.train_judge``. Minutes on one core.

Phantoms, half of them with planted defects of known severity, softened as a decoder would, so that generated images
lie within what the judge has seen. Seeds below VALIDATION_SEED train, those from it on test.
"""

import argparse
import logging
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from generation.diffusion.phantoms import FINDINGS, random_phantom
from medsyn.modalities import KINDS
from training.simulation.judge import SIZE, WEIGHTS, Judge

VALIDATION_SEED = 50_000_000
logger = logging.getLogger(__name__)


def render(seeds: range, num_workers: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images uint8 (N, 3, H, W), class numbers (N,), severities (N,)."""
    draw = partial(random_phantom, size=SIZE, defect_rate=0.5)
    with ProcessPoolExecutor(num_workers) as pool:
        phantoms = list(tqdm(pool.map(draw, seeds, chunksize=64), total=len(seeds), desc="phantoms"))
    images = torch.from_numpy(np.stack([phantom.pixels for phantom in phantoms])).permute(0, 3, 1, 2).contiguous()
    classes = torch.tensor([FINDINGS.index(phantom.phantom_class) for phantom in phantoms])
    return images, classes, torch.tensor([phantom.severity for phantom in phantoms], dtype=torch.float32)


def soften(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mild blur and grain of random strength on images (B, 3, H, W) in [0, 1]."""
    blurred = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = 0.6 * torch.rand(len(images), 1, 1, 1, generator=generator)
    amplitude = 0.015 * torch.rand(len(images), 1, 1, 1, generator=generator)
    grain = amplitude * torch.randn(images.shape, generator=generator)
    return (images + share * (blurred - images) + grain).clamp(0, 1)


def train(judge: Judge, data: tuple[torch.Tensor, ...], *, num_steps: int, batch_size: int, seed: int) -> None:
    images, classes, severities = data
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=num_steps, pct_start=0.1)
    judge.train()
    bar = tqdm(range(num_steps), desc="judge")
    for _ in bar:
        chosen = torch.randint(len(images), (batch_size,), generator=generator)
        logits, severity = judge(soften(images[chosen].float() / 255, generator))
        # A badly spoilt image says little about its finding: it counts less there.
        weight = 1 - 0.7 * severities[chosen]
        finding_loss = (weight * functional.cross_entropy(logits, classes[chosen], reduction="none")).mean()
        fault_loss = functional.binary_cross_entropy(severity, severities[chosen])
        loss = finding_loss + fault_loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    judge.eval()


@torch.inference_mode()
def evaluate(judge: Judge, data: tuple[torch.Tensor, ...]) -> dict[str, float]:
    """Accuracy of finding and kind on clean held-out phantoms, correlation of severity on all."""
    images, classes, severities = data
    outputs = [judge(chunk.float() / 255) for chunk in images.split(64)]
    guesses = torch.cat([logits for logits, _ in outputs]).argmax(1)
    predicted = torch.cat([severity for _, severity in outputs])
    clean = severities == 0
    kinds = torch.tensor([KINDS.index(phantom_class.kind) for phantom_class in FINDINGS])
    return {
        "finding_accuracy": (guesses == classes)[clean].float().mean().item(),
        "kind_accuracy": (kinds[guesses] == kinds[classes])[clean].float().mean().item(),
        "severity_correlation": torch.corrcoef(torch.stack([predicted, severities]))[0, 1].item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--num_images", type=int, default=9000)
    parser.add_argument("--num_steps", type=int, default=1100)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_workers", type=int, default=1, help="processes that draw")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(arguments.seed)
    first = arguments.seed * 1_000_000
    data = render(range(first, first + arguments.num_images), arguments.num_workers)
    held_out = render(range(VALIDATION_SEED, VALIDATION_SEED + 1000), arguments.num_workers)
    judge = Judge()
    logger.info("%.2f million parameters", sum(p.numel() for p in judge.parameters()) / 1e6)
    train(judge, data, num_steps=arguments.num_steps, batch_size=arguments.batch_size, seed=arguments.seed)
    judge.save(arguments.output)
    for name, value in evaluate(Judge.load(arguments.output), held_out).items():
        logger.info("%s %.3f", name, value)


if __name__ == "__main__":
    main()
