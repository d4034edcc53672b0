"""Runs of samples in a row's jitter buffer: copied, emptied, searched.

Each is written once for the compiler, as a loop that it makes into a few wide instructions, and once for
numpy (see linked.py); of a loop over cells & (RING - 1), or an assignment to a slice, it does not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gateway.media.rows import MISSING

I16 = NDArray[np.int16]


def copy_by_loops(to: I16, source: I16) -> None:
    """to[:] = source; they do not overlap."""
    for i in range(len(to)):
        to[i] = source[i]


def copy(to: I16, source: I16) -> None:
    to[:] = source


def fill_by_loops(to: I16) -> None:
    """Leave the cells empty."""
    for i in range(len(to)):
        to[i] = MISSING


def fill(to: I16) -> None:
    to[:] = MISSING


def lay_by_loops(to: I16, pcm: I16) -> None:
    """to[:] = pcm, but for what would stand for nothing."""
    for i in range(len(to)):
        to[i] = max(pcm[i], MISSING + 1)


def lay(to: I16, pcm: I16) -> None:
    np.maximum(pcm, np.int16(MISSING + 1), out=to)


def filled_by_loops(cells: I16) -> int:
    """Cells before the first empty one."""
    empty = 0
    for i in range(len(cells)):
        empty += cells[i] == MISSING
    if empty == 0:
        return len(cells)
    for i in range(len(cells)):
        if cells[i] == MISSING:
            return i
    return len(cells)


def filled(cells: I16) -> int:
    empty = cells == MISSING
    return int(empty.argmax()) if empty.any() else len(cells)
