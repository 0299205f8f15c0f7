"""Whether this session gave a second factor, and when its person last proved who they are.

Both stand in the session, so that asking costs no query. A session is emptied when somebody else signs in.
"""

import time

from django.conf import settings
from django.http import HttpRequest
from django.utils.crypto import constant_time_compare

_PASSED = "second_factor_passed"
_SIGNED_IN_AT = "signed_in_at"  # seconds since 1970
_PASSWORD = "password_given"  # until the code comes: what Django's sessions keep of a password


def note_passed(request: HttpRequest) -> None:
    """The person gave a code in this session."""
    request.session[_PASSED] = True


def forget(request: HttpRequest) -> None:
    """The person has no second factor any more."""
    request.session.pop(_PASSED, None)


def is_passed(request: HttpRequest) -> bool:
    return request.session.get(_PASSED, False)


def note_password(request: HttpRequest, user) -> None:
    """The person gave their password; the code may come next."""
    request.session[_PASSWORD] = user.get_session_auth_hash()


def password_still_holds(request: HttpRequest, user) -> bool:
    """Whether the account is open and its password the one that was given before the code was asked for."""
    return user.is_active and constant_time_compare(request.session.get(_PASSWORD, ""), user.get_session_auth_hash())


def note_signed_in(request: HttpRequest) -> None:
    request.session.pop(_PASSWORD, None)
    request.session[_SIGNED_IN_AT] = time.time()


def signed_in_lately(request: HttpRequest) -> bool:
    """Whether the sign-in is recent enough to change what guards the account without the password again."""
    return time.time() - request.session.get(_SIGNED_IN_AT, 0) < settings.ACCOUNT_REAUTHENTICATION_TIMEOUT


def is_missing(request: HttpRequest) -> bool:
    """Whether this session may do nothing before it gives a second factor: an administrator's, where one is asked."""
    return settings.REQUIRE_MFA and request.user.is_staff and not is_passed(request)
