"""SentRows: what was sent to each caller, read back at any fractional delay.

A caller whose clock runs 100 ppm beside ours gives an echo that moves by a sample every 1.25 s at 8 kHz; each
block of the reference is read where it belongs, to a fraction of a sample, so that the filter behind it sees
a path that stands still.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.media.compiled import kernel

F32 = NDArray[np.float32]
Rows = NDArray[np.intp]

TAPS = 16
PHASES = 256
AHEAD = TAPS // 2
"""Samples after a position that reading it needs."""


def _table() -> F32:
    """(PHASES + 1, TAPS) Kaiser-windowed sinc, cut at 0.95 of Nyquist, unity at DC."""
    fraction = np.arange(PHASES + 1)[:, None] / PHASES
    x = np.arange(TAPS)[None, :] - (AHEAD - 1) - fraction
    window = np.i0(8.0 * np.sqrt(np.maximum(1 - (x / (AHEAD + 0.01)) ** 2, 0))) / np.i0(8.0)
    taps = 0.95 * np.sinc(0.95 * x) * window
    return np.asarray(taps / taps.sum(axis=1, keepdims=True), dtype=np.float32)


TABLE = _table()


def _read(ring: Any, rows: Any, start: Any, table: Any, out: Any) -> None:
    """out[q, n] = ring[rows[q]] at the position start[q] + n."""
    size, count, taps = ring.shape[1], out.shape[1], table.shape[1]
    phases = table.shape[0] - 1
    line = np.empty(count + taps, np.float32)
    weights = np.empty(taps, np.float32)
    for q in range(len(rows)):
        base = int(np.floor(start[q]))
        fine = (start[q] - base) * phases
        phase = min(int(fine), phases - 1)
        blend = np.float32(fine - phase)
        for tap in range(taps):
            weights[tap] = table[phase, tap] + blend * (table[phase + 1, tap] - table[phase, tap])
        at = (base - (taps // 2 - 1)) % size
        first = min(size - at, count + taps)
        line[:first] = ring[rows[q], at : at + first]
        line[first:] = ring[rows[q], : count + taps - first]
        for n in range(count):
            value = np.float32(0)
            for tap in range(taps):
                value += line[n + tap] * weights[tap]
            out[q, n] = value


def _read_numpy(ring: F32, rows: Rows, start: Any, table: F32, out: F32) -> None:
    base = np.floor(start).astype(np.int64)
    fine = (start - base) * PHASES
    phase = np.minimum(fine.astype(np.int64), PHASES - 1)
    blend = (fine - phase).astype(np.float32)[:, None]
    weights = table[phase] + blend * (table[phase + 1] - table[phase])  # (n, taps)
    index = (base[:, None] - (AHEAD - 1) + np.arange(out.shape[1] + TAPS - 1)) % ring.shape[1]
    windows = np.lib.stride_tricks.sliding_window_view(ring[rows[:, None], index], TAPS, axis=1)
    out[:] = np.einsum("nlt,nt->nl", windows, weights)


read = kernel(_read, _read_numpy)


class SentRows:
    """Rings of the last `seconds` sent on `count` rows at one rate, all on one count of samples."""

    def __init__(self, count: int, rate: int, seconds: float = 3.2) -> None:
        self.block = rate // 50
        self.size = int(seconds * 50) * self.block
        self.ring = np.zeros((count, self.size), np.float32)
        self.now = 0
        """Samples since the beginning, the same for all rows; what lies before it can be read."""

    def clear(self, row: int) -> None:
        self.ring[row] = 0

    def advance(self) -> None:
        """A tick has passed; rows that get no write() before the next have sent silence."""
        self.now += self.block
        column = self.now % self.size
        self.ring[:, column : column + self.block] = 0

    def write(self, rows: Rows, pcm: F32) -> None:
        """The block (n, L) from `now` on: it can be read after the next advance()."""
        column = self.now % self.size
        self.ring[rows, column : column + self.block] = pcm

    def last(self, rows: Rows) -> F32:
        """The newest two blocks (n, 2L)."""
        column = (self.now - 2 * self.block) % self.size
        if column + 2 * self.block <= self.size:
            return self.ring[rows, column : column + 2 * self.block]
        return np.concatenate([self.ring[rows, column:], self.ring[rows, : self.block]], axis=1)

    def at(self, rows: Rows, start: NDArray[np.float64] | NDArray[np.int64], count: int) -> F32:
        """(n, count) samples from fractional positions start (n,) on."""
        out = np.empty((len(rows), count), np.float32)
        # Whole positions as floats too: for another type the loop would be compiled again, amid calls.
        read(self.ring, rows, np.asarray(start, np.float64), TABLE, out)
        return out
