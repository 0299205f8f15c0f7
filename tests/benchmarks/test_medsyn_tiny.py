"""How well medsyn-tiny draws what it is asked for: ``pytest -m benchmark -s tests/benchmarks/test_medsyn_tiny.py``.

The judge is a network of another architecture, trained on phantoms that medsyn-tiny was not trained on.
"""

import time
from collections import Counter

import pytest
import torch

from generation.diffusion.loading import DEFAULT_MODEL_DIR, ModelSource, load_generator
from generation.diffusion.phantoms import FINDINGS, caption
from training.simulation.judge import Judge

IMAGES_PER_CLASS = 4
BATCH = 19


def drawn(steps: int, guidance: float) -> tuple[torch.Tensor, float]:
    """Images of all classes in turn, (B, 3, H, W), and processor seconds per image."""
    pipeline = load_generator(ModelSource(str(DEFAULT_MODEL_DIR)), device="cpu").pipeline
    count = IMAGES_PER_CLASS * len(FINDINGS)
    prompts = [caption(FINDINGS[index % len(FINDINGS)], seed=10_000 + index) for index in range(count)]
    started, parts = time.process_time(), []
    for first in range(0, count, BATCH):
        part = prompts[first : first + BATCH]
        seeds = range(10_000 + first, 10_000 + first + len(part))
        parts.append(
            pipeline(part, seeds=seeds, num_inference_steps=steps, guidance_scale=guidance, output_type="pt")
        )
    return torch.cat(parts), (time.process_time() - started) / count


@pytest.mark.benchmark
@pytest.mark.parametrize(("steps", "guidance"), [(12, 3.0), (12, 1.5), (12, 5.0), (12, 7.5), (50, 7.5)])
def test_accuracy_by_the_judge(steps, guidance):
    images, seconds = drawn(steps, guidance)
    with torch.inference_mode():
        logits, fault = Judge.load()(images)
    wanted = [index % len(FINDINGS) for index in range(len(images))]
    seen = logits.argmax(1).tolist()
    right = sum(a == b for a, b in zip(seen, wanted, strict=True)) / len(wanted)
    kinds = sum(FINDINGS[a].kind == FINDINGS[b].kind for a, b in zip(seen, wanted, strict=True)) / len(wanted)
    wrong = Counter((FINDINGS[b].name, FINDINGS[a].name) for a, b in zip(seen, wanted, strict=True) if a != b)
    print(
        f"\n{steps} steps, guidance {guidance}: kind {kinds:.3f}, class {right:.3f} of {len(FINDINGS)}, "
        f"mean fault {float(fault.mean()):.3f}, {seconds:.2f} processor seconds per image in batches of {BATCH}"
    )
    print("asked -> seen:", ", ".join(f"{a} -> {b} ({n})" for (a, b), n in wrong.most_common(12)))
    assert kinds >= 0.95
