"""What holds for every request and reply, whichever view they belong to."""

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.cache import patch_cache_control

_API = "/api/"


class PrivateReplies:
    """Nothing that a view says is kept by a cache between server and browser.

    Replies of the API, which hold ratings and people, are not kept at all; pages are asked for again each time.
    A view that says itself how long its reply may be kept is left alone.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        if not response.has_header("Cache-Control"):
            is_api = request.path.startswith(_API)
            patch_cache_control(response, private=True, **({"no_store": True} if is_api else {"no_cache": True}))
        return response


class LimitedBody:
    """413 for a request to the API whose body is larger than DATA_UPLOAD_MAX_MEMORY_SIZE.

    Django holds forms to that limit while it reads them; the REST framework's JSON parser reads past it. A body
    without a length does not exist for WSGI, so that the header is enough to go by.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]):
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        length = request.META.get("CONTENT_LENGTH") or "0"
        if request.path.startswith(_API) and length.isdecimal() and int(length) > limit:
            text = f"The body has {length} bytes; at most {limit} are taken. Send less at a time."
            return JsonResponse({"detail": text}, status=413)
        return self.get_response(request)
