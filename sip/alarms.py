"""Alarms: what is to happen when, in one heap, without a clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable

Ring = Callable[[float], None]


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

    def set(self, at: float, ring: Ring) -> Alarm:
        alarm = Alarm(at, ring)
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, alarm))
        return alarm

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
