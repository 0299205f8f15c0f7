"""How well medsyn-tiny draws what it is asked for:

.venv/bin/python -m pytest tests/benchmarks/test_medsyn_tiny.py -m benchmark -s

The judge is a network of another architecture, trained on phantoms that medsyn-tiny was not trained on. Variety and
vessels are compared with phantoms of the same classes.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch.nn import functional

from generation.diffusion.loading import DEFAULT_MODEL_DIR, ModelSource, load_generator
from generation.diffusion.phantoms import FINDINGS, caption, draw
from generation.diffusion.text_to_image import TextToImage
from medsyn.modalities import FUNDUS
from training.simulation.judge import Judge

ROOT = Path(__file__).resolve().parents[2]
FRESH_SEED = 10_000  # training drew no phantom's noise from these
HELD_OUT = 70_000_000  # seeds of phantoms that neither generator nor judge has seen
BATCH = 19


@pytest.fixture(scope="module")
def pipeline() -> TextToImage:
    return load_generator(ModelSource(str(DEFAULT_MODEL_DIR)), device="cpu").pipeline


def drawn(pipeline: TextToImage, images_per_class: int, **parameters) -> tuple[torch.Tensor, float]:
    """Images of all classes in turn, (B, 3, H, W), and processor seconds per image."""
    count = images_per_class * len(FINDINGS)
    prompts = [caption(FINDINGS[index % len(FINDINGS)], seed=FRESH_SEED + index) for index in range(count)]
    started, parts = time.process_time(), []
    for first in range(0, count, BATCH):
        part = prompts[first : first + BATCH]
        seeds = range(FRESH_SEED + first, FRESH_SEED + first + len(part))
        parts.append(pipeline(part, seeds=seeds, output_type="pt", **parameters))
    return torch.cat(parts), (time.process_time() - started) / count


@torch.inference_mode()
def seen_by_the_judge(images: torch.Tensor) -> list[int]:
    """Numbers of the classes in FINDINGS."""
    judge = Judge.load()
    return [number for part in images.split(64) for number in judge(part)[0].argmax(1).tolist()]


def shares(seen: list[int]) -> dict[str, tuple[int, int]]:
    """(right, of how many) for kind, finding, side and whole class of images of all classes in turn."""
    pairs = [(FINDINGS[number], FINDINGS[index % len(FINDINGS)]) for index, number in enumerate(seen)]
    of_kind = [(a, b) for a, b in pairs if a.kind == b.kind]
    # A side is right or wrong where one was asked for and the judge sees a finding that has one.
    sided = [(a, b) for a, b in of_kind if a.side and b.side]
    return {
        "kind": (len(of_kind), len(pairs)),
        "finding": (sum((a.kind, a.finding) == (b.kind, b.finding) for a, b in pairs), len(pairs)),
        "laterality": (sum(a.side == b.side for a, b in sided), len(sided)),
        "class": (sum(a == b for a, b in pairs), len(pairs)),
    }


def described(right: int, total: int) -> str:
    interval = binomtest(right, total).proportion_ci(method="wilson")
    return f"{right / total:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def mistakes(seen: list[int]) -> str:
    wanted = (FINDINGS[index % len(FINDINGS)] for index in range(len(seen)))
    wrong = Counter((b.name, FINDINGS[a].name) for a, b in zip(seen, wanted, strict=True) if FINDINGS[a] != b)
    return ", ".join(f"{a} -> {b} ({n})" for (a, b), n in wrong.most_common(12)) or "none"


@pytest.mark.benchmark
def test_accuracy_over_608_fresh_images(pipeline):
    images, seconds = drawn(pipeline, 16, **pipeline.recommended_sampling)
    seen = seen_by_the_judge(images)
    found = shares(seen)
    print(
        f"\n{pipeline.recommended_sampling}, {len(images)} images, "
        f"{seconds:.2f} processor seconds each in batches of {BATCH}"
    )
    for name, (right, total) in found.items():
        print(f"{name:10} {described(right, total)} of {total}")
    print("asked -> seen:", mistakes(seen))
    share = {name: right / total for name, (right, total) in found.items()}
    assert share["kind"] >= 0.995
    assert share["finding"] >= 0.98
    assert share["laterality"] >= 0.98


@pytest.mark.benchmark
def test_steps_and_guidance(pipeline):
    """The table that the recommendation was chosen from."""
    print()
    for steps, guidance in [(8, 2.0), (12, 1.0), (12, 2.0), (12, 3.0), (12, 5.0), (12, 7.5), (20, 2.0), (50, 7.5)]:
        images, seconds = drawn(pipeline, 4, num_inference_steps=steps, guidance_scale=guidance)
        found = shares(seen_by_the_judge(images))
        text = ", ".join(f"{name} {described(*counts)}" for name, counts in found.items())
        print(f"{steps:2} steps, guidance {guidance}: {text}; {seconds:.2f} s")
        assert found["kind"][0] / found["kind"][1] >= 0.95


def colour_spread(images: torch.Tensor) -> float:
    """Standard deviation over images (B, 3, H, W) of the retina's mean colour, averaged over the channels."""
    centre = images[:, :, 32:96, 32:96].mean((2, 3))
    return float(centre.std(0).mean())


def vessel_contrast(images: torch.Tensor) -> float:
    """How much darker than their surround the darkest twentieth of the field's pixels are, in the green channel."""
    green = images[:, 1:2]
    surround = functional.avg_pool2d(green, 15, stride=1, padding=7, count_include_pad=False)
    difference = (surround - green)[:, 0, 24:104, 24:104].flatten(1)
    return float(difference.topk(difference.shape[1] // 20, dim=1).values.mean())


@pytest.mark.benchmark
def test_fundus_has_vessels_and_colours(pipeline):
    classes = [found for found in FINDINGS if found.kind == FUNDUS and found.finding in ("normal", "glaucoma")] * 10
    phantoms = np.stack([draw(c, seed=HELD_OUT + i, size=128).pixels for i, c in enumerate(classes)])
    real = torch.from_numpy(phantoms).permute(0, 3, 1, 2).float() / 255
    made = pipeline(
        [caption(c, seed=i) for i, c in enumerate(classes)],
        seeds=range(FRESH_SEED, FRESH_SEED + len(classes)),
        **pipeline.recommended_sampling,
        output_type="pt",
    )
    colours, vessels = colour_spread(made) / colour_spread(real), vessel_contrast(made) / vessel_contrast(real)
    print(f"\nagainst phantoms: spread of the retina's colour {colours:.2f}, contrast of its vessels {vessels:.2f}")
    assert colours >= 0.6
    assert vessels >= 0.6


@pytest.mark.benchmark
def test_first_image_from_cold(tmp_path):
    """`manage.py generate` from an empty process to the file, at the model's recommended steps."""
    command = [
        sys.executable, "manage.py", "generate", "--prompt", "OCT: drusen", "--img_num", "1", "--seed", "0",
        "--pretrained_model", str(DEFAULT_MODEL_DIR), "--output_dir", str(tmp_path / "out"),
        "--num_inference_steps", "12", "--guidance_scale", "3", "--guidance_interval", "0.35", "1",
    ]  # fmt: skip
    environment = {**os.environ, "MEDSYN_VAR_DIR": str(tmp_path / "var")}
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    seconds = time.perf_counter() - started
    print(f"\nfirst image after {seconds:.1f} s")
    assert (tmp_path / "out" / "oct_0.png").exists()
    assert seconds < 20
