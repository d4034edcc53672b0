"""Digits as telephone-events in RTP (RFC 4733): each heard once however many of its packets are lost."""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

from sip.rtp import MalformedRtp

DIGITS = "0123456789*#ABCD!"
"""By event code; 16 is the hook flash."""
_EVENT = struct.Struct("!BBH")
_LONGEST = 0xFFFF
END_REPEATS = 3
"""How often the packet that ends a digit is sent (§2.5.1.4)."""


@dataclass(frozen=True, slots=True)
class TelephoneEvent:
    """One packet's payload."""

    digit: str
    end: bool
    volume: int
    """Power in -dBm0, 0 to 63."""
    duration: int
    """In timestamp units since the digit began, 16 bits."""

    def to_bytes(self) -> bytes:
        return _EVENT.pack(DIGITS.index(self.digit), (0x80 if self.end else 0) | self.volume, self.duration)


def parse_event(payload: bytes) -> TelephoneEvent | None:
    """The first event of a payload, None for a tone that is no digit. Raises MalformedRtp."""
    if len(payload) < _EVENT.size:
        raise MalformedRtp("telephone-event is cut")
    code, flags, duration = _EVENT.unpack_from(payload)
    if code >= len(DIGITS):
        return None
    return TelephoneEvent(DIGITS[code], bool(flags & 0x80), flags & 0x3F, duration)


@dataclass(frozen=True, slots=True)
class DigitStarted:
    digit: str


@dataclass(frozen=True, slots=True)
class DigitEnded:
    digit: str
    duration: int
    """In timestamp units: the longest that any packet told."""


class DtmfReceiver:
    """Packets of one stream in, digits out. A digit is the same as long as its timestamp is, so repeats,
    losses and late packets make no second one; a digit whose end was lost ends with the next one."""

    def __init__(self) -> None:
        self._current: tuple[int, str] | None = None
        self._duration = 0
        self._offset = 0
        self._done: deque[int] = deque(maxlen=16)

    def receive(
        self, timestamp: int, payload: bytes, marker: bool = False
    ) -> list[DigitStarted | DigitEnded]:
        """What this packet tells. Raises MalformedRtp."""
        event = parse_event(payload)
        if event is None or timestamp in self._done:
            return []
        told: list[DigitStarted | DigitEnded] = []
        if self._current is None or self._current != (timestamp, event.digit):
            if self._continues(timestamp, event.digit, marker):
                self._offset += _LONGEST
            else:
                told += self.flush()
                told.append(DigitStarted(event.digit))
                self._offset = self._duration = 0
            self._current = (timestamp, event.digit)
        self._duration = max(self._duration, self._offset + event.duration)
        return told + self.flush() if event.end else told

    def _continues(self, timestamp: int, digit: str, marker: bool) -> bool:
        """A digit longer than 16 bits of duration goes on in a new segment (§2.5.1.3)."""
        if self._current is None or marker or self._current[1] != digit:
            return False
        return (timestamp - self._current[0]) & 0xFFFFFFFF == _LONGEST

    def flush(self) -> list[DigitStarted | DigitEnded]:
        """End the digit that is still down: call it when the stream has been without events for long."""
        if self._current is None:
            return []
        timestamp, digit = self._current
        self._current = None
        self._done.append(timestamp)
        return [DigitEnded(digit, self._duration)]


@dataclass(frozen=True, slots=True)
class EventPacket:
    """One packet of a digit to send: all of a digit bear the timestamp of its start."""

    payload: bytes
    marker: bool


def event_packets(digit: str, duration_ms: int, rate: int = 8_000, ptime_ms: int = 20) -> list[EventPacket]:
    """A digit as packets, one every ptime; the last, with the end bit, stands three times.

    Raises ValueError for what is no digit, or a duration over 8 s at 8 kHz.
    """
    if len(digit) != 1 or digit.upper() not in DIGITS:
        raise ValueError("not a DTMF digit")
    step = rate * ptime_ms // 1_000
    count = max(2, -(-duration_ms // ptime_ms))
    if count * step > _LONGEST:
        raise ValueError("too long a digit")
    packets = []
    for at in range(1, count + 1):
        event = TelephoneEvent(digit.upper(), at == count, 10, at * step)
        packets.append(EventPacket(event.to_bytes(), at == 1))
    return packets + [packets[-1]] * (END_REPEATS - 1)
