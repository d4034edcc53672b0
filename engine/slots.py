"""SlotTable: which rows are taken. Pure bookkeeping on the loop's side; no torch, no audio, no clock.

A row is free, open, set aside (its call is parked and needs no slot), or leaving: closed by its caller while
the tick thread may still write to it.
"""

from __future__ import annotations

from enum import IntEnum

from engine.api import EngineError, EngineFull


class RowState(IntEnum):
    FREE = 0
    OPEN = 1
    LEAVING = 2
    ASIDE = 3


class SlotTable:
    """Gives out rows up to a limit that may be lower than their number."""

    def __init__(self, count: int, limit: int | None = None) -> None:
        """limit: calls at once, at most `count`."""
        self._state = [RowState.FREE] * count
        self.limit = count if limit is None else min(limit, count)

    @property
    def count(self) -> int:
        return len(self._state)

    @property
    def open(self) -> int:
        return self._state.count(RowState.OPEN)

    @property
    def leaving(self) -> int:
        return self._state.count(RowState.LEAVING)

    def state(self, row: int) -> RowState:
        return self._state[row]

    def take(self, row: int | None, retry_after_s: float) -> int | None:
        """A free row, or None while the wanted (or every) row is leaving and a tick will free it.

        Raises EngineFull, and EngineError for a row that is taken or does not exist.
        """
        if row is not None and not 0 <= row < self.count:
            raise EngineError(f"row {row} does not exist: the engine has {self.count}")
        if row is not None and self._state[row] in (RowState.OPEN, RowState.ASIDE):
            raise EngineError(f"row {row} is taken")
        if self.open >= self.limit:
            raise EngineFull(f"all {self.limit} slots are taken", retry_after_s)
        chosen = self._free_row() if row is None else row
        if chosen is None or self._state[chosen] is RowState.LEAVING:
            return None
        self._state[chosen] = RowState.OPEN
        return chosen

    def _free_row(self) -> int | None:
        return next((r for r, state in enumerate(self._state) if state is RowState.FREE), None)

    def set_aside(self, row: int) -> None:
        """An open row keeps its caller and counts no more."""
        self._state[row] = RowState.ASIDE

    def call_in(self, row: int) -> None:
        """A row set aside counts again; the caller looked that there is room."""
        self._state[row] = RowState.OPEN

    def leave(self, row: int) -> None:
        """The caller closed it; the row comes back with free()."""
        self._state[row] = RowState.LEAVING

    def free(self, row: int) -> None:
        """The tick thread has let go of the row."""
        self._state[row] = RowState.FREE
