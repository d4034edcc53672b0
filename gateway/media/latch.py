"""Latch: whose packets a phone leg hears, and where it sends (symmetric RTP, RFC 4961).

The SDP's address is believed at once. Another source is believed after three packets of one SSRC in a row, if
the SDP's address has not spoken first; what it sent meanwhile is kept and heard then. Once latched it stays,
until the peer has been silent for long and a new source carries the same SSRC on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.media.messages import Address

CONSISTENT = 3
"""Packets of one source and SSRC before it is believed."""
DATAGRAM_SSRC = slice(8, 12)


@dataclass(slots=True)
class Latch:
    """One leg's. `remote` is where to send; None: nowhere yet."""

    enabled: bool
    remote: Address | None
    latched: bool = False
    ssrc: bytes | None = None
    """Of the peer, once known: after a silence only it may come back from elsewhere."""
    signalled: Address | None = field(init=False)
    """What the SDP named last."""
    _source: Address | None = None
    _source_ssrc: bytes = b""
    _kept: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.signalled = self.remote

    def admit(self, source: Address, datagram: bytes) -> list[bytes] | None:
        """The datagrams to hear now that one came from `source`: several when it was just believed, none
        while it is not yet, None when it never will be."""
        if not self.enabled:
            return [datagram] if self.remote is None or source[0] == self.remote[0] else None
        ssrc = datagram[DATAGRAM_SSRC]
        if len(datagram) < 12 or (self.ssrc is not None and ssrc != self.ssrc):
            return None
        if source == self.remote:
            return self._believe(source, ssrc, [datagram])
        if source != self._source or ssrc != self._source_ssrc:
            self._source, self._source_ssrc, self._kept = source, ssrc, []
        self._kept.append(datagram)
        if len(self._kept) < CONSISTENT:
            return []
        return self._believe(source, ssrc, self._kept)

    def _believe(self, source: Address, ssrc: bytes, heard: list[bytes]) -> list[bytes]:
        self.remote, self.latched, self.ssrc = source, True, ssrc
        self._source, self._kept = None, []
        return heard

    def reopen(self) -> None:
        """The peer fell silent: the same SSRC may come from a new address."""
        self.latched = False

    def point(self, remote: Address | None) -> None:
        """The SDP named an address (again): a new one must be earned again, by anyone. Behind NAT it keeps
        naming one that nothing ever came from: what was latched stays."""
        if remote != self.signalled:
            self.remote = self.signalled = remote
            self.latched, self.ssrc = False, None
