"""Ledger: which samples of the agent went out at which tick, one row a call.

One writer, the playout; any thread or process may look: the arrays may lie in shared memory. It knows only
counts of samples and ticks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
Rows = NDArray[np.intp]

BLOCK = 480
REMEMBERED = 128
"""Ticks that can be looked up: 2.5 s."""
TICK_S = 0.02


class Ledger:
    """What was handed out at the last REMEMBERED ticks. Laid over `buffer` (`nbytes(count)`) if given."""

    def __init__(self, count: int, buffer: memoryview | None = None) -> None:
        raw = np.frombuffer(buffer if buffer is not None else bytearray(self.nbytes(count)), np.int64)
        self.sent: I64 = raw[:count]
        """Samples handed out, noise included."""
        self._tick: I64 = raw[count : 2 * count]  # of the row's newest entry
        self._origins: I64 = raw[2 * count : (2 + REMEMBERED) * count].reshape(REMEMBERED, count)

    @staticmethod
    def nbytes(count: int) -> int:
        return count * (2 + REMEMBERED) * 8

    def clear(self, row: int) -> None:
        """A call begins: nothing went out yet."""
        self.sent[row] = self._tick[row] = 0
        self._origins[:, row] = -1

    def note(self, rows: Rows, origins: I64, tick: int) -> None:
        """At `tick` these rows hand out the block of `spoken` that begins at `origins` (n,); -1: noise."""
        self._origins[tick % REMEMBERED, rows] = origins
        self.sent[rows] += BLOCK
        self._tick[rows] = tick

    def sent_at(self, row: int, sample: int) -> float | None:
        """When a sample of `spoken` reached the wire, on the clock of the ticks in seconds: at the tick
        after the one that handed it out. None: not yet, cut, or forgotten."""
        newest = int(self._tick[row])
        for back in range(1, REMEMBERED):
            origin = int(self._origins[(newest - back) % REMEMBERED, row])
            if origin >= 0 and origin <= sample < origin + BLOCK:
                return (newest - back + 1) * TICK_S
        return None

    def spoken_of(self, row: int, sent: int) -> int:
        """Samples of `spoken` among the first `sent` handed out. What is longer ago than REMEMBERED ticks
        counts as nothing."""
        first = max(0, int(self.sent[row]) - sent) // BLOCK
        newest = int(self._tick[row])
        for back in range(first, REMEMBERED):
            origin = int(self._origins[(newest - back) % REMEMBERED, row])
            if origin >= 0:
                return origin + BLOCK
        return 0
