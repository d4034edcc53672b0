"""Announcer: recordings that phone legs play before their agent speaks, a block of 20 ms a tick."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.api import Pcm

Rows = NDArray[np.intp]


class Announcer:
    """The recordings under way, by row."""

    def __init__(self) -> None:
        self._left: dict[int, NDArray[np.int16]] = {}

    def play(self, row: int, pcm: bytes) -> None:
        """Begin with the next block; what the row was playing is forgotten."""
        self._left[row] = np.frombuffer(pcm, np.int16)

    def stop(self, row: int) -> None:
        self._left.pop(row, None)

    def fill(self, rows: Rows, pcm: Pcm, sends: NDArray[np.bool_]) -> list[int]:
        """Put the next block of each announcement into its row's place of (n, 480), where `sends` (rows,)
        lets it be heard; the rows whose last block went with the tick before."""
        if not self._left:
            return []
        ended: list[int] = []
        for index, row in enumerate(rows.tolist()):
            left = self._left.get(row)
            if left is None or not sends[row]:
                continue
            if not len(left):
                del self._left[row]
                ended.append(row)
                continue
            block = left[: pcm.shape[1]]
            pcm[index, : len(block)] = block * np.float32(1 / 32_768)
            pcm[index, len(block) :] = 0.0
            self._left[row] = left[len(block) :]
        return ended
