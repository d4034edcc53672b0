"""MediaClock: the thread that ticks a MediaPlane every 20 ms of the monotonic clock, without drift.

Ticks lie at multiples of 20 ms of time.monotonic(), so every fourth falls on a multiple of 80 ms: the
engine's tick follows it by a few ms and finds a whole frame. It decides nothing about audio.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.media.plane import MediaPlane


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
    fifo: bool = False
    """The thread runs under SCHED_FIFO."""


class MediaClock:
    """The thread around one plane."""

    def __init__(self, plane: MediaPlane) -> None:
        self.plane = plane

    def start(self) -> None:
        """Start ticking. SCHED_FIFO where the system permits, without a word where it does not."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop after the tick in progress and join the thread. Idempotent."""
        raise NotImplementedError

    def lateness(self) -> Lateness:
        raise NotImplementedError
