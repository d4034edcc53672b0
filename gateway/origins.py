"""Which pages may call: their own origin's, and those on a list (RFC 6454). Each answer carries what a
browser needs to know of it: CORS for listed origins, and the headers that keep a page to itself.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

CORS = web.RequestKey("cors", dict[str, str])
"""Headers that tell a listed page it may read the answer."""
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self';"
        " connect-src 'self'; media-src 'self' blob: mediastream:; manifest-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def allowed(origin: str, host: str, listed: tuple[str, ...]) -> bool:
    """Whether a page of `origin` may call a gateway asked for as `host` (the Host header).

    The scheme of our own origin is not compared: a proxy may end TLS in front of us.
    """
    if "*" in listed or origin.rstrip("/").lower() in {entry.rstrip("/").lower() for entry in listed}:
        return True
    try:
        own = urlsplit(origin)
    except ValueError:
        return False
    return own.scheme in ("http", "https") and bool(own.netloc) and own.netloc.lower() == host.lower()


def origin_guard(listed: tuple[str, ...]) -> Middleware:
    """Refuse foreign pages (403) under /api/; tell browsers which listed ones may read the answer."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if origin is None or not request.path.startswith("/api/"):
            return await handler(request)
        if not allowed(origin, request.host, listed):
            return web.json_response({"error": "this page may not call here"}, status=403)
        if request.method == "OPTIONS":
            return web.Response(status=204, headers=_preflight(origin))
        request[CORS] = {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        return await handler(request)

    return guard


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Give every answer, errors and streams too, its security and CORS headers (on_response_prepare)."""
    response.headers.update(SECURITY_HEADERS)
    response.headers.update(request.get(CORS, {}))


def _preflight(origin: str) -> dict[str, str]:
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": "GET, POST, DELETE",
        "Access-Control-Allow-Headers": "Content-Type, Last-Event-ID",
        "Access-Control-Max-Age": "600",
        "Vary": "Origin",
    }
