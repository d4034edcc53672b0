"""Foresight: most of a Kalman filter's next prediction, made while its state is at hand.

A row's filter and reference fill tens of kilobytes, and fetching them takes longer than reckoning with them.
All of the next block's echo but its newest part's follows from what is known after a correction: so it is
summed there, part by part as each is corrected, and the next step has little left to fetch. What a row's
prediction leaves out is the newest part, and one that is about to be changed (`later`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.media.compiled import kernel

F32 = NDArray[np.float32]
C64 = NDArray[np.complex64]
Rows = NDArray[np.intp]

HALF, ONE = np.float32(0.5), np.float32(1)
UNKNOWN = -1
"""Stands for a slot: nothing is known of the next prediction."""


class State(NamedTuple):
    """The arrays of kalman.KalmanRows, in which reference and filter lie."""

    xr: F32  # (count, slots, F) older blocks in higher slots, so that parts and slots are read upwards alike
    xi: F32
    wr: F32  # (count, parts, F)
    wi: F32
    p: F32


class Sums(NamedTuple):
    """What is known of each row's next prediction."""

    re: F32  # (count, F) echo spectrum
    im: F32
    s: F32  # (count, F) sum(P |X|^2)
    slot: Rows  # (count,) newest slot for which it holds, or UNKNOWN
    later: Rows  # (count,) the part left out beside the newest; 0: none


def _predict(rows: Any, newest: Any, state: Any, sums: Any, y: Any, s: Any) -> None:
    """Echo spectra (n, F) into y; what the filter's own error may add, sum(P |X|^2), into s."""
    xr, xi, wr, wi, p = state
    re, im, known, slot, later = sums
    slots, parts, bins = xr.shape[1], wr.shape[1], xr.shape[2]
    y_r, y_i = np.empty(bins, np.float32), np.empty(bins, np.float32)
    for q in range(len(rows)):
        i, s_q = rows[q], s[q]
        whole = slot[i] != newest[q]
        if whole:
            y_r[:] = 0
            y_i[:] = 0
            s_q[:] = 0
        else:
            y_r[:] = re[i]
            y_i[:] = im[i]
            s_q[:] = known[i]
        for part in range(parts):
            if not (whole or part == 0 or part == later[i]):
                continue
            k = newest[q] + part
            if k >= slots:
                k -= slots
            a, b, c, d, v = xr[i, k], xi[i, k], wr[i, part], wi[i, part], p[i, part]
            for f in range(bins):
                y_r[f] += a[f] * c[f] - b[f] * d[f]
                y_i[f] += a[f] * d[f] + b[f] * c[f]
                s_q[f] += v[f] * (a[f] * a[f] + b[f] * b[f])
        for f in range(bins):
            y[q, f] = complex(y_r[f], y_i[f])


def _predict_numpy(rows: Rows, newest: Rows, state: State, sums: Sums, y: C64, s: F32) -> None:
    parts = np.arange(state.wr.shape[1])
    whole = sums.slot[rows] != newest
    missing = whole[:, None] | (parts == 0) | (parts == sums.later[rows][:, None])  # (n, parts)
    a, b, c, d, v = _at(rows, newest, state, parts)
    known = ~whole[:, None]
    chosen = missing[:, :, None]
    y.real = known * sums.re[rows] + np.sum(chosen * (a * c - b * d), axis=1)
    y.imag = known * sums.im[rows] + np.sum(chosen * (a * d + b * c), axis=1)
    s[:] = known * sums.s[rows] + np.sum(chosen * v * (a * a + b * b), axis=1)


def _correct(rows: Any, newest: Any, state: Any, sums: Any, e: Any, g: Any, keep: Any, later: Any) -> None:
    """Kalman update in place, and the next block's sums but for the parts 0 and later[q].

    g (n, F): 1 / innovation power; keep: A^2.
    """
    xr, xi, wr, wi, p = state
    re, im, known, slot, left_out = sums
    slots, parts, bins = xr.shape[1], wr.shape[1], xr.shape[2]
    half, one = np.float32(0.5), np.float32(1.0)
    fresh = one - keep
    e_r, e_i = np.empty(bins, np.float32), np.empty(bins, np.float32)
    y_r, y_i, s = (np.empty(bins, np.float32), np.empty(bins, np.float32), np.empty(bins, np.float32))
    for q in range(len(rows)):
        i, g_q = rows[q], g[q]
        for f in range(bins):
            e_r[f] = e[q, f].real
            e_i[f] = e[q, f].imag
        y_r[:] = 0
        y_i[:] = 0
        s[:] = 0
        for part in range(parts):
            k = newest[q] + part
            if k >= slots:
                k -= slots
            a, b, c, d, v = xr[i, k], xi[i, k], wr[i, part], wi[i, part], p[i, part]
            for f in range(bins):
                mu = v[f] * g_q[f]
                w_r = c[f] + mu * (a[f] * e_r[f] + b[f] * e_i[f])
                w_i = d[f] + mu * (a[f] * e_i[f] - b[f] * e_r[f])
                c[f] = w_r
                d[f] = w_i
                left = one - half * mu * (a[f] * a[f] + b[f] * b[f])
                v[f] = keep * left * v[f] + fresh * (w_r * w_r + w_i * w_i)
            if part == 0 or part == later[q]:
                continue
            k -= 1
            if k < 0:
                k += slots
            a, b = xr[i, k], xi[i, k]
            for f in range(bins):
                y_r[f] += a[f] * c[f] - b[f] * d[f]
                y_i[f] += a[f] * d[f] + b[f] * c[f]
                s[f] += v[f] * (a[f] * a[f] + b[f] * b[f])
        re[i] = y_r
        im[i] = y_i
        known[i] = s
        slot[i] = (newest[q] - 1) % slots
        left_out[i] = later[q]


def _correct_numpy(
    rows: Rows, newest: Rows, state: State, sums: Sums, e: C64, g: F32, keep: np.float32, later: Rows
) -> None:
    parts = np.arange(state.wr.shape[1])
    a, b, c, d, v = _at(rows, newest, state, parts)
    e_r, e_i = e.real[:, None], e.imag[:, None]
    mu = v * g[:, None]
    c = c + mu * (a * e_r + b * e_i)
    d = d + mu * (a * e_i - b * e_r)
    fresh = (ONE - keep) * (c * c + d * d)
    v = keep * (ONE - HALF * mu * (a * a + b * b)) * v + fresh
    state.wr[rows], state.wi[rows], state.p[rows] = c, d, v
    slot = (newest - 1) % state.xr.shape[1]
    a, b, *_ = _at(rows, slot, state, parts)
    told = ((parts > 0) & (parts != later[:, None]))[:, :, None]
    sums.re[rows] = np.sum(told * (a * c - b * d), axis=1)
    sums.im[rows] = np.sum(told * (a * d + b * c), axis=1)
    sums.s[rows] = np.sum(told * v * (a * a + b * b), axis=1)
    sums.slot[rows], sums.later[rows] = slot, later


def _at(rows: Rows, newest: Rows, state: State, parts: Rows) -> tuple[F32, F32, F32, F32, F32]:
    """Reference and filter (n, parts, F) as they meet when `newest` is the newest slot."""
    slots = (newest[:, None] + parts) % state.xr.shape[1]
    of = rows[:, None]
    return state.xr[of, slots], state.xi[of, slots], state.wr[rows], state.wi[rows], state.p[rows]


predict = kernel(_predict, _predict_numpy)
correct = kernel(_correct, _correct_numpy)


def sums(count: int, bins: int) -> Sums:
    """Nothing is known of `count` rows' next predictions."""
    re, im, s = (np.zeros((count, bins), np.float32) for _ in range(3))
    return Sums(re, im, s, np.full(count, UNKNOWN, np.intp), np.zeros(count, np.intp))
