"""Alarms: what is to happen when, in one heap, without a clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable

Ring = Callable[[float], None]
ROOMY = 256
"""So few entries are never swept."""


class Alarm:
    """One thing due at a time; cancel() makes it never happen."""

    __slots__ = ("at", "ring")

    def __init__(self, at: float, ring: Ring) -> None:
        self.at = at
        self.ring: Ring | None = ring

    def cancel(self) -> None:
        self.ring = None  # the entry stays in the heap, what it would have called may go


class Alarms:
    """A heap of Alarm. run_due() rings what is due, in order of time, and passes the time on."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Alarm]] = []
        self._count = 0
        self._roomy = ROOMY
        """At this many entries the cancelled ones are thrown out."""

    def set(self, at: float, ring: Ring) -> Alarm:
        if len(self._heap) >= self._roomy:
            self._sweep()
        alarm = Alarm(at, ring)
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, alarm))
        return alarm

    def _sweep(self) -> None:
        """A call's session timer lies half an hour ahead; thousands of calls that are over must not wait for
        theirs. Each sweep halves the heap or makes room for twice as many: a constant cost an alarm."""
        self._heap = [entry for entry in self._heap if entry[2].ring is not None]
        heapq.heapify(self._heap)
        self._roomy = max(ROOMY, 2 * len(self._heap))

    def next_at(self) -> float | None:
        """When the earliest live alarm is due."""
        while self._heap and self._heap[0][2].ring is None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def run_due(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now:
            alarm = heapq.heappop(self._heap)[2]
            ring, alarm.ring = alarm.ring, None
            if ring is not None:
                ring(now)

    def __len__(self) -> int:
        """Live alarms, for tests that look for leaks."""
        return sum(alarm.ring is not None for _, _, alarm in self._heap)
