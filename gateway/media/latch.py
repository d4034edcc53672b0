"""Latch: whose packets a phone leg hears, and where it sends (symmetric RTP, RFC 4961).

The SDP's address is believed at once. Another source is believed after three packets of one SSRC in a row, if
the SDP's address has not spoken first; what it sent meanwhile is kept and heard then. Once latched it stays.
When the peer has been silent for a while the latch is reopened, for him alone: a NAT that gave him a new
port is followed once three packets carry his SSRC and his sequence numbers on. Packets that are authentic
(SRTP) need no such patience: the key says whose they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.media.messages import Address
from gateway.media.stream import FAR, wrapped

CONSISTENT = 3
"""Packets of one source and SSRC before it is believed."""
DATAGRAM_SSRC = slice(8, 12)


@dataclass(slots=True)
class Latch:
    """One leg's. `remote` is where to send; None: nowhere yet."""

    enabled: bool
    remote: Address | None
    latched: bool = False
    signalled: Address | None = field(init=False)
    """What the SDP named last."""
    _ssrc: bytes | None = None
    """The only one that may come from elsewhere, once the peer is known."""
    _top: int | None = None
    """While reopened: the sequence number after which his own go on."""
    _source: Address | None = None
    _source_ssrc: bytes = b""
    _source_top: int | None = None
    _kept: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.signalled = self.remote

    def admit(self, source: Address, datagram: bytes, authentic: bool = False) -> list[bytes] | None:
        """The datagrams to hear now that one came from `source`: several when it was just believed, none
        while it is not yet, None when it never will be."""
        if not self.enabled:
            return [datagram] if self.remote is None or source[0] == self.remote[0] else None
        if len(datagram) > 1 and 192 <= datagram[1] <= 223:
            return [datagram] if source == self.remote else None  # RTCP, which says nothing of the stream
        if len(datagram) < 12:
            return None
        ssrc = datagram[DATAGRAM_SSRC]
        if authentic:
            return self._believe(source, ssrc, [datagram])
        if source == self.remote:
            return self._believe(source, ssrc, [datagram])
        if self._ssrc is not None and ssrc != self._ssrc:
            return None
        if self.latched:
            return None  # came before the socket knew its peer
        return self._consider(source, ssrc, datagram)

    def _consider(self, source: Address, ssrc: bytes, datagram: bytes) -> list[bytes] | None:
        sequence = int.from_bytes(datagram[2:4], "big")
        if self._top is not None and not 0 < wrapped(sequence - self._top, 16) <= FAR:
            return None
        if source != self._source or ssrc != self._source_ssrc or not self._goes_on(sequence):
            self._source, self._source_ssrc, self._kept = source, ssrc, []
        self._source_top = sequence
        self._kept.append(datagram)
        if len(self._kept) < CONSISTENT:
            return []
        return self._believe(source, ssrc, self._kept)

    def _goes_on(self, sequence: int) -> bool:
        """While reopened, a source must count on as the peer does: its numbers rise."""
        if self._top is None or self._source_top is None:
            return True
        return 0 < wrapped(sequence - self._source_top, 16) <= CONSISTENT

    def _believe(self, source: Address, ssrc: bytes, heard: list[bytes]) -> list[bytes]:
        self.remote, self.latched, self._ssrc, self._top = source, True, ssrc, None
        self._source, self._kept = None, []
        return heard

    def reopen(self, ssrc: int, top: int) -> None:
        """The peer fell silent: his stream, whose last sequence number was `top`, may come from elsewhere."""
        self.latched = False
        self._ssrc, self._top = ssrc.to_bytes(4, "big"), top & 0xFFFF
        self._source, self._kept = None, []

    def point(self, remote: Address | None) -> None:
        """The SDP named an address (again): a new one must be earned again, by anyone. Behind NAT it keeps
        naming one that nothing ever came from: what was latched stays. Who had fallen silent, as on hold, may
        go on as another stream from wherever his NAT now puts him."""
        if remote != self.signalled:
            self.remote = self.signalled = remote
            self.latched = False
        if not self.latched:
            self._ssrc, self._top = None, None
