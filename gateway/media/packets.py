"""PacketDecoder: codecs whose packets must be decoded in order (Opus, G.722), in front of a row's ring.

Packets are decoded as soon as the one before them was. At a gap it waits until playing needs what is missing;
then the lost packet comes out of its successor's FEC, or the codec invents it, and decoding goes on.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from engine.api import EngineError, Pcm
from engine.opus import OpusDecoder, packet_samples
from gateway.media import columns as c
from gateway.media.linked import Store
from gateway.media.rows import I16, ReceiveRows

MOST_PENDING = 64
"""Packets kept behind a gap; more give the gap up."""
CODEC_CONCEALS_MS = 120
"""How long the codec's own concealment is used; then the row's noise."""


class RowDecoder(Protocol):
    """One stream's decoder at the leg's rate."""

    def samples(self, payload: bytes) -> int:
        """Its length; 0 for what cannot be decoded."""
        ...

    def decode(self, payload: bytes) -> Pcm: ...

    def recover(self, payload: bytes, samples: int) -> Pcm | None:
        """The end of the packet lost before `payload`; None where the codec has no FEC."""
        ...

    def conceal(self, samples: int) -> Pcm | None:
        """At least `samples` of concealment; None where the codec has none."""
        ...


def carries_fec(payload: bytes) -> bool:
    """Whether a packet of one SILK or hybrid frame holds a copy of the frame before.

    After the voice activity bits of its 20 ms parts comes the bit that says so (RFC 6716 §4.2.3, §4.2.4).
    """
    if len(payload) < 2 or payload[0] >= 0x80 or payload[0] & 3:
        return False
    parts = {2: 2, 3: 3}.get(payload[0] >> 3 & 3, 1) if payload[0] < 0x60 else 1
    return bool(payload[1] >> (7 - parts) & 1)


class OpusRow:
    """Opus at 24 kHz mono (RFC 7587), with libopus' FEC and concealment."""

    _STEP = 60
    """libopus conceals multiples of 2.5 ms."""

    def __init__(self) -> None:
        self._decoder = OpusDecoder()

    def samples(self, payload: bytes) -> int:
        try:
            return packet_samples(payload) if payload else 0
        except EngineError:
            return 0

    def decode(self, payload: bytes) -> Pcm:
        return self._decoder.decode(payload)

    def recover(self, payload: bytes, samples: int) -> Pcm | None:
        return self._decoder.recover(payload, samples)

    def conceal(self, samples: int) -> Pcm | None:
        return self._decoder.conceal(-(-samples // self._STEP) * self._STEP)


class PacketDecoder:
    """The packets of one row on their way into its ring."""

    def __init__(self, r: ReceiveRows, row: int, decoder: RowDecoder, store: Store) -> None:
        self._r, self._row, self._decoder, self._store = r, row, decoder, store
        self._pending: dict[int, bytes] = {}
        self._end: int | None = None
        """Up to where the ring was filled."""
        self.repairs = 0
        """Packets with FEC since it was last set to 0."""

    def samples(self, payload: bytes) -> int:
        return self._decoder.samples(payload)

    def restart(self) -> None:
        """Another stream begins."""
        self._pending.clear()
        self._end = None

    def add(self, start: int, payload: bytes) -> None:
        """A packet whose first sample lies at `start`."""
        if self._end is None:
            self._end = start
        if start >= self._end:
            self._pending[start] = payload
        self.repairs += carries_fec(payload)
        self._decode_ready()
        if len(self._pending) > MOST_PENDING:
            self._give_up_gap()

    def _give_up_gap(self) -> None:
        self._end = min(self._pending)
        self._decode_ready()

    def _decode_ready(self) -> None:
        while self._end in self._pending:
            payload = self._pending.pop(self._end)
            try:
                pcm = _int16(self._decoder.decode(payload))
            except (EngineError, ValueError):
                self._r.n[self._row, c.MALFORMED] += 1
                self._end += self._decoder.samples(payload)
                continue
            self._store(self._r, self._row, self._end, pcm)
            self._end += len(pcm)
        for start in [s for s in self._pending if self._end is not None and s < self._end]:
            del self._pending[start]

    def fill(self) -> None:
        """Before a tick plays: bring the ring as far as that takes, if anything can."""
        r, row = self._r, self._row
        if self._end is None or not r.n[row, c.PLAYING]:
            return
        due = int(r.n[row, c.NEXT] + r.n[row, c.HELD])
        short = due + int(r.n[row, c.FRAME]) - max(self._end, due)
        if r.n[row, c.HELD] == 0 and short <= 0:
            return
        if self._pending:
            self._bridge(due, short)
        elif r.n[row, c.HELD] > 0 or short > 0:
            self._invent(short)

    def _bridge(self, due: int, short: int) -> None:
        """A gap with a packet behind it: FEC for its last packet's length, concealment for the rest."""
        first = min(self._pending)
        at = max(self._end or 0, due)
        gap, length = first - at, self._decoder.samples(self._pending[first])
        if gap > length:
            self._invent(min(gap - length, short))
            if gap - length >= short:
                return
            gap = length
        if gap > 0:
            self._recover(first, gap, length)
        self._end = first
        self._decode_ready()

    def _recover(self, first: int, gap: int, length: int) -> None:
        try:
            pcm = self._decoder.recover(self._pending[first], length)
        except EngineError:
            return
        if pcm is not None:
            self._store(self._r, self._row, first - gap, _int16(pcm[len(pcm) - gap :]))
            self._r.n[self._row, c.RECOVERED] += gap

    def _invent(self, count: int) -> None:
        """Lay the codec's concealment ready for the next `count` samples the row will invent."""
        r, row = self._r, self._row
        left = int(r.n[row, c.SPARE_LENGTH] - r.n[row, c.SPARE_AT])
        if count <= left or int(r.n[row, c.AGE]) > CODEC_CONCEALS_MS * int(r.n[row, c.RATE]) // 1000:
            return
        pcm = self._decoder.conceal(count - left)
        if pcm is None:
            return
        kept = r.spare[row, r.n[row, c.SPARE_AT] : r.n[row, c.SPARE_LENGTH]].copy()
        r.spare[row, :left] = kept
        r.spare[row, left : left + len(pcm)] = _int16(pcm)
        r.n[row, c.SPARE_AT], r.n[row, c.SPARE_LENGTH] = 0, left + len(pcm)


def _int16(pcm: Pcm) -> I16:
    samples: I16 = np.clip(np.rint(pcm * 32_768.0), -32_767, 32_767).astype(np.int16)
    return samples
