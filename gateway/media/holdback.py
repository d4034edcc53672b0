"""Holdback: the agent's voice on its way out, lowered, kept back or dropped as each call's Duplex wants.

What is kept back is played later, in order and whole; pauses of the agent then take up the delay. Ramps are
one block long, half a block to a lowered voice. It knows no policy and no caller.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from engine.api import Pcm
from gateway.duplex import Give

Rows = NDArray[np.intp]

BLOCK = 480
LOW = np.float32(10 ** (-15 / 20))
MOST_HELD = 100
"""Blocks kept back: 2 s; of more the oldest are dropped."""
AUDIBLE = np.float32(1e-5)
"""Power of a block (-50 dBFS) from which it is speech of the agent and not its pause."""

_GAIN = {Give.WHOLE: np.float32(1), Give.LOW: LOW, Give.HELD: np.float32(0), Give.NOTHING: np.float32(0)}


class Holdback:
    """Gains and kept blocks of `count` rows."""

    def __init__(self, count: int) -> None:
        self._gain = np.ones(count, np.float32)
        self._kept: dict[int, deque[Pcm]] = {}
        self._fade = np.linspace(0, 1, BLOCK + 1, dtype=np.float32)[1:]
        self._step = np.minimum(2 * self._fade, 1)  # to a lower level in 10 ms: half a block sooner
        self.dropped = 0
        """Samples that were kept back for so long that they were given up, of all rows."""

    def clear(self, row: int) -> None:
        self._gain[row] = 1
        self._kept.pop(row, None)

    def held(self, row: int) -> int:
        """Samples of the agent that the caller has yet to hear."""
        return len(self._kept[row]) * BLOCK if row in self._kept else 0

    def touches(self, row: int) -> bool:
        """Whether a row that is given whole would still not go out as it comes."""
        return row in self._kept or bool(self._gain[row] != 1)

    def pass_on(self, row: int, give: Give, pcm: Pcm) -> Pcm:
        """The block (480,) to send instead of this one."""
        if give is Give.NOTHING:
            self._kept.pop(row, None)
            return self._ramped(row, pcm, give)
        if give is Give.HELD:
            self._keep(row, pcm)
            return self._ramped(row, pcm, give)
        if row in self._kept:
            pcm = self._next(row, pcm)
        return self._ramped(row, pcm, give)

    def _keep(self, row: int, pcm: Pcm) -> None:
        kept = self._kept.setdefault(row, deque())
        if len(kept) >= MOST_HELD:
            kept.popleft()
            self.dropped += BLOCK
        kept.append(pcm.copy())

    def _next(self, row: int, pcm: Pcm) -> Pcm:
        """The oldest kept block; the newest queues behind it unless it is a pause, which is left out."""
        kept = self._kept[row]
        oldest = kept.popleft()
        if float(np.dot(pcm, pcm)) > AUDIBLE * BLOCK:
            kept.append(pcm.copy())
        if not kept:
            del self._kept[row]
        return oldest

    def _ramped(self, row: int, pcm: Pcm, give: Give) -> Pcm:
        before, after = self._gain[row], _GAIN[give]
        self._gain[row] = after
        if before == after:
            return pcm if after == 1 else pcm * after
        ramp = self._step if give is Give.LOW else self._fade
        return np.asarray(pcm * (before + (after - before) * ramp), dtype=np.float32)
