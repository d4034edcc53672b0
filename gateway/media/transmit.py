"""Transmitter: from the agent's 20 ms blocks to packets, prepared at one tick and sent at the next.

Timestamps follow the tick's number, so they tell the time also over holds and pauses; sequence numbers count
what is sent, so that a pause is no loss.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from engine.api import Pcm
from engine.opus import OpusEncoder
from gateway.media import g711, packing
from gateway.media.g722 import G722Encoder
from gateway.media.messages import Address, OpusMedia, OpusPacket, RtpMedia, SendOpus
from gateway.media.packing import HEADER
from gateway.media.receive import FEC_WORTH, OPUS_RATE, codec_of
from gateway.media.rows import L16, PACKETS
from gateway.media.srtp_rows import ROOM, SrtpRows
from gateway.media.udp_wire import UdpWire
from sip.dtmf import EventPacket, event_packets

_LARGEST = HEADER + 2 * 960 + ROOM
_OPUS_CLOCK = 48_000
_KEY_GAP = 4
"""Ticks between two keys."""

Rows = NDArray[np.intp]


class Transmitter:
    """All rows' outgoing audio."""

    def __init__(self, count: int, wire: UdpWire, srtp: SrtpRows, opus_complexity: int) -> None:
        self.wire, self.srtp = wire, srtp
        self.codec = np.full(count, -1, np.int64)
        self.rate = np.zeros(count, np.int64)
        self._packets = packing.packets(count, _LARGEST)
        self.clock = self._packets.clock
        self.packets_sent = np.zeros(count, np.int64)
        self.octets_sent = np.zeros(count, np.int64)
        self.sends = self._packets.sends
        """The direction lets us send and we know where to."""
        self.remotes: dict[int, Address] = {}
        """Where rows send whose socket is not connected."""
        self._directed = np.zeros(count, np.bool_)
        self._complexity = opus_complexity
        self._packet = self._packets.data
        self._marked = False
        """Some packet may carry the marker bit."""
        self._encoders: dict[int, OpusEncoder | G722Encoder] = {}
        self._fec: dict[int, bool] = {}
        self._keys: dict[int, deque[EventPacket | None]] = {}
        self._key_began = np.zeros(count, np.int64)
        self._dtmf_type = np.zeros(count, np.int64)
        self._dtmf_rate = np.zeros(count, np.int64)
        self._prepared_keys: list[tuple[int, NDArray[np.uint8]]] = []
        self._senders: dict[int, SendOpus] = {}
        self._prepared: list[Rows] = []
        self._prepared_opus: dict[int, OpusPacket] = {}
        self._append_g711(np.zeros(0, np.intp), np.zeros((0, 160), np.float32), 0, 0)  # compile it now

    def open_rtp(self, row: int, media: RtpMedia) -> None:
        rng = np.random.default_rng()
        self.packets_sent[row] = self.octets_sent[row] = 0
        self._packets.sequence[row] = int(rng.integers(0, 1 << 15))
        self._packets.origin[row] = int(rng.integers(0, 1 << 31))
        self._packet[row, 0] = 0x80
        self.codec[row] = -1
        self.change_rtp(row, media)

    def change_rtp(self, row: int, media: RtpMedia) -> None:
        kind, rate, clock = codec_of(media)
        new = (kind, rate) != (self.codec[row], self.rate[row])
        self.codec[row], self.rate[row], self.clock[row] = kind, rate, clock
        self._packets.ptime[row] = 1 if kind in (L16, PACKETS) else min(3, max(1, media.ptime_ms // 20))
        self._packets.filled[row] = 0
        self._packet[row, 1] = media.payload_type | (0x80 if new else self._packet[row, 1] & 0x80)
        self._marked = True
        self._packet[row, 8:12] = np.frombuffer((media.ssrc & 0xFFFF_FFFF).to_bytes(4, "big"), np.uint8)
        self._dtmf_type[row] = media.dtmf_payload_type or 0
        self._dtmf_rate[row] = media.dtmf_rate or clock
        self._directed[row] = media.direction.sends
        self.point(row, media.remote)
        if new:
            self._encoders.pop(row, None)
        if kind == PACKETS and new:
            opus = rate == OPUS_RATE
            self._encoders[row] = OpusEncoder(complexity=self._complexity) if opus else G722Encoder()

    def point(self, row: int, remote: Address | None, connected: bool = False) -> None:
        """Send there from now on; connected: the socket knows it already."""
        self.remotes.pop(row, None)
        if remote is not None and not connected:
            self.remotes[row] = remote
        before, self.sends[row] = self.sends[row], self._directed[row] and remote is not None
        if self.sends[row] and not before:
            self._packets.filled[row] = 0
            self._marked = True
            self._packet[row, 1] |= 0x80  # a talkspurt begins (RFC 3551 §4.1)

    def open_opus(self, row: int, media: OpusMedia, send: SendOpus) -> None:
        self.packets_sent[row] = self.octets_sent[row] = 0
        self.codec[row], self.rate[row], self.clock[row] = PACKETS, 24_000, _OPUS_CLOCK
        self._encoders[row] = OpusEncoder(bitrate=media.bitrate, complexity=self._complexity)
        self._senders[row], self._fec[row] = send, media.fec
        self._packets.origin[row], self.sends[row] = 0, True

    def send_dtmf(self, row: int, digits: str, duration_ms: int) -> None:
        """Queue keys to press, 80 ms apart."""
        queue = self._keys.setdefault(row, deque())
        for digit in digits:
            queue.extend(event_packets(digit, duration_ms, int(self._dtmf_rate[row])))
            queue.extend([None] * _KEY_GAP)

    def close(self, row: int) -> None:
        self.codec[row], self.sends[row] = -1, False
        for table in (self._encoders, self._senders, self.remotes, self._prepared_opus):
            table.pop(row, None)
        for cold in (self._fec, self._keys):
            cold.pop(row, None)
        self._prepared_keys = [(other, packet) for other, packet in self._prepared_keys if other != row]
        self._prepared = [others[others != row] for others in self._prepared]

    def send(self) -> None:
        """What the last tick prepared."""
        rows = np.concatenate([np.zeros(0, np.int64), *self._prepared])
        self._prepared.clear()
        if len(rows):
            self._send_packets(rows)
        for row, event in self._prepared_keys:
            self.packets_sent[row] += self._send_key(row, event)
        self._prepared_keys.clear()
        if self._prepared_opus:
            self._send_opus()

    def _send_packets(self, rows: Rows) -> None:
        sizes = HEADER + self._packets.octets[rows]
        secret = self.srtp.encrypted[rows]
        if secret.any():
            sizes[secret] = self.srtp.protect(rows[secret], self._packet, sizes[secret])
        sent = sizes > 0
        if sent.all() and not self.remotes:
            sent = self.wire.send_rows(rows, self._packet, sizes)
        else:
            self._send_apart(rows, sizes, sent)
        went = rows if sent.all() else rows[sent]
        self.packets_sent[went] += 1
        self.octets_sent[went] += self._packets.octets[went]
        if self._marked:
            self._packet[rows, 1] &= 0x7F
            self._marked = bool((self._packet[self.codec >= 0, 1] & 0x80).any())

    def _send_apart(self, rows: Rows, sizes: NDArray[np.int64], sent: NDArray[np.bool_]) -> None:
        """Of which some cannot go, or go by sockets that are not connected; sent (n,) becomes what went."""
        apart = np.isin(rows, list(self.remotes))
        straight = sent & ~apart
        if straight.any():
            sent[straight] = self.wire.send_rows(rows[straight], self._packet, sizes[straight])
        for k in np.flatnonzero(sent & apart).tolist():
            row = int(rows[k])
            sent[k] = self.wire.send(row, self._packet[row, : sizes[k]].data, self.remotes[row])

    def _send_opus(self) -> None:
        by_sender: dict[SendOpus, list[tuple[int, OpusPacket]]] = {}
        for row, packet in self._prepared_opus.items():
            by_sender.setdefault(self._senders[row], []).append((row, packet))
            self.packets_sent[row] += 1
            self.octets_sent[row] += len(packet.payload)
        self._prepared_opus.clear()
        for sender, packets in by_sender.items():
            sender(packets)

    def _send_key(self, row: int, packet: NDArray[np.uint8]) -> bool:
        context = self.srtp.get(row)
        datagram = packet.data if context is None else context.protect(packet.tobytes())
        return self.wire.send(row, datagram, self.remotes.get(row))

    def timestamp(self, row: int, tick: int) -> int:
        """Of the block played at `tick`."""
        return int(self._packets.origin[row] + tick * (self.clock[row] // 50)) & 0xFFFF_FFFF

    def note_loss(self, row: int, fraction: float) -> None:
        """The peer loses so much of ours: let Opus carry FEC for it."""
        encoder = self._encoders.get(row)
        if isinstance(encoder, OpusEncoder):
            wanted = self._fec.get(row, True) and fraction >= FEC_WORTH
            encoder.set_loss(min(30, round(fraction * 100)), wanted)

    def prepare(self, rows: Rows, pcm: Pcm, tick: int) -> None:
        """(n, samples) float32 at these rows' rate, played at `tick`: into packets."""
        kinds = self.codec[rows]
        if self._keys:
            kinds = kinds.copy()
            for i in [i for i, row in enumerate(rows.tolist()) if row in self._keys]:
                if self._press(int(rows[i]), tick):
                    kinds[i] = -1
        for law in (0, 1):
            of_law = np.flatnonzero(kinds == law)
            if len(of_law):
                chosen = (rows, pcm) if len(of_law) == len(rows) else (rows[of_law], pcm[of_law])
                self._append_g711(*chosen, law, tick)
        linear = kinds == L16
        if linear.any():
            self._append(rows[linear], g711.to_int16(pcm[linear]).astype(">i2").view(np.uint8), tick)
        for i in np.flatnonzero(kinds == PACKETS).tolist():
            self._encode(int(rows[i]), pcm[i], tick)

    def _press(self, row: int, tick: int) -> bool:
        """A packet of a key instead of audio; False where there is a pause between keys, or no more."""
        queue = self._keys[row]
        event = queue.popleft() if queue else None
        if not queue:
            del self._keys[row]
        if event is None or self._packets.filled[row] or not self.sends[row]:
            return False
        packet = np.zeros(HEADER + len(event.payload), np.uint8)
        if event.marker:
            self._key_began[row] = tick
        packing.number(np.array([row]), self._packets)
        packet[:HEADER] = self._packet[row, :HEADER]
        packet[1] = self._dtmf_type[row] | (0x80 if event.marker else 0)
        stamp = self.timestamp(row, int(self._key_began[row]))
        packet[4:8] = np.frombuffer(stamp.to_bytes(4, "big"), np.uint8)
        packet[HEADER:] = np.frombuffer(event.payload, np.uint8)
        self._prepared_keys.append((row, packet))
        return True

    def _append_g711(self, rows: Rows, pcm: Pcm, law: int, tick: int) -> None:
        """One more 20 ms to each row's packet; whole ones are ready to send."""
        whole = np.empty(len(rows), np.bool_)
        packing.pack(rows, pcm, g711.encode_table(law), self._packets, tick, whole)
        self._prepared.append(rows[whole & self.sends[rows]])

    def _append(self, rows: Rows, octets: NDArray[np.uint8], tick: int) -> None:
        """The same of octets (n, width) as they travel, a packet each."""
        width = octets.shape[1]
        packing.stamp(rows, self._packets, tick)
        self._packet[rows, HEADER : HEADER + width] = octets
        whole = packing.advance(rows, self._packets, width)
        self._prepared.append(rows[whole & self.sends[rows]])

    def _encode(self, row: int, pcm: Pcm, tick: int) -> None:
        if not self.sends[row]:
            return
        payload = self._encoders[row].encode(pcm)
        if row in self._senders:
            stamp = (self._packets.origin[row] + tick * 960) & 0xFFFF_FFFF
            self._prepared_opus[row] = OpusPacket(payload, int(stamp), False)
            return
        packing.stamp(np.array([row]), self._packets, tick)
        packing.number(np.array([row]), self._packets)
        self._packet[row, HEADER : HEADER + len(payload)] = np.frombuffer(payload, np.uint8)
        self._packets.octets[row] = len(payload)
        self._prepared.append(np.array([row]))
