"""Cells of a CSV as expressions of the database: every value comes out as the text that stands in the file.

PostgreSQL and SQLite must write the same characters, so that a study exported from either has the same sha256;
tests/ratings/test_export_bytes.py holds them to it. NULL and the empty text are both an empty cell.
"""

from django.db.models import Case, F, Func, TextField, Value, When
from django.db.models.expressions import Combinable
from django.db.models.functions import Concat, Left, NullIf
from django.db.models.lookups import In

from ratings.csv_schema import FORMULA_STARTS


def formula_safe(text: str) -> str:
    """Spreadsheets run cells that begin with = + - @ TAB or CR; an apostrophe in front makes them text."""
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def safe_text(path: str) -> Combinable:
    """A text that people wrote, formula-safe."""
    text = F(path)
    is_run = In(Left(text, 1), list(FORMULA_STARTS))
    marked = Concat(Value("'"), text, output_field=TextField())
    return Case(When(is_run, then=marked), default=code(path), output_field=TextField())


def code(path: str) -> Combinable:
    """A text of the application's own, which no spreadsheet runs."""
    return NullIf(F(path), Value(""), output_field=TextField())


def flag(path: str) -> Combinable:
    """1 or 0."""
    return Case(When(**{path: True}, then=Value("1")), default=Value("0"))


def one_of(path: str, texts: dict[str, str]) -> Combinable:
    """The text of the value at ``path``."""
    return Case(*[When(**{path: value}, then=Value(text)) for value, text in texts.items()], output_field=TextField())


class _Cell(Func):
    """An expression over one column of the database, with a template per backend (the column has no parameters, so
    that a template may name it twice)."""

    arity = 1
    output_field = TextField()
    on_postgresql = "%(expressions)s"
    on_sqlite = "%(expressions)s"

    def as_postgresql(self, compiler, connection, **context):
        return super().as_sql(compiler, connection, template=self.on_postgresql, **context)

    def as_sqlite(self, compiler, connection, **context):
        return super().as_sql(compiler, connection, template=self.on_sqlite, **context)


class Identity(_Cell):
    """A UUID with its hyphens."""

    on_sqlite = " || '-' || ".join(
        f"substr(%(expressions)s, {start}, {length})"
        for start, length in ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))
    )


class Moment(_Cell):
    """ISO 8601 in UTC, cut to milliseconds."""

    on_postgresql = "to_char(%(expressions)s AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"+00:00\"')"
    on_sqlite = "replace(substr(%(expressions)s || '.000', 1, 23), ' ', 'T') || '+00:00'"


class JoinedCodes(_Cell):
    """A JSON list of codes in its own order, joined by ';'."""

    on_postgresql = (
        "CASE WHEN jsonb_array_length(%(expressions)s) > 0 THEN (SELECT string_agg(code, ';' ORDER BY place)"
        " FROM jsonb_array_elements_text(%(expressions)s) WITH ORDINALITY AS listed(code, place)) END"
    )
    on_sqlite = (
        "CASE WHEN %(expressions)s <> '[]' THEN (SELECT group_concat(value, ';')"
        " FROM (SELECT value FROM json_each(%(expressions)s) ORDER BY key)) END"
    )


class Entry(_Cell):
    """An entry of a JSON object: a text or a number, whose digits are those that were stored."""

    on_postgresql = "%(expressions)s ->> '%(entry)s'"
    on_sqlite = "json_extract(%(expressions)s, '$.%(entry)s')"

    def __init__(self, path: str, *, entry: str):
        super().__init__(path, entry=entry)


class FlagEntry(Entry):
    """A yes or no of a JSON object: 1, 0, or nothing where it is not there."""

    on_postgresql = "CASE %(expressions)s ->> '%(entry)s' WHEN 'true' THEN '1' WHEN 'false' THEN '0' END"
