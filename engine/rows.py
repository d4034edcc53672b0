"""AudioRows: the 24 kHz audio of all slots as arrays, one row a slot, two rings a row.

Who fills a row and who empties it may live in different threads or processes: each ring has one
writer and one reader, positions only grow, and a position is stored after its samples. It knows no
engine and no call.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FRAME = 1_920
RING = 25 * FRAME
"""Samples a ring holds: 2 s. A multiple of the frame, so that a frame at a frame boundary is one slice."""


class AudioRows:
    """Two rings a row: `heard`, what the caller said, and `spoken`, what the agent said.

    Positions (`heard_end`, `spoken_end`) count samples since `clear(row)`; sample n of a row lies at
    column n % RING. Given a `buffer` (shared memory of `nbytes(count)`), the arrays are laid over it.
    """

    def __init__(self, count: int, buffer: memoryview | None = None) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        raw = np.frombuffer(buffer if buffer is not None else bytearray(self.nbytes(count)), np.uint8)
        positions = raw[: 16 * count].view(np.int64).reshape(2, count)
        audio = raw[16 * count : self.nbytes(count)].view(np.float32).reshape(2, count, RING)
        self.count = count
        self.heard: NDArray[np.float32] = audio[0]  # (count, RING)
        self.spoken: NDArray[np.float32] = audio[1]  # (count, RING)
        self.heard_end: NDArray[np.int64] = positions[0]  # (count,)
        self.spoken_end: NDArray[np.int64] = positions[1]  # (count,)

    @staticmethod
    def nbytes(count: int) -> int:
        """Bytes of shared memory for `count` rows."""
        return count * (2 * 8 + 2 * RING * 4)

    def clear(self, row: int) -> None:
        """Silence both rings of a row and start its counts at 0."""
        self.heard[row] = 0.0
        self.spoken[row] = 0.0
        self.heard_end[row] = 0
        self.spoken_end[row] = 0

    def write_heard(self, row: int, pcm: NDArray[np.float32]) -> None:
        """Append the caller's samples; of more than RING only the last RING are kept."""
        self.heard_end[row] = _append(self.heard[row], int(self.heard_end[row]), pcm)

    def write_spoken(self, row: int, pcm: NDArray[np.float32]) -> None:
        """Append the agent's samples."""
        self.spoken_end[row] = _append(self.spoken[row], int(self.spoken_end[row]), pcm)

    def read_heard(self, row: int, start: int, count: int) -> NDArray[np.float32]:
        """A copy of the caller's samples [start, start + count); the reader checks the positions."""
        return _slice(self.heard[row], start, count)

    def read_spoken(self, row: int, start: int, count: int) -> NDArray[np.float32]:
        """A copy of the agent's samples [start, start + count)."""
        return _slice(self.spoken[row], start, count)


def _append(ring: NDArray[np.float32], end: int, pcm: NDArray[np.float32]) -> int:
    new_end = end + len(pcm)
    kept = pcm[-RING:]
    at = (new_end - len(kept)) % RING
    first = min(len(kept), RING - at)
    ring[at : at + first] = kept[:first]
    ring[: len(kept) - first] = kept[first:]
    return new_end


def _slice(ring: NDArray[np.float32], start: int, count: int) -> NDArray[np.float32]:
    at = start % RING
    if at + count <= RING:
        return ring[at : at + count].copy()
    return np.concatenate([ring[at:], ring[: at + count - RING]])
