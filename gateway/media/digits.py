"""Digits: the keys pressed on one phone leg, each once, out of its telephone-events (RFC 4733 §2.5).

An event's packets share a timestamp and repeat: the first tells of the key, the one with the end bit of its
length. If no end comes, the next key or 100 ms of silence ends it.
"""

from __future__ import annotations

from dataclasses import dataclass

KEYS = "0123456789*#ABCD"
SILENT_S = 0.1


@dataclass(slots=True)
class _Key:
    timestamp: int
    digit: str
    duration: int
    last: float
    told: bool


class Digits:
    """One leg's keys; time is the caller's."""

    def __init__(self, clock: int = 8_000) -> None:
        self._clock = clock
        self._key: _Key | None = None

    def receive(self, timestamp: int, payload: bytes, now: float) -> list[tuple[str, int]]:
        """Keys that ended with this packet: (digit, milliseconds). What is no key gives nothing."""
        if len(payload) < 4 or payload[0] >= len(KEYS):
            return []
        ended: list[tuple[str, int]] = []
        key = self._key
        if key is None or timestamp != key.timestamp:
            ended = self._end()
            self._key = key = _Key(timestamp, KEYS[payload[0]], 0, now, False)
        key.last = now
        key.duration = max(key.duration, payload[2] << 8 | payload[3])
        if payload[1] & 0x80:
            ended += self._end()
        return ended

    def expire(self, now: float) -> list[tuple[str, int]]:
        """A key whose end never came."""
        if self._key is None or now - self._key.last < SILENT_S:
            return []
        return self._end()

    def _end(self) -> list[tuple[str, int]]:
        key = self._key
        if key is None or key.told:
            return []
        key.told = True
        return [(key.digit, key.duration * 1000 // self._clock)]
