"""How many planted copies of training images the memory index finds, and how many fresh images it blocks by mistake.

    OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests/benchmarks/test_copies.py -m benchmark -s -n0

On phantoms of each kind, and on the real images beside the repository where they are there: parted by patient, near
doubles kept on one side. Beside it the correlation of thumbnails alone, at the same share of false blocks.
"""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from generation.diffusion.phantoms import FINDINGS, draw
from generation.memorisation import LEVEL, MemoryIndex, nearest, small_pictures, thumbnail_correlation
from medsyn.imaging import load
from medsyn.modalities import KINDS, parse_prompt
from tests.generation.test_memorisation import PLANTED
from training.datasets.duplicates import near_pairs

pytestmark = pytest.mark.benchmark

REAL = Path(os.environ.get("MEDSYN_REALDATA", Path(__file__).resolve().parents[3] / "shared" / "realdata"))
NUM_TRAINED, NUM_HELD_OUT, NUM_FRESH, NUM_COPIES = 150, 120, 60, 30
DOUBLES = 0.95  # correlation from which two real images stay on one side


def phantoms(kind, first: int, count: int) -> Tensor:
    classes = [phantom_class for phantom_class in FINDINGS if phantom_class.kind == kind]
    pixels = np.stack([draw(classes[seed % len(classes)], seed=seed).pixels for seed in range(first, first + count)])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def index_of(trained: Tensor, held_out: Tensor, kinds: list[str]) -> MemoryIndex:
    pictures = small_pictures(trained)
    similarity, _ = nearest(held_out, pictures)
    names = tuple(str(number) for number in range(len(trained)))
    return MemoryIndex(pictures, ("",) * len(names), names, names, similarity, tuple(kinds))


def shares(index: MemoryIndex, sources: Tensor, kinds: list[str], held_out: Tensor) -> dict[str, tuple[float, float]]:
    """By kind of copy: the shares found by the index, and by thumbnails alone at the same level."""
    limit = torch.quantile(thumbnail_correlation(held_out, index.pictures), 1 - LEVEL)
    found = {}
    for name, plant in PLANTED.items():
        copies = plant(sources, torch.Generator().manual_seed(1))
        caught = np.mean([one.is_copy for one in index.judge(copies, kinds)])
        found[name] = (float(caught), (thumbnail_correlation(copies, index.pictures) > limit).float().mean().item())
    return found


def print_row(title: str, found: dict[str, tuple[float, float]], false_blocks: float) -> None:
    cells = "  ".join(f"{name} {ours:.3f} ({plain:.3f})" for name, (ours, plain) in found.items())
    print(f"{title:12s} {cells}  false blocks {false_blocks:.3f}", flush=True)


def test_phantoms():
    print("\nshare of planted copies found (thumbnails alone), phantoms, each kind against 120 of its own")
    table = []
    for number, kind in enumerate(KINDS):
        first = 60_000_000 + 100_000 * number
        trained = phantoms(kind, first, NUM_TRAINED)
        held_out = phantoms(kind, first + 10_000, NUM_HELD_OUT)
        fresh = phantoms(kind, first + 20_000, NUM_FRESH)
        # Two kinds make up the number of held-out images without which nothing is blocked.
        other = ["other"] * NUM_HELD_OUT
        index = index_of(trained, torch.cat([held_out, held_out]), [kind.slug] * NUM_HELD_OUT + other)
        found = shares(index, trained[:NUM_COPIES], [kind.slug] * NUM_COPIES, held_out)
        blocked = float(np.mean([one.is_copy for one in index.judge(fresh, [kind.slug] * NUM_FRESH)]))
        print_row(kind.slug, found, blocked)
        table.append((found, blocked))
    means = {name: tuple(np.mean([row[name] for row, _ in table], axis=0)) for name in PLANTED}
    print_row("all kinds", means, float(np.mean([blocked for _, blocked in table])))
    # Phantom chest X-rays and breasts share one anatomy: a crop is hardly nearer to its source than another phantom.
    assert all(ours >= (0.75 if name == "cropped" else 0.95) for name, (ours, _) in means.items())
    assert np.mean([blocked for _, blocked in table]) <= 0.03


def real_images() -> tuple[Tensor, np.ndarray, list[str]]:
    """Pixels (N, 3, 128, 128), groups (N,) of patients and near doubles, kinds (N,)."""
    with (REAL / "sources.csv").open(encoding="utf-8") as file:
        patients = {row["path"]: row["patient"] for row in csv.DictReader(file)}
    with (REAL / "metadata.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kinds = [parse_prompt(row["Text"]).kind for row in rows]
    pixels = np.stack(
        [load(REAL / r["path"], modality=k.prefix).to_rgb(128) for r, k in zip(rows, kinds, strict=True)]
    )
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return images, groups_of(images, [patients[row["path"]] for row in rows]), [kind.slug for kind in kinds]


def groups_of(images: Tensor, patients: list[str]) -> np.ndarray:
    thumbnails = torch.nn.functional.interpolate(
        images.mean(1, keepdim=True), (32, 32), mode="bilinear", antialias=True
    )
    pairs, is_complete = near_pairs((thumbnails[:, 0] * 255).round().byte().numpy(), threshold=DOUBLES)
    assert is_complete
    _, patient = np.unique(patients, return_inverse=True)
    first = {}
    edges = [(number, first.setdefault(one, number)) for number, one in enumerate(patient)]
    edges = np.array(edges + [(pair.first, pair.second) for pair in pairs])
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(images), len(images)))
    return connected_components(graph, directed=False)[1]


@pytest.mark.skipif(not (REAL / "metadata.csv").is_file(), reason="no real images beside the repository")
def test_real_images():
    images, groups, kinds = real_images()
    rng = np.random.default_rng(0)
    order = rng.permutation(groups.max() + 1)
    share = {group: place / len(order) for place, group in enumerate(order)}
    side = np.array([share[group] for group in groups])
    parts = {"trained": side >= 0.45, "held out": (side >= 0.15) & (side < 0.45), "fresh": side < 0.15}
    kinds_of = {name: [kind for kind, keep in zip(kinds, part, strict=True) if keep] for name, part in parts.items()}
    index = index_of(images[parts["trained"]], images[parts["held out"]], kinds_of["held out"])
    chosen = rng.permutation(int(parts["trained"].sum()))[:100]
    sources = images[parts["trained"]][chosen]
    found = shares(index, sources, [kinds_of["trained"][number] for number in chosen], images[parts["held out"]])
    fresh = index.judge(images[parts["fresh"]], kinds_of["fresh"])
    print("\nreal images:", ", ".join(f"{int(part.sum())} {name}" for name, part in parts.items()))
    print_row("all kinds", found, float(np.mean([one.is_copy for one in fresh])))
    assert np.mean([ours for ours, _ in found.values()]) >= 0.95
    assert all(ours >= 0.8 for ours, _ in found.values())
    assert np.mean([one.is_copy for one in fresh]) <= 0.03
