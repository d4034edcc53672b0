"""The Via header field: who sent a request, and where its response goes (RFC 3261 §18.2, RFC 3581)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sip.headers import MalformedHeader, Params, params_text, parse_params, split_outside

MAGIC_COOKIE = "z9hG4bK"
"""What a branch made by RFC 3261 begins with."""
_SENT = re.compile(
    r"SIP\s*/\s*2\.0\s*/\s*(?P<transport>[A-Za-z0-9\-.!%*_+`'~]+)\s+"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.\-]+)(?:\s*:\s*(?P<port>\d{1,5}))?\Z",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Via:
    transport: str
    """Upper case."""
    host: str
    """Without brackets."""
    port: int | None
    params: Params

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return f"SIP/2.0/{self.transport} {host}{port}{params_text(self.params)}"

    @property
    def branch(self) -> str:
        return self.params.get("branch") or ""

    @property
    def sent_by(self) -> str:
        """Host and port in the form that identifies a transaction's client."""
        return f"{self.host.lower()}:{self.port or (5061 if self.transport == 'TLS' else 5060)}"

    def response_port(self) -> int:
        """The port a response over UDP goes to: rport once noted, else sent-by's (RFC 3581 §4). The
        host is always the request's source; maddr, which would make us a reflector, is ignored."""
        rport = self.params.get("rport")
        if rport and rport.isdigit() and 0 < int(rport) <= 65_535:
            return int(rport)
        return self.port or (5061 if self.transport == "TLS" else 5060)


def parse_via(text: str) -> Via:
    """Parse one Via value. Raises MalformedHeader."""
    sent, *rest = split_outside(text, ";")
    match = _SENT.match(sent)
    if match is None:
        raise MalformedHeader("bad Via")
    port = int(match["port"]) if match["port"] else None
    if port is not None and not 0 < port <= 65_535:
        raise MalformedHeader("bad port in Via")
    return Via(match["transport"].upper(), match["host"].strip("[]"), port, parse_params(rest))


def stamp_received(via: Via, host: str, port: int) -> Via:
    """The topmost Via as a server must note it: `received` where the source differs from sent-by or
    rport was asked for, and `rport` filled in (RFC 3261 §18.2.1, RFC 3581 §4)."""
    wants_rport = "rport" in via.params
    if via.host == host and not wants_rport:
        return via
    params = dict(via.params)
    params["received"] = host
    if wants_rport:
        params["rport"] = str(port)
    return Via(via.transport, via.host, via.port, params)
