"""What a phone call's INVITE says of the caller beyond his number, for the operators' API.

All of it is a peer's word, cut to a bounded size; nothing of it is logged.
"""

from __future__ import annotations

from sip.events import CallOffered, Party
from sip.identity import asserted_identity, diversions, user_to_user, verdict, wants_privacy

LONGEST = 256
"""Characters of any one text."""
MOST = 8
"""Entries of any one header."""


def said_of(offered: CallOffered) -> dict[str, object]:
    """JSON of what was said; a header that was not there is not in it."""
    asserted = asserted_identity(offered)
    said: dict[str, object] = {
        "asserted": None if asserted is None else _party(asserted),
        "privacy": wants_privacy(offered),
        "diverted": [
            _party(step.party) | {"reason": _cut(step.reason)} for step in diversions(offered)[:MOST]
        ],
        "user_to_user": [
            _cut(data) if isinstance(data, str) else {"hex": data[: LONGEST // 2].hex()}
            for data in user_to_user(offered)[:MOST]
        ],
        "reason": [_cut(value) for key, value in offered.headers if key.lower() == "reason"][:MOST],
        "signed": offered.header("identity") is not None,
        "verdict": verdict(offered),
    }
    return {name: value for name, value in said.items() if value and value != "none"}


def _party(party: Party) -> dict[str, object]:
    return {"uri": _cut(party.uri), "user": _cut(party.user), "name": _cut(party.display_name)}


def _cut(text: str) -> str:
    """Bounded, and without what is no text: bytes that were no UTF-8 come as surrogates."""
    return text[:LONGEST].encode("utf-8", "replace").decode()
