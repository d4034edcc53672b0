"""DelayFinder: after how many 20 ms blocks does what was sent come back, if it does?

Phase-only cross-spectra of what was heard with each of the last 1.2 s of sent blocks are summed; where
they agree over frequency, the echo lies. No echo gives no peak, and that is an answer too. It knows no
samples and no filter; resolution is a block, which is what a partitioned filter needs.

Source: Knapp & Carter, "The generalized correlation method for estimation of time delay", IEEE ASSP
24 (1976);
the sum over blocks stands in for their ensemble average.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.media.compiled import kernel
from gateway.media.fourier import rfft

F32 = NDArray[np.float32]
C64 = NDArray[np.complex64]
Rows = NDArray[np.intp]

LAGS = 60
"""Lags looked at: 1.2 s."""
BINS = np.arange(8, 136, 2)
"""200-3,400 Hz, every 50 Hz, of spectra that stand 25 Hz apart."""
FORGET = np.float32(0.98)
"""What stays of the sums from one look to the next."""
AUDIBLE = np.float32(1e-5)
"""Power of a sent block (-50 dBFS) from which its echo is looked for."""
EVIDENCE = 12.0
"""Looks at audible blocks before anything is said: 0.25 s."""
PEAK = 1.65
"""How far the best lag stands over the sixth best before it is believed; without echo it stays under 1.5."""


def _gather(
    rows: Any,
    newest: Any,
    sent_r: Any,
    sent_i: Any,
    heard_r: Any,
    heard_i: Any,
    sum_r: Any,
    sum_i: Any,
    keep: Any,
) -> None:
    """sum[row, lag] = keep * sum + heard * conj(sent[lag blocks ago])."""
    lags, bins = sum_r.shape[1], sum_r.shape[2]
    for q in range(len(rows)):
        i = rows[q]
        a, b = heard_r[q], heard_i[q]
        for lag in range(lags):
            k = newest[q] + lag
            if k >= lags:
                k -= lags
            c, d, re, im = sent_r[i, k], sent_i[i, k], sum_r[i, lag], sum_i[i, lag]
            for f in range(bins):
                re[f] = keep * re[f] + a[f] * c[f] + b[f] * d[f]
                im[f] = keep * im[f] + b[f] * c[f] - a[f] * d[f]


def _gather_numpy(
    rows: Rows,
    newest: Rows,
    sent_r: F32,
    sent_i: F32,
    heard_r: F32,
    heard_i: F32,
    sum_r: F32,
    sum_i: F32,
    keep: np.float32,
) -> None:
    slots = (newest[:, None] + np.arange(sum_r.shape[1])) % sum_r.shape[1]
    c, d = sent_r[rows[:, None], slots], sent_i[rows[:, None], slots]
    a, b = heard_r[:, None], heard_i[:, None]
    sum_r[rows] = keep * sum_r[rows] + (a * c + b * d)
    sum_i[rows] = keep * sum_i[rows] + (b * c - a * d)


def _score(rows: Any, sum_r: Any, sum_i: Any, weight: Any, score: Any) -> None:
    """How much the phases at each lag agree, (n, lags); 0 where too little was heard."""
    lags, bins = sum_r.shape[1], sum_r.shape[2]
    for q in range(len(rows)):
        i = rows[q]
        for lag in range(lags):
            re, im = sum_r[i, lag], sum_i[i, lag]
            total = np.float32(0)
            for f in range(bins):
                total += re[f] * re[f] + im[f] * im[f]
            heard = weight[i, lag]
            likely = total / np.float32(bins) / max(heard, np.float32(1))
            score[q, lag] = likely if heard >= EVIDENCE else np.float32(0)


def _score_numpy(rows: Rows, sum_r: F32, sum_i: F32, weight: F32, score: F32) -> None:
    power = np.mean(sum_r[rows] ** 2 + sum_i[rows] ** 2, axis=2)
    heard = weight[rows]
    score[:] = np.where(heard < EVIDENCE, np.float32(0), power / np.maximum(heard, np.float32(1)))


def _phase(spectra: Any, chosen: Any, real: Any, imaginary: Any) -> None:
    """Of spectra (n, F) the chosen bins, all of the same size."""
    for q in range(len(spectra)):
        for k in range(len(chosen)):
            value = spectra[q, chosen[k]]
            size = np.sqrt(value.real * value.real + value.imag * value.imag) + np.float32(1e-3)
            real[q, k] = value.real / size
            imaginary[q, k] = value.imag / size


def _phase_numpy(spectra: C64, chosen: Rows, real: F32, imaginary: F32) -> None:
    values = spectra[:, chosen]
    values = values / (np.abs(values) + np.float32(1e-3))
    real[:], imaginary[:] = values.real, values.imag


gather = kernel(_gather, _gather_numpy)
grade = kernel(_score, _score_numpy)
phase = kernel(_phase, _phase_numpy)


class DelayFinder:
    """Sums and verdicts of `count` rows."""

    def __init__(self, count: int) -> None:
        shape = (count, LAGS, len(BINS))
        self._sent_r, self._sent_i, self._sum_r, self._sum_i = (np.zeros(shape, np.float32) for _ in range(4))
        self._audible = np.zeros((count, LAGS), np.float32)
        self._weight = np.zeros((count, LAGS), np.float32)
        self._newest = np.zeros(count, np.intp)

    def forget(self, rows: Rows | int, whole: bool = True) -> None:
        """Start the sums anew; the sent blocks too, if whole."""
        for array in (self._sum_r, self._sum_i, self._weight):
            array[rows] = 0
        if whole:
            self._sent_r[rows] = 0
            self._sent_i[rows] = 0
            self._audible[rows] = 0

    def sent(self, rows: Rows, windows: F32) -> None:
        """The newest sent window (n, 2L), the one that lag 0 means from now on."""
        slot = (self._newest[rows] - 1) % LAGS
        self._newest[rows] = slot
        half = windows[:, windows.shape[1] // 2 :]
        audible = np.einsum("ij,ij->i", half, half) > AUDIBLE * half.shape[1]
        real, imaginary = _phases(windows)
        self._sent_r[rows, slot] = real * audible[:, None]
        self._sent_i[rows, slot] = imaginary * audible[:, None]
        self._audible[rows, slot] = audible

    def heard(self, rows: Rows, windows: F32, every: int = 1) -> None:
        """Compare the newest heard window (n, 2L) with all sent ones; `every`: blocks between two looks."""
        real, imaginary = _phases(windows)
        newest = self._newest[rows]
        keep = np.float32(FORGET ** np.sqrt(every))  # seldom looked at, remembered for longer
        gather(rows, newest, self._sent_r, self._sent_i, real, imaginary, self._sum_r, self._sum_i, keep)
        slots = (newest[:, None] + np.arange(LAGS)) % LAGS
        self._weight[rows] = keep * self._weight[rows] + self._audible[rows[:, None], slots]

    def verdict(self, rows: Rows) -> tuple[NDArray[np.intp], F32]:
        """Best lag in blocks (n,), and how far it stands out (n,): over PEAK an echo, 0 no evidence yet."""
        score = np.empty((len(rows), LAGS), np.float32)
        grade(rows, self._sum_r, self._sum_i, self._weight, score)
        best = np.argmax(score, axis=1)
        rest = np.partition(score, -6, axis=1)[:, -6]
        peak = score[np.arange(len(rows)), best]
        return best, np.where(rest > 0, peak / np.maximum(rest, 1e-9), 0.0).astype(np.float32)


@lru_cache
def _hann(length: int) -> F32:
    return np.hanning(length + 1)[:length].astype(np.float32)


def shift_between(heard: F32, echo: F32, least: int) -> tuple[int, float]:
    """By how many samples `heard` comes after `echo`, and how well they match there (-1 to 1).

    Both end at the same moment; echo is longer by the largest shift looked for, either way. A shift back
    leaves less of both to compare, and never less than `least` samples. Normalised cross-correlation.
    """
    n, most = len(heard), len(echo) - len(heard)
    size = 1 << int(np.ceil(np.log2(n + len(echo))))
    cross = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(echo, size)), size)
    shifts = np.arange(-min(most, max(n - least, 0)), most + 1)
    heard_sum = np.concatenate([[0.0], np.cumsum(heard.astype(np.float64) ** 2)])
    echo_sum = np.concatenate([[0.0], np.cumsum(echo.astype(np.float64) ** 2)])
    compared = n + np.minimum(shifts, 0)
    first = most - shifts
    powers = heard_sum[compared] * (echo_sum[first + compared] - echo_sum[first])
    match = cross[(shifts - most) % size] / np.sqrt(powers + 1e-9)
    best = int(np.argmax(match))
    return int(shifts[best]), float(match[best])


def _phases(windows: F32) -> tuple[F32, F32]:
    """Their real and imaginary parts, (n, bins) each.

    Hann's window, because a voice's harmonics would leak into the phases between them: an echo stands out
    twice as far with it.
    """
    spectra = rfft(windows * _hann(windows.shape[1]))
    real, imaginary = np.empty((2, len(windows), len(BINS)), np.float32)
    phase(spectra, BINS, real, imaginary)
    return real, imaginary
