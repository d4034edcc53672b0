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

from gateway.media.compiled import kernel
from gateway.media.fourier import irfft, rfft
from gateway.media.kalman import Innovation

F32 = NDArray[np.float32]
Rows = NDArray[np.intp]

BAND = 8
"""Bins of 25 Hz a band."""
FLOOR = np.float32(0.1)
"""Smallest gain: -20 dB."""
OVER = np.float32(1.3)
"""How much more echo is assumed than was estimated."""
LEAK = (0.001, 1.0)
"""Least and most of the predicted echo that is thought to remain."""
MOSTLY = np.float32(0.5)
"""Share of the predicted echo below which a block's output must lie to teach the leakage."""
SEEN = 25
"""Blocks after which the leakage is known."""
UP, DOWN = np.float32(0.04), np.float32(0.08)
NOISE_RISE = np.float32(1.01)
HISS = np.float32(4.0)
"""Noise over its tracked minimum."""
QUIETER = np.float32(0.47)
"""How far the noise may be turned down, over its tracked minimum: the caller's softest sounds lie in it."""
INSTANT = np.float32(0.5)
"""Weight of the present block's own estimate, which lets the caller's onset through."""
RING = np.float32(0.55)
"""What of the echo's power in a band still rings a block later."""
SMOOTH = np.float32(0.9)
"""Weight of the last block's clean estimate (decision-directed)."""
OPEN = np.float32(0.9)
"""A block whose gains all lie above is passed on as it is."""


def _shape(pcm: Any, past: Any, old: Any, new: Any, out: Any) -> None:
    """Convolve pcm (n, L), `past` (n, T - 1) before it, by taps (n, T), last first, from old to new."""
    length, taps = pcm.shape[1], old.shape[1]
    line = np.empty(length + taps - 1, np.float32)
    for q in range(pcm.shape[0]):
        line[: taps - 1] = past[q]
        line[taps - 1 :] = pcm[q]
        o, w = old[q], new[q]
        for n in range(length):
            a = np.float32(0)
            b = np.float32(0)
            for tap in range(taps):
                a += o[tap] * line[n + tap]
                b += w[tap] * line[n + tap]
            ramp = np.float32(n + 1) / np.float32(length)
            out[q, n] = a + ramp * (b - a)


def _shape_numpy(pcm: F32, past: F32, old: F32, new: F32, out: F32) -> None:
    line = np.concatenate([past, pcm], axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(line, old.shape[1], axis=1)
    ramp = (np.arange(1, pcm.shape[1] + 1, dtype=np.float32) / np.float32(pcm.shape[1]))[None, :]
    a = np.einsum("nlt,nt->nl", windows, old)
    b = np.einsum("nlt,nt->nl", windows, new)
    out[:] = a + ramp * (b - a)


shape = kernel(_shape, _shape_numpy)


class ResidualRows:
    """Leakage, noise and gains of `count` rows with blocks of `block` samples."""

    def __init__(self, count: int, block: int) -> None:
        self.block = block
        self.bands = block // BAND
        self.taps = block // 5
        bands = (count, self.bands)
        self._ring, self._clean, self._leak, self._noise = (np.zeros(bands, np.float32) for _ in range(4))
        self._seen = np.zeros(count, np.int64)  # blocks that taught the leakage
        self._fir = np.zeros((count, self.taps), np.float32)
        self._past = np.zeros((count, self.taps - 1), np.float32)
        self._spread = _spread(self.bands, self.taps)
        self._sums = np.zeros((block + 1, self.bands), np.float32)  # bins to bands
        self._sums[np.arange(1, block + 1), np.arange(block) // BAND] = 1
        self.left = np.zeros(count, np.float32)
        """Echo power per sample that may remain in the last block put out."""
        self.hiss = np.zeros(count, np.float32)
        """Power per sample of the line's noise as it is without any of this; 0 until known."""

    def start(self, rows: Rows | int, quiet: float = 0.0) -> None:
        """Forget the leakage and open up. quiet: power per sample of the line's quietest blocks."""
        self._ring[rows] = self._clean[rows] = 0
        self._leak[rows] = 0.02
        self._seen[rows] = 0
        self._noise[rows] = max(quiet * self.block * self.block / self.bands / float(HISS), 1e-7)
        self._past[rows] = 0
        self._fir[rows] = 0
        self._fir[rows, -1] = 1
        self.left[rows] = self.hiss[rows] = 0

    def apply(self, rows: Rows, found: Innovation, pcm: F32, lost: NDArray[np.bool_], most: F32) -> F32:
        """The block (n, L) with its residual echo turned down.

        lost (n,): blocks that something else stands in for (lost on either way, concealed); as much echo may
        remain in them as was predicted. most (n,): power per sample of all echo that there can be.
        """
        error, echo = self._banded(found.error_power), self._banded(found.echo_power)
        self._learn(rows, error, echo, ~lost)
        ring = np.maximum(echo, RING * self._ring[rows])
        self._ring[rows] = ring
        leak = np.where(lost[:, None], np.float32(1), self._leak[rows])
        residual = self._doubted(rows, self._banded(found.doubt), leak * ring) + leak * ring
        # Parseval: over half the bins of 2L points, |E|^2 sums to L times the block's energy
        scale = np.float32(1 / (self.block * self.block))
        too_much = scale * np.sum(residual, axis=1) / (most + TINY_POWER)
        residual /= np.maximum(too_much, 1)[:, None]
        gain = self._gains(rows, error, OVER * residual + HISS * self._noise[rows])
        self.left[rows] = scale * np.sum(gain * gain * np.minimum(residual, error), axis=1)
        self.hiss[rows] = scale * HISS * np.sum(self._noise[rows], axis=1)
        return self._filter(rows, pcm, gain)

    def pass_through(self, rows: Rows, pcm: F32) -> None:
        """Note a block that went out unfiltered."""
        self._past[rows] = pcm[:, 1 - self.taps :]
        self.left[rows] = 0

    def _doubted(self, rows: Rows, doubt: F32, leaking: F32) -> F32:
        """What the filter's uncertainty adds, (n, bands): all of it at first, at most as much as leaks later.

        The uncertainty is an upper bound (replays improve the filter, and do not lower it); leakage is seen.
        """
        trust = np.minimum(self._seen[rows] / SEEN, 1)[:, None].astype(np.float32)
        return np.asarray(doubt + trust * (np.minimum(doubt, leaking) - doubt), dtype=np.float32)

    def _banded(self, power: F32) -> F32:
        banded: F32 = power @ self._sums
        return banded

    def _learn(self, rows: Rows, error: F32, echo: F32, learn: NDArray[np.bool_]) -> None:
        """Leakage from blocks that are mostly echo: a caller's voice would be taken for it."""
        noise = self._noise[rows]
        ratio = np.maximum(error - 2 * noise, 0) / (echo + TINY_POWER)
        mostly = learn & (np.sum(error, axis=1) < MOSTLY * np.sum(echo, axis=1))
        self._seen[rows] += mostly
        audible = mostly[:, None] & (echo > 4 * noise)
        leak = self._leak[rows]
        step = np.minimum(ratio, 4 * leak) - leak
        self._leak[rows] = np.clip(leak + audible * np.where(step > 0, UP, DOWN) * step, *LEAK)
        self._noise[rows] = np.where(
            error < noise, noise + np.float32(0.3) * (error - noise), noise * NOISE_RISE
        )

    def _gains(self, rows: Rows, error: F32, residual: F32) -> F32:
        post = error / (residual + TINY_POWER)
        prior = SMOOTH * self._clean[rows] / (residual + TINY_POWER)
        prior = np.maximum(prior, INSTANT * np.maximum(post - 1, 0))
        gain = prior / (1 + prior)
        self._clean[rows] = gain * gain * error
        least = np.clip(QUIETER * np.sqrt(self._noise[rows] / (error + TINY_POWER)), FLOOR, 1)
        return np.asarray(np.maximum(gain, least), dtype=np.float32)

    def _filter(self, rows: Rows, pcm: F32, gain: F32) -> F32:
        closed = (gain.min(axis=1) < OPEN) | (np.abs(self._fir[rows, :-1]).max(axis=1) > 1e-4)
        past = self._past[rows]
        self._past[rows] = pcm[:, 1 - self.taps :]
        out = pcm.copy()
        if closed.any():
            which = np.flatnonzero(closed)
            new = self._minimum_phase(gain[which])
            shaped = np.empty((len(which), self.block), np.float32)
            shape(pcm[which], past[which], self._fir[rows[which]], new, shaped)
            out[which] = shaped
            self._fir[rows[which]] = new
        return out

    def _minimum_phase(self, gain: F32) -> F32:
        """FIR (n, taps), last tap first, of minimum phase with the bands' gains, by folding the cepstrum."""
        cepstrum = irfft(np.log(gain) @ self._spread)
        half = cepstrum.shape[1] // 2
        cepstrum[:, 1:half] *= 2
        cepstrum[:, half + 1 :] = 0
        folded = rfft(cepstrum)
        gain, phase = np.exp(folded.real), folded.imag.copy()
        folded.real, folded.imag = gain * np.cos(phase), gain * np.sin(phase)  # exp() of complex takes longer
        response = irfft(folded)
        return np.ascontiguousarray(response[:, self.taps - 1 :: -1], dtype=np.float32)


TINY_POWER = np.float32(1e-9)


def _spread(bands: int, half: int) -> F32:
    """(bands, half + 1): band values spread over half + 1 frequencies, linear between band centres."""
    centres = (np.arange(bands) + 0.5) / bands
    grid = np.linspace(0, 1, half + 1)
    return np.stack([np.interp(grid, centres, row) for row in np.eye(bands)]).astype(np.float32)
