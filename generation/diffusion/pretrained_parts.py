"""Parts of a new model that were trained elsewhere: a BERT with its tokenizer, an autoencoder.

They come from a folder, or for BiomedBERT from the hub's cache. What is not there is an error that names the folder
to fill; nothing else takes its place.
"""

import json
from pathlib import Path

import httpx2  # what huggingface_hub speaks HTTP with
import torch
from diffusers import AutoencoderKL
from huggingface_hub import constants as hub
from huggingface_hub import snapshot_download
from transformers import BertModel, BertTokenizer

from generation.diffusion.loading import ModelMismatch, ModelNotFound, is_offline, quiet_loading
from generation.diffusion.presets import TextParts

BIOMED_BERT = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext"

_CONFIG_NAME = "config.json"
# The hub holds BiomedBERT's weights as pytorch_model.bin. transformers reads that with torch's weights_only, which
# refuses everything but tensors.
_TEXT_FILES = [_CONFIG_NAME, "tokenizer_config.json", "tokenizer.json", "vocab.txt", "model.safetensors"]
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
_INSTEAD = "Or build --preset medsyn-small, which learns a text encoder of its own."


def load_text_parts(folder: Path | None, *, max_tokens: int) -> TextParts:
    """The BERT in ``folder``, or BiomedBERT from the hub's cache for None, in float32.

    The tokenizer cuts at ``max_tokens``, [CLS] and [SEP] counted, or earlier where the encoder has fewer positions.
    Raises ModelNotFound for what is missing, ModelMismatch for what is no BERT.
    """
    place = _biomed_bert_folder() if folder is None else folder
    _check_text_folder(place)
    try:
        with quiet_loading():
            encoder = BertModel.from_pretrained(
                place, add_pooling_layer=False, dtype=torch.float32, local_files_only=True
            )
            tokenizer = BertTokenizer.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelMismatch(f"The text encoder in {place} cannot be read: {error}") from error
    if len(tokenizer) > encoder.config.vocab_size:
        raise ModelMismatch(
            f"The tokenizer in {place} knows {len(tokenizer)} word pieces, the encoder {encoder.config.vocab_size}: "
            "they do not belong together."
        )
    tokenizer.model_max_length = min(max_tokens, encoder.config.max_position_embeddings)
    return TextParts(encoder, tokenizer)


def _check_text_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ModelNotFound(f"There is no text encoder folder {folder}. Put a BERT there as transformers saves it.")
    for names in ((_CONFIG_NAME,), _WEIGHT_FILES, _TOKENIZER_FILES):
        if not any((folder / name).is_file() for name in names):
            raise ModelNotFound(f"The text encoder folder {folder} lacks {' or '.join(names)}. Fill it. {_INSTEAD}")
    kind = _read_config(folder).get("model_type")
    if kind != "bert":
        raise ModelMismatch(
            f"{folder / _CONFIG_NAME} is of a model of type {kind!r}; the text encoder must be a bert."
        )


def _biomed_bert_folder() -> Path:
    """BiomedBERT in the hub's cache, downloaded into it where that is allowed and not yet done."""
    offline = is_offline()
    try:
        patterns = [*_TEXT_FILES, *_WEIGHT_FILES]
        return Path(snapshot_download(BIOMED_BERT, allow_patterns=patterns, local_files_only=offline))
    except (OSError, ValueError, httpx2.HTTPError) as error:
        cache = Path(hub.HF_HUB_CACHE) / f"models--{BIOMED_BERT.replace('/', '--')}"
        reason = "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids downloading it" if offline else str(error)
        raise ModelNotFound(
            f"The text encoder {BIOMED_BERT} is not in the cache folder {cache} ({reason}). Download it on a machine "
            "with access and fill that folder, or save it to any folder and name that with --text_encoder. "
            f"{_INSTEAD}"
        ) from error


def load_autoencoder(folder: Path) -> AutoencoderKL:
    """The AutoencoderKL in ``folder``, or in the ``vae`` folder of a pipeline, in float32.

    Raises ModelNotFound for what is missing, ModelMismatch for another kind of network.
    """
    place = autoencoder_folder(folder)
    try:
        vae = AutoencoderKL.from_pretrained(
            place, dtype=torch.float32, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
    except OSError as error:
        raise ModelNotFound(f"The autoencoder in {place} is incomplete: {error}") from error
    except (ValueError, RuntimeError) as error:  # tensors of other shapes than the config promises
        raise ModelMismatch(f"The weights in {place} do not fit their config: {error}") from error
    channels = (vae.config.in_channels, vae.config.out_channels)
    if channels != (3, 3):
        raise ModelMismatch(f"The autoencoder in {place} takes and makes {channels} channels; images here have 3.")
    return vae


def autoencoder_folder(folder: Path) -> Path:
    """Where the autoencoder of a model folder lies: in ``vae`` for a pipeline, else in the folder itself."""
    place = folder / "vae" if (folder / "vae").is_dir() else folder
    if not (place / _CONFIG_NAME).is_file():
        raise ModelNotFound(
            f"{folder} holds no autoencoder: {place / _CONFIG_NAME} is missing. Name a pipeline folder, or one that "
            "an AutoencoderKL of diffusers was saved to."
        )
    class_name = _read_config(place).get("_class_name")
    if class_name != AutoencoderKL.__name__:
        raise ModelMismatch(f"{place / _CONFIG_NAME} names the class {class_name}; it must be AutoencoderKL.")
    return place


def _read_config(folder: Path) -> dict:
    path = folder / _CONFIG_NAME
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ModelMismatch(f"{path} is not valid JSON ({error}). Restore it from its source.") from None
