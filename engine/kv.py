"""PagedCache: which page of keys and values holds which frames of which slot. Bookkeeping, no arithmetic.

Pages of 64 frames come from one pool and are counted by reference, so calls of one persona share the pages
of its prompt. A slot's table is a ring of columns: frame f stands in column (f // 64) mod columns, and a
call of any length holds a window of pages. Page 0 is never given out: unused entries point to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from engine.api import EngineError

PAGE = 64
"""Frames a page."""


class OutOfPages(EngineError):
    """The pool cannot serve what was asked: close a slot, or shrink a long call's window."""

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(f"{needed} pages of {PAGE} frames are needed and {free} are free")
        self.needed, self.free = needed, free


@dataclass(frozen=True, slots=True)
class PageUse:
    """Pages of the KV cache (64 frames of one slot each)."""

    total: int
    used: int

    @property
    def free(self) -> int:
        return self.total - self.used


def columns_for(context: int, history: int) -> int:
    """Table columns that hold a window of `context` frames and `history` more to rewind into."""
    return (context + history - 2) // PAGE + 2


class PagedCache:
    """Host side: tables and counts as numpy arrays. Device side: `tables`, a copy of the tables."""

    def __init__(self, pages: int, slots: int, context: int, history: int, device: torch.device) -> None:
        self.context, self.history = context, history
        self.columns = columns_for(context, history)
        self.total = pages
        self.frames = np.zeros(slots, np.int64)
        """Frames each slot holds or has let go: the number of its next frame."""
        self.window = np.full(slots, context, np.int64)
        """Frames each slot may look back on."""
        self._table = np.zeros((slots + 1, self.columns), np.int64)
        self._first = np.zeros(slots, np.int64)  # oldest page number a slot still holds
        self._count = np.zeros(pages + 1, np.int32)
        self._free = list(range(pages, 0, -1))
        self._touched: list[tuple[int, int]] = []
        self.tables = torch.zeros(slots + 1, self.columns, dtype=torch.int64, device=device)

    @property
    def use(self) -> PageUse:
        return PageUse(self.total, self.total - len(self._free))

    def slot_pages(self, slot: int) -> int:
        return int(np.count_nonzero(self._table[slot]))

    def reserve(self, slots: NDArray[np.int64], frames: int = 1) -> None:
        """Make sure the next `frames` (at most 64) of each slot have a page.

        Raises OutOfPages before anything changed.
        """
        last = (self.frames[slots] + frames - 1) // PAGE
        crossing = np.flatnonzero(last > (self.frames[slots] - 1) // PAGE)
        if not len(crossing):
            return
        for i in crossing:
            self._let_go(int(slots[i]), int(self.frames[slots[i]]) + frames - 1)
        growing = [
            (int(slots[i]), int(last[i]))
            for i in crossing
            if not self._table[slots[i], last[i] % self.columns]
        ]
        if len(growing) > len(self._free):
            raise OutOfPages(len(growing), len(self._free))
        for slot, page in growing:
            self._point(slot, page, self._new())

    def advance(self, slots: NDArray[np.int64], frames: int = 1) -> None:
        self.frames[slots] += frames

    def rewind(self, slot: int, frames: int) -> None:
        """Forget the newest frames; their pages stay with the slot and are written again."""
        newest, kept = self._held(slot), (self.frames[slot] - frames - 1) // PAGE
        self.frames[slot] -= frames
        for page in range(int(kept) + 1, newest + 1):
            self._drop(slot, page)

    def clear(self, slot: int) -> None:
        """Give back every page of a slot and start it at frame 0."""
        for column in np.flatnonzero(self._table[slot]):
            self._release(int(self._table[slot, column]))
            self._table[slot, column] = 0
            self._touched.append((slot, int(column)))
        self.frames[slot] = 0
        self._first[slot] = 0
        self.window[slot] = self.context

    def shrink(self, slot: int, pages: int) -> int:
        """Look back less, so that the slot holds at most `pages` (2 or more). Returns pages let go."""
        pages = max(2, pages)
        before = self.slot_pages(slot)
        self.window[slot] = min(self.window[slot], max(1, (pages - 1) * PAGE - self.history + 1))
        self._let_go(slot, int(self.frames[slot]))
        return before - self.slot_pages(slot)

    def forecast(self, slots: NDArray[np.int64], frames: int) -> int:
        """Pages those slots need beyond today's if each runs `frames` more."""
        held = np.count_nonzero(self._table[slots], axis=1)
        span = np.minimum(self.frames[slots] + frames, self.window[slots] + self.history)
        after = np.minimum(-(-span // PAGE) + (self.frames[slots] + frames > span), self.columns)
        return int(np.maximum(0, after - held).sum())

    def pages_of(self, slot: int) -> list[tuple[int, int]]:
        """(page number in the call, page of the pool), oldest first."""
        held = range(int(self._first[slot]), self._held(slot) + 1)
        return [(page, int(self._table[slot, page % self.columns])) for page in held]

    def borrow(self, page: int) -> None:
        """Count one more holder of a page."""
        self._count[page] += 1

    def give_back(self, page: int) -> None:
        self._release(page)

    def take(self, count: int) -> list[int]:
        """Fresh pages with one holder each. Raises OutOfPages."""
        if count > len(self._free):
            raise OutOfPages(count, len(self._free))
        return [self._new() for _ in range(count)]

    def install(
        self, slot: int, pages: list[tuple[int, int]], frames: int, window: int | None = None
    ) -> None:
        """Give a cleared slot pages it then holds (counts are not touched), as (number in call, page)."""
        for number, page in pages:
            self._point(slot, number, page)
        self.frames[slot] = frames
        self._first[slot] = pages[0][0] if pages else 0
        self.window[slot] = self.context if window is None else window

    def push(self) -> None:
        """Bring the device's tables up to date; nothing to do in most ticks."""
        if not self._touched:
            return
        where = np.array(self._touched, np.int64)
        self._touched.clear()
        values = torch.from_numpy(self._table[where[:, 0], where[:, 1]]).to(
            self.tables.device, non_blocking=True
        )
        index = torch.from_numpy(where).to(self.tables.device, non_blocking=True)
        self.tables[index[:, 0], index[:, 1]] = values

    def _held(self, slot: int) -> int:
        """Number of the newest page a slot holds, -1 where none."""
        return int((self.frames[slot] - 1) // PAGE)

    def _let_go(self, slot: int, newest: int) -> None:
        """Drop pages that neither frame `newest` nor one `history` before it looks back on."""
        oldest = max(0, newest - self.history - int(self.window[slot]) + 1) // PAGE
        for page in range(int(self._first[slot]), oldest):
            self._drop(slot, page)
        self._first[slot] = max(int(self._first[slot]), oldest)

    def _drop(self, slot: int, page: int) -> None:
        column = page % self.columns
        if self._table[slot, column]:
            self._release(int(self._table[slot, column]))
            self._point(slot, page, 0)

    def _point(self, slot: int, number: int, page: int) -> None:
        self._table[slot, number % self.columns] = page
        self._touched.append((slot, number % self.columns))

    def _new(self) -> int:
        page = self._free.pop()
        self._count[page] = 1
        return page

    def _release(self, page: int) -> None:
        self._count[page] -= 1
        if self._count[page] == 0:
            self._free.append(page)
