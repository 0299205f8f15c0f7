"""System checks of production: administrators with a second factor, limits that all processes count together."""

from collections.abc import Sequence

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Warning, register

_OF_ONE_PROCESS = ("locmem.LocMemCache", "dummy.DummyCache")


@register()
def check_second_factor(app_configs: Sequence[AppConfig] | None, **options: object) -> list[CheckMessage]:
    """A stolen password of an administrator must not be enough."""
    if not settings.IS_PRODUCTION or settings.REQUIRE_MFA:
        return []
    return [
        Warning(
            "MEDSYN_REQUIRE_MFA is 0: administrators sign in with a password alone.",
            hint="Unset it; administrators set up their second step when they next sign in.",
            id="accounts.W001",
        )
    ]


@register()
def check_shared_cache(app_configs: Sequence[AppConfig] | None, **options: object) -> list[CheckMessage]:
    """Failed sign-ins must be counted by all processes together."""
    backend = settings.CACHES["default"]["BACKEND"]
    if not settings.IS_PRODUCTION or not backend.endswith(_OF_ONE_PROCESS):
        return []
    return [
        Warning(
            f"The default cache is {backend}: each process counts failed sign-ins for itself.",
            hint="Leave CACHES as it is (a database table), or set MEDSYN_CACHE_URL to a Redis server.",
            id="accounts.W002",
        )
    ]
