"""Pages about the application as a whole."""

import functools
from typing import Any

from csp.decorators import csp_update
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.decorators import method_decorator
from django.views import View
from drf_spectacular.generators import SchemaGenerator

from medsyn.roles import OwnerMixin


@functools.cache
def _schema() -> dict[str, Any]:
    """The same for as long as the process runs: it follows from the code."""
    return SchemaGenerator().get_schema(request=None, public=True)


# Swagger UI's style sheet holds its arrows and locks as data: images.
@method_decorator(csp_update({"img-src": ["data:"]}), name="dispatch")
class ApiDocs(OwnerMixin, View):
    """The API for people who write programs against it."""

    def get(self, request: HttpRequest) -> HttpResponse:
        return render(request, "api_docs.html", {"schema": _schema()})
