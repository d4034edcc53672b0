"""OpusPort: where a WebRTC leg delivers decrypted packets, on its own thread, for the next tick."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

MOST_WAITING = 64
"""Packets between two ticks: more than a second of audio; the oldest are dropped."""


class OpusArrival(NamedTuple):
    sequence: int
    timestamp: int
    payload: bytes
    now: float


class OpusPort:
    """Bounded, drops the oldest; any thread may deliver, the media thread takes."""

    def __init__(self, call: int) -> None:
        self.call = call
        """Stands in every event of this call."""
        self._waiting: deque[OpusArrival] = deque(maxlen=MOST_WAITING)

    def receive(self, sequence: int, timestamp: int, payload: bytes, marker: bool, now: float) -> None:
        """One RTP packet without its header; `now` is time.monotonic() of its arrival."""
        self.put(OpusArrival(sequence & 0xFFFF, timestamp & 0xFFFF_FFFF, payload, now))

    def put(self, arrival: OpusArrival) -> None:
        """The same, already put together."""
        self._waiting.append(arrival)

    def take(self) -> list[OpusArrival]:
        """What came since the last call, oldest first."""
        taken: list[OpusArrival] = []
        while self._waiting:
            taken.append(self._waiting.popleft())
        return taken
