"""Keys: digits pressed on one phone leg, told once each when they end, or 100 ms after they fell silent."""

from __future__ import annotations

from sip.dtmf import DigitEnded, DigitStarted, DtmfReceiver
from sip.rtp import MalformedRtp

SILENT_S = 0.1


class Keys:
    """One leg's telephone-events (RFC 4733), by sip.dtmf; time is the caller's."""

    def __init__(self, clock: int) -> None:
        self.clock = clock
        """Hz in which the peer tells durations."""
        self._receiver = DtmfReceiver()
        self._last: float | None = None

    def receive(self, timestamp: int, payload: bytes, marker: bool, now: float) -> list[tuple[str, int]]:
        """(digit, milliseconds) that ended with this packet. Raises MalformedRtp."""
        self._last = now
        return self._ended(self._receiver.receive(timestamp, payload, marker))

    @property
    def pressed(self) -> bool:
        """A key may wait for its end."""
        return self._last is not None

    def expire(self, now: float) -> list[tuple[str, int]]:
        """A key whose end never came."""
        if self._last is None or now - self._last < SILENT_S:
            return []
        self._last = None
        return self._ended(self._receiver.flush())

    def _ended(self, told: list[DigitStarted | DigitEnded]) -> list[tuple[str, int]]:
        ended = [event for event in told if isinstance(event, DigitEnded)]
        return [(event.digit, event.duration * 1000 // self.clock) for event in ended]


__all__ = ["Keys", "MalformedRtp"]
