"""The figures of several releases side by side, as their manifests hold them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from generation.models import Release

MOST_COLUMNS = 4
# What a manifest says about the release itself; the rest are figures from training.
_NOT_FIGURES = {"files", "digest", "name", "quality_threshold", "is_simulated", "run", "checkpoint", "config"}


@dataclass(frozen=True)
class Comparison:
    releases: Sequence[Release]
    rows: list[tuple[str, list[str | None]]]  # name of the figure, its value in each release


def comparison(releases: Sequence[Release]) -> Comparison:
    """Every number of the manifests, for the active release and the newest others."""
    chosen = sorted(releases, key=lambda release: not release.is_active)[:MOST_COLUMNS]
    figures = [dict(_numbers(release.manifest)) for release in chosen]
    names = list(dict.fromkeys(name for found in figures for name in found))
    return Comparison(chosen, [(name, [found.get(name) for found in figures]) for name in names])


def _numbers(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if path or key not in _NOT_FIGURES:
                yield from _numbers(inner, (*path, str(key)))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        words = path[1:] or path  # the outermost key ("report", "figures") only groups
        yield " ".join(words).replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value)
