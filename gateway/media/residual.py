"""ResidualRows: what a linear filter leaves of an echo is turned down, and the caller is not.

Per band of 200 Hz it is told how much power came out of the filter, how much echo the filter predicted and
how sure it is; from blocks that are mostly echo it learns how much leaks (loudspeakers clip, rooms ring on).
The caller's own noise is turned down with it, by some 10 dB and no more, so that gaps do not sound dead and
his softest sounds are not lost. The gains become a short minimum-phase filter: no delay.

Sources: Valin, "On adjusting the learning rate in frequency domain echo cancellation with double-talk", IEEE
TASLP 15 (2007) for the leakage; Ephraim & Malah, IEEE ASSP 32 (1984) for the decision-directed estimate;
Oppenheim & Schafer, "Discrete-Time Signal Processing", ch. 13, for the folded cepstrum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.media import gains
from gateway.media.compiled import kernel
from gateway.media.echo_rows import Levels
from gateway.media.gains import BAND, HISS
from gateway.media.kalman import Innovation
from gateway.media.power import MATCH

F32 = NDArray[np.float32]
Rows = NDArray[np.intp]

OPEN = np.float32(0.9)
"""A block whose gains all lie above is passed on as it is."""
PLAIN = np.float32(1e-4)
"""Largest tap but the last of a filter that does nothing."""
NO_LIMIT = np.float32(1e9)


def _shape(which: Any, rows: Any, pcm: Any, past: Any, fir: Any, new: Any) -> None:
    """Convolve pcm[which] (n, L) in place, past[row] (T - 1) before it, by taps that go from fir[row], last
    first, to new (len(which), T), and are these from now on."""
    length, taps = pcm.shape[1], fir.shape[1]
    line = np.empty(length + taps - 1, np.float32)
    a, b = np.empty(length, np.float32), np.empty(length, np.float32)
    for j in range(len(which)):
        q = which[j]
        i = rows[q]
        line[: taps - 1] = past[i]
        line[taps - 1 :] = pcm[q]
        a[:] = 0
        b[:] = 0
        for tap in range(taps):
            before, after = fir[i, tap], new[j, tap]
            for n in range(length):
                a[n] += before * line[n + tap]
                b[n] += after * line[n + tap]
        for n in range(length):
            ramp = np.float32(n + 1) / np.float32(length)
            pcm[q, n] = a[n] + ramp * (b[n] - a[n])
        fir[i] = new[j]


def _shape_numpy(which: Rows, rows: Rows, pcm: F32, past: F32, fir: F32, new: F32) -> None:
    mine = rows[which]
    line = np.concatenate([past[mine], pcm[which]], axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(line, fir.shape[1], axis=1)
    ramp = (np.arange(1, pcm.shape[1] + 1, dtype=np.float32) / np.float32(pcm.shape[1]))[None, :]
    a = np.einsum("nlt,nt->nl", windows, fir[mine])
    b = np.einsum("nlt,nt->nl", windows, new)
    pcm[which] = a + ramp * (b - a)
    fir[mine] = new


shape = kernel(_shape, _shape_numpy)


class ResidualRows:
    """Leakage, noise and gains of `count` rows with blocks of `block` samples."""

    def __init__(self, count: int, block: int) -> None:
        self.block = block
        self.bands = block // BAND
        self.taps = block // 5
        self._known = gains.bands(count, self.bands)
        self._fir = np.zeros((count, self.taps), np.float32)
        self._shapes = np.zeros(count, np.bool_)  # whether that does anything
        self._past = np.zeros((count, self.taps - 1), np.float32)
        self._fold, self._unfold = _folding(self.bands, self.taps)
        self.left = self._known.left
        """Echo power per sample that may remain in the last block put out."""
        self.hiss = self._known.hiss
        """Power per sample of the line's noise as it is without any of this; 0 until known."""

    def start(self, rows: Rows | int, quiet: float = 0.0) -> None:
        """Forget the leakage and open up. quiet: power per sample of the line's quietest blocks."""
        ring, clean, leak, noise, seen, left, hiss = self._known
        ring[rows] = clean[rows] = 0
        leak[rows] = 0.02
        seen[rows] = 0
        noise[rows] = max(quiet * self.block * self.block / self.bands / float(HISS), 1e-7)
        self._past[rows] = 0
        self._fir[rows] = 0
        self._fir[rows, -1] = 1
        self._shapes[rows] = False
        left[rows] = hiss[rows] = 0

    def apply(self, rows: Rows, found: Innovation, pcm: F32, lost: NDArray[np.bool_], most: F32) -> F32:
        """The block (n, L) with its residual echo turned down.

        lost (n,): blocks that something else stands in for (lost on either way, concealed); as much echo may
        remain in them as was predicted. most (n,): power per sample of all echo that there can be.
        """
        bounded = np.minimum(most, NO_LIMIT)
        block = gains.Block(found.error_power, found.echo_power, found.doubt, lost, bounded)
        gain = np.empty((len(rows), self.bands), np.float32)
        gains.weigh(rows, self._known, block, gain)
        return self._filter(rows, pcm, gain)

    def pass_through(self, rows: Rows, pcm: F32) -> None:
        """Note a block that went out unfiltered."""
        self._past[rows] = pcm[:, 1 - self.taps :]
        self.left[rows] = 0

    def _filter(self, rows: Rows, pcm: F32, gain: F32) -> F32:
        which = np.flatnonzero((gain.min(axis=1) < OPEN) | self._shapes[rows])
        out = pcm.copy()
        if len(which):
            new = self._minimum_phase(gain[which])
            shape(which, rows, out, self._past, self._fir, new)
            self._shapes[rows[which]] = np.abs(new[:, :-1]).max(axis=1) > PLAIN
        self._past[rows] = pcm[:, 1 - self.taps :]
        return out

    def _minimum_phase(self, gain: F32) -> F32:
        """FIR (n, taps), last tap first, of minimum phase with the bands' gains, by folding the cepstrum."""
        folded = np.log(gain) @ self._fold
        half = folded.shape[1] // 2
        size, phase = np.exp(folded[:, :half]), folded[:, half:]
        spectra = np.concatenate([size * np.cos(phase), size * np.sin(phase)], axis=1)
        return np.asarray(spectra @ self._unfold, dtype=np.float32)


def _folding(bands: int, taps: int) -> tuple[F32, F32]:
    """All of folding a cepstrum that is linear, as two matrices.

    (bands, 2 (taps + 1)): from the logarithms of the bands' gains to those of a minimum-phase spectrum, real
    parts before imaginary; (2 (taps + 1), taps): from such a spectrum to its impulse response, last first.
    """
    cepstra = np.fft.irfft(_spread(bands, taps), axis=1)
    cepstra[:, 1:taps] *= 2
    cepstra[:, taps + 1 :] = 0
    folded = np.fft.rfft(cepstra, axis=1)
    each = np.eye(taps + 1)
    responses = np.fft.irfft(np.concatenate([each, 1j * each]), axis=1)[:, taps - 1 :: -1]
    fold = np.concatenate([folded.real, folded.imag], axis=1)
    return fold.astype(np.float32), np.ascontiguousarray(responses, dtype=np.float32)


def _spread(bands: int, half: int) -> NDArray[np.float64]:
    """(bands, half + 1): band values spread over half + 1 frequencies, linear between band centres."""
    centres = (np.arange(bands) + 0.5) / bands
    grid = np.linspace(0, 1, half + 1)
    return np.stack([np.interp(grid, centres, row) for row in np.eye(bands)])


def no_louder(heard: F32, found: Innovation, levels: Levels) -> tuple[F32, NDArray[np.bool_]]:
    """The error (n, L), and where heard and predicted do not belong together (n,).

    Where more echo was predicted than anything was heard, no more is taken off than matches: a block lost on
    the way to the caller brings no echo. Beside a caller's voice the error may be louder than what was heard
    by chance alone, and is right: so the prediction is compared, not the error.
    """
    before, after, power = levels
    worse = (after > before) & (power > before)
    which = np.flatnonzero(worse)
    if not len(which):
        return found.error, worse
    match = found.sums[MATCH, which] / heard.shape[1]
    share = np.clip(match / (power[which] + 1e-12), 0, 1)[:, None].astype(np.float32)
    error = found.error.copy()
    error[which] = heard[which] - share * found.echo[which]
    return error, worse
