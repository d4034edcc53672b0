"""SIP and tel URIs (RFC 3261 §19.1, RFC 3966): parsed, compared and written back.

Host names and parameters are kept as received; user parts are unescaped only through `user_text`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from sip.errors import PeerError

MAX_URI = 2_048
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_HOSTPORT = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9_.\-]*[A-Za-z0-9.])?)(?::(?P<port>\d{1,5}))?\Z"
)
_NOT_IN_URI = re.compile(r'[\s<>"\x00-\x20\x7f]')
Params = tuple[tuple[str, str | None], ...]


class MalformedUri(PeerError):
    """Not a URI, or one that breaks the grammar of its scheme."""


class UnknownScheme(PeerError):
    """A URI whose scheme is none of sip, sips, tel: 416 in a request line."""

    code = 416


@dataclass(frozen=True, slots=True)
class Uri:
    """`sip:user:password@host:port;params?headers`, or `tel:number;params` with an empty host."""

    scheme: str
    """Lower case: sip, sips or tel."""
    user: str | None
    """As received, with its escapes; None when there is no userinfo."""
    host: str
    """Without brackets for IPv6; lower case not enforced."""
    port: int | None = None
    params: Params = ()
    headers: str = field(default="", repr=False)
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        params = "".join(f";{name}" if value is None else f";{name}={value}" for name, value in self.params)
        if self.scheme == "tel":
            return f"tel:{self.user}{params}"
        user = "" if self.user is None else self.user
        if self.password is not None:
            user += f":{self.password}"
        at = "" if self.user is None else "@"
        tail = f"?{self.headers}" if self.headers else ""
        return f"{self.scheme}:{user}{at}{self.hostport}{params}{tail}"

    @property
    def hostport(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    @property
    def user_text(self) -> str:
        """The user part with %-escapes undone; undecodable bytes are replaced."""
        raw = (self.user or "").encode("utf-8", "surrogateescape")
        return unquote_to_bytes(raw).decode("utf-8", "replace")

    def param(self, name: str) -> str | None:
        """A parameter's value, "" for one without a value, None when absent; names ignore case."""
        for key, value in self.params:
            if key.lower() == name:
                return value or ""
        return None

    @property
    def loose(self) -> bool:
        """True for a loose router (RFC 3261 §16.12)."""
        return self.param("lr") is not None


def parse_uri(text: str) -> Uri:
    """Parse one URI. Raises UnknownScheme for a scheme that is not ours, MalformedUri for the rest."""
    return _parse(text)


@lru_cache(maxsize=2_048)
def _parse(text: str) -> Uri:
    if len(text) > MAX_URI:
        raise MalformedUri("URI too long")
    match = _SCHEME.match(text)
    if match is None or _NOT_IN_URI.search(text):
        raise MalformedUri("not a URI")
    scheme = match[1].lower()
    rest = text[match.end() :]
    if scheme == "tel":
        return _parse_tel(rest)
    if scheme not in ("sip", "sips"):
        raise UnknownScheme("unknown URI scheme")
    return _parse_sip(scheme, rest)


def _parse_sip(scheme: str, rest: str) -> Uri:
    # The userinfo may hold ; and ?, so the last @ before any header decides (RFC 3261 §25.1).
    userinfo, at, tail = rest.rpartition("@")
    if at and "?" in userinfo and "@" in userinfo:
        userinfo, at, tail = rest.partition("@")
    user: str | None = None
    password: str | None = None
    if at:
        user, colon, secret = userinfo.partition(":")
        password = secret if colon else None
        if not user:
            raise MalformedUri("empty user part")
    tail, question, headers = tail.partition("?")
    if question and not headers:
        raise MalformedUri("empty URI headers")
    hostport, *raw = tail.split(";")
    match = _HOSTPORT.match(hostport)
    if match is None:
        raise MalformedUri("bad host in URI")
    port = int(match["port"]) if match["port"] else None
    if port is not None and port > 65_535:
        raise MalformedUri("bad port in URI")
    return Uri(scheme, user, match["host"].strip("[]"), port, _params(raw), headers, password)


def _parse_tel(rest: str) -> Uri:
    number, *raw = rest.split(";")
    if not number or not re.fullmatch(r"\+?[0-9A-Fa-f*#().\-]+", number):
        raise MalformedUri("bad telephone number")
    return Uri("tel", number, "", None, _params(raw))


def _params(raw: list[str]) -> Params:
    pairs: list[tuple[str, str | None]] = []
    for item in raw:
        name, equals, value = item.partition("=")
        if not name:
            raise MalformedUri("empty URI parameter")
        pairs.append((name, value if equals else None))
    return tuple(pairs)


_UNRESERVED = re.compile(r"%([0-9A-Fa-f]{2})")


def _unescaped(text: str) -> str:
    return _UNRESERVED.sub(lambda m: chr(int(m[1], 16)) if int(m[1], 16) < 0x80 else m[0].upper(), text)


def same_uri(a: Uri, b: Uri) -> bool:
    """Equality by RFC 3261 §19.1.4."""
    if (a.scheme, a.host.lower(), a.port) != (b.scheme, b.host.lower(), b.port):
        return False
    if _unescaped(a.user or "") != _unescaped(b.user or "") or (a.user is None) != (b.user is None):
        return False
    if a.password != b.password:
        return False
    ours = {name.lower(): (value or "").lower() for name, value in a.params}
    theirs = {name.lower(): (value or "").lower() for name, value in b.params}
    if any(ours[name] != theirs[name] for name in ours.keys() & theirs.keys()):
        return False
    must_match = {"user", "ttl", "method", "maddr", "transport"}
    if (ours.keys() ^ theirs.keys()) & must_match:
        return False
    return sorted(a.headers.lower().split("&")) == sorted(b.headers.lower().split("&"))
