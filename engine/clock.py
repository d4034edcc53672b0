"""The absolute 80 ms frame clock: which tick is due now, and what a late one does.

Sans-IO: `now` (seconds of a monotonic clock) is an argument, nothing sleeps here. Deadlines are
phase + k · period for whole k, so two clocks of one phase tick together for ever, whatever each missed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.api import TICK_S

LATE_S = 0.010
"""A tick that begins later than this after its deadline is counted as late."""


@dataclass(frozen=True, slots=True)
class Tick:
    """One step to run now."""

    deadline: float
    """When it should have begun."""
    behind: int
    """Further ticks that are due already: 0, or 1 when this one and the next run back to back."""
    skipped: int
    """Ticks given up just before this one; their frames of input are dropped."""


class FrameClock:
    """Says when the next tick is due, and lets a late engine catch up once before it drops a frame.

    lead_s: how early before a deadline the frame for it may have been written. Within it the next
    tick counts as due, so that a late tick does not take its successor's frame for a backlog.
    """

    def __init__(self, phase: float = 0.0, period: float = TICK_S, lead_s: float = 0.010) -> None:
        self.phase = phase
        self.period = period
        self._lead = lead_s
        self.deadline = math.inf
        """When the next tick is due; infinite before begin()."""
        self.late_ticks = 0
        self.skipped_ticks = 0
        self._chasing = False

    def begin(self, now: float) -> None:
        """Arm the clock for the first deadline after now."""
        whole = math.floor((now - self.phase) / self.period) + 1
        self.deadline = self.phase + whole * self.period
        self._chasing = False

    def until_next(self, now: float) -> float:
        """Seconds to the first deadline of this phase after now, begun or not."""
        return self.period - (now - self.phase) % self.period

    def rephase(self, phase: float, now: float) -> None:
        """Tick at another phase from now on."""
        self.phase = phase
        self.begin(now)

    def take(self, now: float) -> Tick | None:
        """The tick to run now, or None before its deadline."""
        if now < self.deadline:
            return None
        self.late_ticks += now - self.deadline > LATE_S
        due = math.floor((now + self._lead - self.deadline) / self.period)
        behind = min(due, 0 if self._chasing else 1)
        skipped = due - behind
        self._chasing = behind > 0
        self.skipped_ticks += skipped
        tick = Tick(self.deadline + skipped * self.period, behind, skipped)
        self._arm_after(tick.deadline)
        return tick

    def _arm_after(self, deadline: float) -> None:
        # From the phase and not by adding a period, which would drift by rounding over days.
        whole = round((deadline - self.phase) / self.period) + 1
        self.deadline = self.phase + whole * self.period


class TickTimes:
    """How long the last ticks took: a ring of durations and its percentiles."""

    def __init__(self, size: int = 750) -> None:
        """size: ticks remembered; 750 are one minute."""
        self._seconds: NDArray[np.float64] = np.zeros(size)
        self.count = 0

    def add(self, seconds: float) -> None:
        self._seconds[self.count % len(self._seconds)] = seconds
        self.count += 1

    def percentile_ms(self, percent: float) -> float:
        """0 before the first tick."""
        if not self.count:
            return 0.0
        return 1e3 * float(np.percentile(self._seconds[: self.count], percent))

    def recent_ms(self, percent: float, ticks: int = 125) -> float:
        """Of the last ticks only; 0 while there are fewer."""
        if self.count < ticks:
            return 0.0
        newest = self._seconds[np.arange(self.count - ticks, self.count) % len(self._seconds)]
        return 1e3 * float(np.percentile(newest, percent))
