"""RowSlot: the one Slot of every engine, a view on one row of its AudioRows.

Audio is not kept here but in the row's rings; what passes through here are text pieces, the end, and
the wake-up of readers. It knows no model and no remote.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

import numpy as np

from engine.api import (
    FRAME,
    AgentFrame,
    BadAudio,
    Pcm,
    SlotClosed,
    SlotCounters,
    SlotEnded,
    SlotEvent,
    TextSpoken,
)
from engine.rows import RING, AudioRows

MAX_BEHIND = RING // FRAME - 1
"""Frames a reader may be behind: the ring less the frame that is being written."""
_MAX_EVENTS = 512


class Bell:
    """Wakes the readers of one asyncio loop from the tick thread, with one call a tick at most."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def wait(self) -> asyncio.Future[None]:
        """A future for the next ring. Take it before looking for the frame, await it when none is there."""
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting = [f for f in self._waiting if not f.done()] + [future]
        return future

    def ring(self) -> None:
        """From any thread; costs nothing while nobody waits."""
        if self._waiting and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class SlotOwner(Protocol):
    """What a slot asks of its engine."""

    @property
    def rows(self) -> AudioRows: ...

    @property
    def bell(self) -> Bell: ...

    def counters_of(self, row: int) -> SlotCounters: ...

    def leave(self, slot: RowSlot) -> None: ...

    def interrupt(self, slot: RowSlot, heard_samples: int | None) -> bool: ...

    def hold(self, slot: RowSlot) -> bool: ...

    def away(self, slot: RowSlot) -> None: ...

    def release(self, slot: RowSlot) -> None: ...

    def inject(self, slot: RowSlot, text: str) -> bool: ...


class RowSlot:
    """A Slot over one row; see engine.api.Slot for what its methods promise."""

    def __init__(self, row: int, owner: SlotOwner) -> None:
        self.row = row
        self.ended: str | None = None
        """Why no more frames come, or None while the slot lives."""
        self._owner = owner
        self._rows = owner.rows
        self._next = 0
        self._closed = False
        self._last_counters = SlotCounters()
        self._events: deque[SlotEvent] = deque(maxlen=_MAX_EVENTS)
        self._pieces: deque[TextSpoken] = deque(maxlen=_MAX_EVENTS)

    @property
    def counters(self) -> SlotCounters:
        return self._last_counters if self._closed else self._owner.counters_of(self.row)

    def write(self, pcm: Pcm) -> None:
        if self.ended is not None:
            raise SlotClosed(self.ended)
        if not isinstance(pcm, np.ndarray) or pcm.ndim != 1 or pcm.dtype != np.float32:
            raise BadAudio("pcm must be a one-dimensional float32 array at 24 kHz")
        if not np.isfinite(pcm).all():
            raise BadAudio("pcm holds NaN or infinity")
        self._rows.write_heard(self.row, pcm)

    async def read(self) -> AgentFrame:
        while True:
            rung = self._owner.bell.wait()
            try:
                if (frame := self._waiting_frame()) is not None:
                    return frame
                if self.ended is not None:
                    raise SlotClosed(self.ended)
                await rung
            finally:
                rung.cancel()

    def _waiting_frame(self) -> AgentFrame | None:
        while not self._closed:
            written = int(self._rows.spoken_end[self.row]) // FRAME
            if self._next >= written:
                return None
            index = max(self._next, written - MAX_BEHIND)
            pcm = self._rows.read_spoken(self.row, index * FRAME, FRAME)
            # The tick thread may have gone round the ring while we copied.
            if int(self._rows.spoken_end[self.row]) // FRAME - index <= MAX_BEHIND:
                self._next = index + 1
                return AgentFrame(index, pcm, self._pieces_until(index))
        return None

    def _pieces_until(self, index: int) -> tuple[str, ...]:
        pieces = []
        while self._pieces and self._pieces[0].frame <= index:
            pieces.append(self._pieces.popleft().text)
        return tuple(pieces)

    def take_events(self) -> list[SlotEvent]:
        taken = []
        while self._events:
            taken.append(self._events.popleft())
        return taken

    def interrupt(self, heard_samples: int | None = None) -> bool:
        return self.ended is None and self._owner.interrupt(self, heard_samples)

    def hold(self) -> bool:
        return self.ended is None and self._owner.hold(self)

    def away(self) -> None:
        if self.ended is None:
            self._owner.away(self)

    def release(self) -> None:
        if self.ended is None:
            self._owner.release(self)

    def inject(self, text: str) -> bool:
        return self.ended is None and self._owner.inject(self, text)

    def close(self) -> None:
        if self._closed:
            return
        self._last_counters = self._owner.counters_of(self.row)
        self._closed = True
        self.end("slot closed")
        self._owner.leave(self)
        self._owner.bell.ring()

    def say(self, frame: int, text: str) -> None:
        """The engine's side: a piece of text spoken in the given frame. Beyond 512 the oldest go."""
        spoken = TextSpoken(frame, text)
        self._events.append(spoken)
        self._pieces.append(spoken)

    def end(self, reason: str) -> None:
        """The engine's side: there will be no more frames. The first reason stays."""
        if self.ended is None:
            self.ended = reason
            self._events.append(SlotEnded(reason))
