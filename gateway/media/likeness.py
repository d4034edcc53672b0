"""Likeness: how much of what was heard in a few tenths of a second could be what was sent?

A short filter is fitted between the two at the lags where they resemble one another most. Of an echo it
explains nearly all (97 % of a line's, more than 40 % of a clipping loudspeaker's in a room); of a caller, who
says something else, about a third in 0.2 s, by chance, and less the longer he speaks. That needs no
canceller that has converged, and a path that has just become another is no hindrance. It looks below 2 kHz,
where voices have their power. It knows no row, no state and no policy.

Source: least squares over a window (Haykin, "Adaptive Filter Theory", ch. 9); the lags are those of the
largest normalised cross-correlation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

RATE = 4_000
TAPS, BEFORE = 64, 16
"""Of the filter: 16 ms, 4 of them before the lag."""
PLACES, APART = 3, 24
"""Lags that are tried, so many samples apart."""
RIDGE = 1e-3
EVEN, SOFT = 80, 0.1
"""Samples that are made as loud as the others; how far under the loudest, in power, at most."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """What a window of audio has of what was sent."""

    share: float
    """Of its power, what the best filter explains, 0 to 1."""
    lag: int
    """Samples from sending to hearing, to a quarter of a millisecond."""


def likeness(heard: F32, sent: F32, rate: int, evenly: bool = False) -> Likeness:
    """heard (n,) against sent (m,), m >= n; rate is a multiple of 4 kHz.

    evenly: soft sounds (to 10 dB under the loudest) count like loud ones; one vowel says little about what is
    said. Lags count from the end of `sent`: 0 where both end with the same sample.
    """
    x, r = _narrow(heard, rate), _narrow(sent, rate)
    if not x.any():
        return Likeness(0.0, 0)
    weight = _evening(x) if evenly else np.ones(len(x), np.float32)
    x = x * weight
    power = float(x @ x)
    match = _match(x, r, power)
    padded = np.concatenate([np.zeros(TAPS, np.float32), r, np.zeros(BEFORE, np.float32)])
    share, place = 0.0, 0
    for _ in range(PLACES):
        at = int(np.argmax(match))
        explained = _explained(x, padded[at + BEFORE + 1 :][: len(x) + TAPS - 1], weight) / power
        if explained > share:
            share, place = explained, at
        match[max(0, at - APART) : at + APART] = 0
    return Likeness(min(share, 1.0), (len(r) - len(x) - place) * (rate // RATE))


def _match(x: F32, r: F32, power: float) -> F32:
    """Normalised cross-correlation (m - n + 1,), without its sign; where little was sent it is little."""
    size = 1 << (len(r) - 1).bit_length()
    cross = np.fft.irfft(np.fft.rfft(r, size) * np.conj(np.fft.rfft(x, size)), size)[: len(r) - len(x) + 1]
    sums = np.concatenate([[0.0], np.cumsum(r.astype(np.float64) ** 2)])
    least = 1e-3 * sums[-1] * len(x) / len(r) + 1e-9
    return np.asarray(np.abs(cross) / np.sqrt((sums[len(x) :] - sums[: -len(x)] + least) * power), np.float32)


def _explained(x: F32, source: F32, weight: F32) -> float:
    """Power of x (n,) that a filter of `source` (n + TAPS - 1,), weighted like it, explains."""
    windows = np.lib.stride_tricks.sliding_window_view(source, TAPS) * weight[:, None]
    gram = (windows.T @ windows).astype(np.float64)
    gram[np.diag_indices(TAPS)] += RIDGE * np.trace(gram) / TAPS + 1e-9
    toward = (windows.T @ x).astype(np.float64)
    path = np.linalg.solve(gram, toward)
    return float(2 * toward @ path - path @ gram @ path)


def _evening(x: F32) -> F32:
    """One over the level of each 20 ms of x."""
    count = max(1, len(x) // EVEN)
    power = np.mean(x[: count * EVEN].reshape(count, -1) ** 2, axis=1) if len(x) >= EVEN else np.ones(1)
    weight = np.repeat(1 / np.sqrt(np.maximum(power, SOFT * power.max())), EVEN)
    return np.resize(np.append(weight, np.full(EVEN, weight[-1])), len(x)).astype(np.float32)


def _narrow(pcm: F32, rate: int) -> F32:
    """Below 1.8 kHz, at RATE; the ends, which a filter's tail would need, are left out."""
    taps, step = _taps(rate), rate // RATE
    return np.asarray(np.lib.stride_tricks.sliding_window_view(pcm, len(taps))[::step] @ taps, np.float32)


@lru_cache
def _taps(rate: int) -> F32:
    step = rate // RATE
    n = np.arange(-8 * step, 8 * step + 1)
    taps = np.sinc(0.9 * n / step) * np.hanning(len(n) + 2)[1:-1]
    return np.asarray(taps / taps.sum(), np.float32)
