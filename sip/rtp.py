"""RTP packets (RFC 3550 §5): bytes to fields and back, and sequence numbers that do not wrap."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sip.errors import PeerError

_FIXED = struct.Struct("!BBHII")
HEADER_BYTES = _FIXED.size


class MalformedRtp(PeerError):
    """Not an RTP or RTCP packet."""


@dataclass(frozen=True, slots=True)
class RtpPacket:
    payload_type: int
    """0 to 127."""
    sequence: int
    """16 bits."""
    timestamp: int
    """32 bits, in units of the payload's clock."""
    ssrc: int
    payload: bytes = b""
    marker: bool = False
    csrc: tuple[int, ...] = ()
    """Up to 15 contributing sources."""
    extension: tuple[int, bytes] | None = None
    """(profile, data); data is a whole number of 32-bit words (§5.3.1)."""
    padding: int = 0
    """Bytes of padding after the payload, the count included."""

    def to_bytes(self) -> bytes:
        """Raises struct.error for a field out of range, ValueError for an extension of odd length."""
        first = 0x80 | len(self.csrc)
        tail = b""
        if self.padding:
            first |= 0x20
            tail = bytes(self.padding - 1) + bytes([self.padding])
        extension = b""
        if self.extension is not None:
            profile, data = self.extension
            if len(data) % 4:
                raise ValueError("an RTP extension is whole words")
            first |= 0x10
            extension = struct.pack("!HH", profile, len(data) // 4) + data
        second = self.payload_type | (0x80 if self.marker else 0)
        head = _FIXED.pack(first, second, self.sequence, self.timestamp, self.ssrc)
        return b"".join([head, struct.pack(f"!{len(self.csrc)}I", *self.csrc), extension, self.payload, tail])


def parse_rtp(data: bytes) -> RtpPacket:
    """Raises MalformedRtp and nothing else."""
    if len(data) < HEADER_BYTES or data[0] >> 6 != 2:
        raise MalformedRtp("not RTP version 2")
    first, second, sequence, timestamp, ssrc = _FIXED.unpack_from(data)
    at = HEADER_BYTES + 4 * (first & 0x0F)
    if len(data) < at:
        raise MalformedRtp("CSRC list is cut")
    csrc = struct.unpack_from(f"!{first & 0x0F}I", data, HEADER_BYTES)
    extension = None
    if first & 0x10:
        if len(data) < at + 4:
            raise MalformedRtp("extension is cut")
        profile, words = struct.unpack_from("!HH", data, at)
        end = at + 4 + 4 * words
        if len(data) < end:
            raise MalformedRtp("extension is cut")
        extension, at = (profile, data[at + 4 : end]), end
    padding = data[-1] if first & 0x20 else 0
    if first & 0x20 and not 0 < padding <= len(data) - at:
        raise MalformedRtp("bad padding")
    payload = data[at : len(data) - padding]
    return RtpPacket(
        second & 0x7F, sequence, timestamp, ssrc, payload, bool(second & 0x80), csrc, extension, padding
    )


def is_rtcp(data: bytes) -> bool:
    """Which of the two a packet on a shared port is (RFC 5761 §4)."""
    return len(data) >= 2 and 192 <= data[1] <= 223


class SequenceUnwrapper:
    """16-bit sequence numbers to integers that go on growing; the nearest reading is taken."""

    def __init__(self) -> None:
        self._last: int | None = None

    def unwrap(self, sequence: int) -> int:
        if self._last is None:
            self._last = sequence
            return sequence
        step = (sequence - self._last + 0x8000) % 0x10000 - 0x8000
        value = self._last + step
        self._last = max(self._last, value)
        return value
