"""Reads matrix.csv: who gets what from which address."""

import csv
from dataclasses import dataclass
from pathlib import Path

from tests.access.world import ROLES

PATH = Path(__file__).with_name("matrix.csv")
COLUMNS = ("methods", "address", "of", *ROLES)
# What a cell may say, and what it means. Anything else (a 500, for one) is an error wherever it is met.
SUCCESSES = {
    "ok": "200",
    "made": "201",
    "gone": "204",
    "done": "a redirect to where it goes on",
}
REFUSALS = {
    "sign-in": "a redirect to the sign-in",
    "set-up": "a redirect to the second factor",
    "refused": "401 or 403",
    "absent": "404: what is not yours does not exist",
    "method": "405",
}
FORMS = {"asks": "422: the form again", "bad": "400", "conflict": "409"}
WORDS = {**SUCCESSES, **REFUSALS, **FORMS}


@dataclass(frozen=True)
class Line:
    methods: tuple[str, ...]  # that are answered alike
    route: str
    of: str  # whose thing it is: the world's values under this name take precedence; "": the study's
    expected: dict[str, str]  # by role

    @property
    def label(self) -> str:
        return " ".join(filter(None, ("/".join(self.methods).upper(), self.route, self.of)))

    @property
    def is_safe(self) -> bool:
        return self.methods == ("get",)

    def successes(self) -> list[str]:
        """The roles for which it works."""
        return [role for role, word in self.expected.items() if word in SUCCESSES]


def read_matrix() -> list[Line]:
    """The lines of the table; blank ones and those that begin with # are for the eye."""
    text = [line for line in PATH.read_text().splitlines() if line.strip() and not line.startswith("#")]
    rows = [[cell.strip() for cell in cells] for cells in csv.reader(text)]
    assert tuple(rows[0]) == COLUMNS, f"{PATH.name}: the columns must be {', '.join(COLUMNS)}"
    return [_line(cells) for cells in rows[1:]]


def _line(cells: list[str]) -> Line:
    assert len(cells) == len(COLUMNS), f"{PATH.name}: {len(cells)} cells, not {len(COLUMNS)}: {cells}"
    methods, route, of, *words = cells
    unknown = set(words) - set(WORDS)
    assert not unknown, f"{PATH.name}: {route} says {unknown}; it must be one of {', '.join(WORDS)}"
    return Line(tuple(methods.lower().split()), route, of, dict(zip(ROLES, words, strict=True)))


def as_text(methods: tuple[str, ...], route: str, of: str, words: dict[str, str]) -> str:
    """A line as it stands in the table."""
    head = f"{' '.join(methods).upper() + ',':<27}{route + ',':<52}{of + ',':<8}"
    return (head + " ".join(f"{words[role] + ',':<{max(len(role), 7) + 1}}" for role in ROLES)).rstrip(", ")
