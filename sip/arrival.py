"""How well one RTP stream arrives: loss, jitter and round trip as RTCP reports them (RFC 3550 §A.1-A.8)."""

from __future__ import annotations

from sip.rtcp import ReportBlock, SenderReport, middle_of, ntp_of
from sip.rtp import SequenceUnwrapper

_RESTART = 3_000
"""A jump of sequence this long is a new stream (§A.1 MAX_DROPOUT)."""


class StreamReception:
    """One source's packets as they arrive. `rate` is its RTP clock in Hz; times are seconds on any clock,
    those of report() and sender reports on the wall clock."""

    def __init__(self, ssrc: int, rate: int) -> None:
        self.ssrc = ssrc
        self.rate = rate
        self.received = 0
        self.jitter = 0.0
        """In timestamp units (§A.8)."""
        self._unwrap = SequenceUnwrapper()
        self._base = 0
        self._highest = 0
        self._transit: float | None = None
        self._prior = (0, 0)
        self._last_sr = (0, 0.0)

    @property
    def expected(self) -> int:
        """Packets that the source has sent since we hear it."""
        return self._highest - self._base + 1 if self.received else 0

    @property
    def lost(self) -> int:
        """Of those, the ones that did not come; negative with duplicates (§A.3)."""
        return self.expected - self.received

    @property
    def jitter_s(self) -> float:
        return self.jitter / self.rate

    def take(self, sequence: int, timestamp: int, arrival_s: float) -> None:
        """Count one packet."""
        value = self._unwrap.unwrap(sequence)
        if not self.received:
            self._base = self._highest = value
        elif abs(value - self._highest) > _RESTART:
            self._start_over(sequence)
            value = self._highest
        self.received += 1
        self._highest = max(self._highest, value)
        # Both clocks as 32 bits, so that a wrap of the timestamp is no jitter.
        transit = (arrival_s * self.rate - timestamp) % 2**32
        if self._transit is not None:
            step = (transit - self._transit + 2**31) % 2**32 - 2**31
            self.jitter += (abs(step) - self.jitter) / 16
        self._transit = transit

    def _start_over(self, sequence: int) -> None:
        self._unwrap = SequenceUnwrapper()
        self._base = self._highest = self._unwrap.unwrap(sequence)
        self.received, self._prior, self._transit = 0, (0, 0), None

    def take_sender_report(self, report: SenderReport, wall_s: float) -> None:
        self._last_sr = (middle_of(report.ntp), wall_s)

    def report(self, wall_s: float) -> ReportBlock:
        """A report block, its fraction counted since the report before."""
        expected, received = self.expected - self._prior[0], self.received - self._prior[1]
        self._prior = (self.expected, self.received)
        missing = max(0, expected - received)
        fraction = min(255, missing * 256 // expected) if expected > 0 else 0
        last_sr, since = self._last_sr
        delay = int((wall_s - since) * 65_536) & 0xFFFFFFFF if last_sr else 0
        highest = self._highest & 0xFFFFFFFF
        return ReportBlock(self.ssrc, fraction, self.lost, highest, int(self.jitter), last_sr, delay)


def round_trip_s(block: ReportBlock, wall_s: float) -> float | None:
    """Round trip out of a report on our own stream (§6.4.1); None when it names no SR of ours, or when
    the clocks make it negative or absurd."""
    if not block.last_sr:
        return None
    ticks = (middle_of(ntp_of(wall_s)) - block.last_sr - block.delay_since_sr) & 0xFFFFFFFF
    return ticks / 65_536 if ticks < 60 * 65_536 else None
