"""WorkerEngine: an Engine whose calls are held by engine workers in other processes or machines.

The tick thread takes every caller's frame and hands each worker one message; what comes back goes into
the rows as it comes. A call goes to the least loaded worker, and on to another when its worker is lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace

import aiohttp
import numpy as np

from engine import worker_protocol as wire
from engine.api import FRAME, Capacity, EngineError, EngineFull, EngineRefused, Persona
from engine.clock import Tick
from engine.frames import Batch, Mask
from engine.rows import AudioRows
from engine.slot import RowSlot
from engine.slots import SlotTable
from engine.stepper import Stepped
from engine.tick import TickEngine
from engine.worker_link import WorkerLink
from engine.worker_server import WorkerServer, serve_worker

__all__ = ["WorkerEngine", "WorkerServer", "serve_worker"]

log = logging.getLogger(__name__)

_ROW_BITS = 16
_NOWHERE = -1


class WorkerEngine(TickEngine):
    """Slots are rows here and calls there; the number of a call tells the row and which of its calls."""

    def __init__(
        self,
        workers: Sequence[str],
        token: str | None = None,
        rows: AudioRows | None = None,
        phase: float = 0.0,
        slots: int = 64,
    ) -> None:
        """workers: addresses such as `ws://10.0.0.2:8998`; rows: where the audio lies, one a slot."""
        if not workers:
            raise EngineError("a worker engine needs at least one worker's address")
        rows = rows if rows is not None else AudioRows(slots)
        self.failovers = 0
        self.links = [WorkerLink(url, token, self, self._until_tick) for url in workers]
        self._link_of = np.full(rows.count, _NOWHERE)  # of each row; -1 while it moves
        self._calls = np.arange(rows.count, dtype=np.uint32)  # the number of each row's present call
        self._personas: dict[int, Persona] = {}
        self._holding: set[int] = set()
        """Rows whose calls stand still."""
        self._ticks = np.zeros(rows.count, np.int64)  # since each row's first frame
        self._missed = np.zeros(rows.count, np.int64)
        self._http: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        super().__init__("worker", _Elsewhere(), rows, SlotTable(rows.count), phase)

    # -- the loop's side ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect and start the clock. Raises EngineError when no worker can be had, naming each."""
        if self._http is None:
            await self.connect()
        await super().start()

    async def connect(self) -> None:
        """Connect to the workers; those that fail are dialled on. Raises EngineError when all do."""
        self._loop = asyncio.get_running_loop()
        self._http = aiohttp.ClientSession()
        tried = await asyncio.gather(
            *(link.connect(self._http) for link in self.links), return_exceptions=True
        )
        failures = [failure for failure in tried if failure is not None]
        for failure in failures:
            if not isinstance(failure, EngineError):
                raise failure
            log.error("%s", failure)
        if len(failures) == len(self.links):
            await self._http.close()
            self._http = None
            raise failures[0] if len(failures) == 1 else EngineError("; ".join(map(str, failures)))
        for link in self.links:
            self._spawn(link.run(self._http))

    def _until_tick(self) -> float:
        return self.clock.until_next(time.monotonic())

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the worker engine failed", exc_info=error)

    async def open(self, persona: Persona = Persona(), row: int | None = None) -> RowSlot:
        taken = await self._reserve(row)
        try:
            link = await self._place(taken, persona)
            slot = self._seat(taken, lambda row: None)
        except BaseException:
            self.table.free(taken)
            raise
        self._personas[taken] = persona
        self._ticks[taken] = self._missed[taken] = 0
        self._link_of[taken] = link
        return slot

    async def _place(self, row: int, persona: Persona) -> int:
        """Open the row's next call on the least loaded worker that takes it; which of the links that is."""
        refusal: EngineError = EngineFull("every worker is full", self._retry_after_s())
        for index in self._by_load():
            try:
                await self.links[index].open(self._next_number(row), persona)
                return index
            except EngineRefused:
                raise
            except EngineError as error:
                refusal = error
        raise refusal

    def _by_load(self) -> list[int]:
        ready = [k for k, link in enumerate(self.links) if link.up and not link.draining and link.load.free]
        return sorted(ready, key=lambda k: -self.links[k].load.free)

    def _retry_after_s(self) -> float:
        return min((link.load.retry_after_s for link in self.links if link.up), default=5.0)

    def _next_number(self, row: int) -> int:
        number = (int(self._calls[row]) + (1 << _ROW_BITS)) & 0xFFFFFFFF
        self._calls[row] = number
        return number

    def leave(self, slot: RowSlot) -> None:
        self._link_to(slot.row, lambda link, call: link.close(call))
        self._link_of[slot.row] = _NOWHERE
        self._holding.discard(slot.row)
        super().leave(slot)

    def _link_to(self, row: int, say: Callable[[WorkerLink, int], None]) -> bool:
        """Speak to the worker that holds the row's call, if one does."""
        index = int(self._link_of[row])
        if index == _NOWHERE:
            return False
        say(self.links[index], int(self._calls[row]))
        return True

    def interrupt(self, slot: RowSlot, heard_samples: int | None) -> bool:
        spoken = int(self.rows.spoken_end[slot.row])
        unheard = 0 if heard_samples is None else max(0, spoken - heard_samples)
        if not all(link.interrupts for link in self.links):
            return False
        return self._link_to(slot.row, lambda link, call: link.say(wire.Interrupt(call, unheard)))

    def hold(self, slot: RowSlot) -> bool:
        """Where its worker is too old for it, the agent is silenced instead."""
        index = int(self._link_of[slot.row])
        if index == _NOWHERE or not self.links[index].holds:
            return self.interrupt(slot, None)
        self._holding.add(slot.row)
        self._link_to(slot.row, lambda link, call: link.say(wire.Hold(call)))
        return super().hold(slot)

    def release(self, slot: RowSlot) -> None:
        self._holding.discard(slot.row)
        self._link_to(slot.row, lambda link, call: link.say(wire.Release(call)))
        super().release(slot)

    def inject(self, slot: RowSlot, text: str) -> bool:
        index = int(self._link_of[slot.row])
        if index == _NOWHERE or not self.links[index].injects:
            return False
        return self._link_to(slot.row, lambda link, call: link.say(wire.Inject(call, text)))

    def capacity(self) -> Capacity:
        now = super().capacity()
        ready = [link for link in self.links if link.up and not link.draining]
        free = sum(link.load.free for link in ready)
        up = [link.load for link in self.links if link.up]
        return replace(
            now,
            slots=min(now.slots, now.used + free),
            retry_after_s=self._retry_after_s(),
            tick_p50_ms=max((load.tick_p50_ms for load in up), default=0.0),
            tick_p99_ms=max((load.tick_p99_ms for load in up), default=0.0),
            late_ticks=now.late_ticks + sum(load.late_ticks for load in up),
            dropped_frames=now.dropped_frames + sum(load.dropped_frames for load in up),
            detail=now.detail | {"workers_up": float(len(up)), "failovers": float(self.failovers)},
        )

    async def stop(self) -> None:
        await super().stop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(link.hang_up() for link in self.links), return_exceptions=True)
        if self._http is not None:
            await self._http.close()
            self._http = None

    # -- what workers say ---------------------------------------------------------------------------

    def heard_batch(self, link: WorkerLink, batch: wire.FrameBatch) -> None:
        """Frames and words into the rows whose present call they are of."""
        places = (batch.calls & ((1 << _ROW_BITS) - 1)).astype(np.int64)
        inside = places < self.rows.count
        rows = np.where(inside, places, 0)
        ours = inside & (self._calls[rows] == batch.calls) & (self._link_of[rows] == self.links.index(link))
        for call, piece in batch.texts:
            row = call & ((1 << _ROW_BITS) - 1)
            if row in self._open and int(self._calls[row]) == call:
                self._open[row].say(int(self.frames.counts[0, row]), piece)
        pcm, valid = np.zeros((self.rows.count, FRAME), np.float32), np.zeros(self.rows.count, np.bool_)
        pcm[rows[ours]], valid[rows[ours]] = batch.pcm[ours], True
        self.frames.put(pcm, valid)
        self.bell.ring()

    def heard_end(self, link: WorkerLink, call: int, reason: str) -> None:
        row = call & ((1 << _ROW_BITS) - 1)
        slot = self._open.get(row)
        if slot is not None and int(self._calls[row]) == call:
            self._link_of[row] = _NOWHERE
            self.retire(slot, reason)

    def lost(self, link: WorkerLink, reason: str) -> None:
        if self._down is not None:
            return
        rows = np.flatnonzero(self._link_of == self.links.index(link)).tolist()
        log.error("worker %s: %s; %d calls move", link.url, reason, len(rows))
        for row in rows:
            self._link_of[row] = _NOWHERE
            self._spawn(self._move(self._open[row]))

    async def _move(self, slot: RowSlot) -> None:
        """To another worker, where the conversation begins anew; or the slot ends."""
        try:
            index = await self._place(slot.row, self._personas[slot.row])
        except EngineError as error:
            self.retire(slot, f"its worker was lost, and for another: {error}")
            return
        if self._open.get(slot.row) is not slot:
            self.links[index].close(int(self._calls[slot.row]))
            return
        self.failovers += 1
        self._link_of[slot.row] = index
        if slot.row in self._holding and self.links[index].holds:
            self._link_to(slot.row, lambda link, call: link.say(wire.Hold(call)))

    # -- the tick thread's side ---------------------------------------------------------------------

    def _step(self, tick: Tick) -> None:
        if tick.skipped:
            self.frames.miss(self._active, tick.skipped)
        self._count_missing()
        pcm = self.frames.take(self._active, tick.behind)
        outgoing: list[tuple[WorkerLink, bytes]] = []
        hung: list[WorkerLink] = []
        number = round(tick.deadline / self.clock.period)
        for index, link in enumerate(self.links):
            rows = np.flatnonzero(self._active & (self._link_of == index))
            if len(rows):
                batch = wire.FrameBatch(number, self._calls[rows], pcm[rows])
                outgoing.append((link, batch.encode()))
            if link.watch(len(rows) > 0):
                hung.append(link)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._post, outgoing, hung)

    def _post(self, outgoing: list[tuple[WorkerLink, bytes]], hung: list[WorkerLink]) -> None:
        for link, batch in outgoing:
            link.send_batch(batch)
        for link in hung:
            link.give_up("it has hung")
            self._spawn(link.hang_up())

    def _count_missing(self) -> None:
        """A tick is missed when the frames that came stay behind the ticks by more than the one under way."""
        speaking = self._active & (self.frames.counts[0] > 0)
        self._ticks[speaking] += 1
        missing = np.where(speaking, self._ticks - self.frames.counts[0] - 1 - self._missed, 0)
        new = np.maximum(missing, 0)
        self._missed += new
        self.frames.counts[3] += new


class _Elsewhere:
    """The stepper of an engine whose steps are made by others."""

    def check(self, persona: Persona) -> None: ...

    def open(self, slot: int, persona: Persona) -> None: ...

    def close(self, slot: int) -> None: ...

    def step(self, pcm: Batch, active: Mask) -> Stepped:
        raise EngineError("a worker engine steps nothing itself")

    def piece(self, token: int) -> str | None: ...

    def interrupt(self, slot: int, unheard_frames: int) -> None: ...

    def release(self, slot: int) -> None: ...

    def inject(self, slot: int, text: str) -> None: ...
