"""Call: one live call. It joins a leg to an engine slot by their common row, and ends once.

The audio never passes through here: the media plane fills the row and empties it. What passes here is
what is said about the call: text, events, who hung up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from engine.api import Persona, Slot, SlotEnded, SlotEvent
from gateway.media.plane import MediaEvent, MediaPlane, MediaStats

log = logging.getLogger(__name__)


class Leg(Protocol):
    """The caller's side of a call: a SIP dialog, a peer connection, a WebSocket."""

    async def hang_up(self, reason: str) -> None:
        """Tell the caller the call is over. Called at most once, not after the caller hung up himself."""
        ...


class Call:
    """One admitted caller: a slot of the engine, its row of the media plane, and a leg once there is one."""

    def __init__(self, call_id: str, leg_kind: str, slot: Slot, persona: Persona, plane: MediaPlane) -> None:
        self.id = call_id
        self.leg_kind = leg_kind
        self.slot = slot
        self.persona = persona
        self.plane = plane
        self.leg: Leg | None = None
        self.caller = ""
        self.callee = ""
        self.admitted_at = time.time()
        self.answered_at: float | None = None
        self.ended = asyncio.Event()
        self.ended_by = ""
        """`caller`, `agent`, `gateway` or `engine`, once ended."""
        self.end_reason = ""
        self.final_stats: MediaStats | None = None
        self._ending: asyncio.Task[None] | None = None
        self._media_opened = False
        self._ended_listeners: list[Callable[[Call], None]] = []
        self._event_listeners: list[Callable[[SlotEvent | MediaEvent], None]] = []

    @property
    def row(self) -> int:
        return self.slot.row

    def on_ended(self, listener: Callable[[Call], None]) -> None:
        """Be told once, after the slot and the row are free."""
        self._ended_listeners.append(listener)

    def on_event(self, listener: Callable[[SlotEvent | MediaEvent], None]) -> None:
        """Be told what the agent says and what the media plane sees, in order."""
        self._event_listeners.append(listener)

    def media_opened(self) -> None:
        """The leg has given its row to the plane; end() will take it back."""
        self._media_opened = True

    def answered(self) -> None:
        """The caller can hear: the row's audio starts to flow to the engine and back. Idempotent."""
        if self.answered_at is None and not self.ended.is_set():
            self.answered_at = time.time()
            self.plane.start(self.row)
            log.info("call %s answered", self.id)

    def deliver(self, event: SlotEvent | MediaEvent) -> None:
        """Pass an event of the slot or the plane to whoever listens; an ended slot ends the call."""
        for listener in self._event_listeners:
            listener(event)
        if isinstance(event, SlotEnded) and not self.ended.is_set():
            self.end_soon("engine", event.reason)

    def end_soon(self, by: str, reason: str) -> None:
        """end() from a place that cannot wait. The first reason given stays."""
        if self._ending is None:
            self.ended_by, self.end_reason = by, reason
            self._ending = asyncio.get_running_loop().create_task(self._end(), name=f"end {self.id}")

    async def end(self, by: str, reason: str) -> None:
        """Hang up, free the row and the slot. Idempotent; returns when all of it is done."""
        self.end_soon(by, reason)
        assert self._ending is not None
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        if self.leg is not None and self.ended_by != "caller":
            await _quietly(self.id, self.leg.hang_up(self.end_reason))
        if self._media_opened:
            self.final_stats = self.plane.close(self.row)
        self.slot.close()
        self.ended.set()
        log.info("call %s ended by %s: %s", self.id, self.ended_by, self.end_reason)
        for listener in self._ended_listeners:
            listener(self)


async def _quietly(call_id: str, step: Awaitable[None]) -> None:
    """A leg that fails to say goodbye must not keep the slot."""
    try:
        await asyncio.wait_for(step, 5.0)
    except Exception:  # noqa: BLE001 - top of the hang-up; ends this one call
        log.exception("call %s: hanging up failed", call_id)
