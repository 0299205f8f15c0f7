"""Pages about the application as a whole."""

import functools

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views import View
from drf_spectacular.generators import SchemaGenerator

from medsyn.api_docs import Endpoint, sections
from medsyn.roles import OwnerMixin


@functools.cache
def _sections() -> list[tuple[str, list[Endpoint]]]:
    """The same for as long as the process runs: the schema follows from the code."""
    return sections(SchemaGenerator().get_schema(request=None, public=True))


class ApiDocs(OwnerMixin, View):
    """The API for people who write programs against it."""

    def get(self, request: HttpRequest) -> HttpResponse:
        return render(request, "api_docs.html", {"sections": _sections()})
