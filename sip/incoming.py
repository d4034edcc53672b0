"""IncomingCall: a call that a peer offers, up to its ACK (RFC 3261 §13.3, RFC 3262)."""

from __future__ import annotations

from sip.ack import AckWait
from sip.bodies import sdp_of
from sip.call import SipCall
from sip.calls import Calls
from sip.change import SDP_TYPE
from sip.core import Core
from sip.dialog import Dialog
from sip.errors import CallStateError, PeerError
from sip.events import CallCancelled, CallConfirmed, EarlyMediaAccepted, EndedBy
from sip.message import Request, Response
from sip.provisional import ReliableProvisionals
from sip.replies import reply
from sip.sdp import AgreedMedia, LocalMedia, SdpError
from sip.settings import Destination
from sip.transaction import ServerTransaction


class IncomingCall(SipCall):
    """`offer` is the caller's SDP, None for a delayed offer."""

    def __init__(
        self, core: Core, calls: Calls, transaction: ServerTransaction, source: Destination, now: float
    ) -> None:
        """Raises MalformedHeader, MalformedUri, UnsupportedBody, IntervalTooSmall."""
        request = transaction.request
        offer = sdp_of(request)
        super().__init__(core, calls, request.call_id, "offered")
        try:
            self.timer.check(request)
            self.dialog = Dialog.of_invite(request, self.local_tag, source)
        except PeerError:
            calls.forget(self)
            calls.forget_dialog(self)
            raise
        self.offer = offer
        self.replaces: SipCall | None = None
        self.note_peer(request.headers)
        self._invite = transaction
        self._provisionals = ReliableProvisionals(core, transaction, self._on_no_prack)
        self._bye_wanted: str | None = None
        self._early = False
        """A 183 with SDP went out and its owner was not told yet that it arrived."""
        transaction.tag, transaction.on_cancel = self.local_tag, self.on_cancel
        transaction.respond(reply(request, 100), now)
        self.ring_until(now)

    # The owner's wishes

    def ring(self, media: LocalMedia | None, now: float) -> AgreedMedia | None:
        """Raises CallStateError, SdpError."""
        self._demand("offered")
        if media is not None and self.offer is None and not self.reliable:
            raise CallStateError("an offer of ours needs an answer that cannot get lost (RFC 3261 §13.2.1)")
        body = self._describe(media) if media is not None else None
        response = self.reply_to(self._invite.request, 180 if body is None else 183, (), body)
        self._add_dialog_headers(response)
        reliable = self._wants_reliable(body is not None)
        if reliable:
            self._provisionals.send(response, now)
        else:
            self._invite.respond(response, now)
        self._early = body is not None
        if not reliable:
            self._tell_early()
        return self.exchange.agreed

    def _tell_early(self) -> None:
        if self._early and self.state == "offered" and self.exchange.agreed is not None:
            self._early = False
            self.core.emit(EarlyMediaAccepted(self.id, self.exchange.agreed))

    def accept(self, media: LocalMedia, now: float) -> AgreedMedia | None:
        """Raises CallStateError, SdpError."""
        self._demand("offered")
        exchange = self.exchange
        body = exchange.sent if exchange.agreed is not None else exchange.offered
        if body is None:
            body = self._describe(media)
        self.state = "accepted"
        self.stop_ringing()
        response = self.reply_to(self._invite.request, 200, (), body)
        self._add_dialog_headers(response)
        self.timer.answer(self._invite.request, response, now)
        if self._provisionals.idle:
            self._send_success(response, now)
        else:
            self._provisionals.then = lambda at: self._send_success(response, at)
        return exchange.agreed

    def refuse(
        self, code: int, now: float, reason: str = "", headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """Raises CallStateError."""
        self._demand("offered")
        self._finish(code, now, reason, headers)
        self._end("us", code, reason)

    def hang_up(self, now: float, reason: str) -> None:
        headers = (("Reason", reason),) if reason else ()
        if self.state == "offered":
            self.refuse(480, now, headers=headers)
        elif self.state == "accepted" and not self._invite.answered:
            self._finish(480, now, headers=headers)  # the 200 was waiting for a PRACK
            self._end("us", 480, reason)
        elif self.state == "accepted":
            self._bye_wanted = reason  # a callee may not send BYE before the ACK (§15)
            self.end("us", 200, reason)
        elif self.state == "up":
            self.send_bye(now, reason)
            self.end("us", 200, reason)

    def _demand(self, state: str) -> None:
        if self.state != state:
            raise CallStateError(f"the call is {self.state}")

    @property
    def reliable(self) -> bool:
        """The caller takes provisional answers that must not get lost."""
        headers = self._invite.request.headers
        return "100rel" in headers.tokens("require") | headers.tokens("supported")

    def _describe(self, media: LocalMedia) -> bytes:
        if self.offer is not None:
            return self.exchange.answer(self.offer, media)
        return self.exchange.make_offer(media)

    def _wants_reliable(self, with_sdp: bool) -> bool:
        headers = self._invite.request.headers
        if "100rel" in headers.tokens("require") or not self._provisionals.idle:
            return True
        return "100rel" in headers.tokens("supported") and with_sdp

    def _add_dialog_headers(self, response: Response) -> None:
        for value in self._invite.request.headers.get_all("record-route"):
            response.headers.add("record-route", value)
        self.introduce(response)

    def _finish(
        self, code: int, now: float, reason: str = "", headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self._provisionals.stop()
        response = reply(self._invite.request, code, self.local_tag, reason)
        for name, value in headers:
            response.headers.add(name, value)
        if code == 503 and "retry-after" not in response.headers:
            response.headers.add("retry-after", str(self.core.settings.retry_after_s))
        self.core.own(response)
        self._invite.respond(response, now)

    def _end(self, by: EndedBy, code: int, reason: str) -> None:
        """An end before the 200: there never was a dialog to remember."""
        self.calls.forget_dialog(self)
        self.end(by, code, reason)

    # What comes in

    def on_cancel(self, cancel: Request, now: float) -> None:
        """The caller gave up; after our 200 it has no effect (§9.2), and is not passed on to here."""
        if self._invite.answered:
            return
        self._finish(487, now)
        reason = cancel.headers.get("reason") or ""
        self.core.emit(CallCancelled(self.id, reason))
        self._end("peer", 487, reason)

    def on_bye(self, request: Request, now: float) -> None:
        if not self._invite.answered:
            self._finish(487, now)
        if self.ack_wait is not None:
            self.ack_wait.stop()
            self.ack_wait = None
        self._provisionals.stop()
        super().on_bye(request, now)

    def on_ring_timeout(self, now: float) -> None:
        self._finish(480, now)
        self._end("timeout", 480, "not answered")

    def on_prack(self, transaction: ServerTransaction, request: Request, now: float) -> None:
        try:
            body = self._answer_in_prack(request)
        except PeerError as error:
            self.answer(transaction, error.code, now)
            return
        taken = self._provisionals.take_prack(request, now)
        self.answer(transaction, 200 if taken else 481, now, (), body if taken else None)
        if taken and self._provisionals.idle:
            self._tell_early()

    def _answer_in_prack(self, request: Request) -> bytes | None:
        """A PRACK may answer our offer in a 183, or offer anew (RFC 3262 §5)."""
        described = sdp_of(request)
        if described is None:
            return None
        if self.exchange.offered is not None:
            self.exchange.take_answer(described)
            return None
        if self.exchange.local is None:
            raise SdpError("an offer before its predecessor was answered", 500)
        return self.exchange.answer(described, self.exchange.local)

    def _on_no_prack(self, now: float) -> None:
        if self.state in ("offered", "accepted"):
            self._finish(504, now)
            self._end("timeout", 504, "no PRACK")

    def _send_success(self, response: Response, now: float) -> None:
        self.ack_wait = AckWait(self.core, self._invite, now, self._on_acknowledged, self._on_lost_ack)
        self._invite.respond(response, now)

    def _on_acknowledged(self, ack: Request, now: float) -> None:
        self.ack_wait = None
        if self._bye_wanted is not None:
            self.send_bye(now, self._bye_wanted)
            return
        self.state = "up"
        try:
            media = self._late_answer(ack)
        except PeerError as error:
            self.send_bye(now, f'SIP;cause={error.code};text="{SDP_TYPE} not acceptable"')
            self.end("error", error.code, "the answer in the ACK does not fit")
            return
        self.core.emit(CallConfirmed(self.id, media))
        if self.replaces is not None:
            self.replaces.hang_up(now, "")

    def _late_answer(self, ack: Request) -> AgreedMedia:
        if self.exchange.offered is not None:
            answer = sdp_of(ack)
            if answer is None:
                raise SdpError("the ACK brings no answer")
            return self.exchange.take_answer(answer)
        assert self.exchange.agreed is not None
        return self.exchange.agreed

    def _on_lost_ack(self, now: float) -> None:
        self.ack_wait = None
        self.send_bye(now, self._bye_wanted or "")
        self.end("timeout", 408, "no ACK")
