"""Transfers: our REFER with the NOTIFYs that follow it, and a peer's REFER (RFC 3515, 3891, 3892)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from sip.alarms import Alarm
from sip.client import Unheard
from sip.errors import PeerError
from sip.events import TransferFailed, TransferProgressed, TransferRequested, TransferSucceeded
from sip.headers import MalformedHeader, parse_name_addr
from sip.message import Request, Response
from sip.transaction import ServerTransaction
from sip.uri import parse_uri

if TYPE_CHECKING:
    from sip.call import SipCall
    from sip.dialog import Dialog

_FRAGMENT = re.compile(rb"\s*SIP/2\.0 ([1-6]\d\d)(?: ([^\r\n]*))?")
PATIENCE_S = 200.0
"""How long a transfer may take between two reports: a little more than a phone rings (Timer C)."""


def replaces_of(dialog: Dialog) -> str:
    """The Replaces value that names a dialog of ours to its far end (RFC 3891 §3)."""
    return f"{dialog.call_id};to-tag={dialog.remote_tag or ''};from-tag={dialog.local_tag}"


def attended_target(dialog: Dialog) -> str:
    """A Refer-To URI that takes over another call of ours."""
    value = quote(replaces_of(dialog), safe="", errors="surrogateescape")
    return f"{dialog.target}?Replaces={value}"


class Referral:
    """One transfer of ours, from REFER to the NOTIFY that decides it."""

    def __init__(self, call: SipCall, target: str, now: float) -> None:
        self._call = call
        self._patience: Alarm | None = None
        self.open = True
        assert call.dialog is not None
        referrer = parse_name_addr(call.dialog.local).uri
        headers = (("Refer-To", f"<{target}>"), ("Referred-By", f"<{referrer}>"))
        call.send("REFER", self, now, headers)

    def on_response(self, response: Response, now: float) -> None:
        if not self.open or response.code < 200:
            return
        if response.code < 300:
            self._call.core.emit(TransferProgressed(self._call.id, 100, "Trying"))
            self._wait(now)
        else:
            self._fail(response.code, response.reason)

    def on_no_response(self, code: int, now: float) -> None:
        self._fail(code, "no answer")

    def on_notify(self, transaction: ServerTransaction, request: Request, now: float) -> None:
        call = self._call
        event = (request.headers.get("event") or "").partition(";")[0].strip().lower()
        if event != "refer" or not self.open:
            call.answer(transaction, 489 if event != "refer" else 481, now)
            return
        match = _FRAGMENT.match(request.body)
        state = (request.headers.get("subscription-state") or "").partition(";")[0].strip().lower()
        if match is None:
            call.answer(transaction, 400, now)
            return
        call.answer(transaction, 200, now)
        code, reason = int(match[1]), (match[2] or b"").decode("utf-8", "replace")
        if code >= 300:
            self._fail(code, reason)
        elif code >= 200:
            self._succeed(now)
        elif state == "terminated":
            self._fail(408, "the peer reports no more")
        else:
            call.core.emit(TransferProgressed(call.id, code, reason))
            self._wait(now)

    def _wait(self, now: float) -> None:
        self.stop_waiting()
        self._patience = self._call.core.alarms.set(now + PATIENCE_S, lambda _: self._fail(408, "no report"))

    def _succeed(self, now: float) -> None:
        self.stop()
        call = self._call
        call.core.emit(TransferSucceeded(call.id))
        call.send_bye(now)
        call.end("us", 200, "transferred")

    def _fail(self, code: int, reason: str) -> None:
        if not self.open:
            return
        self.stop()
        if self._call.state == "up":
            self._call.core.emit(TransferFailed(self._call.id, code, reason))

    def stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def stop(self) -> None:
        self.open = False
        self.stop_waiting()


def on_refer(call: SipCall, transaction: ServerTransaction, request: Request, now: float) -> None:
    """A peer asks us to call somebody else: declined unless the owner takes such wishes."""
    if not call.core.settings.accept_refer:
        call.answer(transaction, 603, now)
        return
    try:
        target, replaces = parse_refer_to(request)
    except PeerError as error:
        call.answer(transaction, error.code, now)
        return
    call.introduce_answer(transaction, 202, now)
    report(call, 100, "Trying", now)
    call.core.emit(TransferRequested(call.id, target, replaces))


def parse_refer_to(request: Request) -> tuple[str, str | None]:
    """(URI without headers, Replaces or None). Raises MalformedHeader, MalformedUri, UnknownScheme."""
    values = request.headers.get_all("refer-to")
    if len(values) != 1:
        raise MalformedHeader("one Refer-To is needed")
    uri = parse_uri(parse_name_addr(values[0]).uri)
    text, _, headers = str(uri).partition("?")
    for pair in headers.split("&"):
        name, _, value = pair.partition("=")
        if name.lower() == "replaces":
            return text, unquote(value)
    return text, None


def report(call: SipCall, code: int, reason: str, now: float) -> None:
    """Tell the peer who sent REFER how its transfer goes: NOTIFY with a sipfrag (RFC 3515 §2.4.4)."""
    state = "active;expires=60" if code < 200 else "terminated;reason=noresource"
    fragment = f"SIP/2.0 {code} {reason}\r\n".encode("utf-8", "replace")
    headers = (("Event", "refer"), ("Subscription-State", state))
    call.send("NOTIFY", Unheard(), now, headers, ("message/sipfrag;version=2.0", fragment))
