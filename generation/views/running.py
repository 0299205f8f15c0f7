"""What the pages of all that runs in a worker share: how far it is, ending it, going on with it."""

from collections.abc import Callable, Mapping
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect
from django.utils.cache import patch_cache_control

from generation.parameters import ParameterError
from medsyn.jobs import Job


def progress_reply(row: Job) -> JsonResponse:
    """What its progress bar asks for again and again."""
    return unstored_reply(row.as_progress())


def unstored_reply(values: Mapping[str, Any]) -> JsonResponse:
    """JSON that is asked for because it changes: no cache may keep it."""
    response = JsonResponse(values)
    patch_cache_control(response, no_store=True)
    return response


def end(request: HttpRequest, row: Job, cancel: Callable[[], None], *, name: str, kept: str) -> HttpResponse:
    """End what is not finished, by ``cancel``, and go back to its page. ``name`` and ``kept`` (a sentence: what stays
    of it) are for people."""
    if row.is_finished:
        messages.warning(request, f"The {name} had ended already ({row.get_state_display().lower()}).")
    else:
        cancel()
        messages.success(request, f"The {name} ends now. {kept}")
    return redirect(row)


def do_or_say_why(request: HttpRequest, verb: Callable[[], object]) -> None:
    """Do what a button asks for; where it is refused, the next page says why."""
    try:
        verb()
    except ParameterError as error:
        messages.error(request, error.message)
