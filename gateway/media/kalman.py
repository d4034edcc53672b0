"""KalmanRows: a partitioned-block frequency-domain Kalman filter over many calls at once.

Each row models its own echo path as `parts` blocks of L = 20 ms and predicts the echo in the block just
heard; nothing is delayed. It keeps the last second of blocks, so that a new filter can be run over them
again: replayed, it stands within a second instead of four. It knows no delay, no caller and no
suppression: `echo.EchoCanceller` brings the reference aligned and judges what is left.

Source: Enzner & Vary, "Frequency-domain adaptive Kalman filter for acoustic echo control", Signal
Processing 86 (2006); Kuech, Mabande & Enzner, "State-space architecture of the partitioned-block-based
acoustic echo controller", ICASSP 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.media.compiled import kernel
from gateway.media.fourier import irfft, rfft

F32 = NDArray[np.float32]
C64 = NDArray[np.complex64]
Rows = NDArray[np.intp]

HALF = np.float32(0.5)
"""The error fills one half of its 2L window; the other half is zeros."""
TINY = np.float32(1e-7)
"""Keeps divisions finite: the spectrum of a block at -100 dBFS."""
KEEP = np.float32(0.9998**2)
"""State transition squared: how much of the path stays from block to block."""


def _predict(rows: Any, newest: Any, xr: Any, xi: Any, wr: Any, wi: Any, p: Any, y: Any, s: Any) -> None:
    """Echo spectra (n, F) into y; what the filter's own error may add, sum(P |X|^2), into s."""
    slots, parts, bins = xr.shape[1], wr.shape[1], xr.shape[2]
    y_r, y_i = np.empty(bins, np.float32), np.empty(bins, np.float32)
    for q in range(len(rows)):
        i, s_q = rows[q], s[q]
        y_r[:] = 0
        y_i[:] = 0
        s_q[:] = 0
        for part in range(parts):
            k = newest[q] - part
            if k < 0:
                k += slots
            a, b, c, d, v = xr[i, k], xi[i, k], wr[i, part], wi[i, part], p[i, part]
            for f in range(bins):
                y_r[f] += a[f] * c[f] - b[f] * d[f]
                y_i[f] += a[f] * d[f] + b[f] * c[f]
                s_q[f] += v[f] * (a[f] * a[f] + b[f] * b[f])
        for f in range(bins):
            y[q, f] = complex(y_r[f], y_i[f])


def _predict_numpy(
    rows: Rows, newest: Rows, xr: F32, xi: F32, wr: F32, wi: F32, p: F32, y: C64, s: F32
) -> None:
    slots = (newest[:, None] - np.arange(wr.shape[1])) % xr.shape[1]
    a, b, c, d = xr[rows[:, None], slots], xi[rows[:, None], slots], wr[rows], wi[rows]
    y.real = np.sum(a * c - b * d, axis=1)
    y.imag = np.sum(a * d + b * c, axis=1)
    s[:] = np.sum(p[rows] * (a * a + b * b), axis=1)


def _correct(
    rows: Any, newest: Any, xr: Any, xi: Any, wr: Any, wi: Any, p: Any, e: Any, g: Any, keep: Any
) -> None:
    """Kalman update in place. g (n, F): 1 / innovation power; keep: A^2, or 0 to leave P as it is."""
    slots, parts, bins = xr.shape[1], wr.shape[1], xr.shape[2]
    half, one = np.float32(0.5), np.float32(1.0)
    fresh = one - keep
    e_r, e_i = np.empty(bins, np.float32), np.empty(bins, np.float32)
    for q in range(len(rows)):
        i, g_q = rows[q], g[q]
        for f in range(bins):
            e_r[f] = e[q, f].real
            e_i[f] = e[q, f].imag
        for part in range(parts):
            k = newest[q] - part
            if k < 0:
                k += slots
            a, b, c, d, v = xr[i, k], xi[i, k], wr[i, part], wi[i, part], p[i, part]
            if keep > 0:
                for f in range(bins):
                    mu = v[f] * g_q[f]
                    re = c[f] + mu * (a[f] * e_r[f] + b[f] * e_i[f])
                    im = d[f] + mu * (a[f] * e_i[f] - b[f] * e_r[f])
                    c[f] = re
                    d[f] = im
                    left = one - half * mu * (a[f] * a[f] + b[f] * b[f])
                    v[f] = keep * left * v[f] + fresh * (re * re + im * im)
            else:
                for f in range(bins):
                    mu = v[f] * g_q[f]
                    c[f] += mu * (a[f] * e_r[f] + b[f] * e_i[f])
                    d[f] += mu * (a[f] * e_i[f] - b[f] * e_r[f])


def _correct_numpy(
    rows: Rows, newest: Rows, xr: F32, xi: F32, wr: F32, wi: F32, p: F32, e: C64, g: F32, keep: Any
) -> None:
    slots = (newest[:, None] - np.arange(wr.shape[1])) % xr.shape[1]
    a, b = xr[rows[:, None], slots], xi[rows[:, None], slots]
    e_r, e_i, v = e.real[:, None], e.imag[:, None], p[rows]
    mu = v * g[:, None]
    re = wr[rows] + mu * (a * e_r + b * e_i)
    im = wi[rows] + mu * (a * e_i - b * e_r)
    wr[rows], wi[rows] = re, im
    if keep > 0:
        left = 1 - HALF * mu * (a * a + b * b)
        p[rows] = keep * left * v + (1 - keep) * (re * re + im * im)


def _trust(
    rows: Any,
    e: Any,
    y: Any,
    s: Any,
    usable: Any,
    noise: Any,
    learn: Any,
    power: Any,
    echo: Any,
    doubt: Any,
    g: Any,
) -> None:
    """|E|^2 into power, half of |Y|^2 into echo, what the filter's error explains of |E|^2 into doubt, and
    1 / innovation power into g.

    What neither explains is caller and noise; its average is followed in noise[rows] if learn is set.
    """
    half, fifth, tenth = np.float32(0.5), np.float32(0.2), np.float32(0.1)
    for q in range(len(rows)):
        followed = noise[rows[q]]
        for f in range(e.shape[1]):
            e2 = e[q, f].real * e[q, f].real + e[q, f].imag * e[q, f].imag
            explained = half * s[q, f]
            rest = max(e2 - explained, tenth * e2)
            mean = followed[f]
            if learn and usable[q]:
                mean += fifth * (rest - mean)
                followed[f] = mean
            power[q, f] = e2
            echo[q, f] = half * (y[q, f].real * y[q, f].real + y[q, f].imag * y[q, f].imag)
            doubt[q, f] = explained
            g[q, f] = np.float32(1.0) / (explained + max(mean, rest) + np.float32(1e-7)) if usable[q] else 0.0


def _trust_numpy(
    rows: Rows,
    e: C64,
    y: C64,
    s: F32,
    usable: NDArray[np.bool_],
    noise: F32,
    learn: bool,
    power: F32,
    echo: F32,
    doubt: F32,
    g: F32,
) -> None:
    power[:] = e.real * e.real + e.imag * e.imag
    echo[:] = HALF * (y.real * y.real + y.imag * y.imag)
    doubt[:] = HALF * s
    rest = np.maximum(power - doubt, np.float32(0.1) * power)
    mean = noise[rows]
    if learn:
        mean += np.float32(0.2) * usable[:, None] * (rest - mean)
        noise[rows] = mean
    g[:] = usable[:, None] / (doubt + np.maximum(mean, rest) + TINY)


def _pick(rows: Any, column: Any, real: Any, imaginary: Any, spectra: Any) -> None:
    """spectra[q] = (real + 1j imaginary)[rows[q], column[q]]."""
    for q in range(len(rows)):
        a, b = real[rows[q], column[q]], imaginary[rows[q], column[q]]
        for f in range(len(a)):
            spectra[q, f] = complex(a[f], b[f])


def _pick_numpy(rows: Rows, column: Rows, real: F32, imaginary: F32, spectra: C64) -> None:
    spectra.real = real[rows, column]
    spectra.imag = imaginary[rows, column]


def _put(rows: Any, column: Any, real: Any, imaginary: Any, spectra: Any) -> None:
    """The other way round."""
    for q in range(len(rows)):
        a, b = real[rows[q], column[q]], imaginary[rows[q], column[q]]
        for f in range(len(a)):
            a[f] = spectra[q, f].real
            b[f] = spectra[q, f].imag


def _put_numpy(rows: Rows, column: Rows, real: F32, imaginary: F32, spectra: C64) -> None:
    real[rows, column] = spectra.real
    imaginary[rows, column] = spectra.imag


pick = kernel(_pick, _pick_numpy)
put = kernel(_put, _put_numpy)
trust = kernel(_trust, _trust_numpy)
predict = kernel(_predict, _predict_numpy)
correct = kernel(_correct, _correct_numpy)


@dataclass(slots=True)
class Innovation:
    """What one step found, rows in the order given; spectra are of a 2L window with L zeros before."""

    error: F32
    """(n, L) heard less predicted echo."""
    echo: F32
    """(n, L) predicted echo."""
    error_power: F32
    """(n, F) |E|^2."""
    echo_power: F32
    """(n, F) of the predicted echo, scaled like error_power."""
    doubt: F32
    """(n, F) of error_power, what the filter's own uncertainty explains."""


class KalmanRows:
    """The filters of `count` rows. L is the block (20 ms at the row's rate), F = L + 1 bins."""

    def __init__(self, count: int, block: int, parts: int = 13, history: int = 48) -> None:
        self.block = block
        self.parts = parts
        self.history = history
        self.slots = parts + history
        bins = block + 1
        self.xr, self.xi = (np.zeros((count, self.slots, bins), np.float32) for _ in range(2))
        self.wr, self.wi, self.p = (np.zeros((count, parts, bins), np.float32) for _ in range(3))
        self.noise = np.zeros((count, bins), np.float32)
        """Power of what is not echo: caller and noise."""
        self.heard = np.zeros((count, history, block), np.float32)
        self.usable = np.zeros((count, history), bool)
        """Blocks of `heard` that may teach: neither concealed nor from before a change."""
        self.newest = np.zeros(count, np.intp)
        self.at = np.zeros(count, np.intp)
        self._turn = np.zeros(count, np.intp)  # partitions constrained
        self._steps = np.zeros(count, np.intp)

    def clear(self, row: int) -> None:
        """Nothing was heard on this row."""
        self.heard[row] = 0
        self.usable[row] = False

    def start(self, rows: Rows, prior: F32) -> None:
        """Forget the path. prior (n, parts): expected |W|^2 of each part."""
        self.wr[rows] = 0
        self.wi[rows] = 0
        self.p[rows] = prior[:, :, None]
        self.noise[rows] = 0
        self._turn[rows] = self._steps[rows] = 0

    def load(self, row: int, reference: F32) -> None:
        """Replace a row's reference by the last (slots + 1) L samples, aligned, newest last."""
        windows = np.lib.stride_tricks.sliding_window_view(reference, 2 * self.block)[:: self.block]
        spectra = rfft(windows)
        self.xr[row], self.xi[row] = spectra.real, spectra.imag
        self.newest[row] = self.slots - 1

    def push(self, rows: Rows, windows: F32) -> None:
        """Append the reference's newest window (n, 2L): the block before, and the block itself."""
        slot = (self.newest[rows] + 1) % self.slots
        self.newest[rows] = slot
        put(rows, slot, self.xr, self.xi, rfft(windows))

    def listen(self, rows: Rows, heard: F32, usable: NDArray[np.bool_]) -> None:
        """Append to the history that replay() draws on."""
        slot = (self.at[rows] + 1) % self.history
        self.at[rows] = slot
        self.heard[rows, slot] = heard
        self.usable[rows, slot] = usable

    def step(self, rows: Rows, heard: F32, usable: NDArray[np.bool_]) -> Innovation:
        """Predict the newest block's echo and learn from the error, from usable blocks only."""
        found = self._learn(rows, self.newest[rows], heard, usable, KEEP)
        self._constrain(rows[self._steps[rows] & 1 == rows & 1], 1)
        self._steps[rows] += 1
        return found

    def replay(self, rows: Rows, age: Rows) -> None:
        """Learn once more from a block `age` blocks old (n,), each row its own; P stays."""
        slot = (self.at[rows] - age) % self.history
        newest = (self.newest[rows] - age) % self.slots
        self._learn(rows, newest, self.heard[rows, slot], self.usable[rows, slot], np.float32(0))
        self._constrain(rows, 2)

    def recent(self, row: int, blocks: int) -> F32:
        """The row's last `blocks` blocks heard, (blocks * L,)."""
        slots = (self.at[row] - np.arange(blocks)[::-1]) % self.history
        return np.asarray(self.heard[row, slots].ravel(), dtype=np.float32)

    def quietest(self, row: int) -> float:
        """Power per sample below which a tenth of the row's last second lies; 0 of a line just opened."""
        power = np.mean(self.heard[row] ** 2, axis=1)
        return float(np.quantile(power[power > 0], 0.1)) if power.any() else 0.0

    def forget(self, row: int, fresh: int) -> None:
        """Blocks heard before the last `fresh` teach no more."""
        self.usable[row, (self.at[row] - np.arange(fresh, self.history)) % self.history] = False

    def recall(self, row: int, blocks: int) -> F32:
        """What the present filter predicts for the row's last `blocks` blocks, (blocks * L,)."""
        slots = (self.newest[row] - np.arange(blocks)[::-1, None] - np.arange(self.parts)) % self.slots
        path = self.wr[row] + 1j * self.wi[row]
        echo = np.einsum("bpf,pf->bf", self.xr[row][slots] + 1j * self.xi[row][slots], path)
        return np.asarray(irfft(echo)[:, self.block :].ravel(), dtype=np.float32)

    def _learn(
        self, rows: Rows, newest: Rows, heard: F32, usable: NDArray[np.bool_], keep: np.float32
    ) -> Innovation:
        n, length = len(rows), self.block
        s, power, echo_power, doubt, gain = np.empty((5, n, length + 1), np.float32)
        spectrum = np.empty((n, length + 1), np.complex64)
        predict(rows, newest, self.xr, self.xi, self.wr, self.wi, self.p, spectrum, s)
        echo = irfft(spectrum)[:, length:]
        padded = np.zeros((n, 2 * length), np.float32)
        error = np.subtract(heard, echo, out=padded[:, length:])
        e = rfft(padded)
        trust(rows, e, spectrum, s, usable, self.noise, keep > 0, power, echo_power, doubt, gain)
        correct(rows, newest, self.xr, self.xi, self.wr, self.wi, self.p, e, gain, keep)
        return Innovation(error, echo, power, echo_power, doubt)

    def _constrain(self, rows: Rows, parts: int) -> None:
        """Cut the wrapped-around half of the next `parts` partitions' responses, each row in its own turn."""
        for _ in range(parts):
            part = self._turn[rows] % self.parts
            self._turn[rows] += 1
            spectra = np.empty((len(rows), self.block + 1), np.complex64)
            pick(rows, part, self.wr, self.wi, spectra)
            response = irfft(spectra)
            response[:, self.block :] = 0
            put(rows, part, self.wr, self.wi, rfft(response))
