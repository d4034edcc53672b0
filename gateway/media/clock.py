"""MediaClock: ticks a MediaPlane every 20 ms of the monotonic clock, without drift, on a thread.

Ticks lie at multiples of 20 ms of time.monotonic(), so every fourth falls on a multiple of 80 ms: the
engine's tick follows it by a few ms and finds a whole frame. It decides nothing about audio.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gateway.media.row_audio import TICK_S

log = logging.getLogger(__name__)

MOST_BEHIND = 5
"""Ticks made up for when the machine stood still; more are skipped."""
_KEPT = 500
_PRIORITY = 10


@dataclass(frozen=True, slots=True)
class Lateness:
    """How late ticks began, over the last 10 s."""

    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    work_p99_ms: float = 0.0
    """What a tick took."""
    skipped: int = 0
    """Ticks never run because the machine stood still for more than 100 ms, since start()."""
    failed: int = 0
    """Ticks that ended in an error of ours (logged), since start()."""
    fifo: bool = False
    """The thread runs under SCHED_FIFO."""


class Ticked(Protocol):
    def tick(self, now: float) -> None: ...


class MediaClock:
    """The thread around one plane."""

    def __init__(self, plane: Ticked) -> None:
        self.plane = plane
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._late = np.zeros((2, _KEPT))
        self._ticks = self._skipped = self._failed = 0
        self._fifo = False

    def start(self) -> None:
        """Start ticking. SCHED_FIFO where the system permits, without a word where it does not."""
        if self._thread is not None:
            return
        self._stopping.clear()
        self._thread = threading.Thread(target=self.run, name="media", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop after the tick in progress and join the thread. Idempotent."""
        self.end()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def lateness(self) -> Lateness:
        """The last 10 s."""
        count = min(self._ticks, _KEPT)
        if not count:
            return Lateness(fifo=self._fifo)
        late, work = self._late[:, :count] * 1000
        p50, p99 = np.percentile(late, (50, 99))
        work_p99 = float(np.percentile(work, 99))
        counts = self._skipped, self._failed, self._fifo
        return Lateness(float(p50), float(p99), float(late.max()), work_p99, *counts)

    def end(self) -> None:
        """Let run() return after the tick in progress."""
        self._stopping.set()

    def run(self) -> None:
        """Tick on this thread until end()."""
        self._fifo = _ask_for_fifo()
        due = int(time.monotonic() / TICK_S) + 1
        while not self._stopping.is_set():
            wait = due * TICK_S - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            began = time.monotonic()
            self._tick(due * TICK_S)
            self._note(began - due * TICK_S, time.monotonic() - began)
            due = self._next(due + 1)

    def _tick(self, now: float) -> None:
        try:
            self.plane.tick(now)
        except Exception:
            self._failed += 1
            log.exception("a media tick failed")

    def _next(self, due: int) -> int:
        newest = int(time.monotonic() / TICK_S)
        if newest - due < MOST_BEHIND:
            return due
        self._skipped += newest - due
        return newest

    def _note(self, late: float, work: float) -> None:
        self._late[:, self._ticks % _KEPT] = late, work
        self._ticks += 1
        self._after(self._ticks)

    def _after(self, ticks: int) -> None:
        """So many ticks were run."""


def _ask_for_fifo() -> bool:
    try:
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_FIFO, os.sched_param(_PRIORITY))
    except (OSError, AttributeError):
        return False
    return True
