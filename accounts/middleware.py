"""Administrators without a second factor reach the page that sets it up, and nothing else."""

from collections.abc import Callable

from allauth.mfa.models import Authenticator
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect
from django.utils.http import urlencode

from accounts import second_factor

_ALLOWED = frozenset(
    {"login", "logout", "account_reauthenticate", "mfa_activate_totp", "mfa_reauthenticate", "account_inactive"}
)


class RequireSecondFactor:
    """Costs no query where the session gave its second factor, or where none is asked for.

    Requests with a token and no session carry no person yet at this point: the API's own authentication decides.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, view, arguments, keywords) -> HttpResponse | None:
        if not second_factor.is_missing(request) or request.resolver_match.view_name in _ALLOWED:
            return None
        if request.path.startswith("/api/"):
            text = "Administrators sign in with a second factor. Set it up, or give a code, in the browser."
            return JsonResponse({"detail": text}, status=403)
        has_one = Authenticator.objects.filter(user=request.user, type=Authenticator.Type.TOTP).exists()
        if not has_one:
            return redirect("mfa_activate_totp")
        response = redirect("mfa_reauthenticate")
        if request.method == "GET":
            response["Location"] += "?" + urlencode({"next": request.get_full_path()})
        return response
