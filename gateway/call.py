"""Call: one live call. It joins a leg to an engine slot by their common row, and ends once.

The audio never passes through here: the media plane fills the row and empties it. What passes here is
what is said about the call: text, events, who hung up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from engine.api import Persona, Slot, SlotEnded, TextSpoken
from gateway.call_events import CallEvent, KeyPressed, KeySource, OrderGiven, StateChanged
from gateway.keys import KeyPad
from gateway.media.face import MediaFace
from gateway.media.messages import Closed, DtmfReceived, MediaFailed, MediaStats, RtpTimedOut
from gateway.orders import OrderReader

__all__ = ["Call", "CallEvent", "Leg"]

log = logging.getLogger(__name__)

MEDIA_CLOSE_S = 1.0
"""How long a row may take to come back from the media plane (one tick is 20 ms)."""


class Leg(Protocol):
    """The caller's side of a call: a SIP dialog, a peer connection, a WebSocket."""

    async def hang_up(self, reason: str) -> None:
        """Tell the caller the call is over. Called at most once, not after the caller hung up himself."""
        ...


class Call:
    """One admitted caller: a slot of the engine, its row of the media plane, and a leg once there is one."""

    def __init__(self, call_id: str, leg_kind: str, slot: Slot, persona: Persona, plane: MediaFace) -> None:
        self.id = call_id
        self.leg_kind = leg_kind
        self.slot = slot
        self.persona = persona
        self.plane = plane
        self.leg: Leg | None = None
        self.direction = "inbound"
        self.caller = ""
        self.callee = ""
        self.said: Mapping[str, object] = {}
        """What his signalling says of him besides: untrusted, and never logged."""
        self.admitted_at = time.time()
        self.answered_at: float | None = None
        self.ended_at: float | None = None
        self.ended = asyncio.Event()
        self.ended_by = ""
        """`caller`, `agent`, `gateway` or `engine`, once ended."""
        self.end_reason = ""
        self._logged_reason = ""
        self.final_code = 0
        """The last SIP code of a phone call's INVITE, once it is over."""
        self.final_stats: MediaStats | None = None
        self._ending: asyncio.Task[None] | None = None
        self.media_number: int | None = None
        """What the plane called this call when the leg gave it the row."""
        self._media_closed = asyncio.Event()
        self._ended_listeners: list[Callable[[Call], None]] = []
        self._event_listeners: list[Callable[[CallEvent], None]] = []
        self._agent_held = False
        """The slot's time stands still, for one of the two reasons below."""
        self._unheard = False
        """The caller cannot hear yet: he is rung, or an announcement plays."""
        self._away = False
        """One side holds the call."""
        self._keys = KeyPad()
        self._orders = OrderReader()

    @property
    def row(self) -> int:
        return self.slot.row

    def on_ended(self, listener: Callable[[Call], None]) -> None:
        """Be told once, after the slot and the row are free."""
        self._ended_listeners.append(listener)

    def on_event(self, listener: Callable[[CallEvent], None]) -> None:
        """Be told what the agent says, what the media plane sees, keys and states, in order."""
        self._event_listeners.append(listener)

    def media_opened(self, number: int) -> None:
        """The leg has given its row to the plane, which calls it `number`; end() takes it back."""
        self.media_number = number

    def hold_agent(self) -> None:
        """The caller will not hear for a while: the agent keeps its first words until answered()."""
        self._unheard = True
        self._hold_or_release()

    def park(self, away: bool) -> None:
        """One side holds the call, or no more does. Meanwhile the agent does no work: it goes on afterwards
        where it was, with all it remembers. Its place may go to another call, `engine.parked_calls`."""
        self._away = away
        self._hold_or_release()
        if away and self._agent_held:
            self.slot.away()

    @property
    def parked(self) -> bool:
        """The agent's time stands still, and will go on."""
        return self._agent_held

    def release_agent(self) -> None:
        """After an interruption: let it speak again, unless it waits for other reasons."""
        if not self._agent_held:
            self.slot.release()

    def _hold_or_release(self) -> None:
        if self._unheard or self._away:
            self._agent_held = self._agent_held or self.slot.hold()
        elif self._agent_held:
            self._agent_held = False
            self.slot.release()

    def answered(self) -> None:
        """The caller can hear: the row's audio starts to flow to the engine and back. Idempotent."""
        if self.answered_at is None and not self.ended.is_set():
            self.answered_at = time.time()
            self.plane.start(self.row)
            self._unheard = False
            self._hold_or_release()
            log.info("call %s answered", self.id)
            self._tell(StateChanged("answered"))

    def press(self, digit: str, duration_ms: int, source: KeySource) -> None:
        """The caller pressed a key; a press that came another way already is not told again."""
        if self._keys.is_new(digit, source, time.monotonic()):
            self._tell(KeyPressed(digit, duration_ms, source))

    def deliver(self, event: CallEvent) -> None:
        """Pass an event of the slot, the plane or the leg to whoever listens; the fatal ones end the call."""
        match event:
            case TextSpoken(frame=frame, text=text):
                shown, orders = self._orders.take(text)
                if shown:
                    self._tell(TextSpoken(frame, shown))
                for order in orders:
                    self._tell(OrderGiven(order))
            case DtmfReceived(digit=digit, duration_ms=duration_ms, inband=inband):
                self.press(digit, duration_ms, "inband" if inband else "rtp")
            case _:
                self._tell(event)
                self._end_if_fatal(event)

    def _tell(self, event: CallEvent) -> None:
        for listener in self._event_listeners:
            listener(event)

    def _end_if_fatal(self, event: CallEvent) -> None:
        match event:
            case SlotEnded(reason=reason):
                self.end_soon("engine", reason)
            case RtpTimedOut(silent_s=silent_s):
                self.end_soon("gateway", f"no audio from the caller for {silent_s:.0f} s")
            case MediaFailed(reason=reason):
                self.end_soon("gateway", reason)
            case Closed(stats=stats):
                self.final_stats = stats
                self._media_closed.set()

    def end_soon(self, by: str, reason: str) -> None:
        """end() from a place that cannot wait. The first reason given stays."""
        if self._ending is None:
            self.ended_by, self.end_reason = by, reason
            # Once the dialog has its final code the words are the phone's, and those are not for the log.
            self._logged_reason = f"SIP {self.final_code}" if self.final_code else reason
            self._ending = asyncio.get_running_loop().create_task(self._end(), name=f"end {self.id}")

    async def end(self, by: str, reason: str) -> None:
        """Hang up, free the row and the slot. Idempotent; returns when all of it is done."""
        self.end_soon(by, reason)
        assert self._ending is not None
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        if self.leg is not None and self.ended_by != "caller":
            await _quietly(self.id, self.leg.hang_up(self.end_reason))
        if self.media_number is not None:
            # The row may be given to a new call only after the plane has let go of it.
            self.plane.close(self.row)
            try:
                await asyncio.wait_for(self._media_closed.wait(), MEDIA_CLOSE_S)
            except TimeoutError:
                log.error("call %s: the media plane did not give row %d back", self.id, self.row)
        self.slot.close()
        self.ended_at = time.time()
        self.ended.set()
        log.info("call %s ended by %s: %s", self.id, self.ended_by, self._logged_reason)
        for listener in self._ended_listeners:
            listener(self)


async def _quietly(call_id: str, step: Awaitable[None]) -> None:
    """A leg that fails to say goodbye must not keep the slot."""
    try:
        await asyncio.wait_for(step, 5.0)
    except Exception:
        log.exception("call %s: hanging up failed", call_id)
