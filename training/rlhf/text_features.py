"""The generator's text encoder, without the generator: what the policy reads of a prompt."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from generation.diffusion.loading import quiet_loading
from generation.diffusion.text_to_image import scale_factor_of
from generation.scoring.policy import text_encoder_sha256

_BATCH = 64  # prompts encoded at a time


class TextEncoderError(RuntimeError):
    """There is no text encoder where the configuration says."""


@dataclass(frozen=True)
class PromptFeatures:
    """Text tokens of the distinct prompts, encoded once."""

    tokens: Tensor  # (P, L, D_text) float32
    mask: Tensor  # (P, L) bool
    encoder_sha256: str

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self.tokens[index], self.mask[index]


@torch.no_grad()
def encode_prompts(source: str | Path, prompts: tuple[str, ...]) -> PromptFeatures:
    """Features of ``prompts`` by the text encoder of a pipeline folder, or of a bare BERT folder or hub id."""
    folder = Path(source)
    is_pipeline = (folder / "text_encoder").is_dir()
    try:
        with quiet_loading():
            tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer" if is_pipeline else source)
            encoder = AutoModel.from_pretrained(folder / "text_encoder" if is_pipeline else source).float().eval()
    except (OSError, ValueError) as error:
        raise TextEncoderError(
            f"No text encoder at {source}: {' '.join(str(error).split())[:200]} Give --pipeline a folder that holds "
            "text_encoder/ and tokenizer/, or name one in model_paths."
        ) from None
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    batches = []
    for start in range(0, len(prompts), _BATCH):
        batch = tokenizer(
            list(prompts[start : start + _BATCH]),
            padding=True,
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        mask = batch["attention_mask"]
        hidden = encoder(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        batches.append((hidden.float(), mask.bool()))
    return _padded(batches, text_encoder_sha256(encoder))


def _padded(batches: list[tuple[Tensor, Tensor]], sha256: str) -> PromptFeatures:
    count = sum(len(mask) for _, mask in batches)
    length, width = max(mask.shape[1] for _, mask in batches), batches[0][0].shape[2]
    tokens, masks = torch.zeros(count, length, width), torch.zeros(count, length, dtype=torch.bool)
    row = 0
    for hidden, mask in batches:
        tokens[row : row + len(mask), : mask.shape[1]] = hidden
        masks[row : row + len(mask), : mask.shape[1]] = mask
        row += len(mask)
    return PromptFeatures(tokens, masks, sha256)


def pipeline_image_size(folder: str | Path) -> int | None:
    """Side in pixels of the images a pipeline folder makes; None where the folder holds no generator."""
    unet, vae = Path(folder) / "unet" / "config.json", Path(folder) / "vae" / "config.json"
    if not (unet.is_file() and vae.is_file()):
        return None
    factor = scale_factor_of(json.loads(vae.read_text())["block_out_channels"])
    return json.loads(unet.read_text())["sample_size"] * factor
