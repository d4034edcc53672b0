"""SharedMedia: the memory that signalling, media processes and the engine look at together.

The audio of all rows, the ledger of what was sent, the counters of each row, and how each process fares. It
lies in an unnamed file in memory: whoever is given the file sees it, and it is gone with the last of them.
"""

from __future__ import annotations

import mmap
import os

import numpy as np
from numpy.typing import NDArray

from engine.rows import AudioRows
from gateway.media.ledger import Ledger
from gateway.media.readings import NUMBERS

PULSE, P50, P99, LATEST, WORK, SKIPPED, FAILED, FIFO = range(8)
"""Columns of `health`: ticks run so far, then the fields of clock.Lateness in order."""
_HEALTH = 8
_ALIGNED = 64


class SharedMedia:
    """Views of the memory of `count` rows and `processes` media processes."""

    def __init__(self, count: int, processes: int, fd: int | None = None) -> None:
        """New memory, all zero; or, given `fd`, the memory another process made. Owns the descriptor."""
        parts = (
            processes * _HEALTH * 8,
            count * len(NUMBERS) * 8,
            Ledger.nbytes(count),
            AudioRows.nbytes(count),
        )
        sizes = [-(-part // _ALIGNED) * _ALIGNED for part in parts]
        self.fd = os.memfd_create("moshi-gateway-media") if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, sum(sizes))
        memory = memoryview(mmap.mmap(self.fd, sum(sizes)))
        starts = np.cumsum([0, *sizes]).tolist()
        health, table, ledger, rows = (
            memory[start : start + part] for start, part in zip(starts, parts, strict=False)
        )
        self.health: NDArray[np.float64] = np.frombuffer(health).reshape(processes, _HEALTH)
        self.table: NDArray[np.float64] = np.frombuffer(table).reshape(count, len(NUMBERS))
        """readings() of every open row, written every 0.1 s."""
        self.ledger = Ledger(count, ledger)
        self.rows = AudioRows(count, rows)
        self.processes = processes
