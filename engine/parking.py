"""Parking: a call's way out of the engine and back, a step of it before each tick.

One call is on its way at a time, so that a tick copies one load of pages whoever asks. The loop's side waits
on `answer`; everything else is the tick thread's. It knows no tensors: what moves them is a Departure or an
Arrival of the runner.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol, TypeVar

from engine.api import EngineError
from engine.slot import RowSlot

if TYPE_CHECKING:
    from engine.passage import Arrival, Departure
    from engine.snapshot import SlotSnapshot

Answer = TypeVar("Answer")

NOTHING_TO_PARK = "the call has not begun or has ended: there is nothing to park"


class Ticking(Protocol):
    """What it asks of the tick engine."""

    def has(self, slot: RowSlot) -> bool: ...

    def steps(self, slot: RowSlot) -> bool: ...

    def take_in(self, slot: RowSlot, silent: bool) -> None: ...

    def stand_still(self, slot: RowSlot) -> None: ...

    def go_on(self, slot: RowSlot) -> None: ...


class Move(Protocol):
    def advance(self) -> bool:
        """Before a tick. True: it is over, and `answer` tells how."""
        ...


class Leaving:
    """Out: the call goes on until its last load, and stands still from then on."""

    def __init__(self, engine: Ticking, slot: RowSlot, depart: Callable[[int], Departure]) -> None:
        """depart: begins on the row given. Raises EngineError where there is nothing to park."""
        self.answer: Future[SlotSnapshot] = Future()
        self._engine, self._slot, self._depart = engine, slot, depart
        self._departure: Departure | None = None
        self._last = self._stopped = False

    def advance(self) -> bool:
        if self.answer.done():
            self.give_up()
            return True
        try:
            snapshot = self._next()
        except (EngineError, RuntimeError, MemoryError) as error:
            self.give_up()
            _fail(self.answer, error)
            return True
        if snapshot is None:
            return False
        _succeed(self.answer, snapshot)
        return True

    def _next(self) -> SlotSnapshot | None:
        engine, slot = self._engine, self._slot
        if not engine.has(slot):
            raise EngineError(NOTHING_TO_PARK)
        if self._departure is None:
            self._departure = self._depart(slot.row)
        if self._last and engine.steps(slot):
            raise EngineError("the call was released while it was being parked")
        if not self._last and self._departure.advance():
            self._last, self._stopped = True, engine.steps(slot)
            engine.stand_still(slot)
            self._departure.finish()
        return self._departure.snapshot()

    def give_up(self) -> None:
        """The call stays, and steps again if it did before."""
        if self._stopped:
            self._stopped = False
            self._engine.go_on(self._slot)


class Coming:
    """In: the slot has its row and its pages, and steps when these are filled."""

    def __init__(
        self, engine: Ticking, slot: RowSlot, arrive: Callable[[int], Arrival], silent: bool
    ) -> None:
        """arrive: begins on the row given, or raises EngineError. silent: until release()."""
        self.answer: Future[None] = Future()
        self._engine, self._slot, self._arrive, self._silent = engine, slot, arrive, silent
        self._arrival: Arrival | None = None

    def advance(self) -> bool:
        """Who waits for the answer closes the slot when it is an error."""
        if self.answer.done():
            return True
        try:
            seated = self._next()
        except (EngineError, RuntimeError, MemoryError) as error:
            _fail(self.answer, error)
            return True
        if seated:
            self._engine.go_on(self._slot)
            _succeed(self.answer, None)
        return seated

    def _next(self) -> bool:
        if self._arrival is None:
            self._arrival = self._arrive(self._slot.row)
            self._engine.take_in(self._slot, self._silent)
        if not self._engine.has(self._slot):
            raise EngineError("the slot was closed before the call was back")
        return self._arrival.advance()


class Moves:
    """The calls on their way, first come, first served."""

    def __init__(self) -> None:
        self._moves: deque[Move] = deque()

    def add(self, move: Move) -> None:
        self._moves.append(move)

    def advance(self) -> None:
        if self._moves and self._moves[0].advance():
            self._moves.popleft()

    def clear(self) -> None:
        self._moves.clear()


def _succeed(answer: Future[Answer], value: Answer) -> None:
    if answer.set_running_or_notify_cancel():
        answer.set_result(value)


def _fail(answer: Future[Answer], error: Exception) -> None:
    if not isinstance(error, EngineError):  # no memory on the host, for one
        error = EngineError(f"the call could not be copied: {error}")
    if answer.set_running_or_notify_cancel():
        answer.set_exception(error)
