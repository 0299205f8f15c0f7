"""What every list of these pages does: pages, and an order that the address names."""

from collections.abc import Sequence

from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.http import HttpRequest

ROWS_PER_PAGE = 25


def paged(rows: QuerySet | Sequence, request: HttpRequest) -> Page:
    """The page that ?page= names; the nearest one there is for any other text."""
    return Paginator(rows, ROWS_PER_PAGE).get_page(request.GET.get("page"))


def ordering(request: HttpRequest, keys: dict[str, str], default: str) -> tuple[str, str]:
    """Database ordering for ?sort=key or ?sort=-key, newest first among equals; unknown keys mean ``default``."""
    key = request.GET.get("sort", "")
    if key.lstrip("-") not in keys:
        key = default
    direction = "-" if key.startswith("-") else ""
    return f"{direction}{keys[key.lstrip('-')]}", "-pk"
