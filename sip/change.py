"""MediaChange: re-INVITE and UPDATE of one call, theirs and ours (RFC 3261 §14, RFC 3311, RFC 3264 §8)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sip.ack import AckWait
from sip.alarms import Alarm
from sip.bodies import sdp_of
from sip.client import ClientRequest, acknowledge
from sip.errors import PeerError
from sip.events import ChangeAccepted, ChangeRefused
from sip.message import Request, Response
from sip.sdp import AgreedMedia, Direction, LocalMedia, SdpError
from sip.transaction import ServerTransaction

if TYPE_CHECKING:
    from sip.call import SipCall

SDP_TYPE = "application/sdp"


class MediaChange:
    """At most one change of ours is under way; one more wish waits for it."""

    def __init__(self, call: SipCall) -> None:
        self.call = call
        self.ack_wait: AckWait | None = None
        self._ours: ClientRequest | None = None
        self._wanted: LocalMedia | None = None
        self._retry: Alarm | None = None
        self._patience: Alarm | None = None

    @property
    def credentialed(self) -> Request | None:
        """Our request as last sent, with the credentials its ACK repeats."""
        return self._ours.request if self._ours is not None else None

    # Theirs

    def on_invite(self, transaction: ServerTransaction, request: Request, now: float) -> None:
        call = self.call
        if call.state in ("offered", "accepted"):
            wait = call.core.rng.randint(0, 10)
            call.answer(transaction, 500, now, (("Retry-After", str(wait)),))
        elif call.state == "calling" or self._busy():
            call.answer(transaction, 491, now)
        else:
            self._serve(transaction, request, now)

    def on_update(self, transaction: ServerTransaction, request: Request, now: float) -> None:
        call = self.call
        if self._busy():
            call.answer(transaction, 491, now)
        elif call.exchange.agreed is None and request.body:
            call.answer(transaction, 500, now, (("Retry-After", str(call.core.rng.randint(0, 10))),))
        else:
            self._serve(transaction, request, now)

    def _busy(self) -> bool:
        """An offer is open (RFC 3311 §5.2, RFC 3261 §14.2)."""
        return self._ours is not None or self.call.exchange.offered is not None

    def _serve(self, transaction: ServerTransaction, request: Request, now: float) -> None:
        """Answer at once; whatever is wrong leaves the call as it was."""
        call = self.call
        before = call.exchange.agreed
        try:
            call.timer.check(request)
            body = self._described(request)
            response = call.reply_to(request, 200, (), body)
            call.timer.answer(request, response, now)
        except PeerError as error:
            headers = (("Min-SE", str(call.core.settings.min_se_s)),) if error.code == 422 else ()
            if error.code == 415:
                headers = (("Accept", SDP_TYPE),)
            call.answer(transaction, error.code, now, headers)
            return
        assert call.dialog is not None
        call.dialog.refresh_target(request)
        call.note_peer(request.headers)
        call.introduce(response)
        transaction.respond(response, now)
        if request.method == "INVITE":
            self._await_ack(transaction, before, now)
        call.media_now(before)

    def _described(self, request: Request) -> bytes | None:
        """Our answer to their offer; our offer where an INVITE brings none; None for a bare UPDATE."""
        exchange = self.call.exchange
        offer = sdp_of(request)
        if offer is None and request.method != "INVITE":
            return None
        assert exchange.local is not None
        if offer is None:
            return exchange.make_offer(exchange.local)
        return exchange.answer(offer, exchange.local)

    def _await_ack(self, transaction: ServerTransaction, before: AgreedMedia | None, now: float) -> None:
        if self.ack_wait is not None:
            self.ack_wait.stop()

        def acknowledged(ack: Request, at: float) -> None:
            self.ack_wait = None
            self._take_late_answer(ack, before)
            self._start_wanted(at)

        self.ack_wait = AckWait(self.call.core, transaction, now, acknowledged, self._on_lost_ack)

    def _take_late_answer(self, ack: Request, before: AgreedMedia | None) -> None:
        exchange = self.call.exchange
        if exchange.offered is None:
            return
        try:
            answer = sdp_of(ack)
            if answer is None:
                raise SdpError("the ACK brings no answer")
            exchange.take_answer(answer)
        except PeerError:
            exchange.withdraw()
        self.call.media_now(before)

    def _on_lost_ack(self, now: float) -> None:
        """Nobody acknowledged our 2xx: the dialog is dead (§14.2)."""
        self.ack_wait = None
        if self.call.state != "ended":
            self.call.send_bye(now)
            self.call.end("timeout", 408, "no ACK")

    # Ours

    def start(self, local: LocalMedia, now: float) -> None:
        """Offer `local`; a change under way goes first, theirs until its ACK (RFC 3261 §14.1). Raises
        CallStateError."""
        self.call.established()
        if self._busy() or self._retry is not None or self.ack_wait is not None:
            self._wanted = local
            return
        offer = self.call.exchange.make_offer(local)
        self._send("INVITE", Reinvite(self, local, asked=True), now, (SDP_TYPE, offer))

    def _send(self, method: str, user: Reinvite, now: float, body: tuple[str, bytes] | None = None) -> None:
        """A peer that says 100 and then nothing must not hold the change for ever."""
        ours = self._ours = self.call.send(method, user, now, (), body)
        self._patience = self.call.core.alarms.set(now + 64 * self.call.core.t1, ours.give_up)

    def turn(self, direction: Direction, now: float) -> None:
        local = self._wanted or self.call.exchange.local
        assert local is not None
        self.start(replace(local, direction=direction), now)

    def refresh(self, now: float) -> None:
        """The session timer's own: UPDATE without a body where the peer takes UPDATE, else re-INVITE."""
        if self._ours is not None or self.call.state != "up":
            return  # a change under way refreshes as well
        if "UPDATE" in self.call.peer_allows:
            self._send("UPDATE", Reinvite(self, None), now)
        elif not self._busy() and self.ack_wait is None:
            exchange = self.call.exchange
            body = (SDP_TYPE, exchange.repeat_offer())
            self._send("INVITE", Reinvite(self, exchange.local), now, body)

    def over(self, now: float) -> None:
        """Our request has its final answer."""
        self._forget_ours()
        self._start_wanted(now)

    def _start_wanted(self, now: float) -> None:
        wanted, self._wanted = self._wanted, None
        if wanted is not None and self.call.state == "up":
            self.start(wanted, now)

    def _forget_ours(self) -> None:
        self._ours = None
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def retry_later(self, local: LocalMedia | None, now: float) -> None:
        """491: wait a time that depends on who made the Call-ID, so that the two do not meet again."""
        self._forget_ours()
        rng = self.call.core.rng
        after = rng.randint(0, 200) / 100 if self.call.incoming else rng.randint(210, 400) / 100

        def again(at: float) -> None:
            self._retry = None
            wanted, self._wanted = self._wanted or local, None
            if self.call.state == "up" and wanted is not None:
                self.start(wanted, at)
            elif self.call.state == "up":
                self.refresh(at)

        self._retry = self.call.core.alarms.set(now + after, again)

    def stop(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        if self.ack_wait is not None:
            self.ack_wait.stop()
            self.ack_wait = None


class Reinvite:
    """The user of one re-INVITE or UPDATE of ours; `local` is None for a refresh without an offer.

    `asked`: the owner wanted it, and is told how it went."""

    def __init__(self, change: MediaChange, local: LocalMedia | None, asked: bool = False) -> None:
        self._asked = asked
        self._change = change
        self._call = change.call
        self._local = local
        self._over = False

    def on_response(self, response: Response, now: float) -> None:
        if response.code < 200:
            return
        if response.code < 300:
            self._on_success(response, now)
        else:
            self._on_error(response, now)

    def _on_success(self, response: Response, now: float) -> None:
        call = self._call
        assert call.dialog is not None
        if response.cseq.method == "INVITE":
            if not self._over:
                call.dialog.refresh_target(response)
            acknowledge(call.core, call.dialog, response, self._change.credentialed)
        if self._over:
            return
        self._over = True
        before = call.exchange.agreed
        call.note_peer(response.headers)
        call.timer.take_answer(response, now)
        if self._local is not None:
            self._take_answer(response, before)
        self._change.over(now)

    def _take_answer(self, response: Response, before: AgreedMedia | None) -> None:
        call = self._call
        try:
            answer = sdp_of(response)
            if answer is None:
                raise SdpError("the answer is missing")
            call.exchange.take_answer(answer)
        except PeerError as error:
            call.exchange.withdraw()
            self._refused(error.code, str(error))
            return
        call.media_now(before)
        if self._asked:
            call.core.emit(ChangeAccepted(call.id))

    def _on_error(self, response: Response, now: float) -> None:
        call = self._call
        self._over = True
        call.exchange.withdraw()
        if response.code == 491:
            self._change.retry_later(self._local, now)
            return
        if response.code == 422 and call.timer.raise_interval(response):
            self._change.retry_later(self._local, now)
            return
        if response.code in (408, 481):
            self._dialog_is_dead(response.code, response.reason, now)
            return
        self._refused(response.code, response.reason)
        self._change.over(now)

    def _refused(self, code: int, reason: str) -> None:
        if self._local is not None and self._call.state == "up":
            self._call.core.emit(ChangeRefused(self._call.id, code, reason))

    def on_no_response(self, code: int, now: float) -> None:
        self._over = True
        self._call.exchange.withdraw()
        self._dialog_is_dead(code, "no answer", now)

    def _dialog_is_dead(self, code: int, reason: str, now: float) -> None:
        """§12.2.1.2: a dialog that gets 481 or no answer is over."""
        if self._call.state == "up":
            self._call.send_bye(now)
            self._call.end("timeout" if code == 408 else "error", code, reason)
