"""CallControl: what an agent or an operator may do with a live call: transfer, hold, keys, hang up; and
placing one. It knows legs and the switchboard, no HTTP and no SIP message.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import numpy as np

from engine.rows import AudioRows
from gateway.call import Call
from gateway.call_events import StateChanged
from gateway.caps import CallCaps, CapLimits
from gateway.legs.dialling import Outbound
from gateway.legs.sip import SipLine
from gateway.legs.sip_leg import ControlFailed, SipLeg
from gateway.switchboard import Switchboard
from sip.uri import parse_uri

if TYPE_CHECKING:
    from gateway.legs.trunks import Trunks

log = logging.getLogger(__name__)

SENTENCE_S = 5.0
"""How long the agent may go on speaking before it is cut short."""
PAUSE_S = 0.4
"""So long a silence ends a sentence."""
LOOK_S = 0.04
REPLACED_S = 1.0
"""How long the far end of an attended transfer may take to end the call that was replaced."""
SPEECH_DBFS = -45.0
BLOCK = 480
MAX_DIGITS = 64


class CannotControl(Exception):
    """What was asked for cannot be done; nothing was done. `status` is HTTP's."""

    status = 400


class UnknownCall(CannotControl):
    """There is no live call of that id."""

    status = 404


class WrongCall(CannotControl):
    """The call is of a kind, or in a state, that this cannot be done with."""

    status = 409


class CallControl:
    """For all calls of one gateway. `line` is None where SIP is switched off."""

    def __init__(
        self,
        switchboard: Switchboard,
        line: SipLine | None,
        trunks: Trunks | None = None,
        caps: CallCaps | None = None,
        default_trunk: str | None = None,
    ) -> None:
        self.switchboard = switchboard
        self.line = line
        self.trunks = trunks
        self.caps = caps or CallCaps(CapLimits())
        self.default_trunk = default_trunk
        self._dialling: set[asyncio.Future[None]] = set()

    def call(self, call_id: str) -> Call:
        """The live call of that id. Raises UnknownCall."""
        found = self.switchboard.calls.get(call_id)
        if found is None or found.ended.is_set():
            raise UnknownCall("no such call")
        return found

    async def transfer(self, call: Call, target: str) -> None:
        """Send the caller to another URI once the agent's sentence is over; returns when he was answered
        there. Raises WrongCall, CannotControl for a bad URI, ControlFailed: the caller is still ours."""
        leg = self._phone(call)
        try:
            parse_uri(target)
        except ValueError as error:
            raise CannotControl(f"the target is no SIP or tel: URI: {error}") from error
        await self._transfer(call, leg, lambda: leg.transfer(target))

    async def transfer_to_call(self, call: Call, other: Call) -> None:
        """Attended transfer: the caller is joined with the peer of `other`, another live phone call."""
        leg, other_leg = self._phone(call), self._phone(other)
        if call is other:
            raise WrongCall("a call cannot be transferred to itself")
        await self._transfer(call, leg, lambda: leg.transfer_to_call(other_leg))
        try:
            async with asyncio.timeout(REPLACED_S):
                await other.ended.wait()
        except TimeoutError:  # a phone that knows no Replaces has two calls now (RFC 5589 §7.3)
            await other.end("gateway", "transferred")

    async def hold(self, call: Call) -> None:
        """Neither side hears the other until resume(). Raises WrongCall, ControlFailed."""
        leg = self._phone(call)
        if not leg.held_by_us:
            await leg.hold(call)

    async def resume(self, call: Call) -> None:
        """Raises WrongCall, ControlFailed."""
        leg = self._phone(call)
        if leg.held_by_us:
            await leg.resume(call)

    def send_dtmf(self, call: Call, digits: str) -> None:
        """Press keys, such as `1234#`. Raises WrongCall, CannotControl for what is none, ControlFailed."""
        leg = self._phone(call)
        if len(digits) > MAX_DIGITS:
            raise CannotControl(f"at most {MAX_DIGITS} digits at once")
        try:
            leg.send_dtmf(call, digits)
        except ValueError as error:
            raise CannotControl(str(error)) from error

    async def hang_up(self, call: Call, reason: str = "", by: str = "gateway") -> None:
        """End any call, whatever the agent is saying; the reason is told to the caller's phone."""
        await call.end(by, reason or "hung up")

    async def place(self, to: str, persona: str | None = None, trunk: str | None = None) -> Call:
        """Call a number by a trunk, or a sip: URI; returns when the INVITE went out.

        Raises Capped, BadNumber, CannotControl, switchboard.Refused, dial.CannotDial.
        """
        if self.line is None:
            raise WrongCall("SIP is switched off")
        live = sum(call.direction == "outbound" for call in self.switchboard.calls.values())
        called = self.caps.check(to, time.monotonic(), live)
        uri, way = called.uri, None
        if uri is None:
            uri, way = self._route(trunk or self.default_trunk, called.user)
        call, answer = await self.line.dial(uri, persona, way)
        self._dialling.add(answer)
        answer.add_done_callback(self._dialling.discard)
        return call

    async def sentence_over(self, call: Call) -> None:
        """Wait until the agent has been silent for PAUSE_S; SENTENCE_S at most."""
        deadline = time.monotonic() + SENTENCE_S
        while time.monotonic() < deadline and not call.ended.is_set():
            if call.parked or agent_silent(call.plane.rows, call.row):
                return
            await asyncio.sleep(LOOK_S)

    def stop(self) -> None:
        """Give up the calls that nobody has answered."""
        for answer in list(self._dialling):
            answer.cancel()

    async def _transfer(self, call: Call, leg: SipLeg, refer: Callable[[], Awaitable[None]]) -> None:
        await self.sentence_over(call)
        self._phone(call)
        call.deliver(StateChanged("transferring"))
        leg.let_hear(call, apart=True)
        try:
            await refer()
        except ControlFailed as failed:
            log.info("call %s: the transfer failed with %d", call.id, failed.code)
            if not call.ended.is_set():
                leg.let_hear(call)
                call.deliver(StateChanged("transfer failed"))
            raise
        log.info("call %s was transferred", call.id)

    def _phone(self, call: Call) -> SipLeg:
        if not isinstance(call.leg, SipLeg):
            raise WrongCall("only a phone call can do that")
        if call.ended.is_set():
            raise UnknownCall("the call is over")
        if call.answered_at is None:
            raise WrongCall("the call is not answered yet")
        return call.leg

    def _route(self, name: str | None, number: str) -> tuple[str, Outbound]:
        if name is None or self.trunks is None:
            raise CannotControl("a number needs a trunk; name one, or set [outbound] trunk")
        try:
            return self.trunks.route(name, number)
        except KeyError:
            raise CannotControl("there is no such trunk or account, or it has no server") from None


def agent_silent(rows: AudioRows, row: int) -> bool:
    """The last PAUSE_S of what the agent said on this row hold no speech."""
    end = int(rows.spoken_end[row])
    start = max(0, end - int(PAUSE_S * 24_000))
    pcm = rows.read_spoken(row, start, (end - start) // BLOCK * BLOCK)
    if not len(pcm):
        return True
    power = np.mean(np.square(pcm.reshape(-1, BLOCK)), axis=1)
    return bool(np.max(power) < 10 ** (SPEECH_DBFS / 10))
