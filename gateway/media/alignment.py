"""AlignmentRows: how far behind what was sent each row's reference is read, and how fast that changes.

Where the canceller's error looks like the slope of the predicted echo, the echo comes later or earlier than
thought; two states a row, the delay and its change a block, follow it. So a caller's clock that runs beside
ours by 100 ppm leaves the filter a path that stands still. It knows no audio but the errors it is told.

Source: the two-state tracking loop is the Kalman form of a second-order delay-locked loop (Kaplan & Hegarty,
"Understanding GPS", ch. 5); here the discriminator is the least-squares fit of the error to the echo's slope.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gateway.media.power import ERROR, LATE, RISE
from gateway.media.reference import AHEAD

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Rows = NDArray[np.intp]

MARGIN = 3
"""Blocks read before the echo, so that a path 60 ms shorter stays within the filter."""
CAUTION = 10.0
"""How much more than its own noise a measured delay is doubted."""
WANDER = 1e-6
"""Variance by which the delay may wander a block, samples squared."""
PACE_WANDER = 1e-8
FIRST_PACE = 1e-4
"""Standard deviation of an unknown drift, samples a sample."""
MOST_PACE = 3e-4
NEVER = 1e9


class AlignmentRows:
    """Delays of `count` rows in samples, for blocks of `block` samples."""

    def __init__(self, count: int, block: int) -> None:
        self.block = block
        self.least = float(block + AHEAD)
        """What is read must have been sent."""
        self.delay = np.zeros(count, np.float64)
        self.pace = np.zeros(count, np.float64)
        """Samples by which the delay shrinks, a sample."""
        self._p11, self._p12, self._p22 = (np.zeros(count, np.float64) for _ in range(3))

    def start(self, row: int, lag: int) -> None:
        """The echo of row lies `lag` blocks back; its drift is unknown."""
        self.delay[row] = max((lag - MARGIN) * self.block, self.block + 2 * AHEAD)
        self.pace[row] = self._p11[row] = self._p12[row] = 0.0
        self._p22[row] = (FIRST_PACE * self.block) ** 2

    def shift(self, row: int, samples: int) -> bool:
        """The path has become longer or shorter at once. False, and nothing done, if it is too short now."""
        if self.delay[row] + samples < self.least:
            return False
        self.delay[row] += samples
        return True

    def advance(self, rows: Rows) -> None:
        """A block has passed, heard or not: drift goes on."""
        self.delay[rows] = np.maximum(self.delay[rows] - self.pace[rows] * self.block, self.least)

    def holds(self, row: int, lag: int, parts: int) -> bool:
        """Whether an echo `lag` blocks back lies within a filter of `parts` blocks, with room to end in."""
        first = float(self.delay[row]) / self.block
        return first - 0.5 <= lag <= first + parts - 4

    def follow(self, rows: Rows, sums: F32, teaches: NDArray[np.bool_]) -> None:
        """Correct delay and pace from what predicted echo and error have in common, (6, n) of
        power.compare(); of blocks that teach, only."""
        power = np.float32(0.25) * sums[RISE] + 1e-9  # the rise is over two samples: twice the slope
        late = np.clip(-0.5 * sums[LATE] / power, -1, 1) * teaches
        noise = sums[ERROR] / self.block / power
        self._correct(rows, late, np.where(teaches, CAUTION * noise + 1e-5, NEVER))

    def _correct(self, rows: Rows, late: F64, noise: F64) -> None:
        p11, p12, p22 = self._p11[rows], self._p12[rows], self._p22[rows]
        p11, p12, p22 = p11 + 2 * p12 + p22 + WANDER, p12 + p22, p22 + PACE_WANDER
        k1, k2 = p11 / (p11 + noise), p12 / (p11 + noise)
        self.delay[rows] += k1 * late
        self.pace[rows] = np.clip(self.pace[rows] - k2 * late / self.block, -MOST_PACE, MOST_PACE)
        self._p11[rows], self._p12[rows], self._p22[rows] = (1 - k1) * p11, (1 - k1) * p12, p22 - k2 * p12
