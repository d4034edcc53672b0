"""Responses: built from their request (RFC 3261 §8.2.6), with the reason phrases of the registry."""

from __future__ import annotations

from sip.headers import Headers
from sip.message import Request, Response

REASONS = {
    100: "Trying", 180: "Ringing", 181: "Call Is Being Forwarded", 182: "Queued", 183: "Session Progress",
    200: "OK", 202: "Accepted", 300: "Multiple Choices", 301: "Moved Permanently", 302: "Moved Temporarily",
    305: "Use Proxy", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 406: "Not Acceptable", 407: "Proxy Authentication Required",
    408: "Request Timeout", 410: "Gone", 413: "Request Entity Too Large", 414: "Request-URI Too Long",
    415: "Unsupported Media Type", 416: "Unsupported URI Scheme", 420: "Bad Extension",
    421: "Extension Required", 422: "Session Interval Too Small", 423: "Interval Too Brief",
    429: "Provide Referrer Identity", 469: "Bad Info Package", 480: "Temporarily Unavailable",
    481: "Call/Transaction Does Not Exist", 482: "Loop Detected", 483: "Too Many Hops",
    484: "Address Incomplete", 486: "Busy Here", 487: "Request Terminated", 488: "Not Acceptable Here",
    489: "Bad Event",
    491: "Request Pending", 493: "Undecipherable", 500: "Server Internal Error", 501: "Not Implemented",
    503: "Service Unavailable", 504: "Server Time-out", 505: "Version Not Supported",
    513: "Message Too Large", 600: "Busy Everywhere", 603: "Decline", 604: "Does Not Exist Anywhere",
    606: "Not Acceptable",
}  # fmt: skip
_COPIED = ("via", "from", "call-id", "cseq")


def reply(request: Request, code: int, tag: str | None = None, reason: str = "") -> Response:
    """A response with the headers every response has: Via, From, To, Call-ID, CSeq as they came.

    `tag` goes into To where To has none (100 Trying needs none).
    """
    items = [(name, value) for name, value in request.headers if name in _COPIED]
    to = request.headers.get("to") or ""
    if tag is not None and ";tag=" not in to.lower().replace(" ", ""):
        to = f"{to};tag={tag}"
    items.append(("to", to))
    return Response(code, reason or REASONS.get(code, "Unknown"), Headers.of_canonical(items))
