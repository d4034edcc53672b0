"""WaitingRoom: held calls that gave their slot and memory to others, and those that want one back.

The loop's side alone. A caller who is away for long is parked, keeping his row; when he is back he gets the
next slot that is free, before any newcomer, or his slot ends by name once he has waited too long.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from engine.api import EngineError
from engine.slot import RowSlot

if TYPE_CHECKING:
    from engine.snapshot import SlotSnapshot

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RoomOptions:
    """When a held call gives its slot away. places 0: never."""

    places: int = 0
    """Held calls beyond the engine's slots."""
    after_s: float = 10.0
    """Held for so long, a call is parked; sooner it would be copied for nothing."""
    patience_s: float = 60.0
    """How long a caller who is back waits for a slot before his call ends."""


class Keeper(Protocol):
    """What it asks of its engine."""

    async def take_out(self, slot: RowSlot) -> SlotSnapshot:
        """The held slot's state; the slot stays open and stands still. Cancelled, nothing has changed."""
        ...

    def set_aside(self, slot: RowSlot) -> None:
        """Its memory is free, and its row counts as nobody's slot."""
        ...

    def has_room(self) -> bool: ...

    def call_in(self, slot: RowSlot) -> None:
        """Its row counts as a slot again."""
        ...

    async def bring_in(self, slot: RowSlot, snapshot: SlotSnapshot) -> None:
        """Fill the slot and let it go on. Raises EngineError."""
        ...

    def stand_still_again(self, slot: RowSlot) -> None:
        """Held anew in the moment it came back."""
        ...

    def retire(self, slot: RowSlot, reason: str) -> None: ...


class WaitingRoom:
    def __init__(self, engine: Keeper, options: RoomOptions) -> None:
        self._engine, self._options = engine, options
        self._parked: dict[RowSlot, SlotSnapshot] = {}
        self._returning: deque[RowSlot] = deque()  # of the parked, those whose caller is back
        self._timers: dict[RowSlot, asyncio.TimerHandle] = {}
        self._leaving: dict[RowSlot, asyncio.Task[None]] = {}
        self._coming: dict[RowSlot, asyncio.Task[None]] = {}
        self._away_again: set[RowSlot] = set()  # of the coming

    @property
    def parked(self) -> int:
        return len(self._parked)

    def away(self, slot: RowSlot) -> None:
        """The slot is held, and its caller may stay away."""
        if slot in self._coming:
            self._away_again.add(slot)
        elif slot in self._returning:
            self._returning.remove(slot)
            self._stop_timer(slot)
        elif self._options.places and not (slot in self._parked or slot in self._leaving):
            self._stop_timer(slot)
            self._later(slot, self._options.after_s, self._begin_to_park)

    def back(self, slot: RowSlot) -> bool:
        """The slot is released. True: it has no place, and goes on by itself when it has one."""
        self._away_again.discard(slot)
        if slot in self._coming or slot in self._returning:
            return True
        self._stop_timer(slot)
        if slot not in self._parked:
            _cancel(self._leaving.pop(slot, None))
            return False
        self._returning.append(slot)
        self.serve()
        return True

    def leave(self, slot: RowSlot) -> None:
        """The slot is closed."""
        self._stop_timer(slot)
        _cancel(self._leaving.pop(slot, None))
        _cancel(self._coming.pop(slot, None))
        self._away_again.discard(slot)
        self._parked.pop(slot, None)
        if slot in self._returning:
            self._returning.remove(slot)

    def serve(self) -> None:
        """Give free slots to those who are back, first come, first served."""
        while self._returning and self._engine.has_room():
            slot = self._returning.popleft()
            self._stop_timer(slot)
            self._engine.call_in(slot)
            self._start(self._coming, slot, self._bring_in(slot, self._parked.pop(slot)))
        for slot in self._returning:
            if slot not in self._timers:
                self._later(slot, self._options.patience_s, self._give_up)

    def end(self) -> list[asyncio.Task[None]]:
        """The engine stops: no timer runs on; the tasks that were cancelled."""
        for slot in list(self._timers):
            self._stop_timer(slot)
        tasks = [*self._leaving.values(), *self._coming.values()]
        for task in tasks:
            task.cancel()
        self._parked.clear()
        self._returning.clear()
        return tasks

    def _begin_to_park(self, slot: RowSlot) -> None:
        if slot.ended is None and len(self._parked) + len(self._leaving) < self._options.places:
            self._start(self._leaving, slot, self._park(slot))

    async def _park(self, slot: RowSlot) -> None:
        try:
            snapshot = await self._engine.take_out(slot)
        except EngineError as error:
            log.info("a held call keeps its slot: %s", error)
            return
        self._parked[slot] = snapshot
        self._engine.set_aside(slot)
        self.serve()

    async def _bring_in(self, slot: RowSlot, snapshot: SlotSnapshot) -> None:
        try:
            await self._engine.bring_in(slot, snapshot)
        except EngineError as error:
            self._engine.retire(slot, f"the held call could not go on: {error}")
            return
        if slot in self._away_again:
            self._away_again.discard(slot)
            self._engine.stand_still_again(slot)
            self._later(slot, self._options.after_s, self._begin_to_park)

    def _give_up(self, slot: RowSlot) -> None:
        self._returning.remove(slot)
        self._engine.retire(slot, f"no slot came free within {self._options.patience_s:.0f} s after the hold")

    def _later(self, slot: RowSlot, delay_s: float, act: Callable[[RowSlot], None]) -> None:
        def run() -> None:
            del self._timers[slot]
            act(slot)

        self._timers[slot] = asyncio.get_running_loop().call_later(delay_s, run)

    def _stop_timer(self, slot: RowSlot) -> None:
        timer = self._timers.pop(slot, None)
        if timer is not None:
            timer.cancel()

    def _start(
        self, tasks: dict[RowSlot, asyncio.Task[None]], slot: RowSlot, doing: Coroutine[Any, Any, None]
    ) -> None:
        task = tasks[slot] = asyncio.get_running_loop().create_task(doing)

        def finished(task: asyncio.Task[None]) -> None:
            if tasks.get(slot) is task:
                del tasks[slot]
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("parking a held call failed", exc_info=error)

        task.add_done_callback(finished)


def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
