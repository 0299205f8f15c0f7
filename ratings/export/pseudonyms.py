"""What readers are called in files that leave the server."""

from collections.abc import Mapping

from django.db.models import Case, Value, When
from django.db.models.expressions import Combinable
from django.utils.crypto import salted_hmac

from ratings.models import Assignment, Study


def pseudonym(study_key: str, reader_key: int) -> str:
    """Names a reader within one study: the same in every export, nothing in another study, and without the
    server's secret key not to be traced back."""
    return "R-" + salted_hmac("ratings.pseudonym", f"{study_key}/{reader_key}", algorithm="sha256").hexdigest()[:12]


def reader_names(study: Study | None, place: str) -> Combinable:
    """The pseudonym of the reader of ``place`` (path to an Assignment), for one study or all, as an expression.

    The names are few and known beforehand: the database finds each by halving, in as many comparisons as the
    logarithm of their number.
    """
    readers = Assignment.objects.order_by()
    if study is not None:
        readers = readers.filter(study=study)
    names: dict[int, dict[int, Combinable]] = {}
    for study_id, public_id, reader_id in readers.values_list("study_id", "study__public_id", "reader_id").distinct():
        names.setdefault(study_id, {})[reader_id] = Value(pseudonym(str(public_id), reader_id))
    return _by_key(
        f"{place}__study_id", {study_id: _by_key(f"{place}__reader_id", few) for study_id, few in names.items()}
    )


def _by_key(path: str, values: Mapping[int, Combinable]) -> Combinable:
    """The value whose key is at ``path``, which must hold one of the keys."""
    keys = sorted(values)
    if len(keys) <= 1:
        return values[keys[0]] if keys else Value("")
    middle = keys[len(keys) // 2]
    lower = {key: values[key] for key in keys if key < middle}
    upper = {key: values[key] for key in keys if key >= middle}
    return Case(When(**{f"{path}__lt": middle}, then=_by_key(path, lower)), default=_by_key(path, upper))
