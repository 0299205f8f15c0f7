"""What every endpoint may answer when it refuses, added to the OpenAPI schema in one place."""

from typing import Any

METHODS = ("get", "post", "put", "patch", "delete")
_REFUSALS = {
    "400": ("Faults", "What was sent is not right; the names of the fields at fault, and why."),
    "403": ("Refusal", "Not signed in, or not allowed to your account."),
    "404": ("Refusal", "There is no such thing, or it is not yours."),
}
_SCHEMAS = {
    "Refusal": {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]},
    "Faults": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}},
}


def add_refusals(result: dict[str, Any], generator, request, public: bool) -> dict[str, Any]:
    """Postprocessing hook of drf-spectacular: 403 everywhere, 404 where the address names something, 400 where
    something is sent. What an endpoint documents itself stays."""
    result["components"]["schemas"].update(_SCHEMAS)
    for path, operations in result["paths"].items():
        for method in METHODS:
            if method in operations:
                _add(operations[method]["responses"], _statuses(path, operations[method]))
    return result


def _statuses(path: str, operation: dict[str, Any]) -> list[str]:
    is_sent = "requestBody" in operation or any(given["in"] == "query" for given in operation.get("parameters", ()))
    return [*(["400"] if is_sent else []), "403", *(["404"] if "{" in path else [])]


def _add(responses: dict[str, Any], statuses: list[str]) -> None:
    for status in statuses:
        name, description = _REFUSALS[status]
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
        responses.setdefault(status, {"description": description, "content": content})
