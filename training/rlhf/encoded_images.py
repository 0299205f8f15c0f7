"""What frozen encoders make of the rated images, computed once: as they are, and in a few augmented views."""

from collections.abc import Callable

import torch
from torch import Tensor

from generation.scoring.encoder import prepare
from training.rlhf.config import Augmentation
from training.rlhf.dataset import AUGMENTED_SHARE, RatedImages, augment

NUM_VIEWS = 4  # augmented views of each image, beside the image as it is
LARGEST_CACHE = 4 << 30  # bytes; where the views do not fit, the image as it is must do
_BATCH = 64  # images

Encoding = Callable[[Tensor], Tensor]  # prepared images (B, 3, S, S) -> (B, ...)


class EncodedImages:
    """Encodings (V, N, ...) of N images in V views; view 0 is the image as it is."""

    def __init__(self, values: Tensor):
        self.values = values

    def plain(self, items: Tensor) -> Tensor:
        return self.values[0, items]

    def draw(self, items: Tensor, generator: torch.Generator) -> Tensor:
        """A random view of each item: an augmented one with the chance that augmentation has elsewhere."""
        views = len(self.values)
        drawn = torch.rand(2, len(items), generator=generator)
        view = torch.zeros(len(items), dtype=torch.int64)
        if views > 1:
            view = (1 + (drawn[1] * (views - 1)).long()) * (drawn[0] < AUGMENTED_SHARE)
        return self.values[view, items]


@torch.no_grad()
def encode_images(
    rated: RatedImages,
    encoding: Encoding,
    *,
    image_size: int,
    augmentation: Augmentation,
    seed: int,
    device: torch.device,
) -> EncodedImages | None:
    """Encodings of all rated images; None where not even one view of each fits into LARGEST_CACHE."""

    def encode(images: Tensor) -> Tensor:
        return encoding(prepare(images.to(device), image_size)).float().cpu()

    one = encode(rated.images(torch.arange(1)))
    views = min(1 + NUM_VIEWS, LARGEST_CACHE // (one.numel() * 4 * len(rated)))
    if views == 0:
        return None
    values = torch.empty(views, len(rated), *one.shape[1:])
    generator = torch.Generator().manual_seed(seed)
    for items in torch.arange(len(rated)).split(_BATCH):
        images = rated.images(items)
        for view in range(views):
            shown = images if view == 0 else augment(images, augmentation, generator, share=1.0)
            values[view, items] = encode(shown)
    return EncodedImages(values)
