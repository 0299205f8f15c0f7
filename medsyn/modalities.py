"""The vocabulary: six kinds of image, five modalities, and the grammar of a prompt.

A prompt reads ``{kind}: {detailed description}``. The kind is the prefix ("Chest CT"), the modality is what the
CSV files carry ("CT"). Bare ``CT:``, ``MRI:`` and ``X-ray:`` prompts about other body parts are valid too.
Whatever spelling comes in, the canonical one goes out. Standard library only.
"""

from collections.abc import Iterable
from dataclasses import dataclass

MODALITIES = ("OCT", "Fundus", "X-Ray", "CT", "MRI")


class UnknownModality(ValueError):
    """The text names no known modality or kind."""


class PromptError(ValueError):
    """The prompt does not follow ``{kind}: {description}``."""


@dataclass(frozen=True)
class Kind:
    """A kind of image: what a prompt's prefix names."""

    prefix: str  # canonical spelling, as it stands before the colon
    modality: str  # one of MODALITIES
    slug: str  # for file names and URLs
    is_bare: bool = False  # True for CT:, MRI:, X-ray: with a body part of their own


OCT = Kind("OCT", "OCT", "oct")
FUNDUS = Kind("Fundus", "Fundus", "fundus")
CHEST_XRAY = Kind("Chest X-ray", "X-Ray", "chest_xray")
CHEST_CT = Kind("Chest CT", "CT", "chest_ct")
BRAIN_MRI = Kind("Brain MRI", "MRI", "brain_mri")
BREAST_MRI = Kind("Breast MRI", "MRI", "breast_mri")
XRAY = Kind("X-ray", "X-Ray", "xray", is_bare=True)
CT = Kind("CT", "CT", "ct", is_bare=True)
MRI = Kind("MRI", "MRI", "mri", is_bare=True)

KINDS = (OCT, FUNDUS, CHEST_XRAY, CHEST_CT, BRAIN_MRI, BREAST_MRI)
ALL_KINDS = (*KINDS, XRAY, CT, MRI)

# Spellings met in the predecessors' files, beside the canonical ones.
_ALIASES = {"cxr": CHEST_XRAY, "chestct": CHEST_CT, "brainmri": BRAIN_MRI, "breastmri": BREAST_MRI}


def _key(text: str) -> str:
    """Fold case, blanks, hyphens and underscores: "Chest X-Ray" and "chest_xray" are one key."""
    return "".join(character for character in text.casefold() if character.isalnum())


_KIND_BY_KEY = {_key(kind.prefix): kind for kind in ALL_KINDS} | _ALIASES


def kind_from_name(name: str) -> Kind:
    """The kind that ``name`` (a prefix, a slug or an alias) means; raises UnknownModality."""
    kind = _KIND_BY_KEY.get(_key(name))
    if kind is None:
        known = ", ".join(kind.prefix for kind in ALL_KINDS)
        raise UnknownModality(f"Unknown modality {name!r}. Known: {known}.")
    return kind


def kind_names(names: Iterable[str]) -> str:
    """Kinds in a sentence: ("fundus", "chest_ct") is "Fundus, Chest CT"; raises UnknownModality."""
    return ", ".join(kind_from_name(name).prefix for name in names)


def canonical_modality(name: str) -> str:
    """The modality (one of MODALITIES) of a modality, kind or alias; raises UnknownModality."""
    return kind_from_name(name).modality


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt taken apart."""

    kind: Kind
    description: str  # everything behind the colon, trimmed, never empty

    @property
    def text(self) -> str:
        """The prompt in canonical spelling."""
        return f"{self.kind.prefix}: {self.description}"

    @property
    def modality(self) -> str:
        return self.kind.modality


def parse_prompt(text: str) -> ParsedPrompt:
    """Take ``{kind}: {description}`` apart; raises PromptError that lists the prefixes."""
    prefix, colon, description = text.partition(":")
    prefixes = ", ".join(f"{kind.prefix}:" for kind in ALL_KINDS)
    if not colon:
        raise PromptError(f"Prompt {text!r} has no prefix. Begin it with one of: {prefixes}")
    try:
        kind = kind_from_name(prefix)
    except UnknownModality:
        raise PromptError(f"Prompt {text!r} begins with an unknown prefix. Use one of: {prefixes}") from None
    description = " ".join(description.split())
    if not description:
        raise PromptError(f"Prompt {text!r} describes nothing. Write what the image shows behind the colon.")
    return ParsedPrompt(kind, description)
