"""The judge: a small network, of another architecture than the selector's, that reads an image's finding and faults.

Trained on phantoms alone (training.simulation.train_judge). It stands behind the simulated experts and measures the
generator; no learner sees what it says. Gold quality of an image x made for class c:

    q(x, c) = max(log p(c | x), LOG_FLOOR) - SEVERITY_WEIGHT * severity(x)
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from generation.diffusion.phantoms import FINDINGS, PhantomClass, class_of_caption
from medsyn.artifacts import atomic_path

WEIGHTS = Path(__file__).parent / "weights" / "judge.safetensors"
SIZE = 128  # pixels at which the judge looks
LOG_FLOOR = -4.0  # a finding that is surely wrong costs no more than this
SEVERITY_WEIGHT = 6.0  # the worst fault costs somewhat more than a wrong finding


class Judge(nn.Module):
    """Convolutions with batch normalisation, pooled over a 4 x 4 grid: the place of a finding tells its side."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.width = width
        widths = (3, width, 2 * width, 3 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.Conv2d(after, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Sequential(nn.Linear(4 * width * 16, 128), nn.ReLU())
        self.finding = nn.Linear(128, len(FINDINGS))
        # Faults are read from fine structure too, before it is pooled away.
        self.fault = nn.Sequential(nn.Linear(2 * sum(widths[1:]) + 128, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, 3, H, W) in [0, 1] -> logits of FINDINGS (B, F) and fault severity (B,) in 0..1."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"The judge reads images (B, 3, H, W), not {tuple(images.shape)}.")
        if images.shape[-2:] != (SIZE, SIZE):
            images = functional.interpolate(images, size=(SIZE, SIZE), mode="bilinear", antialias=True)
        x, statistics = images * 2 - 1, []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
                statistics += [x.mean((2, 3)), x.std((2, 3))]
        hidden = self.hidden(functional.adaptive_avg_pool2d(x, 4).flatten(1))
        severity = self.fault(torch.cat([*statistics, hidden], dim=1)).squeeze(1)
        return self.finding(hidden), severity.sigmoid()

    def save(self, path: Path) -> None:
        """fp16 safetensors; the width and the classes in the header."""
        tensors = {name: _half(tensor).contiguous() for name, tensor in self.state_dict().items()}
        header = {"width": self.width, "findings": [phantom_class.name for phantom_class in FINDINGS]}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"judge": json.dumps(header)})

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> "Judge":
        """The trained judge in evaluation mode; raises ValueError where it knows other findings than FINDINGS."""
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["judge"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["findings"] != [phantom_class.name for phantom_class in FINDINGS]:
            raise ValueError(f"{path} knows other findings. Run python -m training.simulation.train_judge.")
        judge = cls(header["width"])
        judge.load_state_dict(state)  # copied into the network's own types: half becomes float again
        return judge.eval()


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


@torch.inference_mode()
def gold_quality(judge: Judge, images: torch.Tensor, classes: Sequence[PhantomClass]) -> torch.Tensor:
    """q (B,) of images (B, 3, H, W) in [0, 1], made for ``classes`` (B of them)."""
    logits, severity = judge(images)
    wanted = torch.tensor([FINDINGS.index(phantom_class) for phantom_class in classes])
    log_probability = functional.log_softmax(logits, dim=1).gather(1, wanted[:, None]).squeeze(1)
    return log_probability.clamp(min=LOG_FLOOR) - SEVERITY_WEIGHT * severity


def classes_of(prompts: Sequence[str]) -> list[PhantomClass]:
    """What the prompts ask for; raises ValueError that quotes the first in words the phantoms do not know."""
    classes = [class_of_caption(prompt) for prompt in prompts]
    for prompt, phantom_class in zip(prompts, classes, strict=True):
        if phantom_class is None:
            raise ValueError(f"No phantom has the caption {prompt!r}: simulated experts cannot judge its image.")
    return classes
