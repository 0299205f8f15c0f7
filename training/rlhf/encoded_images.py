"""What a frozen encoder makes of the rated images, computed once, as they are.

Augmentation is left to encoders that learn: it would cost as many passes again, and a turned, zoomed or flatter image
is not of the quality that was rated.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from generation.scoring.encoder import prepare
from training.rlhf.dataset import RatedImages

LARGEST_CACHE = 4 << 30  # bytes of memory
_BATCH = 64  # images


@torch.no_grad()
def encode_images(
    rated: RatedImages, encoding: Callable[[Tensor], Tensor], *, image_size: int, device: torch.device
) -> Tensor | None:
    """Encodings (N, ...) of all rated images, float32 on the CPU; None where they do not fit into LARGEST_CACHE.

    ``encoding``: prepared images (B, 3, S, S) -> (B, ...).
    """

    def encode(items: Tensor) -> Tensor:
        return encoding(prepare(rated.images(items).to(device), image_size)).float().cpu()

    one = encode(torch.arange(1))
    if one.nbytes * len(rated) > LARGEST_CACHE:
        return None
    values = torch.empty(len(rated), *one.shape[1:])
    for items in torch.arange(len(rated)).split(_BATCH):
        values[items] = encode(items)
    return values
