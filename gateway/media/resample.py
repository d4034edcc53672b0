"""Resampler: 8, 16 or 48 kHz ↔ 24 kHz for all rows of a rate in one matrix product.

A polyphase FIR (Crochiere & Rabiner, Multirate Digital Signal Processing, ch. 3) written as a block matrix:
one block of inputs and the filter's memory in, one block of outputs out. Equiripple prototypes: 48 taps (16 a
phase at 8 → 24 kHz; ±0.12 dB to 0.8 of the narrow side's Nyquist, −80 dB from 1.2) and a 32-tap half-band;
1 ms and 0.33 ms group delay. Every 20 ms block in gives exactly 20 ms out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.api import Pcm

THIRD_BAND = (
    0.00044463, 0.00144634, 0.00251738, 0.00233028, -0.00020557, -0.00427952, -0.00670811, -0.00414748,
    0.00309494, 0.00941372, 0.00757901, -0.00391686, -0.01660006, -0.01705973, 0.00039859, 0.02431659,
    0.03133277, 0.00615458, -0.03887693, -0.06407259, -0.02826206, 0.07649100, 0.20959406, 0.30233289,
)  # fmt: skip
"""First half of remez(48, [0, 3200, 4800, 12000], [1, 0], weight=[1, 150], fs=24000), symmetric."""
HALF_BAND = (
    0.00131492, 0.00455998, 0.00459875, -0.00323348, -0.00874819, 0.00262765, 0.01606439, 0.00035905,
    -0.02697090, -0.00766674, 0.04346788, 0.02377806, -0.07293946, -0.06619858, 0.16465239, 0.43031855,
)  # fmt: skip
"""First half of remez(32, [0, 9600, 14400, 24000], [1, 0], weight=[1, 150], fs=48000), symmetric."""

_PLANS: dict[tuple[int, int], tuple[int, int, int]] = {
    (8_000, 24_000): (3, 1, 32),
    (16_000, 24_000): (3, 2, 32),
    (48_000, 24_000): (1, 2, 96),
    (24_000, 8_000): (1, 3, 96),
    (24_000, 16_000): (2, 3, 48),
    (24_000, 48_000): (2, 1, 32),
}
"""(from, to): up, down, inputs a block."""


def prototype(source: int, target: int) -> Pcm:
    """The low-pass at the common rate, unit gain, (taps,) float32. ValueError for rates not planned."""
    if (source, target) not in _PLANS:
        raise ValueError(f"no resampling from {source} to {target} Hz")
    half = HALF_BAND if 48_000 in (source, target) else THIRD_BAND
    return np.array([*half, *reversed(half)], np.float32)


def block_matrix(taps: Pcm, up: int, down: int, block: int) -> Pcm:
    """(memory + block, block * up // down): outputs = inputs @ matrix; memory = ceil(taps / up) - 1."""
    memory = -(-len(taps) // up) - 1
    matrix = np.zeros((memory + block, block * up // down), np.float32)
    for column in range(matrix.shape[1]):
        for line in range(matrix.shape[0]):
            tap = column * down - (line - memory) * up
            if 0 <= tap < len(taps):
                matrix[line, column] = up * taps[tap]
    return matrix


class Resampler:
    """One direction between two rates, with a memory for each of `count` rows."""

    def __init__(self, count: int, source: int, target: int) -> None:
        taps = prototype(source, target)
        up, down, self._block = _PLANS[source, target]
        self._matrix = block_matrix(taps, up, down, self._block)
        self._memory = np.zeros((count, self._matrix.shape[0] - self._block), np.float32)
        self.source, self.target = source, target
        self.group_delay_s = (len(taps) - 1) / 2 / (source * up)

    def run(self, rows: NDArray[np.intp], pcm: Pcm) -> Pcm:
        """(n, k) at `source` for these rows to (n, k * target / source); k a multiple of 20 ms' samples."""
        pcm = np.ascontiguousarray(pcm, np.float32)
        kept, width = self._memory.shape[1], self._matrix.shape[0]
        pieces = np.empty((len(pcm), pcm.shape[1] // self._block, width), np.float32)
        pieces[:, 0, :kept] = self._memory[rows]
        pieces[:, 0, kept:] = pcm[:, : self._block]
        pieces[:, 1:] = _overlapping(pcm, self._block - kept, width, self._block)
        self._memory[rows] = pcm[:, pcm.shape[1] - kept :]
        return (pieces.reshape(-1, width) @ self._matrix).reshape(len(pcm), -1)

    def clear(self, row: int) -> None:
        """Forget the row's last samples."""
        self._memory[row] = 0.0


def _overlapping(lines: Pcm, first: int, width: int, step: int) -> Pcm:
    """A view (n, pieces, width) of contiguous lines (n, k): what begins every `step` samples from `first`."""
    count, samples = lines.shape
    shape = count, (samples - first - width) // step + 1, width
    view: Pcm = np.ndarray(shape, lines.dtype, lines, 4 * first, (4 * samples, 4 * step, 4))
    return view
