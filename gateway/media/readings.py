"""Readings: the counters of rows as one table of numbers, which may lie in shared memory, and as MediaStats.

The order of the columns is that of `NUMBERS`. A table is written by the media path and read by anyone; a
reader may see some numbers of this tick beside some of an earlier one.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gateway.media import columns as c
from gateway.media.messages import Address, MediaStats

if TYPE_CHECKING:
    from gateway.media.row_audio import RowAudio

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Rows = NDArray[np.intp]

WIDE = 24_000
NUMBERS = tuple(field.name for field in fields(MediaStats) if field.name not in ("remote", "latched"))
_WHOLE = frozenset(field.name for field in fields(MediaStats) if field.type in (int, "int"))
_SILENT_DBFS = -96.0


def readings(audio: RowAudio, rows: Rows) -> F64:
    """(n, len(NUMBERS)): the counters of these rows now."""
    n = np.ascontiguousarray(audio.receiver.r.n[rows].T).T  # by columns: each is read by itself
    table = np.empty((len(NUMBERS), len(rows)), np.float64)
    for column, values in enumerate(_values(audio, rows, n)):
        table[column] = values
    return table.T


def stats_of(numbers: F64, remote: Address | None, latched: bool) -> MediaStats:
    """One row of readings() in the words of signalling."""
    named = {
        name: round(value) if name in _WHOLE else value
        for name, value in zip(NUMBERS, numbers.tolist(), strict=True)
    }
    return MediaStats(remote=remote, latched=latched, **named)


def _values(audio: RowAudio, rows: Rows, n: I64) -> tuple[NDArray[Any], ...]:
    """In the order of NUMBERS."""
    sender, playout, receiver = audio.transmitter, audio.playout, audio.receiver
    rate, clock = np.maximum(1, n[:, c.RATE]), np.maximum(1, n[:, c.CLOCK])
    wide, ms = WIDE / rate, 1_000 / rate
    expected = np.where(n[:, c.SEEN] > 0, n[:, c.TOP] - n[:, c.BASE] + 1, 0)
    return (
        n[:, c.RECEIVED],
        sender.packets_sent[rows],
        n[:, c.OCTETS],
        sender.octets_sent[rows],
        n[:, c.LOST_BEFORE] + expected - n[:, c.STREAM_RECEIVED],
        n[:, c.LATE],
        n[:, c.DUPLICATED],
        n[:, c.REORDERED],
        n[:, c.UNKNOWN],
        n[:, c.MALFORMED],
        n[:, c.REJECTED],
        n[:, c.RESYNCED],
        n[:, c.CONCEALED] * wide,
        n[:, c.RECOVERED] * wide,
        n[:, c.STRETCHED] * wide,
        n[:, c.SQUEEZED] * wide,
        receiver.r.f[rows, c.JITTER] * 1_000 / clock,
        np.maximum(0, n[:, c.HIGH] - n[:, c.NEXT]) * ms,
        np.maximum(0, n[:, c.UP] - receiver.r.needs[rows].min(axis=1)) * ms,
        playout.queued_rows(rows) * (1_000 / WIDE),
        playout.underrun[rows],
        np.where(audio.started[rows], audio.rows.heard_end[rows], 0),
        playout.ledger.sent[rows],
        _decibels(audio.level_in[rows]),
        _decibels(audio.level_out[rows]),
        np.maximum(0.0, audio.now - receiver.last_packet[rows]),
        audio.reports.remote_loss[rows],
        audio.reports.round_trip_ms[rows],
    )


def _decibels(power: F64) -> F64:
    level: F64 = 10 * np.log10(np.maximum(power, 10 ** (_SILENT_DBFS / 10)))
    return level
