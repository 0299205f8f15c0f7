"""Captions from folders: a template, or a mapping from class to caption, filled with what the path says."""

import csv
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from medsyn.modalities import PromptError, parse_prompt
from training.datasets.folder_layout import FoundImage, as_words

DEFAULT_TEMPLATE = "{kind}: {class}"
FIELDS = ("kind", "class", "side", "name")
_SIDES = {"left": "left", "l": "left", "os": "left", "right": "right", "r": "right", "od": "right"}
_YAML_ENDINGS = (".yaml", ".yml")


class CaptionError(ValueError):
    """A template, mapping or pattern that cannot be used, or a path without what they ask for."""


@dataclass(frozen=True)
class Captions:
    """How an image gets its caption."""

    template: str = DEFAULT_TEMPLATE
    mapping: Mapping[str, tuple[str, ...]] | None = None  # by folded class, or "kind/class"; None: the template
    pattern: re.Pattern[str] | None = None  # its named groups, found in the path, are fields too

    def __post_init__(self) -> None:
        texts = [self.template] if self.mapping is None else [text for some in self.mapping.values() for text in some]
        known = (*FIELDS, *(self.pattern.groupindex if self.pattern else ()))
        for text in texts:
            unknown = [name for name in _fields_of(text) if name not in known]
            if unknown:
                raise CaptionError(f"{text!r} asks for {{{unknown[0]}}}. Known fields: {', '.join(known)}.")

    def caption(self, image: FoundImage) -> str:
        """The caption in canonical spelling. Raises CaptionError for a path that does not say what is asked."""
        text = self.template if self.mapping is None else self._mapped(image)
        filled = _filled(text, image, self.pattern)
        try:
            prompt = parse_prompt(filled)
        except PromptError as error:
            if self.mapping is None or ":" in filled:
                raise CaptionError(str(error)) from error
            prompt = parse_prompt(f"{image.kind.prefix}: {filled}")
        if prompt.kind != image.kind:
            raise CaptionError(f"the caption says {prompt.kind.prefix}, the folder says {image.kind.prefix}")
        return prompt.text

    def _mapped(self, image: FoundImage) -> str:
        """One of the class's captions, the same for the same path on every machine."""
        texts = self.mapping.get(key_of(image)) or self.mapping.get(fold(image.class_folder))
        if not texts:
            raise CaptionError(f"the mapping has no caption for the class {image.class_folder!r}")
        digest = hashlib.sha256(str(image.path).encode()).digest()
        return texts[int.from_bytes(digest[:8]) % len(texts)]

    def unused(self, images: Sequence[FoundImage]) -> list[str]:
        """Classes of the mapping that no image has: a folder is missing, or a name misspelt."""
        present = {key for image in images for key in (key_of(image), fold(image.class_folder))}
        return [key for key in self.mapping or {} if key not in present]


def fold(name: str) -> str:
    """Class names are compared without case, blanks, hyphens and underscores."""
    return "/".join(re.sub(r"[\s_-]+", "", part.casefold()) for part in name.split("/"))


def key_of(image: FoundImage) -> str:
    return fold(f"{image.kind.prefix}/{image.class_folder}")


def _fields_of(text: str) -> list[str]:
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise CaptionError(f"{text!r} is no template ({error}). A brace itself is written twice.") from error
    for _, name, form, conversion in parts:
        if name is not None and (form or conversion or not name.isidentifier()):
            raise CaptionError(f"{text!r}: fields are plain names in braces, as in {{class}}.")
    return [name for _, name, _, _ in parts if name is not None]


def _filled(text: str, image: FoundImage, pattern: re.Pattern[str] | None) -> str:
    values = {"kind": image.kind.prefix, "class": as_words(image.class_folder), "name": image.stem}
    wanted = _fields_of(text)
    if "side" in wanted:
        values["side"] = _side(image)
    if pattern is not None:
        found = pattern.search(str(image.path))
        values |= {name: as_words(value) for name, value in (found.groupdict() if found else {}).items() if value}
    for name in wanted:
        if not values.get(name):
            what = "lies in no class folder" if name == "class" else f"has no {name} in its path"
            raise CaptionError(f"it {what}, which the caption asks for")
    return text.format_map(values)


def _side(image: FoundImage) -> str:
    """left or right, where folders below the modality or the file's name say exactly one of them."""
    words = re.split(r"[^a-z]+", "/".join((*image.below, image.stem)).lower())
    sides = {_SIDES[word] for word in words if word in _SIDES}
    return sides.pop() if len(sides) == 1 else ""


# --- the mapping file ---


def read_mapping(path: Path) -> dict[str, tuple[str, ...]]:
    """Captions by folded class, or by "kind/class", from CSV or YAML. Raises CaptionError.

    CSV: columns class,caption; a class with several captions has several rows. YAML: class: caption, or a list of
    them; below a kind's name, classes of that kind alone.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CaptionError(f"The mapping {path} cannot be read: {error}") from error
    found = _from_yaml(path, text) if path.suffix.lower() in _YAML_ENDINGS else _from_csv(path, text)
    if not found:
        raise CaptionError(f"The mapping {path} names no class.")
    return found


def _from_csv(path: Path, text: str) -> dict[str, tuple[str, ...]]:
    reader = csv.DictReader(text.splitlines(), strict=True)
    if [name.strip() for name in reader.fieldnames or ()] != ["class", "caption"]:
        raise CaptionError(
            f"{path}: the first line must be class,caption; it reads: {','.join(reader.fieldnames or ())}"
        )
    found: dict[str, tuple[str, ...]] = {}
    try:
        for row in reader:
            if None in row or not row["class"] or not (row["caption"] or "").strip():
                raise CaptionError(
                    f"{path}, line {reader.line_num}: a class and a caption are needed, and a caption that holds a "
                    "comma must be put in double quotes."
                )
            key = fold(row["class"].strip())
            found[key] = (*found.get(key, ()), row["caption"].strip())
    except csv.Error as error:
        raise CaptionError(f"{path}, line {reader.line_num}: broken quoting ({error}).") from error
    return found


def _from_yaml(path: Path, text: str) -> dict[str, tuple[str, ...]]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CaptionError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise CaptionError(f"{path} must hold lines of the form class: caption.")
    found: dict[str, tuple[str, ...]] = {}
    for name, value in content.items():
        entries = (
            {f"{name}/{inner}": texts for inner, texts in value.items()} if isinstance(value, dict) else {name: value}
        )
        found |= {fold(str(key)): _as_captions(path, key, texts) for key, texts in entries.items()}
    return found


def _as_captions(path: Path, key: Any, value: Any) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise CaptionError(f"{path}: {key} must have a caption or a list of captions, it has {value!r}.")
    return tuple(text.strip() for text in texts)
