"""Playout: what the agent says, from `AudioRows.spoken` to 20 ms blocks, all rows at once.

A frame of 80 ms begins to play at the tick after it came. When the engine is late, comfort noise stands in
and everything moves back a tick; when a tick's worth was never needed for 1.3 s it is skipped in the next
pause. Nothing else is left out or said twice, and which sample went out at which tick is known.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.api import Pcm
from engine.rows import RING, AudioRows
from gateway.media.ledger import BLOCK, Ledger

_BLOCKS = RING // BLOCK
MOST_QUEUED = 8 * BLOCK
"""Two frames: an engine that delivers more at once loses the oldest, faded."""
WATCH = 64
"""Ticks over which the least queued is watched."""
QUIET = 10 ** (-50 / 20)
_RAMP = 60
_CUT = 120

I64 = NDArray[np.int64]
Rows = NDArray[np.intp]


class Playout:
    """Reading positions and what was sent, one row a call."""

    def __init__(self, rows: AudioRows, noise_dbfs: float, ledger: Ledger | None = None) -> None:
        count = rows.count
        self._rows = rows
        self._blocks = rows.spoken.reshape(count, _BLOCKS, BLOCK)
        self.cursor: I64 = np.zeros(count, np.int64)
        """Next sample of `spoken` to play."""
        self.ledger = ledger or Ledger(count)
        self.underrun: I64 = np.zeros(count, np.int64)
        self.skipped: I64 = np.zeros(count, np.int64)
        self._playing = np.zeros(count, np.bool_)
        self._last = np.zeros(count, np.float32)
        self._cut = np.zeros(count, np.bool_)
        self.muted = np.zeros(count, np.bool_)
        self._least: I64 = np.full(count, RING, np.int64)
        self._watched: I64 = np.zeros(count, np.int64)
        self._early = np.zeros(count, np.bool_)
        rng = np.random.default_rng(20)
        level = 10 ** (noise_dbfs / 20)
        self._noise = (rng.standard_normal(64 * BLOCK) * level).astype(np.float32)
        self._ramp = np.linspace(1.0, 0.0, _RAMP, dtype=np.float32)
        self._fade = np.linspace(1.0, 0.0, _CUT, dtype=np.float32)

    def open(self, row: int) -> None:
        """A call begins: nothing is queued."""
        for array in (self.cursor, self.underrun, self.skipped, self._watched):
            array[row] = 0
        for flags in (self._playing, self._cut, self.muted, self._early):
            flags[row] = False
        self._last[row] = 0.0
        self._least[row] = RING
        self.ledger.clear(row)

    def start(self, row: int) -> None:
        """From now on read the agent."""
        self.cursor[row] = self._rows.spoken_end[row] // BLOCK * BLOCK

    def cut(self, row: int) -> None:
        """Drop what is queued at the next block, faded."""
        self._cut[row] = True

    def queued_rows(self, rows: Rows) -> I64:
        """Samples (n,) that wait to be played."""
        waiting: I64 = self._rows.spoken_end[rows] - self.cursor[rows]
        return waiting

    def next_blocks(self, rows: Rows, started: NDArray[np.bool_], tick: int) -> Pcm:
        """20 ms of each row, (n, 480); rows not started give noise."""
        queued = np.where(started, self._rows.spoken_end[rows] - self.cursor[rows], 0)
        queued = self._drop_excess(rows, queued)
        ready = queued >= BLOCK
        at = rows * _BLOCKS + self.cursor[rows] // BLOCK % _BLOCKS
        pcm: Pcm = self._blocks.reshape(-1, BLOCK).take(at, axis=0)
        self.ledger.note(rows, np.where(ready, self.cursor[rows], -1), tick)
        self.cursor[rows] += np.where(ready, BLOCK, 0)
        self._watch(rows, np.where(ready, queued, 0), pcm)
        self._cover(rows, pcm, ready, tick)
        self._last[rows] = pcm[:, -1]
        return pcm

    def _drop_excess(self, rows: Rows, queued: I64) -> I64:
        excess = np.maximum(queued - MOST_QUEUED, 0) // BLOCK * BLOCK
        if excess.any():
            self.cursor[rows] += excess
            self.skipped[rows] += excess
        left: I64 = queued - excess
        return left

    def _watch(self, rows: Rows, queued: I64, pcm: Pcm) -> None:
        """Skip a block in a pause when one more than needed was there all the time."""
        playing = queued > 0
        least = np.minimum(self._least[rows], np.where(playing, queued, RING))
        watched = self._watched[rows] + playing
        full = watched >= WATCH
        self._early[rows] |= full & (least >= 2 * BLOCK)
        self._least[rows] = np.where(full, RING, least)
        self._watched[rows] = np.where(full, 0, watched)
        candidates = np.flatnonzero(self._early[rows] & (queued >= 2 * BLOCK))
        for i in candidates.tolist():
            row = rows[i]
            following = self._blocks[row, self.cursor[row] // BLOCK % _BLOCKS]
            if max(np.abs(pcm[i]).max(), np.abs(following).max()) < QUIET:
                self.cursor[row] += BLOCK
                self.skipped[row] += BLOCK
                self._early[row] = False

    def _cover(self, rows: Rows, pcm: Pcm, ready: NDArray[np.bool_], tick: int) -> None:
        """Noise where nothing is ready, muted or cut; bent so that nothing clicks."""
        starved = ~ready & self._playing[rows]
        self.underrun[rows[starved]] += BLOCK
        for i in np.flatnonzero(self._cut[rows]).tolist():
            self._end_speech(rows[i], pcm[i], bool(ready[i]))
            ready[i] = False
        for i in np.flatnonzero(~ready | self.muted[rows]).tolist():
            row = rows[i]
            at = (tick * 7 + row * 5) % 63 * BLOCK
            if self._cut[row]:
                self._cut[row] = False
                pcm[i] += self._noise[at : at + BLOCK]
                continue
            pcm[i] = self._noise[at : at + BLOCK]
            pcm[i, :_RAMP] += self._last[row] * self._ramp
        resumed = np.flatnonzero(ready & ~self._playing[rows])
        pcm[resumed, :_RAMP] *= 1.0 - self._ramp
        self._playing[rows] = ready

    def _end_speech(self, row: int, block: Pcm, ready: bool) -> None:
        if ready:
            block[:_CUT] *= self._fade
            block[_CUT:] = 0.0
        else:
            block[:] = 0.0
            block[:_RAMP] = self._last[row] * self._ramp
        self.cursor[row] = self._rows.spoken_end[row] // BLOCK * BLOCK
