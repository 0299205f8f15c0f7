"""A figure of the evaluation with all that is needed to read it, as JSON and as a row of the table."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.evaluation.degradation import Ladder
from training.evaluation.intervals import Interval

LOWER, HIGHER, LIKE_REAL = "lower", "higher", "like the real"


@dataclass(frozen=True)
class Figure:
    """One row: the generated images' figure, and the same of real images."""

    name: str  # as the field calls it, with the network it was taken with
    better: str = HIGHER  # LOWER, HIGHER or LIKE_REAL
    value: Interval | None = None  # of the generated images; None where it is absent
    interval_method: str = ""  # what the interval is
    real: Interval | None = None  # real against real: the floor of a distance, the ceiling of a share
    chance: float | None = None  # what guessing gives
    num_images: int = 0  # generated images that the figure reads
    ladders: tuple[Ladder, ...] = ()  # how it answers to known degradations of real images
    absent_because: str = ""  # why there is no value, and what to do about it
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def is_trustworthy(self) -> bool | None:
        """Whether every ladder came out in order; None where the figure has none."""
        return all(ladder.in_order for ladder in self.ladders) if self.ladders else None

    def to_dict(self) -> dict[str, Any]:
        if self.value is None:
            return {"name": self.name, "value": None, "absent_because": self.absent_because}
        return {
            "name": self.name,
            "better": self.better,
            **_interval("value", self.value),
            "interval": self.interval_method,
            **(_interval("real", self.real) if self.real else {"real": None}),
            "chance": self.chance,
            "num_images": self.num_images,
            "ladders": [ladder.to_dict() for ladder in self.ladders],
            "trustworthy": self.is_trustworthy,
            "details": self.details,
        }


def _interval(key: str, interval: Interval) -> dict[str, Any]:
    return {key: _finite(interval.value), f"{key}_interval": [_finite(interval.low), _finite(interval.high)]}


def _finite(number: float) -> float | None:
    """JSON has no NaN."""
    return float(number) if number == number and abs(number) != float("inf") else None


def table(figures: Sequence[Figure]) -> str:
    """The figures as text: a row each, the absent ones below with their reasons."""
    header = ("figure", "generated", "95 %", "real", "chance", "better", "ladder")
    rows = [header, *(_row(figure) for figure in figures if figure.value is not None)]
    absent = [f"{figure.name}: {figure.absent_because}" for figure in figures if figure.value is None]
    return "\n".join([*_laid_out(rows), *([""] if absent else []), *absent])


def table_by_kind(by_kind: Mapping[str, Sequence[Figure]]) -> str:
    """A row for each figure, a column for each kind: the generated images' figure, the real ones' in brackets."""
    names = dict.fromkeys(_family(figure) for found in by_kind.values() for figure in found if figure.value)
    cells = {kind: {_family(figure): _cell(figure) for figure in found} for kind, found in by_kind.items()}
    rows = [("by kind (real)", *by_kind), *((name, *(cells[kind].get(name, "") for kind in cells)) for name in names)]
    return "\n".join(_laid_out(rows))


def _laid_out(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of columns, the header underlined."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def _family(figure: Figure) -> str:
    """The name without what may differ from kind to kind: the label that it is taken of."""
    return re.sub(r" of the (finding|caption|kind)\b", "", figure.name)


def _cell(figure: Figure) -> str:
    if figure.value is None:
        return ""
    doubt = " ?" if figure.is_trustworthy is False else ""
    return _number(figure.value.value) + (f" ({_number(figure.real.value)})" if figure.real else "") + doubt


def _row(figure: Figure) -> tuple[str, ...]:
    real = _number(figure.real.value) if figure.real else ""
    chance = "" if figure.chance is None else _number(figure.chance)
    return (
        figure.name,
        _number(figure.value.value),
        f"{_number(figure.value.low)} to {_number(figure.value.high)}",
        real,
        chance,
        figure.better,
        _ladder_text(figure),
    )


def _ladder_text(figure: Figure) -> str:
    if not figure.ladders:
        return ""
    broken = [ladder.degradation for ladder in figure.ladders if not ladder.in_order]
    if broken:
        return f"NOT TRUSTWORTHY: out of order or blind under {', '.join(broken)}"
    noticed = [
        f"{ladder.degradation} {'never' if ladder.noticed_from is None else f'{ladder.noticed_from:g}'}"
        for ladder in figure.ladders
    ]
    return f"in order; notices {', '.join(noticed)}"


def _number(value: float) -> str:
    if value != value:
        return "?"
    digits = 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 4 if abs(value) < 0.1 else 3
    return f"{value:.{digits}f}"
