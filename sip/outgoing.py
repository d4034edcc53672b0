"""OutgoingCall: a call that we place, up to its answer (RFC 3261 §13.2, §9.1, RFC 3262)."""

from __future__ import annotations

from dataclasses import dataclass

from sip.alarms import Alarm
from sip.bodies import sdp_of
from sip.call import SipCall
from sip.calls import Calls
from sip.change import SDP_TYPE
from sip.client import ClientRequest, Unheard, acknowledge
from sip.core import ALLOW, SUPPORTED, Core, own_headers
from sip.dialog import Dialog, destination_of
from sip.errors import PeerError
from sip.events import CallAnswered, CallRinging, EarlyMediaStarted
from sip.headers import Headers, NameAddr
from sip.message import Request, Response
from sip.provisional import rseq_of
from sip.sdp import LocalMedia, SdpError
from sip.settings import Credentials, Destination
from sip.uri import parse_uri


@dataclass(frozen=True, slots=True)
class Invitation:
    """Whom to call, as whom, with what."""

    uri: str
    media: LocalMedia
    caller: str | None = None
    display_name: str = ""
    credentials: Credentials | None = None
    destination: Destination | None = None
    headers: tuple[tuple[str, str], ...] = ()
    alternatives: tuple[Destination, ...] = ()
    """Tried in turn where one is dead or overloaded."""


class OutgoingCall(SipCall):
    def __init__(self, core: Core, calls: Calls, invitation: Invitation, now: float) -> None:
        """Raises MalformedUri, UnknownScheme, ValueError."""
        destination = invitation.destination or core.settings.outbound_proxy
        if destination is None:
            destination = destination_of(parse_uri(invitation.uri))
        extra = own_headers(invitation.headers)
        super().__init__(core, calls, core.token(128), "calling")
        self.credentials = invitation.credentials
        self._early: dict[str | None, Dialog] = {}
        self._refused: dict[str | None, Dialog] = {}
        self._told: set[tuple[str | None, int]] = set()
        self._rseq: dict[str | None, int] = {}
        self._alternatives = list(invitation.alternatives)
        self._cancelled = False
        self._cancel_reason = ""
        self._patience: Alarm | None = None
        self._seq = 1
        request = self._invite_request(invitation, destination, extra)
        self._invite = ClientRequest(
            core, request, destination, self, self._next_seq, invitation.credentials
        ).start(now)
        self.ring_until(now)

    def _invite_request(
        self, invitation: Invitation, destination: Destination, extra: list[tuple[str, str]]
    ) -> Request:
        core = self.core
        parse_uri(invitation.uri)
        contact = core.contact(destination)
        caller = NameAddr(
            invitation.caller or contact[1:-1].partition(";")[0],
            invitation.display_name,
            {"tag": self.local_tag},
        )
        items = [
            ("max-forwards", "70"),
            ("from", str(caller)),
            ("to", f"<{invitation.uri}>"),
            ("call-id", self.sip_call_id),
            ("cseq", f"{self._seq} INVITE"),
            ("contact", contact),
            ("allow", ALLOW),
            ("supported", SUPPORTED),
            *extra,
            ("content-type", SDP_TYPE),
        ]
        body = self.exchange.make_offer(invitation.media)
        request = Request("INVITE", invitation.uri, Headers.of_canonical(items), body)
        core.own(request)
        self.timer.ask(request)
        return request

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    # Answers

    def on_response(self, response: Response, now: float) -> None:
        if response.code < 200:
            self._on_provisional(response, now)
        elif response.code < 300:
            self._on_success(response, now)
        else:
            self._on_error(response, now)

    def _on_provisional(self, response: Response, now: float) -> None:
        if self._cancelled:
            self._send_cancel(now)
            return
        if response.code == 100 or self.state != "calling":
            return
        tag, invite = response.to.tag, self._invite
        try:
            if tag not in self._early:
                self._early[tag] = Dialog.of_response(invite.request, response, invite.destination)
        except PeerError:
            return
        rseq = rseq_of(response)
        if rseq is not None and not self._take_rseq(tag, rseq, response, now):
            return
        if (tag, response.code) not in self._told:
            self._told.add((tag, response.code))
            self.core.emit(CallRinging(self.id, response.code, response.reason))
            self._preview(response)

    def _preview(self, response: Response) -> None:
        """Early media: what the answer would agree on. It binds only with the 200 (RFC 3264 via §13.2.1)."""
        try:
            answer = sdp_of(response)
            if answer is not None and self.exchange.offered is not None:
                self._early_answer = answer
                self.core.emit(EarlyMediaStarted(self.id, self.exchange.preview_answer(answer)))
        except PeerError:
            return  # the 200 decides

    _early_answer: bytes | None = None

    def _take_rseq(self, tag: str | None, rseq: int, response: Response, now: float) -> bool:
        """PRACK a reliable provisional once and in order (RFC 3262 §4). False: seen, or a gap."""
        last = self._rseq.get(tag)
        if last is not None and rseq != last + 1:
            return False
        self._rseq[tag] = rseq
        dialog = self._early[tag]
        prack = dialog.request(self.core, "PRACK")
        prack.headers.add("rack", f"{rseq} {response.cseq.number} INVITE")
        ClientRequest(
            self.core, prack, dialog.next_hop(), Unheard(), dialog.next_seq, self.credentials
        ).start(now)
        return True

    def _on_success(self, response: Response, now: float) -> None:
        tag = response.to.tag
        if self.dialog is not None and self.dialog.remote_tag == tag and tag not in self._refused:
            acknowledge(self.core, self.dialog, response, self._invite.request)  # a retransmission
            return
        if self.state != "calling" or tag in self._refused:
            self._refuse_fork(tag, response, now)
            return
        self._adopt(tag, response, now)

    def _adopt(self, tag: str | None, response: Response, now: float) -> None:
        """The first 2xx makes the call; its dialog is built anew from it (§13.2.2.4)."""
        self.stop_ringing()
        early = self._early.pop(tag, None)
        dialog = self._dialog_of(response)
        if early is not None:
            dialog.local_seq, dialog.remote_seq = max(early.local_seq, dialog.local_seq), early.remote_seq
        self.dialog = dialog
        acknowledge(self.core, dialog, response, self._invite.request)
        self.note_peer(response.headers)
        self.state = "up"
        self.timer.take_answer(response, now)
        try:
            answer = sdp_of(response) or self._early_answer
            if answer is None:
                raise SdpError("the 200 brings no answer")
            media = self.exchange.take_answer(answer)
        except PeerError as error:
            self.send_bye(now, f'SIP;cause=488;text="{SDP_TYPE} not acceptable"')
            self.end("error", error.code, str(error))
            return
        self.core.emit(CallAnswered(self.id, media))

    def _dialog_of(self, response: Response) -> Dialog:
        try:
            return Dialog.of_response(self._invite.request, response, self._invite.destination)
        except PeerError:
            response.headers.remove("contact")  # ours to end, even if its Contact is no URI
            response.headers.remove("record-route")
            return Dialog.of_response(self._invite.request, response, self._invite.destination)

    def _refuse_fork(self, tag: str | None, response: Response, now: float) -> None:
        """A 2xx too many, or one that crossed our CANCEL: acknowledge it and hang up (§13.2.2.4)."""
        dialog = self._refused.get(tag)
        if dialog is not None:
            acknowledge(self.core, dialog, response, self._invite.request)
            return
        dialog = self._refused[tag] = self._dialog_of(response)
        acknowledge(self.core, dialog, response, self._invite.request)
        bye = dialog.request(self.core, "BYE")
        ClientRequest(self.core, bye, dialog.next_hop(), Unheard(), dialog.next_seq, self.credentials).start(
            now
        )
        if self.dialog is None:
            self._forget(now)

    def _on_error(self, response: Response, now: float) -> None:
        if self.state == "calling" and response.code == 422 and self.timer.raise_interval(response):
            self._invite_again(self._invite.destination, now)
            return
        if response.code == 503 and self._fail_over(now):
            return
        self._forget(now)
        self.end("peer", response.code, response.reason, response.headers.public())

    def _fail_over(self, now: float) -> bool:
        """Another server of the same service (RFC 3263 §4.3): after 503 or silence, and never after an
        answer that is the called user's or his phone's (480, 486, 603 …)."""
        if self.state != "calling" or self._told or not self._alternatives:
            return False
        self._early.clear()
        self._invite_again(self._alternatives.pop(0), now)
        return True

    def _invite_again(self, destination: Destination, now: float) -> None:
        """Elsewhere, or with the session interval the peer asked for (RFC 4028 §7.4)."""
        old = self._invite.request
        request = Request("INVITE", old.uri, old.headers.copy(), old.body)
        request.headers.remove("via")
        request.headers.set("cseq", f"{self._next_seq()} INVITE")
        request.headers.set("contact", self.core.contact(destination))
        self.timer.ask(request)
        self._invite = ClientRequest(
            self.core, request, destination, self, self._next_seq, self.credentials
        ).start(now)

    def on_no_response(self, code: int, now: float) -> None:
        if self._fail_over(now):
            return
        self._forget(now)
        self.end("timeout" if code == 408 else "error", code, "no answer" if code == 408 else "unreachable")

    def _forget(self, now: float) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self.calls.forget_dialog(self)

    def dialog_with(self, remote_tag: str | None) -> Dialog | None:
        return super().dialog_with(remote_tag) or self._early.get(remote_tag)

    # The owner's wishes

    def hang_up(self, now: float, reason: str) -> None:
        if self.state == "up":
            self.send_bye(now, reason)
        elif self.state == "calling":
            self._cancel(now, reason)
        self.end("us", 487 if self.dialog is None else 200, reason)

    def on_ring_timeout(self, now: float) -> None:
        if self.state == "calling":
            self._cancel(now, "")
            self.end("timeout", 408, "not answered")

    def _cancel(self, now: float, reason: str) -> None:
        self._cancelled, self._cancel_reason = True, reason
        transaction = self._invite.transaction
        if transaction is not None and transaction.state == "proceeding":
            self._send_cancel(now)  # before any answer a CANCEL must wait (§9.1)

    def _send_cancel(self, now: float) -> None:
        transaction = self._invite.transaction
        if transaction is None or self._patience is not None:
            return
        invite = transaction.request
        items = [("via", str(invite.via))]
        items += [(name, value) for name, value in invite.headers
                  if name in ("max-forwards", "route", "from", "to", "call-id")]  # fmt: skip
        items.append(("cseq", f"{invite.cseq.number} CANCEL"))
        if self._cancel_reason:
            items.append(("reason", self._cancel_reason))
        self.core.start_cancel(transaction, Headers.of_canonical(items), Unheard(), now)
        self._patience = self.core.alarms.set(now + 64 * self.core.t1, transaction.give_up)
