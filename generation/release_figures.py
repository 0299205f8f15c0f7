"""The figures of several releases side by side, as their manifests hold them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.template.defaultfilters import floatformat

from generation.models import Release

MOST_COLUMNS = 4
# What a manifest says about the release itself; the rest are figures from training.
_NOT_FIGURES = {"files", "digest", "name", "quality_threshold", "is_simulated", "run", "checkpoint", "config"}
_PLAIN = {"auc": "AUC", "brier": "Brier score", "ece": "calibration error"}
# Estimates of a report by their path in it, as the page of a run calls them too (training.report_figures).
LABELS = {
    "selector.auc_poor": "Selector: AUC, poor",
    "policy.auc_poor": "Policy: AUC, poor",
    "policy.auc_matched_prompt": "Policy: AUC, own prompt",
    "policy.auc_matched_prompt_same_kind": "Policy: AUC, own prompt within the kind",
    "human_ceiling_auc_poor": "Experts: AUC, poor",
    "selector.brier": "Selector: Brier score",
    "selector.ece": "Selector: calibration error",
}

Row = tuple[str, list[str | None]]  # name of a figure, its value in each release


@dataclass(frozen=True)
class Comparison:
    releases: Sequence[Release]
    estimates: list[Row]  # with their 95 % intervals: what a release is worth
    rows: list[Row]  # every other number: counts, losses, settings


def comparison(releases: Sequence[Release]) -> Comparison:
    """Every number of the manifests, for the active release and the newest others."""
    chosen = sorted(releases, key=lambda release: not release.is_active)[:MOST_COLUMNS]
    return Comparison(
        chosen,
        _rows([dict(_numbers(release.manifest, _interval)) for release in chosen]),
        _rows([dict(_numbers(release.manifest, _number)) for release in chosen]),
    )


def _rows(figures: Sequence[dict[str, str]]) -> list[Row]:
    held = dict.fromkeys(name for found in figures for name in found)
    labelled = [name for name in LABELS.values() if name in held]
    names = dict.fromkeys([*labelled, *held])
    return [(name, [found.get(name) for found in figures]) for name in names]


def _numbers(value: Any, write: Callable[[Any], str | None], path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Names and texts of what ``write`` writes."""
    text = write(value)
    if text is not None:
        words = path[1:] or path  # the outermost key ("report", "figures") only groups
        yield LABELS.get(".".join(words)) or _in_words(words), text
    elif isinstance(value, dict) and not _interval(value):
        for key, inner in value.items():
            if path or key not in _NOT_FIGURES:
                yield from _numbers(inner, write, (*path, str(key)))


def _in_words(path: Sequence[str]) -> str:
    return " ".join(_PLAIN.get(word, word) for word in " ".join(path).replace("_", " ").split())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> str | None:
    if not _is_number(value):
        return None
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _interval(value: Any) -> str | None:
    """An estimate with the ends of its interval."""
    if not (isinstance(value, dict) and all(_is_number(value.get(key)) for key in ("value", "low", "high"))):
        return None
    estimate, low, high = (floatformat(value[key], 3) for key in ("value", "low", "high"))  # rounds as the pages do
    return f"{estimate} ({low} to {high})"
