"""Stable Diffusion 1.x pipelines behind the interface of the models built here."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from generation.diffusion.conditioning import NULL_MODALITY, Conditioning, TextFeatures
from generation.diffusion.text_to_image import TextToImage


class PromptedStableDiffusion(TextToImage, StableDiffusionPipeline):
    """A StableDiffusionPipeline that is prompted, sampled and fine-tuned like a MedSynPipeline.

    Its folder stays what diffusers knows: it is read from and saved as a plain ``StableDiffusionPipeline``. CLIP's
    tokens are padded to their full number and all of them attended to, as the model was trained. Modality and kind
    reach it through the words of the prompt only.
    """

    @property
    def max_tokens(self) -> int:
        """Longest text the encoder takes, in tokens, the two special ones counted."""
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    @property
    def trainable_parts(self) -> dict[str, nn.Module]:
        """The UNet, by folder."""
        return {"unet": self.unet}

    def encode_text(self, prompts: Sequence[str]) -> TextFeatures:
        """Last hidden state of CLIP's text encoder, (B, L, D_text), L always ``max_tokens``; the mask is all True."""
        for prompt in prompts:
            self._warn_if_cut(prompt)
        batch = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        uses_mask = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = batch["attention_mask"] if uses_mask else None
        hidden = self.text_encoder(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        return TextFeatures(hidden, torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device))

    def modality_id(self, modality: str) -> int:
        """Always the null modality: this model has no embedding of it."""
        return NULL_MODALITY

    def condition(self, text: TextFeatures, modality_ids: Tensor) -> Conditioning:
        """The text features themselves; every token may be attended to."""
        return Conditioning(text.tokens, None, None)

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:
        """Write the folder that diffusers itself would write for this model."""
        plain = StableDiffusionPipeline(**self.components, requires_safety_checker=False)
        plain.save_pretrained(save_directory, **options)
