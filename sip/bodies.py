"""What a message carries: the SDP in its body, alone or inside multipart/mixed (RFC 3261 §7.4, RFC 5621)."""

from __future__ import annotations

import re

from sip.errors import PeerError
from sip.message import Request, Response

SDP = "application/sdp"
_MAX_PARTS = 8


class UnsupportedBody(PeerError):
    """A body that must be understood and is not: 415."""

    code = 415


def media_type(message: Request | Response) -> str:
    """The type and subtype, lower case, "" without Content-Type."""
    return (message.headers.get("content-type") or "").partition(";")[0].strip().lower()


def sdp_of(message: Request | Response) -> bytes | None:
    """The session description, or None. Raises UnsupportedBody for a body we must not ignore."""
    if not message.body:
        return None
    encoding = (message.headers.get("content-encoding") or "identity").strip().lower()
    kind = media_type(message)
    if encoding == "identity":
        if kind == SDP:
            return message.body
        if kind == "multipart/mixed" or kind == "multipart/alternative":
            found = _find_part(message.body, message.headers.get("content-type") or "")
            if found is not None:
                return found
    if "handling=optional" in (message.headers.get("content-disposition") or "").replace(" ", "").lower():
        return None
    raise UnsupportedBody("body type not supported")


def _find_part(body: bytes, content_type: str) -> bytes | None:
    match = re.search(r'boundary\s*=\s*(?:"([^"]{1,70})"|([^\s;"]{1,70}))', content_type, re.I)
    if match is None:
        return None
    mark = b"--" + (match[1] or match[2]).encode("utf-8", "surrogateescape")
    for part in body.split(mark)[1 : _MAX_PARTS + 1]:
        head, separator, content = part.partition(b"\r\n\r\n")
        if separator and re.search(rb"content-type\s*:\s*application/sdp", head, re.I):
            return content.removesuffix(b"\r\n")
    return None
