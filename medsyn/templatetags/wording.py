"""Filters of every template (settings: builtins): shares and kinds of image as people read them."""

from django import template

from medsyn import modalities
from medsyn.percent import percent as as_percent

register = template.Library()


@register.filter
def percent(share: float | None, decimals: int | None = None) -> str:
    """``{{ 0.1|percent }}`` is "10 %"; ``decimals`` as for medsyn.percent. A dash where there is no share."""
    return "–" if share is None else as_percent(share, decimals)


@register.filter
def kind_name(slug: str) -> str:
    """``{{ "chest_xray"|kind_name }}`` is "Chest X-ray"; raises UnknownModality."""
    return modalities.kind_from_name(slug).prefix
