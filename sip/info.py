"""Digits by SIP INFO: application/dtmf-relay and application/dtmf, as PBXs send them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sip.bodies import media_type
from sip.errors import PeerError
from sip.events import DtmfReceived
from sip.message import Request
from sip.transaction import ServerTransaction

if TYPE_CHECKING:
    from sip.call import SipCall

_SIGNAL = re.compile(rb"^\s*signal\s*=\s*([0-9*#A-Da-d!]|1[0-6])\s*$", re.I | re.M)
_DURATION = re.compile(rb"^\s*duration\s*=\s*(\d{1,5})\s*$", re.I | re.M)
_BARE = re.compile(rb"\s*([0-9*#A-Da-d!]|1[0-6])\s*\Z")
_BY_NUMBER = {10: "*", 11: "#", 12: "A", 13: "B", 14: "C", 15: "D", 16: "!"}
DEFAULT_MS = 160


class NoDigit(PeerError):
    """A DTMF body without a digit."""


def parse_digit(kind: str, body: bytes) -> tuple[str, int]:
    """(digit, milliseconds). Raises NoDigit."""
    relay = kind == "application/dtmf-relay"
    match = _SIGNAL.search(body[:1_024]) if relay else _BARE.match(body[:64])
    if match is None:
        raise NoDigit("no digit in the INFO")
    text = match[1].decode().upper()
    digit = _BY_NUMBER[int(text)] if len(text) == 2 else text
    duration = _DURATION.search(body[:1_024]) if relay else None
    return digit, int(duration[1]) if duration else DEFAULT_MS


def digit_body(digit: str, duration_ms: int) -> tuple[str, bytes]:
    """(content type, body) of an INFO of ours."""
    return "application/dtmf-relay", f"Signal={digit}\r\nDuration={duration_ms}\r\n".encode()


def on_info(call: SipCall, transaction: ServerTransaction, request: Request, now: float) -> None:
    """Answer an INFO; emit its digit once (the transaction has swallowed retransmissions)."""
    kind = media_type(request)
    if "info-package" in request.headers:
        call.answer(transaction, 469, now, (("Recv-Info", ""),))
    elif not request.body:
        call.answer(transaction, 200, now)
    elif kind not in ("application/dtmf-relay", "application/dtmf"):
        call.answer(transaction, 415, now, (("Accept", "application/dtmf-relay, application/dtmf"),))
    else:
        try:
            digit, duration = parse_digit(kind, request.body)
        except NoDigit as error:
            call.answer(transaction, error.code, now)
            return
        call.answer(transaction, 200, now)
        call.core.emit(DtmfReceived(call.id, digit, duration))
