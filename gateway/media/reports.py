"""Reports: one phone leg's RTCP, what we tell of its stream and what it tells of ours (RFC 3550 §6).

Sans-IO: compound packets out and in, both clocks as arguments. Reports go every five seconds, the interval of
§6.2 for two parties.
"""

from __future__ import annotations

from dataclasses import dataclass

from sip.rtcp import (
    Goodbye,
    ReceiverReport,
    ReportBlock,
    SenderReport,
    SourceDescription,
    build_rtcp,
    middle_of,
    ntp_of,
    parse_rtcp,
)

INTERVAL_S = 5.0


@dataclass(frozen=True, slots=True)
class Sent:
    """Our stream so far."""

    packets: int
    octets: int
    timestamp: int
    """RTP time of now."""


@dataclass(frozen=True, slots=True)
class Heard:
    """The peer's stream so far; see ReportBlock."""

    ssrc: int
    expected: int
    received: int
    highest: int
    jitter: float


class Reports:
    """One leg's."""

    def __init__(self, ssrc: int, cname: str, now: float) -> None:
        self._ssrc, self._cname = ssrc, cname
        self._due = now + INTERVAL_S / 2
        self._before: tuple[int, int] = (0, 0)
        self._last_sr, self._last_sr_at = 0, 0.0
        self.remote_loss = 0.0
        """Fraction of our packets lost, in the peer's last report."""
        self.round_trip_s = 0.0
        """0 until known."""

    def due(self, now: float) -> bool:
        return now >= self._due

    def build(self, sent: Sent, heard: Heard | None, now: float, wall: float) -> bytes:
        """A compound packet for the stream as it stands; `wall` is the Unix time of `now`."""
        self._due = now + INTERVAL_S
        blocks = () if heard is None else (self._block(heard, now),)
        report: SenderReport | ReceiverReport
        if sent.packets:
            stamp = sent.timestamp & 0xFFFF_FFFF
            report = SenderReport(self._ssrc, ntp_of(wall), stamp, sent.packets, sent.octets, blocks)
        else:
            report = ReceiverReport(self._ssrc, blocks)
        return build_rtcp([report, SourceDescription(self._ssrc, self._cname)])

    def goodbye(self) -> bytes:
        """What ends our stream (§6.6)."""
        about = SourceDescription(self._ssrc, self._cname)
        return build_rtcp([ReceiverReport(self._ssrc), about, Goodbye((self._ssrc,))])

    def _block(self, heard: Heard, now: float) -> ReportBlock:
        expected, lost = heard.expected - self._before[0], heard.expected - heard.received
        newly = lost - self._before[1]
        self._before = (heard.expected, lost)
        fraction = min(255, max(0, newly) * 256 // expected) if expected > 0 else 0
        since = int((now - self._last_sr_at) * 65_536) if self._last_sr else 0
        lost = max(-(1 << 23), min((1 << 23) - 1, lost))
        highest = heard.highest & 0xFFFF_FFFF
        return ReportBlock(
            heard.ssrc, fraction, lost, highest, int(heard.jitter), self._last_sr, since & 0xFFFF_FFFF
        )

    def receive(self, data: bytes, now: float, wall: float) -> bool:
        """A compound packet of the peer: whether he goes on, for no BYE is in it. Raises MalformedRtp."""
        packets = parse_rtcp(data)
        for packet in packets:
            if isinstance(packet, SenderReport):
                self._last_sr, self._last_sr_at = middle_of(packet.ntp), now
            if isinstance(packet, SenderReport | ReceiverReport):
                for block in packet.reports:
                    if block.ssrc == self._ssrc:
                        self._learn(block, wall)
        return not any(isinstance(packet, Goodbye) for packet in packets)

    def _learn(self, block: ReportBlock, wall: float) -> None:
        self.remote_loss = block.fraction_lost / 256
        if block.last_sr:
            trip = (middle_of(ntp_of(wall)) - block.last_sr - block.delay_since_sr) & 0xFFFF_FFFF
            if trip < 10 * 65_536:
                self.round_trip_s = trip / 65_536
