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

from gateway.media import foresight
from gateway.media.compiled import kernel
from gateway.media.fourier import irfft, rfft
from gateway.media.power import compare

F32 = NDArray[np.float32]
C64 = NDArray[np.complex64]
Rows = NDArray[np.intp]

HALF = np.float32(0.5)
"""The error fills one half of its 2L window; the other half is zeros."""
TINY = np.float32(1e-7)
"""Keeps divisions finite: the spectrum of a block at -100 dBFS."""
KEEP = np.float32(0.9998**2)
"""State transition squared: how much of the path stays from block to block."""


def _relearn(rows: Any, newest: Any, xr: Any, xi: Any, wr: Any, wi: Any, p: Any, e: Any, g: Any) -> None:
    """Correct the filter in place and leave P as it is. g (n, F): 1 / innovation power."""
    slots, parts, bins = xr.shape[1], wr.shape[1], xr.shape[2]
    e_r, e_i = np.empty(bins, np.float32), np.empty(bins, np.float32)
    for q in range(len(rows)):
        i, g_q = rows[q], g[q]
        for f in range(bins):
            e_r[f] = e[q, f].real
            e_i[f] = e[q, f].imag
        for part in range(parts):
            k = newest[q] + part
            if k >= slots:
                k -= slots
            a, b, c, d, v = xr[i, k], xi[i, k], wr[i, part], wi[i, part], p[i, part]
            for f in range(bins):
                mu = v[f] * g_q[f]
                c[f] += mu * (a[f] * e_r[f] + b[f] * e_i[f])
                d[f] += mu * (a[f] * e_i[f] - b[f] * e_r[f])


def _relearn_numpy(
    rows: Rows, newest: Rows, xr: F32, xi: F32, wr: F32, wi: F32, p: F32, e: C64, g: F32
) -> None:
    slots = (newest[:, None] + np.arange(wr.shape[1])) % xr.shape[1]
    a, b = xr[rows[:, None], slots], xi[rows[:, None], slots]
    e_r, e_i = e.real[:, None], e.imag[:, None]
    mu = p[rows] * g[:, None]
    wr[rows] += mu * (a * e_r + b * e_i)
    wi[rows] += mu * (a * e_i - b * e_r)


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
relearn = kernel(_relearn, _relearn_numpy)


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
    sums: F32
    """(6, n) energies of a block, see power.compare()."""


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
        self._state = foresight.State(self.xr, self.xi, self.wr, self.wi, self.p)
        self._next = foresight.sums(count, bins)

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
        self._next.slot[rows] = foresight.UNKNOWN

    def load(self, row: int, reference: F32) -> None:
        """Replace a row's reference by the last (slots + 1) L samples, aligned, newest last."""
        windows = np.lib.stride_tricks.sliding_window_view(reference, 2 * self.block)[:: self.block]
        spectra = rfft(windows)
        self.xr[row], self.xi[row] = spectra.real[::-1], spectra.imag[::-1]
        self.newest[row] = 0
        self._next.slot[row] = foresight.UNKNOWN

    def push(self, rows: Rows, windows: F32) -> None:
        """Append the reference's newest window (n, 2L): the block before, and the block itself."""
        slot = (self.newest[rows] - 1) % self.slots
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
        newest, part = self.newest[rows], self._turn[rows] % self.parts
        constrained = self._steps[rows] & 1 == rows & 1
        found, error, gain = self._predict(rows, newest, heard, usable, True)
        later = np.where(constrained, part, 0)
        foresight.correct(rows, newest, self._state, self._next, error, gain, KEEP, later)
        self._constrain(rows[constrained], 1)
        self._steps[rows] += 1
        return found

    def replay(self, rows: Rows, age: Rows) -> None:
        """Learn once more from a block `age` blocks old (n,), each row its own; P stays."""
        slot = (self.at[rows] - age) % self.history
        newest = (self.newest[rows] + age) % self.slots
        self._next.slot[rows] = foresight.UNKNOWN
        heard, usable = self.heard[rows, slot], self.usable[rows, slot]
        _, error, gain = self._predict(rows, newest, heard, usable, False)
        relearn(rows, newest, self.xr, self.xi, self.wr, self.wi, self.p, error, gain)
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
        newest = (self.newest[row] + np.arange(blocks)[::-1]) % self.slots
        shape = blocks, self.block + 1
        echo, doubt = np.empty(shape, np.complex64), np.empty(shape, np.float32)
        unknown = self._next._replace(slot=np.full(len(self.newest), foresight.UNKNOWN))
        foresight.predict(np.full(blocks, row), newest, self._state, unknown, echo, doubt)
        return np.asarray(irfft(echo)[:, self.block :].ravel(), dtype=np.float32)

    def _predict(
        self, rows: Rows, newest: Rows, heard: F32, usable: NDArray[np.bool_], follow: bool
    ) -> tuple[Innovation, C64, F32]:
        """What a block brings, its error's spectrum, and how far to believe that, (n, F); follow: whether
        the noise is followed."""
        n, length = len(rows), self.block
        s, power, echo_power, doubt, gain = np.empty((5, n, length + 1), np.float32)
        spectrum = np.empty((n, length + 1), np.complex64)
        foresight.predict(rows, newest, self._state, self._next, spectrum, s)
        echo = irfft(spectrum)
        padded = np.zeros((n, 2 * length), np.float32)
        error = np.subtract(heard, echo[:, length:], out=padded[:, length:])
        e = rfft(padded)
        trust(rows, e, spectrum, s, usable, self.noise, follow, power, echo_power, doubt, gain)
        sums = np.empty((6, n), np.float32)
        if follow:
            compare(np.ascontiguousarray(heard), padded, echo, sums)
        return Innovation(error, echo[:, length:], power, echo_power, doubt, sums), e, gain

    def _constrain(self, rows: Rows, parts: int) -> None:
        """Cut the wrapped-around half of the next `parts` partitions' responses, each row in its own turn."""
        part = ((self._turn[rows][:, None] + np.arange(parts)) % self.parts).ravel()
        self._turn[rows] += parts
        rows = np.repeat(rows, parts)
        spectra = np.empty((len(rows), self.block + 1), np.complex64)
        pick(rows, part, self.wr, self.wi, spectra)
        response = irfft(spectra)
        response[:, self.block :] = 0
        put(rows, part, self.wr, self.wi, rfft(response))
