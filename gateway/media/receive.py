"""Receiver: from datagrams and Opus packets to 20 ms of every caller at the leg's rate.

It holds the rows' receiving state and the few objects that phone legs need beside it: latch, keys, decoders.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gateway.media import columns as c
from gateway.media import g711
from gateway.media.g722 import G722Decoder
from gateway.media.keys import Keys, MalformedRtp
from gateway.media.latch import Latch
from gateway.media.linked import Steps
from gateway.media.messages import Address, OpusMedia, RtpMedia
from gateway.media.opus_port import OpusPort
from gateway.media.packets import OpusRow, PacketDecoder, RowDecoder
from gateway.media.rows import (
    L16,
    LARGEST_FRAME,
    PACKETS,
    PCMA,
    PCMU,
    ReceiveRows,
    configure,
    forget,
    receive_rows,
)
from gateway.media.rtp_step import COUNTED, ENCODED, RTCP, TO_DO, header_of, payload_span
from gateway.media.srtp_rows import BAD, SrtpRows
from gateway.media.stream import PLAYABLE, accept
from gateway.media.udp_wire import Arrivals, UdpWire

OPUS_RATE = 24_000
FEC_WORTH = 0.01
"""Loss above which an Opus stream is held a packet longer, that FEC may come in time; a quarter ends it."""
REBIND_S = 1.5
"""A peer so long silent may come back from another address: a NAT between us forgot him."""
RELIABLE_S = 0.003
"""A packet that came later than this before a tick is not relied on at that tick: the next may be later."""
CODECS: dict[str, tuple[int, int, int]] = {
    "PCMU": (PCMU, 8_000, 8_000),
    "PCMA": (PCMA, 8_000, 8_000),
    "G722": (PACKETS, 16_000, 8_000),
    "OPUS": (PACKETS, 24_000, 48_000),
}
"""Name: kind, rate of the audio, clock of the timestamps. L16's rate is in the offer."""


def codec_of(media: RtpMedia) -> tuple[int, int, int]:
    """Kind, rate and clock. Raises KeyError for a codec we do not have."""
    name = media.codec.upper()
    return (L16, media.rate, media.rate) if name == "L16" else CODECS[name]


class Receiver:
    """All rows' incoming audio; on_key(row, digit, ms) and on_latched(row, remote) are told what happened."""

    def __init__(
        self, count: int, wire: UdpWire, srtp: SrtpRows, steps: Steps, limits_ms: tuple[int, int]
    ) -> None:
        """`limits_ms`: the most and the least that the jitter buffer holds."""
        self.r: ReceiveRows = receive_rows(count)
        self._steps = steps
        self.wire, self.srtp = wire, srtp
        self.latches: dict[int, Latch] = {}
        self.ports: dict[int, OpusPort] = {}
        self.on_key: Callable[[int, str, int], None] = lambda row, digit, ms: None
        self.on_latched: Callable[[int, Address], None] = lambda row, remote: None
        self.on_reopened: Callable[[int, Address | None], None] = lambda row, remote: None
        self.on_report: Callable[[int, bytes], None] = lambda row, datagram: None
        self.last_packet = np.zeros(count, np.float64)
        """Seconds, of the last packet of any agreed kind."""
        self._locked = np.zeros(count, np.bool_)
        """Rows whose socket hears the latched peer alone."""
        self._limit_ms, self._min_delay_ms = limits_ms
        self._keys: dict[int, Keys] = {}
        self._pressed: set[int] = set()
        """Rows whose last key may not have ended."""
        self._counted = np.zeros((2, count), np.int64)
        """Packets expected and received when the loss was last looked at."""
        self._loss = np.zeros(count, np.float64)
        self._decoders: dict[int, PacketDecoder] = {}
        self._tables = g711.DECODE
        self._pcm = np.zeros((count, LARGEST_FRAME), np.int16)
        self._invented = np.zeros(count, np.int64)

    def open_rtp(self, row: int, media: RtpMedia, now: float) -> None:
        self._forget(row)
        self.last_packet[row] = now
        self.latches[row] = Latch(media.latch, media.remote)
        self._agree(row, media)

    def _forget(self, row: int) -> None:
        forget(self.r, row)
        self._counted[:, row], self._loss[row] = 0, 0.0

    def change_rtp(self, row: int, media: RtpMedia) -> None:
        self.latches[row].point(media.remote)
        self.latches[row].enabled = media.latch
        if not self.latches[row].latched:
            self._locked[row] = False
            self.wire.disconnect(row)
        if codec_of(media)[:2] != (self.r.n[row, c.CODEC], self.r.n[row, c.RATE]):
            self._agree(row, media)
        self._keys[row].clock = media.dtmf_rate or codec_of(media)[2]
        self.r.n[row, c.PAYLOAD_TYPE] = media.payload_type
        self.r.n[row, c.DTMF_TYPE] = -1 if media.dtmf_payload_type is None else media.dtmf_payload_type

    def _agree(self, row: int, media: RtpMedia) -> None:
        kind, rate, clock = codec_of(media)
        self._configure(row, kind, rate, clock)
        self.r.n[row, c.PAYLOAD_TYPE] = media.payload_type
        self.r.n[row, c.DTMF_TYPE] = -1 if media.dtmf_payload_type is None else media.dtmf_payload_type
        self._keys[row] = Keys(media.dtmf_rate or clock)
        self._decoders.pop(row, None)
        if kind == PACKETS:
            decoder: RowDecoder = OpusRow() if rate == OPUS_RATE else G722Decoder()
            self._decoders[row] = PacketDecoder(self.r, row, decoder, self._steps.store)

    def _configure(self, row: int, kind: int, rate: int, clock: int) -> None:
        configure(self.r, row, kind, rate, clock, self._limit_ms)
        self.r.n[row, c.FLOOR_NEED] = self._min_delay_ms * rate // 1000

    def open_opus(self, row: int, media: OpusMedia, port: OpusPort, now: float) -> None:
        self._forget(row)
        self._configure(row, *CODECS["OPUS"])
        self.r.n[row, c.PAYLOAD_TYPE] = media.payload_type
        self.last_packet[row] = now
        self.ports[row] = port
        decoder: RowDecoder = OpusRow()
        self._decoders[row] = PacketDecoder(self.r, row, decoder, self._steps.store)

    def close(self, row: int) -> None:
        for table in (self.latches, self.ports, self._keys, self._decoders):
            table.pop(row, None)
        self._locked[row] = False
        self.wire.close(row)

    def collect(self, tick: int, now: float) -> None:
        """Take in all that came."""
        came = self.wire.receive(now)
        if len(came.rows):
            if self.srtp:
                came = self._decrypted(came)
            came = self._admitted(came)
            self._take(came, tick, now)
        self._reopen(now)
        for row, port in self.ports.items():
            for packet in port.take():
                due = tick if now - packet.now >= RELIABLE_S else tick + 1
                header = (packet.sequence, packet.timestamp, 0)
                self._take_encoded(row, packet.payload, (tick, due, packet.now), header)
                self.last_packet[row] = packet.now
        self._expire_keys(now)

    def _take(self, came: Arrivals, tick: int, now: float) -> None:
        left = np.zeros(len(came.rows), np.int64)
        times = (tick, came.arrivals, now - RELIABLE_S)
        self._steps.take_packets(self.r, came.rows, came.data, came.sizes, times, self._tables, left)
        self.last_packet[came.rows[left >= COUNTED]] = now
        left &= TO_DO
        for k in np.flatnonzero(left).tolist():
            self._take_rest(int(left[k]), came, k, tick, now)

    def _take_rest(self, kind: int, came: Arrivals, k: int, tick: int, now: float) -> None:
        row, data = int(came.rows[k]), came.data[k]
        if kind == RTCP:
            self.on_report(row, data[: came.sizes[k]].tobytes())
            return
        self.last_packet[row] = now
        start, end = payload_span(data, int(came.sizes[k]))
        payload, header = data[start:end].tobytes(), header_of(data)
        due = tick if came.arrivals[k] <= now - RELIABLE_S else tick + 1
        when = (tick, due, float(came.arrivals[k]))
        if kind == ENCODED:
            self._take_encoded(row, payload, when, header)
            return
        verdict, _ = accept(self.r, row, *when, header, 0)
        if verdict == PLAYABLE:
            self._take_key(row, header[1], payload, bool(data[1] & 0x80), now)

    def _take_key(self, row: int, timestamp: int, payload: bytes, marker: bool, now: float) -> None:
        self._pressed.add(row)
        try:
            ended = self._keys[row].receive(timestamp, payload, marker, now)
        except MalformedRtp:
            self.r.n[row, c.MALFORMED] += 1
            return
        for digit, duration in ended:
            self.on_key(row, digit, duration)

    def _take_encoded(
        self, row: int, payload: bytes, when: tuple[int, int, float], header: tuple[int, int, int]
    ) -> None:
        decoder = self._decoders[row]
        samples = decoder.samples(payload)
        streams = self.r.n[row, c.RESYNCED]
        verdict, start = accept(self.r, row, *when, header, samples)
        if self.r.n[row, c.RESYNCED] != streams:
            decoder.restart()
        self.r.n[row, c.OCTETS] += len(payload)
        if verdict == PLAYABLE and samples:
            decoder.add(start, payload)
        elif verdict == PLAYABLE and payload:
            self.r.n[row, c.MALFORMED] += 1

    def _admitted(self, came: Arrivals) -> Arrivals:
        """Only what the latches believe; packets kept while a latch was deciding come first."""
        if came.sources is None:
            return came
        rows: list[int] = []
        heard: list[bytes] = []
        arrivals: list[float] = []
        for k, source in enumerate(came.sources):
            row, datagram = int(came.rows[k]), came.data[k, : came.sizes[k]].tobytes()
            admitted = [datagram] if source is None else self._ask_latch(row, source, datagram)
            rows += [row] * len(admitted)
            heard += admitted
            arrivals += [float(came.arrivals[k])] * len(admitted)
        data = np.zeros((len(rows), came.data.shape[1]), np.uint8)
        for k, datagram in enumerate(heard):
            data[k, : len(datagram)] = np.frombuffer(datagram, np.uint8)
        sizes = np.array([len(d) for d in heard], np.int64)
        return Arrivals(np.array(rows, np.int64), data, sizes, np.array(arrivals), None)

    def _decrypted(self, came: Arrivals) -> Arrivals:
        """Without what is not authentic; in place."""
        sizes = self.srtp.unprotect(came.rows, came.data, came.sizes)
        kept = sizes != BAD
        np.add.at(self.r.n[:, c.REJECTED], came.rows[~kept], 1)
        if kept.all():
            return came._replace(sizes=sizes)
        sources = came.sources
        if sources is not None:
            sources = [source for source, keep in zip(sources, kept.tolist(), strict=True) if keep]
        return Arrivals(came.rows[kept], came.data[kept], sizes[kept], came.arrivals[kept], sources)

    def _reopen(self, now: float) -> None:
        """Let peers who fell silent be heard from elsewhere; who it is the latch decides."""
        for row in np.flatnonzero(self._locked & (now - self.last_packet >= REBIND_S)).tolist():
            self._locked[row] = False
            latch, n = self.latches[row], self.r.n[row]
            if latch.enabled and n[c.SEEN]:
                latch.reopen(int(n[c.SSRC]), int(n[c.TOP]))
                self.wire.disconnect(row)
                self.on_reopened(row, latch.remote)

    def adapt(self, row: int) -> None:
        """Once a second: a stream that loses packets is held one longer, for the next one's FEC."""
        n = self.r.n[row]
        expected = int(n[c.TOP] - n[c.BASE]) + 1 if n[c.SEEN] else 0
        new = expected - int(self._counted[0, row])
        got = int(n[c.STREAM_RECEIVED]) - int(self._counted[1, row])
        self._counted[:, row] = expected, n[c.STREAM_RECEIVED]
        if new > 0:
            self._loss[row] += (max(0.0, 1 - got / new) - self._loss[row]) * 0.2
        if n[c.CODEC] == PACKETS and n[c.RATE] == OPUS_RATE:
            least = self._min_delay_ms * OPUS_RATE // 1000
            worth_it = FEC_WORTH if n[c.FLOOR_NEED] == least else FEC_WORTH / 4
            helped = self._loss[row] > worth_it and self._decoders[row].repairs > 0
            self._decoders[row].repairs = 0
            n[c.FLOOR_NEED] = least + (int(n[c.FRAME]) if helped else 0)

    def _ask_latch(self, row: int, source: Address, datagram: bytes) -> list[bytes]:
        latch = self.latches[row]
        before = latch.latched
        admitted = latch.admit(source, datagram, authentic=bool(self.srtp.encrypted[row]))
        if admitted is None:
            self.r.n[row, c.REJECTED] += 1
            return []
        if latch.latched and not before:
            self._locked[row] = self.wire.connect(row, source)
            self.on_latched(row, source)
        return admitted

    def _expire_keys(self, now: float) -> None:
        for row in [row for row in self._pressed if row in self._keys]:
            for digit, duration in self._keys[row].expire(now):
                self.on_key(row, digit, duration)
            if not self._keys[row].pressed:
                self._pressed.discard(row)

    def pull(self, rows: NDArray[np.int64], tick: int) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
        """20 ms of each row: (k, 960) int16 from its left, and how many samples of it are invented."""
        for decoder in self._decoders.values():
            decoder.fill()
        out, invented = self._pcm[: len(rows)], self._invented[: len(rows)]
        self._steps.pull_rows(self.r, rows, tick, out, invented)
        return out, invented
