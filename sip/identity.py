"""Who is said to call, and by which way: P-Asserted-Identity, Diversion, History-Info, User-to-User and the
verdict of a carrier on the caller's number (RFC 3325, 5806, 7044, 7433, ATIS-1000074).

All of it is a peer's word. Believe it of a trunk that you trust, and of nobody else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from sip.errors import PeerError
from sip.events import CallOffered, Headers, Party
from sip.headers import NameAddr, parse_name_addr, split_list
from sip.uri import parse_uri

MAX_ENTRIES = 20
_VERSTAT = re.compile(r"verstat=(TN-Validation-(?:Passed|Failed)|No-TN-Validation)", re.I)
Verdict = Literal["passed", "failed", "none"]


@dataclass(frozen=True, slots=True)
class Diverted:
    """One step of a call that was forwarded."""

    party: Party
    reason: str
    """Such as no-answer or user-busy; "" where it was not said."""


def party_of(address: NameAddr) -> Party:
    """A Party out of any name-addr; a URI that is not ours gives no user and no host."""
    try:
        uri = parse_uri(address.uri)
    except PeerError:
        return Party(address.uri, "", "", address.display_name)
    return Party(address.uri, uri.user_text, uri.host, address.display_name)


def _addresses(headers: Headers, name: str) -> list[NameAddr]:
    """Every address of a header; what is broken is left out."""
    found: list[NameAddr] = []
    for key, value in headers:
        if key.lower() != name:
            continue
        try:
            found += [parse_name_addr(element) for element in split_list(value)]
        except PeerError:
            continue
    return found[:MAX_ENTRIES]


def asserted_identity(offered: CallOffered) -> Party | None:
    """P-Asserted-Identity: who a trusted network says is calling, a SIP URI before a tel: one."""
    found = [party_of(address) for address in _addresses(offered.headers, "p-asserted-identity")]
    found.sort(key=lambda party: not party.host)
    return found[0] if found else None


def wants_privacy(offered: CallOffered) -> bool:
    """The caller asked not to be named (RFC 3323)."""
    words = {word.strip().lower() for word in (offered.header("privacy") or "").split(";")}
    return bool(words & {"id", "user", "header"})


def diversions(offered: CallOffered) -> list[Diverted]:
    """Who forwarded the call to us, the last first: Diversion, else History-Info."""
    steps = [
        Diverted(party_of(address), (address.params.get("reason") or "").strip('"'))
        for address in _addresses(offered.headers, "diversion")
    ]
    if steps:
        return steps
    history = [party_of(address) for address in _addresses(offered.headers, "history-info")]
    return [Diverted(party, "") for party in reversed(history[:-1])]


def user_to_user(offered: CallOffered) -> list[bytes | str]:
    """User-to-User data (RFC 7433): bytes where it is hex, else the text as it came."""
    found: list[bytes | str] = []
    for key, value in offered.headers:
        if key.lower() != "user-to-user":
            continue
        data, _, rest = value.partition(";")
        try:
            found.append(
                bytes.fromhex(data.strip()) if "encoding=hex" in rest.replace(" ", "") else data.strip()
            )
        except ValueError:
            found.append(data.strip())
    return found[:MAX_ENTRIES]


def verdict(offered: CallOffered) -> Verdict:
    """What the carrier found when it verified the caller's signature (STIR, RFC 8224), from `verstat`."""
    for name in ("p-asserted-identity", "from"):
        for key, value in offered.headers:
            match = _VERSTAT.search(value) if key.lower() == name else None
            if match is not None:
                word = match[1].lower()
                return (
                    "passed" if word.endswith("passed") else "failed" if word.endswith("failed") else "none"
                )
    return "none"
