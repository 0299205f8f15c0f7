"""Prompts encoded once: what serving remembers of texts while the weights stay as they are."""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from generation.diffusion.conditioning import NULL_MODALITY, Conditioning, TextFeatures
from medsyn.modalities import parse_prompt

if TYPE_CHECKING:  # it makes a memory for each call itself
    from generation.diffusion.text_to_image import TextToImage

Value = TypeVar("Value")

_TEXTS_KEPT = 512  # each costs tokens x width floats: 50 KB for medsyn-tiny, 0.5 MB for BiomedBERT at 256 tokens


class PromptMemory:
    """Text features and conditioning of one pipeline, the least recently used texts forgotten first.

    Every text goes through the text encoder alone, so its features are the same bits in whatever company it is
    drawn. The key of an entry holds the address and the version of every weight behind it: after a training step,
    a loaded state or a move to another device nothing old is found. Training itself has no such memory.
    """

    def __init__(self, pipeline: "TextToImage", texts_kept: int = _TEXTS_KEPT):
        self._pipeline = pipeline
        self._texts_kept = texts_kept
        self._entries: dict[str, OrderedDict[Hashable, TextFeatures | Conditioning]] = defaultdict(OrderedDict)

    def features(self, texts: Sequence[str]) -> TextFeatures:
        """As ``pipeline.encode_text``: (B, L, D_text) and (B, L), one row for each text."""
        return TextFeatures.joined([self._features(text) for text in texts])

    def conditioning(self, prompts: Sequence[str]) -> Conditioning:
        """As ``pipeline.encode_prompts``, one row for each prompt; raises PromptError."""
        return Conditioning.joined([self._given(parse_prompt(prompt).text) for prompt in prompts])

    def unconditional(self, batch: int, negative_prompt: str = "") -> Conditioning:
        """As ``pipeline.unconditional``: the same row ``batch`` times."""
        return Conditioning.joined([self._without(negative_prompt)] * batch)

    def longest(self, texts: Sequence[str]) -> int:
        """Tokens of the longest of these texts (prompts in canonical spelling), as the UNet is given them."""
        return max(self._features(text).tokens.shape[1] for text in texts)

    def _features(self, text: str) -> TextFeatures:
        return self._remembered("features", text, lambda: self._pipeline.encode_text([text]))

    def _given(self, text: str) -> Conditioning:
        def compute() -> Conditioning:
            return self._pipeline.condition(self._features(text), self._pipeline.modality_ids([text]))

        return self._remembered("given", text, compute)

    def _without(self, negative_prompt: str) -> Conditioning:
        def compute() -> Conditioning:
            nothing = torch.tensor([NULL_MODALITY], device=self._pipeline.device)
            return self._pipeline.condition(self._features(negative_prompt), nothing)

        return self._remembered("without", negative_prompt, compute)

    @torch.no_grad()
    def _remembered(self, kind: str, text: str, compute: Callable[[], Value]) -> Value:
        entries, key = self._entries[kind], (text, self._weights())
        if key not in entries:
            entries[key] = compute()
            while len(entries) > self._texts_kept:
                entries.popitem(last=False)
        entries.move_to_end(key)
        return entries[key]

    def _weights(self) -> int:
        """Changes when a weight between text and UNet is written to or replaced."""
        modules = (self._pipeline.text_encoder, getattr(self._pipeline, "conditioner", None))
        weights = [weight for module in modules if module is not None for weight in module.parameters()]
        return hash(tuple((weight.data_ptr(), weight._version) for weight in weights))
