"""The session description itself (RFC 8866): text in, lines by meaning out. No negotiation here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from sip.errors import PeerError

MAX_SDP = 16_384
MAX_MEDIA = 16
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-]{0,253}\Z|[0-9A-Fa-f:.]{2,45}\Z")
_DIRECTIONS = ("sendrecv", "sendonly", "recvonly", "inactive")

Attributes = tuple[tuple[str, str | None], ...]


class SdpError(PeerError):
    """The peer's SDP cannot be used; `code` is the SIP answer it calls for."""

    code = 488


class MalformedSdp(SdpError):
    """Not SDP at all, or a line of it breaks RFC 8866's grammar."""

    code = 400


@dataclass(frozen=True, slots=True)
class MediaLine:
    """One m= line with what belongs to it."""

    kind: str
    """audio, video, image …"""
    port: int
    """0: refused or removed."""
    protocol: str
    """Such as RTP/AVP, as received."""
    formats: tuple[str, ...]
    host: str
    """From c= of the line or of the session."""
    attributes: Attributes

    def attribute(self, name: str) -> str | None:
        """The first value of a=name, "" for a flag, None when absent."""
        return next((value or "" for key, value in self.attributes if key == name), None)

    def attribute_values(self, name: str) -> list[str]:
        return [value or "" for key, value in self.attributes if key == name]


@dataclass(frozen=True, slots=True)
class Description:
    origin_version: str
    """The o= line without the address: changes when the description does."""
    times: str
    """The value of t=."""
    media: tuple[MediaLine, ...]


def parse_description(body: bytes) -> Description:
    """Raises MalformedSdp and nothing else."""
    if len(body) > MAX_SDP:
        raise MalformedSdp("SDP too long")
    try:
        lines = _split_lines(body.decode("utf-8", "replace"))
    except ValueError as error:
        raise MalformedSdp(str(error)) from None
    if not lines or lines[0] != ("v", "0"):
        raise MalformedSdp("SDP does not begin with v=0")
    starts = [at for at, (kind, _) in enumerate(lines) if kind == "m"]
    if len(starts) > MAX_MEDIA:
        raise MalformedSdp("too many m= lines")
    session = lines[: starts[0]] if starts else lines
    sections = [lines[a:b] for a, b in pairwise([*starts, len(lines)])]
    origin = _value(session, "o")
    if origin is None or len(origin.split()) != 6:
        raise MalformedSdp("bad o= line")
    media = tuple(_parse_media(section, session) for section in sections)
    return Description(" ".join(origin.split()[:3]), _value(session, "t") or "0 0", media)


def _split_lines(text: str) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        if not line.strip():
            continue
        if len(line) < 2 or line[1] != "=" or not line[0].isalpha() or "\r" in line or "\x00" in line:
            raise ValueError("a line of the SDP is not x=value")
        lines.append((line[0], line[2:].strip()))
    return lines


def _value(lines: list[tuple[str, str]], kind: str) -> str | None:
    return next((value for key, value in lines if key == kind), None)


def _parse_media(section: list[tuple[str, str]], session: list[tuple[str, str]]) -> MediaLine:
    match = re.fullmatch(r"(\S+) +(\d{1,5})(?:/\d{1,5})? +(\S+) +(\S.*)", section[0][1])
    if match is None or int(match[2]) > 65_535:
        raise MalformedSdp("bad m= line")
    port = int(match[2])
    connection = _value(section, "c") or _value(session, "c")
    if connection is None and port:
        raise MalformedSdp("no c= line for a stream")
    host = _parse_connection(connection) if connection else ""
    own = _attributes(section)
    names = {name for name, _ in own}
    inherited = tuple(pair for pair in _attributes(session) if pair[0] not in names)
    if names & set(_DIRECTIONS):
        inherited = tuple(pair for pair in inherited if pair[0] not in _DIRECTIONS)
    return MediaLine(match[1].lower(), port, match[3], tuple(match[4].split()), host, own + inherited)


def _parse_connection(value: str) -> str:
    match = re.fullmatch(r"IN +IP([46]) +(\S+)", value, re.I)
    host = match[2].split("/")[0] if match else ""
    if not _HOST.match(host):
        raise MalformedSdp("bad c= line")
    return host


def _attributes(lines: list[tuple[str, str]]) -> Attributes:
    found: list[tuple[str, str | None]] = []
    for kind, value in lines:
        if kind == "a":
            name, colon, rest = value.partition(":")
            found.append((name.strip().lower(), rest.strip() if colon else None))
    return tuple(found)


def address_line(host: str) -> str:
    """`IN IP4 192.0.2.1` or `IN IP6 2001:db8::1`."""
    return f"IN IP{6 if ':' in host else 4} {host}"
