"""RowAudio: what a tick does to all rows, in order; the media thread's own half of the plane.

Between decoder and engine, and between engine and encoder, stands one `Processing`. Rows are worked on in
groups of equal rate; a group's arrays are made anew only when a call opens, changes or closes.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray

from engine.api import Pcm
from engine.rows import RING, AudioRows
from gateway.media import columns as c
from gateway.media import commands as ask
from gateway.media.announcer import Announcer
from gateway.media.face import MediaSettings, srtp_context
from gateway.media.ledger import BLOCK, Ledger
from gateway.media.linked import steps
from gateway.media.messages import (
    Address,
    Announced,
    Closed,
    Direction,
    DtmfReceived,
    FirstPacket,
    Latched,
    MediaEvent,
    MediaFailed,
    MediaStats,
    Processing,
    RtpMedia,
    RtpTimedOut,
    SendOpus,
    SrtpKeys,
)
from gateway.media.opus_port import OpusPort
from gateway.media.playout import Playout
from gateway.media.power import power_of, warm
from gateway.media.readings import readings, stats_of
from gateway.media.receive import Receiver
from gateway.media.resample import Resampler
from gateway.media.row_reports import RowReports
from gateway.media.srtp_rows import SrtpRows
from gateway.media.tones import Tones
from gateway.media.transmit import Transmitter
from gateway.media.udp_wire import UdpWire

log = logging.getLogger(__name__)

TICK_S = 0.02
WIDE = 24_000
TICKS_A_FRAME = 4
TICKS_A_SECOND = 50
_ENGINE_BLOCKS = RING // BLOCK

Rows = NDArray[np.intp]


class RowAudio:
    """Every call's audio state and the steps of a tick over it."""

    def __init__(
        self,
        rows: AudioRows,
        settings: MediaSettings,
        processing: Processing,
        emit: Callable[[MediaEvent], None],
        ledger: Ledger | None = None,
    ) -> None:
        count = rows.count
        self.rows, self.settings, self.processing, self.emit = rows, settings, processing, emit
        self.wire = UdpWire(count, settings.kernel_times, settings.compiled)
        found = steps(settings.compiled)
        self.srtp = SrtpRows(count, settings.compiled)
        limits_ms = settings.max_delay_ms, settings.min_delay_ms
        self.receiver = Receiver(count, self.wire, self.srtp, found, limits_ms)
        self.receiver.on_key, self.receiver.on_latched = self._on_key, self._on_latched
        self.receiver.on_reopened = self._on_reopened
        self.transmitter = Transmitter(count, self.wire, self.srtp, settings.opus_complexity)
        self.reports = RowReports(count, self.receiver, self.transmitter, self.wire)
        self.announcer = Announcer()
        self.tones = Tones(count)
        self.playout = Playout(rows, settings.comfort_noise_dbfs, ledger)
        self.tick, self.now = 0, 0.0
        warm()
        self._call = np.zeros(count, np.int64)
        self._open = np.zeros(count, np.bool_)
        self._waiting = np.zeros(count, np.bool_)
        self.started = np.zeros(count, np.bool_)
        self._deaf = np.zeros(count, np.bool_)
        self._expects = np.zeros(count, np.bool_)
        self._met = np.zeros(count, np.bool_)
        self._timed_out = np.zeros(count, np.bool_)
        self._missed = np.zeros(count, np.bool_)
        """The call is answered: silence counts. Before, signalling has timers of its own."""
        self.level_in = np.zeros(count, np.float64)
        self.level_out = np.zeros(count, np.float64)
        self._heard_blocks = rows.heard.reshape(-1, BLOCK)
        self._up = {rate: Resampler(count, rate, WIDE) for rate in (8_000, 16_000, 48_000)}
        self._down = {rate: Resampler(count, WIDE, rate) for rate in (8_000, 16_000, 48_000)}
        self._groups: dict[int, Rows] | None = None
        self._srtp_keys: dict[int, SrtpKeys | None] = {}
        self._latched_to: dict[int, Address] = {}

    def begin(self, now: float) -> None:
        """A tick is due at `now`: send what the last one prepared."""
        self.tick, self.now = round(now / TICK_S), now
        self.transmitter.send()

    def run(self) -> None:
        """The rest of the tick, after what signalling asked was applied."""
        self.reports.collect(self.now)
        self.receiver.collect(self.tick, self.now)
        if self.tick % TICKS_A_FRAME == 1:
            self.started |= self._waiting
            self._waiting[:] = False
        for rate, rows in self._by_rate().items():
            self._hear(rows, rate)
        for rate, rows in self._by_rate().items():
            self._speak(rows, rate)
        self._watch_packets()
        for row in range(self.tick % TICKS_A_SECOND, self.rows.count, TICKS_A_SECOND):
            if self._open[row]:
                self.receiver.adapt(row)
                self.reports.send_due(row, self.tick, self.now)

    def apply(self, command: ask.Command, thing: object) -> None:
        """Do what signalling asked."""
        row = command.row
        match command:
            case ask.OpenRtp() | ask.OpenOpus():
                self._open_row(command, thing)
            case _ if not self._open[row]:
                return
            case ask.OpenRtcp():
                self.reports.open_port(row, cast(socket.socket, thing))
            case ask.ChangeRtp():
                self._change(row, command.media)
            case ask.Start():
                self.playout.start(row)
                self._waiting[row] = True
                self._answered(row)
            case ask.Announce():
                self.announcer.play(row, command.pcm)
                if command.answered:
                    self._answered(row)
            case ask.Close():
                self._close(row)
            case ask.Cut():
                self.playout.cut(row)
            case ask.Mute():
                self.playout.muted[row] = command.muted
            case ask.Deafen():
                self._deaf[row] = command.deaf
            case ask.NoteReport():
                self.reports.note(row, command.remote_loss, command.round_trip_ms)
            case ask.SendDtmf():
                self.transmitter.send_dtmf(row, command.digits, command.duration_ms)

    def _open_row(self, command: ask.OpenRtp | ask.OpenOpus, thing: object) -> None:
        row, media = command.row, command.media
        for flags in (self._waiting, self.started, self._deaf, self._met, self._timed_out, self._missed):
            flags[row] = False
        self.level_in[row] = self.level_out[row] = 0.0
        self._call[row], self._open[row], self._groups = command.call, True, None
        for table in (self._up, self._down):
            for resampler in table.values():
                resampler.clear(row)
        self.playout.open(row)
        self._latched_to.pop(row, None)
        if isinstance(command, ask.OpenRtp):
            self._open_rtp(row, command.media, thing)
        else:
            port, send = cast(tuple[OpusPort, SendOpus], thing)
            self.reports.open(row, None, self.now)
            self.receiver.open_opus(row, command.media, port, self.now)
            self.transmitter.open_opus(row, command.media, send)
            self._missed[row] = True
        self._expects[row] = not isinstance(media, RtpMedia) or _must_send(media)
        self.tones.listen(row, isinstance(media, RtpMedia) and media.dtmf_payload_type is None)
        self.processing.opened(row, int(self.transmitter.rate[row]))

    def _open_rtp(self, row: int, media: RtpMedia, sock: object) -> None:
        try:
            self.wire.open(row, sock)  # type: ignore[arg-type]
        except OSError as error:
            self.emit(MediaFailed(*self._stamp(row), reason=f"socket: {error.strerror}"))
        self.receiver.open_rtp(row, media, self.now)
        self.transmitter.open_rtp(row, media)
        self._secure(row, media)
        self.reports.open(row, media, self.now)

    def _secure(self, row: int, media: RtpMedia) -> None:
        self._srtp_keys[row] = media.srtp
        before = self.srtp.get(row)
        self.srtp.set(row, srtp_context(media.srtp, before) if media.srtp is not None else None)

    def _change(self, row: int, media: RtpMedia) -> None:
        if media.srtp != self._srtp_keys.get(row):
            self._secure(row, media)
        self.reports.change(row, media)
        rate = int(self.transmitter.rate[row])
        self.receiver.change_rtp(row, media)
        self.transmitter.change_rtp(row, media)
        latch = self.receiver.latches[row]
        self.transmitter.point(row, latch.remote, latch.latched)
        self._expects[row] = _must_send(media)
        self.tones.listen(row, media.dtmf_payload_type is None)
        self.receiver.last_packet[row] = self.now
        self._groups = None
        if self.transmitter.rate[row] != rate:
            self.processing.closed(row)
            self.processing.opened(row, int(self.transmitter.rate[row]))

    def _close(self, row: int) -> None:
        final = self.stats(row)
        self.announcer.stop(row)
        self.reports.close(row)
        self.srtp.set(row, None)
        self.tones.listen(row, False)
        self.receiver.close(row)
        self.transmitter.close(row)
        self.processing.closed(row)
        self._open[row] = self.started[row] = self._waiting[row] = False
        self._groups = None
        self.emit(Closed(*self._stamp(row), stats=final))

    def open_rows(self) -> Rows:
        return np.flatnonzero(self._open)

    def call_on(self, row: int) -> int:
        return int(self._call[row])

    def where(self, row: int) -> tuple[Address | None, bool]:
        """Where the row's packets go, and whether it was learnt from the peer's own."""
        latch = self.receiver.latches.get(row)
        return (latch.remote, latch.latched) if latch else (None, False)

    def close_all(self) -> None:
        self.wire.close_all()
        self.reports.close_all()

    def _by_rate(self) -> dict[int, Rows]:
        if self._groups is None:
            rates = np.where(self._open, self.transmitter.rate, 0)
            self._groups = {int(rate): np.flatnonzero(rates == rate) for rate in np.unique(rates[rates > 0])}
        return self._groups

    def _hear(self, rows: Rows, rate: int) -> None:
        """20 ms of these callers into `rows.heard`."""
        samples, invented = self.receiver.pull(rows, self.tick)
        pcm: Pcm = np.multiply(samples[:, : rate // 50], np.float32(1 / 32_768), dtype=np.float32)
        pcm, keys = self.tones.hear(rows, pcm, rate, invented)
        for row, key, held_ms in keys:
            self.emit(DtmfReceived(*self._stamp(row), key, held_ms, inband=True))
        pcm = self.processing.hear(rows, pcm, rate, invented.astype(np.int32))
        if rate != WIDE:
            pcm = self._up[rate].run(rows, pcm)
        deaf = self._deaf[rows]
        if deaf.any():
            pcm[deaf] = 0.0
        pcm = self.processing.heard(rows, pcm, self.rows.heard_end[rows])
        self.level_in[rows] = _smoothed(self.level_in[rows], pcm)
        live = self.started[rows]
        if not live.all():
            rows, pcm = rows[live], pcm[live]
        self._heard_blocks[rows * _ENGINE_BLOCKS + self.rows.heard_end[rows] // BLOCK % _ENGINE_BLOCKS] = pcm
        self.rows.heard_end[rows] += BLOCK

    def _speak(self, rows: Rows, rate: int) -> None:
        """20 ms of these agents into packets."""
        at = self.playout.ledger.sent[rows]
        pcm = self.playout.next_blocks(rows, self.started[rows], self.tick)
        pcm = self.processing.speak(rows, pcm, at)
        for row in self.announcer.fill(rows, pcm, self.transmitter.sends):
            self.emit(Announced(*self._stamp(row)))
        self.level_out[rows] = _smoothed(self.level_out[rows], pcm)
        if rate != WIDE:
            pcm = self._down[rate].run(rows, pcm)
        self.processing.sent(rows, pcm, rate)
        self.transmitter.prepare(rows, pcm, self.tick)

    def _watch_packets(self) -> None:
        """First packets and silences."""
        fresh = self._open & ~self._met & (self.receiver.r.n[:, c.RECEIVED] > 0)
        for row in np.flatnonzero(fresh).tolist():
            self._met[row] = True
            self.emit(FirstPacket(*self._stamp(row)))
        silent = self.now - np.maximum(self.receiver.last_packet, self.reports.last_report)
        late = self._open & self._missed & self._expects & (silent >= self.settings.rtp_timeout_s)
        for row in np.flatnonzero(late & ~self._timed_out).tolist():
            self.emit(RtpTimedOut(*self._stamp(row), silent_s=float(silent[row])))
        self._timed_out = late

    def _stamp(self, row: int) -> tuple[int, int, int]:
        return row, int(self._call[row]), int(self.rows.heard_end[row])

    def _answered(self, row: int) -> None:
        if not self._missed[row]:
            self._missed[row], self.receiver.last_packet[row] = True, self.now

    def _on_key(self, row: int, digit: str, duration_ms: int) -> None:
        self.emit(DtmfReceived(*self._stamp(row), digit=digit, duration_ms=duration_ms))

    def _on_latched(self, row: int, remote: Address) -> None:
        self.transmitter.point(row, remote, connected=True)
        if self._latched_to.get(row) != remote:
            self._latched_to[row] = remote
            self.emit(Latched(*self._stamp(row), remote=remote))

    def _on_reopened(self, row: int, remote: Address | None) -> None:
        self.transmitter.point(row, remote)

    def stats(self, row: int) -> MediaStats:
        """The row's counters in the words of signalling."""
        return stats_of(readings(self, np.array([row]))[0], *self.where(row))


def _must_send(media: RtpMedia) -> bool:
    """Whether silence means that the peer is gone: who holds us may send music, or nothing at all."""
    return media.direction is Direction.SENDRECV


def _smoothed(power: NDArray[np.float64], pcm: Pcm) -> NDArray[np.float64]:
    """Mean square over about 200 ms."""
    now = power_of(pcm)
    smoothed: NDArray[np.float64] = power + (now - power) * 0.1
    return smoothed
