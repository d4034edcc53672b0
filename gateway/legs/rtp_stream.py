"""RtpStream: one Opus stream of a WebRTC call, both ways: RTP headers, reception, RTCP reports.

Sans-IO: decrypted packets in, packets to encrypt out, time as an argument. It decodes nothing, orders
nothing and owns no socket. RFC 3550 (RTP, RTCP), RFC 7587 (Opus: clock 48 kHz).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from struct import Struct

from aiortc.rtp import (
    RtcpByePacket,
    RtcpPacket,
    RtcpReceiverInfo,
    RtcpRrPacket,
    RtcpSdesPacket,
    RtcpSenderInfo,
    RtcpSourceInfo,
    RtcpSrPacket,
)

from gateway.media.messages import OpusPacket

CLOCK = 48_000
REPORT_INTERVAL_S = 1.0
_HEADER = Struct("!BBHII")
_NTP_EPOCH = 2_208_988_800
_CNAME = 1


class BadRtp(ValueError):
    """The bytes are no RTP packet (RFC 3550 §5.1)."""


@dataclass(frozen=True, slots=True)
class RtpPacket:
    """A received packet without its header."""

    payload_type: int
    marker: bool
    sequence: int
    timestamp: int
    ssrc: int
    payload: bytes


def parse_rtp(data: bytes) -> RtpPacket:
    """One packet; CSRC list, extension and padding are skipped. Raises BadRtp."""
    if len(data) < 12:
        raise BadRtp("shorter than a header")
    first, second, sequence, timestamp, ssrc = _HEADER.unpack_from(data)
    if first >> 6 != 2:
        raise BadRtp("not version 2")
    start = 12 + 4 * (first & 0x0F)
    if first & 0x10:
        if len(data) < start + 4:
            raise BadRtp("truncated extension")
        start += 4 + 4 * int.from_bytes(data[start + 2 : start + 4], "big")
    end = len(data)
    if first & 0x20:
        if not data[-1]:
            raise BadRtp("padding of no bytes")
        end -= data[-1]
    if start > end:
        raise BadRtp("truncated")
    return RtpPacket(second & 0x7F, bool(second & 0x80), sequence, timestamp, ssrc, data[start:end])


def ntp(wall_s: float) -> int:
    """64-bit NTP timestamp of a time.time() (RFC 3550 §4)."""
    return int((wall_s + _NTP_EPOCH) * (1 << 32))


class Reception:
    """Counts of one received source for receiver reports (RFC 3550 appendices A.3 and A.8)."""

    def __init__(self, ssrc: int, sequence: int) -> None:
        self.ssrc = ssrc
        self.received = 0
        self._base = self._highest = sequence
        self._jitter = 0.0
        self._arrived_at = 0.0
        self._timestamp: int | None = None
        self._expected_before = self._received_before = 0
        self._last_report = 0
        self._last_report_at = 0.0

    @property
    def expected(self) -> int:
        return self._highest - self._base + 1

    @property
    def lost(self) -> int:
        return self.expected - self.received

    def add(self, sequence: int, timestamp: int, now: float) -> None:
        self.received += 1
        step = (sequence - self._highest) & 0xFFFF
        if step < 0x8000:
            self._highest += step
        self._add_jitter(timestamp, now)

    def _add_jitter(self, timestamp: int, now: float) -> None:
        if self._timestamp is not None:
            elapsed = ((timestamp - self._timestamp + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)
            delta = abs((now - self._arrived_at) * CLOCK - elapsed)
            self._jitter += (delta - self._jitter) / 16
        self._timestamp, self._arrived_at = timestamp, now

    def reported(self, ntp_timestamp: int, now: float) -> None:
        """A sender report of this source arrived."""
        self._last_report, self._last_report_at = (ntp_timestamp >> 16) & 0xFFFFFFFF, now

    def info(self, now: float) -> RtcpReceiverInfo:
        """The report block since the last one."""
        expected, received = self.expected - self._expected_before, self.received - self._received_before
        self._expected_before, self._received_before = self.expected, self.received
        fraction = min(255, max(0, expected - received) * 256 // expected) if expected > 0 else 0
        delay = int((now - self._last_report_at) * 65_536) if self._last_report else 0
        return RtcpReceiverInfo(
            ssrc=self.ssrc,
            fraction_lost=fraction,
            packets_lost=max(-(1 << 23), min((1 << 23) - 1, self.lost)),
            highest_sequence=self._highest & 0xFFFFFFFF,
            jitter=min(int(self._jitter), 0xFFFFFFFF),
            lsr=self._last_report,
            dlsr=min(delay, 0xFFFFFFFF),
        )


class RtpStream:
    """What goes out under our SSRC and what comes in under the peer's."""

    def __init__(self, ssrc: int, payload_type: int, cname: str) -> None:
        self.ssrc = ssrc
        self.payload_type = payload_type
        self.cname = cname
        self.reception: Reception | None = None
        self.last_received_at: float | None = None
        self.malformed = self.unknown_payload = 0
        self.packets_sent = self.octets_sent = 0
        self.remote_loss = 0.0
        """Fraction of ours that the peer lost, by its last report."""
        self.round_trip_s: float | None = None
        # Both start at random (RFC 3550 §5.1); the sequence low, so that no wrap comes before the first
        # packets, where it would mislead SRTP's rollover counter (RFC 3711 §3.3.1).
        self._sequence = secrets.randbelow(0x8000)
        self._origin = secrets.randbits(32)
        self._timestamp = self._origin
        self._sent_at = 0.0
        self._report_at = 0.0
        self._sent_before = 0

    def wrap(self, packet: OpusPacket, wall_s: float) -> bytes:
        """The RTP packet to encrypt and send. Our first one begins a talkspurt (RFC 7587 §4.1), whatever went
        before it while there was no path."""
        self._timestamp = (self._origin + packet.timestamp) & 0xFFFFFFFF
        marker = packet.marker or not self.packets_sent
        second = self.payload_type | (0x80 if marker else 0)
        header = _HEADER.pack(0x80, second, self._sequence, self._timestamp, self.ssrc)
        self._sequence = (self._sequence + 1) & 0xFFFF
        self._sent_at = wall_s
        self.packets_sent += 1
        self.octets_sent += len(packet.payload)
        return header + packet.payload

    def receive(self, data: bytes, now: float) -> RtpPacket | None:
        """The packet if it belongs to the call; anything else is counted and None."""
        try:
            packet = parse_rtp(data)
        except BadRtp:
            self.malformed += 1
            return None
        if packet.payload_type != self.payload_type:
            self.unknown_payload += 1
            return None
        if self.reception is None or self.reception.ssrc != packet.ssrc:
            self.reception = Reception(packet.ssrc, packet.sequence)
        self.reception.add(packet.sequence, packet.timestamp, now)
        self.last_received_at = now
        return packet

    def receive_rtcp(self, data: bytes, now: float, wall_s: float) -> bool:
        """Take in a compound packet; True when the peer says goodbye (BYE)."""
        try:
            packets = RtcpPacket.parse(data)
        except Exception:  # noqa: BLE001 - a parser that is not ours; a peer's bytes end nothing
            self.malformed += 1
            return False
        goodbye = False
        for packet in packets:
            if isinstance(packet, RtcpSrPacket) and self.reception and packet.ssrc == self.reception.ssrc:
                self.reception.reported(packet.sender_info.ntp_timestamp, now)
            if isinstance(packet, RtcpSrPacket | RtcpRrPacket):
                for info in packet.reports:
                    self._take_report(info, wall_s)
            goodbye |= isinstance(packet, RtcpByePacket)
        return goodbye

    def _take_report(self, info: RtcpReceiverInfo, wall_s: float) -> None:
        if info.ssrc != self.ssrc:
            return
        self.remote_loss = info.fraction_lost / 256
        if info.lsr:
            # RFC 3550 §6.4.1: A - LSR - DLSR, in units of 1/65,536 s.
            elapsed = ((ntp(wall_s) >> 16) - info.lsr - info.dlsr) & 0xFFFFFFFF
            if elapsed < 0x8000_0000:
                self.round_trip_s = elapsed / 65_536

    def report(self, now: float, wall_s: float) -> bytes | None:
        """The RTCP compound to send if one is due: SR (or RR while nothing was sent) and CNAME."""
        if now < self._report_at or (self.reception is None and not self.packets_sent):
            return None
        # RFC 3550 §6.3.1: spread over [0.5, 1.5] of the interval, so that reports do not fall in step.
        self._report_at = now + REPORT_INTERVAL_S * (0.5 + secrets.randbelow(1000) / 1000)
        blocks = [self.reception.info(now)] if self.reception else []
        first: RtcpSrPacket | RtcpRrPacket = RtcpRrPacket(ssrc=self.ssrc, reports=blocks)
        if self.packets_sent > self._sent_before:
            first = RtcpSrPacket(ssrc=self.ssrc, sender_info=self._sender_info(wall_s), reports=blocks)
        self._sent_before = self.packets_sent
        return bytes(first) + self._cname()

    def goodbye(self) -> bytes:
        """The compound that ends our stream (RFC 3550 §6.6)."""
        return bytes(RtcpRrPacket(ssrc=self.ssrc)) + self._cname() + bytes(RtcpByePacket(sources=[self.ssrc]))

    def _sender_info(self, wall_s: float) -> RtcpSenderInfo:
        elapsed = int((wall_s - self._sent_at) * CLOCK)
        return RtcpSenderInfo(
            ntp_timestamp=ntp(wall_s),
            rtp_timestamp=(self._timestamp + elapsed) & 0xFFFFFFFF,
            packet_count=self.packets_sent & 0xFFFFFFFF,
            octet_count=self.octets_sent & 0xFFFFFFFF,
        )

    def _cname(self) -> bytes:
        return bytes(RtcpSdesPacket([RtcpSourceInfo(self.ssrc, [(_CNAME, self.cname.encode())])]))
