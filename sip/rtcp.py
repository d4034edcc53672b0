"""RTCP compound packets: sender and receiver reports, SDES, BYE (RFC 3550 §6)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sip.rtp import MalformedRtp

SR, RR, SDES, BYE = 200, 201, 202, 203
NTP_EPOCH = 2_208_988_800
"""Seconds from 1900 to 1970."""
_REPORT = struct.Struct("!IIIIII")
_SENDER = struct.Struct("!IIIIII")
_CNAME = 1
MAX_PACKETS = 32


@dataclass(frozen=True, slots=True)
class ReportBlock:
    """What one receiver says of one source."""

    ssrc: int
    fraction_lost: int
    """Since the report before, in 1/256."""
    lost: int
    """In all; signed 24 bits, negative when there were duplicates."""
    highest_sequence: int
    """Cycles in the upper 16 bits."""
    jitter: int
    """In timestamp units."""
    last_sr: int = 0
    """Middle 32 bits of the NTP time of the last SR; 0 for none."""
    delay_since_sr: int = 0
    """In 1/65536 s."""


@dataclass(frozen=True, slots=True)
class SenderReport:
    ssrc: int
    ntp: int
    """64 bits: seconds since 1900 and fraction."""
    rtp_timestamp: int
    packets: int
    octets: int
    reports: tuple[ReportBlock, ...] = ()


@dataclass(frozen=True, slots=True)
class ReceiverReport:
    ssrc: int
    reports: tuple[ReportBlock, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceDescription:
    ssrc: int
    cname: str


@dataclass(frozen=True, slots=True)
class Goodbye:
    sources: tuple[int, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class OtherRtcp:
    """A packet type that we only pass by: APP, feedback, XR."""

    packet_type: int
    count: int
    body: bytes


RtcpPacket = SenderReport | ReceiverReport | SourceDescription | Goodbye | OtherRtcp


def parse_rtcp(data: bytes) -> list[RtcpPacket]:
    """A compound packet by its parts. Raises MalformedRtp and nothing else (checks of §A.2)."""
    if len(data) < 4 or data[1] not in (SR, RR):
        raise MalformedRtp("a compound packet begins with a report")
    packets: list[RtcpPacket] = []
    at = 0
    while at < len(data):
        if len(data) - at < 4 or data[at] >> 6 != 2 or len(packets) >= MAX_PACKETS:
            raise MalformedRtp("bad RTCP header")
        end = at + 4 + 4 * struct.unpack_from("!H", data, at + 2)[0]
        if end > len(data):
            raise MalformedRtp("RTCP is cut")
        body = data[at + 4 : end]
        if data[at] & 0x20:
            if end != len(data) or not body or not 0 < body[-1] <= len(body):
                raise MalformedRtp("bad RTCP padding")
            body = body[: -body[-1]]
        packets += _parse_one(data[at + 1], data[at] & 0x1F, body)
        at = end
    return packets


def _parse_one(packet_type: int, count: int, body: bytes) -> list[RtcpPacket]:
    try:
        if packet_type == SR:
            ssrc, high, low, timestamp, packets, octets = _SENDER.unpack_from(body)
            blocks = _parse_blocks(body, _SENDER.size, count)
            return [SenderReport(ssrc, high << 32 | low, timestamp, packets, octets, blocks)]
        if packet_type == RR:
            return [ReceiverReport(struct.unpack_from("!I", body)[0], _parse_blocks(body, 4, count))]
        if packet_type == SDES:
            return list(_parse_sdes(body, count))
        if packet_type == BYE:
            sources = struct.unpack_from(f"!{count}I", body)
            rest = body[4 * count :]
            return [Goodbye(sources, rest[1 : 1 + rest[0]].decode("utf-8", "replace") if rest else "")]
    except struct.error:
        raise MalformedRtp("RTCP packet is cut") from None
    return [OtherRtcp(packet_type, count, body)]


def _parse_blocks(body: bytes, at: int, count: int) -> tuple[ReportBlock, ...]:
    blocks = []
    for index in range(count):
        ssrc, loss, highest, jitter, last_sr, delay = _REPORT.unpack_from(body, at + index * _REPORT.size)
        lost = (loss & 0xFFFFFF) - ((loss & 0x800000) << 1)
        blocks.append(ReportBlock(ssrc, loss >> 24, lost, highest, jitter, last_sr, delay))
    return tuple(blocks)


def _parse_sdes(body: bytes, count: int) -> list[SourceDescription]:
    found: list[SourceDescription] = []
    at = 0
    for _ in range(count):
        (ssrc,) = struct.unpack_from("!I", body, at)
        at += 4
        while at < len(body) and body[at]:
            if at + 2 > len(body) or at + 2 + body[at + 1] > len(body):
                raise MalformedRtp("SDES item is cut")
            if body[at] == _CNAME:
                text = body[at + 2 : at + 2 + body[at + 1]].decode("utf-8", "replace")
                found.append(SourceDescription(ssrc, text))
            at += 2 + body[at + 1]
        at = (at // 4 + 1) * 4  # the chunk ends at the next word after its zero
    return found


def build_rtcp(packets: list[RtcpPacket]) -> bytes:
    """A compound packet. Raises ValueError unless a report stands first."""
    if not packets or not isinstance(packets[0], SenderReport | ReceiverReport):
        raise ValueError("a compound packet begins with a report")
    return b"".join(map(_build_one, packets))


def _build_one(packet: RtcpPacket) -> bytes:
    match packet:
        case SenderReport():
            body = _SENDER.pack(
                packet.ssrc,
                packet.ntp >> 32,
                packet.ntp & 0xFFFFFFFF,
                packet.rtp_timestamp,
                packet.packets & 0xFFFFFFFF,
                packet.octets & 0xFFFFFFFF,
            )
            return _framed(SR, len(packet.reports), body + _blocks(packet.reports))
        case ReceiverReport():
            return _framed(RR, len(packet.reports), struct.pack("!I", packet.ssrc) + _blocks(packet.reports))
        case SourceDescription():
            text = packet.cname.encode()[:255]
            body = struct.pack("!IBB", packet.ssrc, _CNAME, len(text)) + text + b"\0"
            return _framed(SDES, 1, body)
        case Goodbye():
            body = struct.pack(f"!{len(packet.sources)}I", *packet.sources)
            reason = packet.reason.encode()[:255]
            return _framed(
                BYE, len(packet.sources), body + (bytes([len(reason)]) + reason if reason else b"")
            )
        case OtherRtcp():
            return _framed(packet.packet_type, packet.count, packet.body)


def _blocks(reports: tuple[ReportBlock, ...]) -> bytes:
    out = []
    for report in reports:
        lost = max(-0x800000, min(0x7FFFFF, report.lost)) & 0xFFFFFF
        out.append(
            _REPORT.pack(
                report.ssrc,
                report.fraction_lost << 24 | lost,
                report.highest_sequence & 0xFFFFFFFF,
                min(report.jitter, 0xFFFFFFFF),
                report.last_sr,
                report.delay_since_sr,
            )
        )
    return b"".join(out)


def _framed(packet_type: int, count: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return struct.pack("!BBH", 0x80 | count, packet_type, len(body) // 4) + body


def ntp_of(unix_s: float) -> int:
    """A wall-clock time as 64-bit NTP."""
    return int((unix_s + NTP_EPOCH) * (1 << 32)) & 0xFFFFFFFFFFFFFFFF


def middle_of(ntp: int) -> int:
    """The middle 32 bits, in which round trips are counted."""
    return ntp >> 16 & 0xFFFFFFFF
