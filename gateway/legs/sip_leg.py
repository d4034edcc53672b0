"""SipLeg: the caller's side of one phone call, and what may be done with it: hold, transfer, keys."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable
from ipaddress import ip_address
from typing import Protocol

from gateway.call import Call
from gateway.call_events import StateChanged
from gateway.media.messages import Direction, RtpMedia, SrtpKeys
from sip.agent import CallStateError, UserAgent
from sip.events import CallEnded, ChangeAccepted, ChangeRefused, Event, TransferFailed, TransferSucceeded
from sip.sdp import AgreedMedia

_UNQUOTED = re.compile(r'[\x00-\x1f\x7f"\\]')
NORMAL_CLEARING = 16
"""Q.850 cause of a call that ended as calls do."""
MAX_REASON = 80
ANSWER_S = 32.0
"""How long a re-INVITE's outcome is waited for (RFC 3261 timer B)."""
TRANSFER_S = 200.0
"""How long a transfer's outcome is waited for: the target may ring for three minutes."""


TURNED: tuple[type[Event], ...] = (ChangeAccepted, ChangeRefused, CallEnded)
REFERRED: tuple[type[Event], ...] = (TransferSucceeded, TransferFailed, CallEnded)


class ControlFailed(Exception):
    """The peer refused what we asked of him, or the call is in no state for it. The call goes on."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}".strip())
        self.code = code


class AgentShell(Protocol):
    """What moves the user agent's bytes after it was told something (sip.endpoint.Endpoint)."""

    def transmit(self) -> None: ...


class SipLeg:
    """A dialog of the user agent and an RTP port. `now` is the user agent's clock, in seconds."""

    def __init__(
        self, agent: UserAgent, shell: AgentShell, now: Callable[[], float], dialog: str, port: int
    ) -> None:
        self.agent = agent
        self.shell = shell
        self.now = now
        self.dialog = dialog
        self.port = port
        self.over = False
        """The dialog has ended: there is nobody to say goodbye to."""
        self.held_by_us = False
        self.ssrc = secrets.randbits(32)
        self.agreed: AgreedMedia | None = None
        self._waiting: asyncio.Future[Event] | None = None
        self._awaited: tuple[type[Event], ...] = ()

    async def hang_up(self, reason: str) -> None:
        """BYE, or CANCEL, or a final answer: what the dialog's state asks for. Never raises."""
        if not self.over:
            self.agent.hang_up(self.dialog, self.now(), reason_header(reason))
            self.shell.transmit()

    def media_of(self, agreed: AgreedMedia) -> RtpMedia:
        """What the plane must know of an agreed description."""
        return rtp_media(agreed, self.ssrc)

    async def hold(self, call: Call) -> None:
        """Hold the caller: neither side hears the other. Raises ControlFailed."""
        await self._turn(call, held=True)

    async def resume(self, call: Call) -> None:
        """Take the caller off hold. Raises ControlFailed."""
        await self._turn(call, held=False)

    async def transfer(self, target: str) -> None:
        """Send the caller to another URI (REFER); returns when he was answered there, and our call is
        ending. Raises ControlFailed: he is still ours."""
        await self._refer(lambda: self.agent.transfer(self.dialog, target, self.now()))

    async def transfer_to_call(self, other: SipLeg) -> None:
        """Attended transfer: the caller takes our place in `other` (REFER with Replaces)."""
        await self._refer(lambda: self.agent.transfer_to_call(self.dialog, other.dialog, self.now()))

    def send_dtmf(self, call: Call, digits: str) -> None:
        """Press keys: RFC 4733 where it was agreed, SIP INFO otherwise. Raises ControlFailed, ValueError."""
        if not digits or any(digit.upper() not in "0123456789*#ABCD" for digit in digits):
            raise ValueError("digits are 0-9, *, # and A-D")
        if self.agreed is not None and self.agreed.dtmf_payload_type is not None:
            call.plane.send_dtmf(call.row, digits.upper())
            return
        self._act(lambda: self._send_info(digits))

    def _send_info(self, digits: str) -> None:
        for digit in digits:
            self.agent.send_dtmf(self.dialog, digit, self.now())

    def receive(self, event: Event) -> None:
        """Take an event of this dialog; one that a request of ours waits for wakes it."""
        if isinstance(event, CallEnded):
            self.over = True
        waiting = self._waiting
        if waiting is not None and not waiting.done() and isinstance(event, self._awaited):
            waiting.set_result(event)

    async def _turn(self, call: Call, held: bool) -> None:
        turn = self.agent.hold if held else self.agent.resume
        outcome = await self._ask(lambda: turn(self.dialog, self.now()), TURNED, ANSWER_S)
        if isinstance(outcome, ChangeRefused):
            raise ControlFailed(outcome.code, outcome.reason)
        if isinstance(outcome, CallEnded):
            raise ControlFailed(outcome.code, "the call ended")
        self.held_by_us = held
        self.let_hear(call)
        call.deliver(StateChanged("held" if held else "resumed"))

    @property
    def held(self) -> bool:
        """One side or the other holds the call."""
        return self.held_by_us or (self.agreed is not None and self.agreed.held)

    def let_hear(self, call: Call, apart: bool = False) -> None:
        """Tell the plane who hears whom now. `apart`: neither, as while the caller is being transferred."""
        call.plane.mute(call.row, self.held_by_us or apart)
        # Who holds us may play music; it is not the caller's voice.
        call.plane.deafen(call.row, self.held or apart)
        call.park(self.held)

    async def _refer(self, ask: Callable[[], None]) -> None:
        outcome = await self._ask(ask, REFERRED, TRANSFER_S)
        if isinstance(outcome, TransferFailed):
            raise ControlFailed(outcome.code, outcome.reason)
        if isinstance(outcome, CallEnded):
            raise ControlFailed(outcome.code, "the caller hung up")

    async def _ask(
        self, act: Callable[[], object], awaited: tuple[type[Event], ...], within_s: float
    ) -> Event:
        """What comes of it. The caller may change his media meanwhile: only the `awaited` tell."""
        if self._waiting is not None:
            raise ControlFailed(491, "another request of ours is under way")
        self._waiting, self._awaited = asyncio.get_running_loop().create_future(), awaited
        try:
            self._act(act)
            return await asyncio.wait_for(self._waiting, within_s)
        except TimeoutError:
            raise ControlFailed(408, "no outcome in time") from None
        finally:
            self._waiting = None

    def _act(self, act: Callable[[], object]) -> None:
        try:
            act()
        except CallStateError as error:
            raise ControlFailed(481, str(error)) from error
        self.shell.transmit()


def reason_header(reason: str) -> str:
    """A Reason header's value (RFC 3326) for the end of a call: its words, quoted and bounded."""
    text = _UNQUOTED.sub(" ", reason)[:MAX_REASON].strip()
    return f'Q.850;cause={NORMAL_CLEARING};text="{text or "Normal call clearing"}"'


def rtp_media(agreed: AgreedMedia, ssrc: int) -> RtpMedia:
    """An agreed description in the media plane's words."""
    keys = agreed.srtp
    return RtpMedia(
        codec=agreed.codec,
        payload_type=agreed.payload_type,
        remote=_sendable(agreed.remote_host, agreed.remote_port),
        ssrc=ssrc,
        dtmf_payload_type=agreed.dtmf_payload_type,
        dtmf_rate=agreed.dtmf_rate,
        ptime_ms=agreed.ptime_ms,
        direction=Direction(agreed.direction),
        srtp=None if keys is None else SrtpKeys(keys.suite, keys.send, keys.receive),
        rtcp_remote=None if agreed.rtcp_mux else _sendable(*agreed.remote_rtcp),
        cname=f"{ssrc:08x}",
    )


def _sendable(host: str, port: int) -> tuple[str, int] | None:
    """None for the address of an old-style hold, a port that takes nothing, and a name: to look one up would
    hold up every call's audio at each packet. Such a peer is answered where his own packets come from."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return None if address.is_unspecified or port == 0 else (host, port)
