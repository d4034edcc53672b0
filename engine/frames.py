"""RowFrames: at a tick, one frame out of every caller's ring and one into every agent's ring.

All rows at once, without an object a slot. It owns the reading positions and the counters, and it
knows no clock, no thread and no model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.api import FRAME, SlotCounters
from engine.rows import RING, AudioRows

Mask = NDArray[np.bool_]
Batch = NDArray[np.float32]  # (rows, 1920)
Index = NDArray[np.int64]

_BLOCK = 480
"""Samples a media tick writes; a reading position at a multiple of it is read as four whole blocks."""
_BLOCKS = RING // _BLOCK
_FRAMES = RING // FRAME
_AHEAD = np.arange(FRAME)
_BLOCKS_AHEAD = np.arange(FRAME // _BLOCK)


class RowFrames:
    """Reads `rows.heard` and writes `rows.spoken` in frames of 1,920 samples.

    A slot starts with whatever its caller has said so far. From then on a tick takes one frame: less
    than a frame waiting gives silence in front of it, and of two frames or more the oldest are skipped.
    """

    def __init__(self, rows: AudioRows) -> None:
        self.rows = rows
        self.heard_at: Index = np.zeros(rows.count, np.int64)
        """(rows,) samples of each caller taken or skipped so far."""
        self.counts: NDArray[np.int64] = np.zeros((4, rows.count), np.int64)
        """Frames, short samples, dropped samples and missed ticks of each row."""
        self.dropped_samples = 0
        """Samples skipped in all rows since the engine began."""
        self.bad_frames = 0
        """Frames that held NaN or infinity, in or out, and became silence."""
        self._heard_blocks = rows.heard.reshape(rows.count, _BLOCKS, _BLOCK)
        self._pcm: Batch = np.zeros((rows.count, FRAME), np.float32)

    def clear(self, row: int) -> None:
        """Make the row ready for a new slot."""
        self.rows.clear(row)
        self.heard_at[row] = 0
        self.counts[:, row] = 0

    def skip(self, row: int) -> None:
        """The row's slot stood still: of what its caller said meanwhile only the last frame is for it."""
        self.heard_at[row] = max(self.heard_at[row], self.rows.heard_end[row] - FRAME)

    def counters(self, row: int) -> SlotCounters:
        frames, short, dropped, missed = (int(n) for n in self.counts[:, row])
        return SlotCounters(frames, short, dropped, missed)

    def miss(self, active: Mask, ticks: int) -> None:
        """Count ticks that gave the active rows no frame."""
        self.counts[3, active] += ticks

    def take(self, active: Mask, behind: int = 0) -> Batch:
        """One frame of each active caller: (rows, 1920), zeros elsewhere; valid until the next take.

        behind: ticks that follow at once, whose frames must stay waiting.
        """
        which = np.flatnonzero(active)
        end = self.rows.heard_end[which]
        at = self._skip_backlog(which, end, behind)
        taken = np.minimum(end - at, FRAME)
        self.heard_at[which] = at + taken
        pcm = self._pcm
        if len(which) < len(pcm):
            pcm.fill(0.0)
        self._read(which, at + taken - FRAME, pcm)
        self._silence_missing(which, at, FRAME - taken)
        self._repair(pcm, which)
        return pcm

    def _skip_backlog(
        self, which: NDArray[np.int64], end: NDArray[np.int64], behind: int
    ) -> NDArray[np.int64]:
        at = self.heard_at[which]
        surplus = np.maximum((end - at) // FRAME - 1 - behind, 0) * FRAME
        self.counts[2, which] += surplus
        self.dropped_samples += int(surplus.sum())
        skipped: Index = at + surplus
        return skipped

    def _read(self, which: Index, start: Index, pcm: Batch) -> None:
        """Samples [start, start + 1920) of each row's ring into the same row of pcm."""
        if np.any(start % _BLOCK):
            pcm[which] = self.rows.heard[which[:, None], (start[:, None] + _AHEAD) % RING]
            return
        blocks = (start[:, None] // _BLOCK + _BLOCKS_AHEAD) % _BLOCKS
        if len(which) < len(pcm):
            pcm[which] = self._heard_blocks[which[:, None], blocks].reshape(len(which), FRAME)
            return
        blocks += which[:, None] * _BLOCKS
        out = pcm.reshape(-1, _BLOCK)
        self._heard_blocks.reshape(-1, _BLOCK).take(blocks.ravel(), axis=0, out=out, mode="clip")

    def _silence_missing(self, which: Index, at: Index, missing: Index) -> None:
        short = np.flatnonzero(missing)
        if not len(short):
            return
        rows, gaps = which[short], missing[short]
        self._pcm[rows] = np.where(gaps[:, None] <= _AHEAD, self._pcm[rows], 0.0)
        # The first frame of a slot may begin between ticks: that is no loss.
        self.counts[1, rows] += np.where(at[short] > 0, gaps, 0)

    def _repair(self, pcm: Batch, which: NDArray[np.int64]) -> None:
        """Silence instead of frames with NaN or infinity; samples beyond ±1 are clipped."""
        if pcm.max(initial=0.0) <= 1.0 and pcm.min(initial=0.0) >= -1.0:  # false for NaN too
            return
        bad = ~np.isfinite(pcm).all(axis=1)
        pcm[bad] = 0.0
        self.bad_frames += int(bad.sum())
        self.counts[1, bad] += FRAME
        np.clip(pcm, -1.0, 1.0, out=pcm)

    def put(self, pcm: Batch, valid: Mask) -> None:
        """Append a frame, out of (rows, 1920), to the ring of each valid row."""
        which = np.flatnonzero(valid)
        frames = pcm[which] if len(which) < len(pcm) else pcm
        if not np.isfinite((frames.max(initial=0.0), frames.min(initial=0.0))).all():
            bad: Mask = np.logical_not(np.isfinite(frames).all(axis=1))
            frames = np.where(bad[:, None], np.float32(0), frames)
            self.bad_frames += int(bad.sum())
        append_frames(self.rows.spoken, self.rows.spoken_end, which, frames)
        self.counts[0, which] += 1


def append_frames(ring: Batch, ends: Index, which: Index, frames: Batch) -> None:
    """Append a frame, out of (n, 1920), to the rows `which` (n,) of a ring written in whole frames only."""
    end = ends[which]
    ring.reshape(len(ring), _FRAMES, FRAME)[which, end // FRAME % _FRAMES] = frames
    ends[which] = end + FRAME
