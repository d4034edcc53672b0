"""Digest authentication, both sides of the arithmetic (RFC 7616 as RFC 3261 §22 and RFC 8760 use it)."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass

from sip.headers import MalformedHeader, split_outside
from sip.settings import Credentials

ALGORITHMS = {
    "md5": "md5",
    "md5-sess": "md5",
    "sha-256": "sha256",
    "sha-256-sess": "sha256",
    "sha-512-256": "sha512_256",
}
"""Algorithm names as on the wire, lower case, and hashlib's names."""
_PAIR = re.compile(r"([A-Za-z0-9\-]+)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,\"]+))\s*\Z", re.S)


@dataclass(frozen=True, slots=True)
class Challenge:
    """A WWW-Authenticate or Proxy-Authenticate that we can answer."""

    realm: str
    nonce: str
    opaque: str | None = None
    algorithm: str = "MD5"
    qop: str | None = None
    """auth or auth-int, the one chosen; None for the old form without."""
    stale: bool = False


def parse_digest(value: str) -> dict[str, str]:
    """The parameters after `Digest`, names lower case, values unquoted.

    Raises MalformedHeader for another scheme or a broken list.
    """
    scheme, _, rest = value.strip().partition(" ")
    if scheme.lower() != "digest":
        raise MalformedHeader("not Digest")
    params: dict[str, str] = {}
    for part in split_outside(rest, ","):
        match = _PAIR.match(part)
        if match is None or match[1].lower() in params:
            raise MalformedHeader("bad Digest parameter")
        quoted = match[2]
        params[match[1].lower()] = match[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
    return params


def parse_challenge(value: str) -> Challenge | None:
    """None for a scheme, algorithm or qop that is not ours. Raises MalformedHeader."""
    if not value.strip().lower().startswith("digest"):
        return None
    params = parse_digest(value)
    algorithm = params.get("algorithm", "MD5")
    if algorithm.lower() not in ALGORITHMS or "nonce" not in params:
        return None
    offered = [word.strip().lower() for word in params.get("qop", "").split(",") if word.strip()]
    qop = next((word for word in ("auth", "auth-int") if word in offered), None)
    if offered and qop is None:
        return None
    stale = params.get("stale", "").lower() == "true"
    return Challenge(params.get("realm", ""), params["nonce"], params.get("opaque"), algorithm, qop, stale)


def digest_response(
    challenge: Challenge, username: str, password: str, method: str, uri: str, *, body: bytes = b"",
    nc: str = "00000001", cnonce: str = "",
) -> str:  # fmt: skip
    """The `response` value (RFC 7616 §3.4.1), lower-case hex."""
    algorithm = challenge.algorithm.lower()

    def digest(text: bytes) -> str:
        return hashlib.new(ALGORITHMS[algorithm], text).hexdigest()

    secret = digest(_bytes(f"{username}:{challenge.realm}:{password}"))
    if algorithm.endswith("-sess"):
        secret = digest(_bytes(f"{secret}:{challenge.nonce}:{cnonce}"))
    what = f"{method}:{uri}"
    if challenge.qop == "auth-int":
        what += f":{digest(body)}"
    if challenge.qop is None:
        return digest(_bytes(f"{secret}:{challenge.nonce}:{digest(_bytes(what))}"))
    middle = f"{challenge.nonce}:{nc}:{cnonce}:{challenge.qop}"
    return digest(_bytes(f"{secret}:{middle}:{digest(_bytes(what))}"))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def authorization(
    challenge: Challenge,
    credentials: Credentials,
    method: str,
    uri: str,
    *,
    body: bytes,
    nc: int,
    cnonce: str,
) -> str:
    """The value of an Authorization or Proxy-Authorization header."""
    count = f"{nc:08x}"
    response = digest_response(
        challenge, credentials.username, credentials.password, method, uri, body=body, nc=count, cnonce=cnonce
    )
    parts = [
        f"username={_quoted(credentials.username)}",
        f"realm={_quoted(challenge.realm)}",
        f"nonce={_quoted(challenge.nonce)}",
        f"uri={_quoted(uri)}",
        f'response="{response}"',
        f"algorithm={challenge.algorithm}",
    ]
    if challenge.opaque is not None:
        parts.append(f"opaque={_quoted(challenge.opaque)}")
    if challenge.qop is not None:
        parts += [f"qop={challenge.qop}", f"nc={count}", f'cnonce="{cnonce}"']
    elif challenge.algorithm.lower().endswith("-sess"):
        parts.append(f'cnonce="{cnonce}"')
    return "Digest " + ", ".join(parts)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def equal_digests(a: str, b: str) -> bool:
    """Compare in constant time, whatever the case."""
    return hmac.compare_digest(_bytes(a.lower()), _bytes(b.lower()))
