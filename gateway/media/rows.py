"""ReceiveRows: the receiving state of every call as arrays, one row a call.

A plain tuple of a few arrays, so that the same functions run over it in Python and compiled. Positions are
counts of samples at the leg's rate on the sender's RTP clock, extended beyond 32 bits; a `tick` is the number
of a 20 ms step, and tick * frame is the same clock as we count it. The difference of the two is a delay.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.media import columns as c

I16 = NDArray[np.int16]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

RING = 16_384
"""Samples of a row's jitter buffer: 2 s at 8 kHz, 0.68 s at 24 kHz. A power of two."""
MISSING = -32_768
"""A ring cell that holds nothing; audio never has this value."""
NEEDS = 200
"""Arrival delays remembered for the target: 4 s of 20 ms packets."""
LARGEST_FRAME = 960
"""Samples of 20 ms at 48 kHz."""
HISTORY_MS = 60
"""Output kept for concealment: two longest pitch periods and the window of their search."""

PCMU, PCMA, L16, PACKETS = 0, 1, 2, 3
"""Kinds of `codec`: what a ring cell is made from. PACKETS are decoded in order outside."""


class ReceiveRows(NamedTuple):
    """The arrays of all rows; few, so that calling compiled code with them is cheap."""

    n: I64
    """(rows, COLUMNS)"""
    f: F64
    """(rows, FLOAT_COLUMNS)"""
    ring: I16
    """(rows, RING): decoded samples, MISSING elsewhere; valid cells lie in [NEXT, HIGH)."""
    needs: I64
    """(rows, NEEDS): the delays of the last ticks that had arrivals."""
    line: I16
    """(rows, history + frame): what was played last, at the leg's rate."""
    cycle: I16
    """(rows, three periods): the pitch periods concealment repeats."""
    spare: I16
    """(rows, ...): concealment prepared by the codec itself."""


NOTHING = -(1 << 62)


def receive_rows(count: int) -> ReceiveRows:
    """The state of `count` closed rows."""
    rows = ReceiveRows(
        np.zeros((count, c.COLUMNS), np.int64),
        np.zeros((count, c.FLOAT_COLUMNS), np.float64),
        np.zeros((count, RING), np.int16),
        np.zeros((count, NEEDS), np.int64),
        np.zeros((count, LARGEST_FRAME * (HISTORY_MS + 20) // 20), np.int16),
        np.zeros((count, LARGEST_FRAME * 3), np.int16),
        np.zeros((count, LARGEST_FRAME * 4), np.int16),
    )
    for row in range(count):
        forget(rows, row)
    return rows


def forget(r: ReceiveRows, row: int) -> None:
    """Make a row as new: no stream, no audio, all counts 0."""
    for array in (r.n, r.f, r.needs, r.line, r.cycle, r.spare):
        array[row] = 0
    r.ring[row] = MISSING
    r.n[row, c.NEED] = NOTHING
    r.n[row, c.OTHER_SSRC] = -1
    r.n[row, c.DTMF_TYPE] = -1
    r.n[row, c.QUIET] = 4
    r.n[row, c.SEED] = row + 1


def configure(r: ReceiveRows, row: int, codec: int, rate: int, clock: int, limit_ms: int) -> None:
    """Give a row its codec; what was buffered is dropped, the stream's counts go on."""
    n = r.n[row]
    n[c.CODEC], n[c.RATE], n[c.CLOCK], n[c.FRAME] = codec, rate, clock, rate // 50
    n[c.LIMIT] = min(limit_ms * rate // 1000, RING - rate // 10)
    r.ring[row] = MISSING
    r.line[row] = 0
    for column in (c.PLAYING, c.NEXT, c.HIGH, c.LOW, c.HELD, c.AGE, c.NEED_COUNT, c.SPARE_LENGTH, c.SPARE_AT):
        n[column] = 0
    n[c.NEED] = NOTHING
