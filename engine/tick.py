"""TickEngine: the engine's 80 ms heart. Frames out of the rows, one batched step, frames into the rows.

What steps is a Stepper (a model, an echo, a line to a remote). The decisions stand in `run_due(now)`,
which tests call by hand; the thread around it only sleeps. Slots come and go on the loop's side and
reach the stepper through a queue of orders, so that one thread alone calls the stepper.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.api import FRAME, TICK_S, Capacity, EngineError, Persona, SlotCounters
from engine.clock import FrameClock, Tick, TickTimes
from engine.frames import Batch, Mask, RowFrames
from engine.rows import AudioRows
from engine.slot import Bell, RowSlot
from engine.slots import SlotTable
from engine.stepper import Stepper

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

TICK_MS = 1e3 * TICK_S
_STALLED_S = 0.5
_NICE = -10
"""Of the tick thread: nine times the share of a busy processor that others have. No real-time class, as the
media process has: a model that is too slow for its device must not take the machine with it."""
_NOT_STARTED = "the engine is not started"


class TickEngine:
    """An Engine over a Stepper.

    phase: every deadline lies a whole number of 80 ms after this reading of the monotonic clock. Who
    writes `rows.heard` on a clock of his own picks it a few ms after his last block for the tick.
    """

    can_interrupt = True
    can_inject = False

    def __init__(
        self, name: str, stepper: Stepper, rows: AudioRows, table: SlotTable, phase: float = 0.0
    ) -> None:
        self.name = name
        self.clock = FrameClock(phase)
        self.times = TickTimes()
        self.table = table
        self.frames = RowFrames(rows)
        self.bell = Bell()
        self._stepper = stepper
        self._gains: NDArray[np.float32] = np.ones(rows.count, np.float32)
        self._wanted_gains: NDArray[np.float32] = np.ones(rows.count, np.float32)
        self._active: Mask = np.zeros(rows.count, np.bool_)
        self._held: set[int] = set()  # the tick thread's: rows that are not stepped until release()
        self._open: dict[int, RowSlot] = {}  # the loop's; by row
        self._slots: dict[int, RowSlot] = {}  # the tick thread's: those the stepper has opened
        self._orders: deque[Callable[[], None]] = deque()
        self._left: deque[int] = deque()
        self._asked: set[Future[Any]] = set()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._down: str | None = _NOT_STARTED

    # -- the loop's side ------------------------------------------------------------------------

    @property
    def rows(self) -> AudioRows:
        return self.frames.rows

    async def start(self) -> None:
        """Start the clock in its thread."""
        if self._thread is not None:
            return
        self.begin(time.monotonic())
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name=f"tick {self.name}", daemon=True)
        self._thread.start()

    def begin(self, now: float) -> None:
        """Arm the clock without a thread, for who steps by hand with run_due()."""
        self._down = None
        self.clock.begin(now)

    async def open(self, persona: Persona = Persona(), row: int | None = None) -> RowSlot:
        self._stepper.check(persona)
        self.admit(persona)
        return self._seat(await self._reserve(row), lambda slot: self._stepper.open(slot, persona))

    def admit(self, persona: Persona) -> None:
        """Raises EngineFull where more than a free row is needed and is not there."""

    async def _reserve(self, row: int | None) -> int:
        while True:
            freed = self.bell.wait()
            if (taken := self._take_row(row)) is not None:
                freed.cancel()
                return taken
            await freed

    def _seat(self, row: int, join: Callable[[int], None]) -> RowSlot:
        """A slot on a reserved row; `join` opens it in the stepper, on the tick thread."""
        slot = self._give(row)
        self._orders.append(lambda: self._join(slot, join))
        return slot

    def _give(self, row: int) -> RowSlot:
        """A slot on a reserved row, of which the tick thread does not know yet."""
        if self._down is not None:
            raise EngineError(self._down)
        self.frames.clear(row)
        slot = self._open[row] = RowSlot(row, self)
        return slot

    def _take_row(self, row: int | None) -> int | None:
        if self._down is not None:
            raise EngineError(self._down)
        self._free_left()
        return self.table.take(row, retry_after_s=5.0)

    def _free_left(self) -> None:
        while self._left:
            self.table.free(self._left.popleft())

    @property
    def stalled(self) -> bool:
        """Whether the tick thread has not come to its tick for half a second: a step that does not return."""
        return self._thread is not None and time.monotonic() - self.clock.deadline > _STALLED_S

    def capacity(self) -> Capacity:
        self._free_left()
        used = self.table.open
        return Capacity(
            slots=used if self.stalled else self.table.limit,
            used=used,
            tick_p50_ms=self.times.percentile_ms(50),
            tick_p99_ms=self.times.percentile_ms(99),
            late_ticks=self.clock.late_ticks,
            dropped_frames=self.frames.dropped_samples // FRAME,
            detail={"bad_frames": float(self.frames.bad_frames)},
        )

    def counters_of(self, row: int) -> SlotCounters:
        return self.frames.counters(row)

    def leave(self, slot: RowSlot) -> None:
        del self._open[slot.row]
        self.table.leave(slot.row)
        self._orders.append(lambda: self._part(slot))

    def follow(self, deadline: float) -> None:
        """Tick at the phase of this moment, if no call is held now; a running call is not disturbed."""
        if not self._open and self._down is None:
            self._orders.append(lambda: self.clock.rephase(deadline, deadline))

    def interrupt(self, slot: RowSlot, heard_samples: int | None) -> bool:
        self._orders.append(lambda: self._hush(slot, heard_samples))
        return True

    def hold(self, slot: RowSlot) -> bool:
        self._orders.append(lambda: self._pause(slot))
        return True

    def away(self, slot: RowSlot) -> None:
        """A held slot keeps its place here."""

    def release(self, slot: RowSlot) -> None:
        self._orders.append(lambda: self._resume(slot))

    def inject(self, slot: RowSlot, text: str) -> bool:
        if self.can_inject:
            self._orders.append(lambda: self._force(slot, text))
        return self.can_inject

    async def ask(self, question: Callable[[], Answer]) -> Answer:
        """What the question, put on the tick thread between two steps, returns or raises as EngineError."""
        answer: Future[Answer] = Future()
        return await self._order(answer, lambda: _put(question, answer))

    async def _order(self, answer: Future[Answer], order: Callable[[], None]) -> Answer:
        """Give the tick thread an order and wait for what it answers, now or ticks later."""
        if self._down is not None:
            raise EngineError(self._down)
        self._asked.add(answer)
        answer.add_done_callback(self._asked.discard)
        self._orders.append(order)
        return await asyncio.wrap_future(answer)

    def retire(self, slot: RowSlot, reason: str) -> None:
        """End one slot whose source of frames is gone; its row stays its caller's until close()."""
        slot.end(reason)
        self._orders.append(lambda: self._deactivate(slot))
        self.bell.ring()

    async def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
            self._thread = None
        self.fail("the engine has stopped")

    def fail(self, reason: str) -> None:
        """End every slot and take no more."""
        self._down = self._down or reason
        for question in list(self._asked):
            if question.running() or question.set_running_or_notify_cancel():
                question.set_exception(EngineError(self._down))
        for slot in list(self._open.values()):
            slot.end(reason)
        self.bell.ring()

    # -- the tick thread's side -----------------------------------------------------------------

    def _run(self) -> None:
        _go_first()
        try:
            while not self._stop.wait(max(0.0, self.clock.deadline - time.monotonic())):
                self.run_due(time.monotonic())
        except Exception:
            log.exception("the tick thread of %s failed", self.name)
            self.fail(f"engine {self.name} failed; its log has the traceback")

    def run_due(self, now: float) -> bool:
        """Run the tick that is due at `now`, if one is."""
        tick = self.clock.take(now)
        if tick is None:
            return False
        began = time.monotonic()
        while self._orders:
            self._orders.popleft()()
        self._between()
        if self._active.any():
            self._step(tick)
            self.times.add(time.monotonic() - began)
        self.bell.ring()
        return True

    def _between(self) -> None:
        """What else the tick thread does before a step."""

    def _step(self, tick: Tick) -> None:
        if tick.skipped:
            self.frames.miss(self._active, tick.skipped)
        stepped = self._stepper.step(self.frames.take(self._active, tick.behind), self._active)
        valid = stepped.valid & self._active
        self.frames.miss(self._active & ~valid & (self.frames.counts[0] > 0), 1)
        self._hand_out_text(stepped.text, valid)
        self.frames.put(self._faded(stepped.pcm), valid)

    def _hand_out_text(self, tokens: NDArray[np.int64], valid: Mask) -> None:
        for row in np.flatnonzero(self._active & (tokens >= 0)):
            piece = self._stepper.piece(int(tokens[row]))
            if piece:
                # Text of a step without audio belongs to the frame that comes next.
                self._slots[int(row)].say(int(self.frames.counts[0, row]), piece)

    def _faded(self, pcm: Batch) -> Batch:
        moving = np.flatnonzero((self._gains < 1.0) | (self._wanted_gains < 1.0))
        if not len(moving):
            return pcm
        pcm = pcm.copy()
        start, stop = self._gains[moving, None], self._wanted_gains[moving, None]
        pcm[moving] *= start + (stop - start) * _RAMP
        self._gains[moving] = self._wanted_gains[moving]
        return pcm

    def _join(self, slot: RowSlot, join: Callable[[int], None]) -> None:
        if slot.ended is not None:
            return
        self.take_in(slot)
        try:
            join(slot.row)
        except EngineError as error:
            slot.end(str(error))
            return
        self._active[slot.row] = True

    def _part(self, slot: RowSlot) -> None:
        if self._slots.pop(slot.row, None) is not None:
            self._stepper.close(slot.row)
        self._active[slot.row] = False
        self._held.discard(slot.row)
        self._left.append(slot.row)

    def _deactivate(self, slot: RowSlot) -> None:
        if self._slots.get(slot.row) is slot:
            self._active[slot.row] = False
            self._held.discard(slot.row)

    def has(self, slot: RowSlot) -> bool:
        """Whether the stepper has this slot open: not closed, not ended."""
        return slot.ended is None and self._slots.get(slot.row) is slot

    def steps(self, slot: RowSlot) -> bool:
        return bool(self._active[slot.row])

    def take_in(self, slot: RowSlot, silent: bool = False) -> None:
        """The row is the slot's from now on; it is not stepped before `go_on`. silent: until release()."""
        self._slots[slot.row] = slot
        self._gains[slot.row] = self._wanted_gains[slot.row] = 0.0 if silent else 1.0

    def stand_still(self, slot: RowSlot) -> None:
        """Step the slot no more until `go_on`."""
        self._active[slot.row] = False

    def go_on(self, slot: RowSlot) -> None:
        """Step the slot, beginning with the newest frame of its caller."""
        if self.has(slot):
            self._held.discard(slot.row)
            self._active[slot.row] = True
            self.frames.skip(slot.row)

    def _hush(self, slot: RowSlot, heard_samples: int | None) -> None:
        if self._active[slot.row] and self._slots.get(slot.row) is slot:
            self._wanted_gains[slot.row] = 0.0
            spoken = int(self.rows.spoken_end[slot.row])
            unheard = 0 if heard_samples is None else max(0, spoken - heard_samples)
            self._stepper.interrupt(slot.row, unheard // FRAME)

    def _force(self, slot: RowSlot, text: str) -> None:
        if self._active[slot.row] and self._slots.get(slot.row) is slot:
            self._stepper.inject(slot.row, text)

    def _pause(self, slot: RowSlot) -> None:
        if self._active[slot.row] and self._slots.get(slot.row) is slot:
            self._active[slot.row] = False
            self._held.add(slot.row)

    def _resume(self, slot: RowSlot) -> None:
        if self._slots.get(slot.row) is slot and slot.row in self._held:
            self._held.discard(slot.row)
            self._active[slot.row] = True
            self.frames.skip(slot.row)
        if self._active[slot.row] and self._slots.get(slot.row) is slot:
            self._wanted_gains[slot.row] = 1.0
            self._stepper.release(slot.row)


def _put(question: Callable[[], Answer], answer: Future[Answer]) -> None:
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(question())
    except EngineError as error:
        answer.set_exception(error)


_RAMP = np.linspace(0.0, 1.0, FRAME, dtype=np.float32)


def _go_first() -> None:
    """Run this thread ahead of what else the machine computes, where the system permits (RLIMIT_NICE)."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
