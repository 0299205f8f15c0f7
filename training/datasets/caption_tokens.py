"""How many tokens a model makes of each caption, and what it would cut. Torch is not needed for that."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

TOKENIZER_FOLDER = "tokenizer"  # inside a pipeline folder
_TOKENIZER_FILE = "tokenizer.json"
_NO_LIMIT = 1_000_000  # transformers writes a huge number where a tokenizer has no limit


class TokenizerError(ValueError):
    """The model has no tokenizer that can be read; the message says where it was looked for."""


@dataclass(frozen=True)
class CaptionTokens:
    """Token counts by one model's tokenizer, its special tokens included."""

    model: str  # the folder's name or the hub id
    limit: int  # tokens that the model reads; the rest is cut
    counts: tuple[int, ...]  # one per caption, in their order

    @property
    def num_cut(self) -> int:
        return sum(count > self.limit for count in self.counts)


def count_tokens(model: str | Path, captions: Sequence[str]) -> CaptionTokens:
    """Token counts by the tokenizer of a pipeline: its folder, or a hub id. Raises TokenizerError."""
    folder = Path(model) / TOKENIZER_FOLDER
    if (folder / _TOKENIZER_FILE).is_file():
        count, limit = _from_folder(folder)
    else:
        count, limit = _from_transformers(model)
    return CaptionTokens(_name(model), limit, tuple(count(list(captions))) if captions else ())


def _name(model: str | Path) -> str:
    return Path(model).resolve().name if Path(model).is_dir() else str(model)


def _from_folder(folder: Path) -> tuple[Callable[[list[str]], list[int]], int]:
    tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER_FILE))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        limit = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["model_max_length"]
    except (OSError, ValueError, KeyError) as error:
        raise TokenizerError(f"{folder}/tokenizer_config.json does not say model_max_length ({error}).") from error
    return lambda texts: [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)], _checked(limit, folder)


def _from_transformers(model: str | Path) -> tuple[Callable[[list[str]], list[int]], int]:
    """A tokenizer of older files (vocab.json and merges.txt), or one on the hub, which obeys HF_HUB_OFFLINE."""
    from transformers import AutoTokenizer  # seconds: only for tokenizers that need it

    place = Path(model)
    if place.is_dir() and not (place / TOKENIZER_FOLDER).is_dir():
        raise TokenizerError(f"{place} has no folder {TOKENIZER_FOLDER}: it is no pipeline folder.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model), subfolder=TOKENIZER_FOLDER)
    except (OSError, ValueError) as error:
        raise TokenizerError(
            f"There is no tokenizer of {model}: give a pipeline folder, or a hub id where downloads are allowed. "
            f"({str(error).splitlines()[0]})"
        ) from error
    limit = _checked(tokenizer.model_max_length, model)
    return lambda texts: [len(ids) for ids in tokenizer(texts, truncation=False)["input_ids"]], limit


def _checked(limit: int, where: Path | str) -> int:
    if not 0 < limit < _NO_LIMIT:
        raise TokenizerError(f"The tokenizer of {where} names no limit of tokens (model_max_length {limit}).")
    return int(limit)
