"""What must stand in the headers of every reply, whoever gets it."""

from collections.abc import Iterator

_CSP = ("default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'", "base-uri 'none'")
_UNSAFE = ("unsafe-inline", "unsafe-eval", "data:", "http:", "https:", "*")
_WITH_DATA_IMAGES = ("/api-docs/",)  # Swagger UI's style sheet holds its arrows as such
_FIXED = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_TELLING = ("Server", "X-Powered-By", "Server-Timing", "X-Runtime", "Via")


def header_faults(path: str, response) -> Iterator[str]:
    """What is wrong with a reply's headers and cookies, in words."""
    policy = response.headers.get("Content-Security-Policy", "")
    directives = [directive.strip() for directive in policy.split(";")]
    yield from (f"CSP without {wanted}" for wanted in _CSP if wanted not in directives)
    if path in _WITH_DATA_IMAGES:
        policy = policy.replace("img-src 'self' blob: data:", "img-src 'self' blob:")
    sources = {source.strip("'") for source in policy.replace(";", " ").split()}
    yield from (f"CSP with {unsafe}" for unsafe in _UNSAFE if unsafe in sources)
    for name, value in _FIXED.items():
        if response.headers.get(name) != value:
            yield f"{name}: {response.headers.get(name)}, not {value}"
    yield from (f"{name} tells of the server" for name in _TELLING if name in response.headers)
    control = response.headers.get("Cache-Control", "")
    if "private" not in control and "no-store" not in control:
        yield f"Cache-Control: {control!r} lets a shared cache keep it"
    if (
        path.startswith("/api/")
        and "no-store" not in control
        and "immutable" not in control
        and "max-age" not in control
    ):
        yield f"Cache-Control: {control!r} lets the browser keep what the API said"
    for cookie in response.cookies.values():
        if cookie["samesite"] not in ("Lax", "Strict"):
            yield f"cookie {cookie.key} without SameSite"
        if cookie.key == "sessionid" and cookie.value and not cookie["httponly"]:
            yield "the session's cookie can be read by scripts"
