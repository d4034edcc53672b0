"""SipCall: what calls of both directions share — a dialog, its media, and the requests inside it."""

from __future__ import annotations

from sip.ack import AckWait
from sip.alarms import Alarm
from sip.calls import Calls
from sip.change import MediaChange
from sip.client import ClientRequest, Unheard
from sip.core import ALLOW, SUPPORTED, Core
from sip.dialog import Dialog
from sip.errors import CallStateError
from sip.events import CallEnded, CallHeld, CallResumed, EndedBy, Headers, MediaChanged
from sip.exchange import MediaExchange
from sip.headers import Headers as MessageHeaders
from sip.info import on_info
from sip.message import Request, Response
from sip.refer import Referral, on_refer
from sip.refresh import SessionTimer
from sip.replies import reply
from sip.sdp import AgreedMedia
from sip.settings import Credentials
from sip.transaction import ClientUser, ServerTransaction


class SipCall:
    """One INVITE dialog usage (RFC 5057). `state`: offered, calling, accepted, up or ended."""

    def __init__(self, core: Core, calls: Calls, sip_call_id: str, state: str) -> None:
        self.core = core
        self.calls = calls
        self.id = core.token()
        self.sip_call_id = sip_call_id
        self.local_tag = core.token()
        self.state = state
        self.incoming = state == "offered"
        self.dialog: Dialog | None = None
        self.credentials: Credentials | None = None
        self.exchange = MediaExchange(core.rng.getrandbits)
        self.timer = SessionTimer(core, self._refresh, self._expired)
        self.change = MediaChange(self)
        self.referral: Referral | None = None
        self.peer_allows: frozenset[str] = frozenset()
        self.ack_wait: AckWait | None = None
        self._ring_alarm: Alarm | None = None
        calls.add(self)

    # Requests of ours

    def established(self) -> Dialog:
        """The dialog of a call that is up. Raises CallStateError otherwise."""
        if self.state != "up" or self.dialog is None:
            raise CallStateError(f"the call is {self.state}")
        return self.dialog

    def send(
        self,
        method: str,
        user: ClientUser,
        now: float,
        headers: tuple[tuple[str, str], ...] = (),
        body: tuple[str, bytes] | None = None,
    ) -> ClientRequest:
        """A request inside the dialog; `body` is (content type, bytes)."""
        assert self.dialog is not None
        request = self.dialog.request(self.core, method)
        if method in ("INVITE", "UPDATE", "REFER"):
            self.introduce(request)
        for name, value in headers:
            request.headers.add(name, value)
        if body is not None:
            request.headers.add("content-type", body[0])
            request.body = body[1]
        if method in ("INVITE", "UPDATE"):
            self.timer.ask(request)
        destination, seq = self.dialog.next_hop(), self.dialog.next_seq
        return ClientRequest(self.core, request, destination, user, seq, self.credentials).start(now)

    def introduce_answer(self, transaction: ServerTransaction, code: int, now: float) -> None:
        """Respond with our Contact in it."""
        response = self.reply_to(transaction.request, code)
        self.introduce(response)
        transaction.respond(response, now)

    def introduce(self, message: Request | Response) -> None:
        """Contact, Allow and Supported: who we are and what we can."""
        assert self.dialog is not None
        message.headers.add("contact", self.core.contact(self.dialog.next_hop()))
        message.headers.add("allow", ALLOW)
        message.headers.add("supported", SUPPORTED)

    def send_bye(self, now: float, reason: str = "") -> None:
        headers = (("Reason", reason),) if reason else ()
        self.send("BYE", Unheard(lambda: self.calls.forget_dialog(self)), now, headers)

    def _refresh(self, now: float) -> None:
        self.change.refresh(now)

    def _expired(self, now: float) -> None:
        if self.state == "up":
            self.send_bye(now, 'SIP;cause=408;text="Session timer"')
            self.end("timeout", 408, "session timer expired")

    # Requests of the peer

    def dialog_with(self, remote_tag: str | None) -> Dialog | None:
        if self.dialog is not None and self.dialog.remote_tag == remote_tag:
            return self.dialog
        return None

    def on_request(self, transaction: ServerTransaction, request: Request, now: float) -> None:
        """Anything inside the dialog but ACK and CANCEL."""
        dialog = self.dialog_with(request.from_.tag)
        if dialog is None or (self.state == "ended" and request.method != "BYE"):
            self.answer(transaction, 481, now)
        elif not dialog.take_seq(request.cseq.number):
            self.answer(transaction, 500, now)
        elif request.method == "BYE":
            self.answer(transaction, 200, now)
            self.on_bye(request, now)
        else:
            self._dispatch(transaction, request, now)

    def _dispatch(self, transaction: ServerTransaction, request: Request, now: float) -> None:
        match request.method:
            case "INVITE":
                self.change.on_invite(transaction, request, now)
            case "UPDATE":
                self.change.on_update(transaction, request, now)
            case "INFO":
                on_info(self, transaction, request, now)
            case "REFER":
                on_refer(self, transaction, request, now)
            case "NOTIFY" if self.referral is not None:
                self.referral.on_notify(transaction, request, now)
            case "PRACK":
                self.on_prack(transaction, request, now)
            case "OPTIONS":
                self.answer(transaction, 200, now, (("Allow", ALLOW), ("Supported", SUPPORTED)))
            case _:
                self.answer(transaction, 481, now)

    def on_bye(self, request: Request, now: float) -> None:
        """The peer hung up. Setups that are still going on override this."""
        self.calls.forget_dialog(self)
        reason = request.headers.get("reason") or ""
        self.end("peer", 200, reason, request.headers.public())

    def on_prack(self, transaction: ServerTransaction, request: Request, now: float) -> None:
        self.answer(transaction, 481, now)

    def on_ack(self, request: Request, now: float) -> bool:
        """An ACK of a 2xx of ours. False: it belongs to nothing here."""
        for wait in (self.ack_wait, self.change.ack_wait):
            if wait is not None and wait.seq == request.cseq.number:
                wait.receive(request, now)
                return True
        return False

    def answer(
        self,
        transaction: ServerTransaction,
        code: int,
        now: float,
        headers: tuple[tuple[str, str], ...] = (),
        body: bytes | None = None,
    ) -> Response:
        """Respond to a request inside the dialog; `body` is SDP."""
        response = self.reply_to(transaction.request, code, headers, body)
        transaction.respond(response, now)
        return response

    def reply_to(
        self,
        request: Request,
        code: int,
        headers: tuple[tuple[str, str], ...] = (),
        body: bytes | None = None,
    ) -> Response:
        response = reply(request, code, self.local_tag)
        for name, value in headers:
            response.headers.add(name, value)
        if body is not None:
            response.headers.add("content-type", "application/sdp")
            response.body = body
        self.core.own(response)
        return response

    # State

    def media_now(self, before: AgreedMedia | None) -> None:
        """Tell the owner what an offer and answer in mid-call came to."""
        after = self.exchange.agreed
        if after is None or after == before:
            return
        if before is not None and before.held != after.held:
            self.core.emit(CallHeld(self.id, after) if after.held else CallResumed(self.id, after))
        else:
            self.core.emit(MediaChanged(self.id, after))

    def note_peer(self, headers: MessageHeaders) -> None:
        if "allow" in headers:
            self.peer_allows = frozenset(word.upper() for word in headers.tokens("allow"))

    def ring_until(self, now: float) -> None:
        self._ring_alarm = self.core.alarms.set(now + self.core.settings.ring_timeout_s, self.on_ring_timeout)

    def stop_ringing(self) -> None:
        if self._ring_alarm is not None:
            self._ring_alarm.cancel()
            self._ring_alarm = None

    def on_ring_timeout(self, now: float) -> None:
        raise NotImplementedError

    def hang_up(self, now: float, reason: str) -> None:
        raise NotImplementedError

    def end(self, by: EndedBy, code: int, reason: str, headers: Headers = ()) -> None:
        """The call is over for its owner; what the protocol still owes the peer goes on unseen."""
        if self.state == "ended":
            return
        self.state = "ended"
        self.stop_ringing()
        self.timer.stop()
        self.change.stop()
        if self.referral is not None:
            self.referral.stop()
        self.calls.forget(self)
        self.core.emit(CallEnded(self.id, by, code, reason, headers))
