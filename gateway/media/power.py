"""Energies of blocks, a row each: what levels and gates are made of, several times a tick."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.media.compiled import kernel

F32 = NDArray[np.float32]

HEARD, ERROR, ECHO, MATCH, RISE, LATE = range(6)
"""Rows of compare()'s sums: squares of what was heard, of the error, of the echo; heard times echo; squares
of the echo's rise over two samples; error times that rise."""


def _energy(pcm: Any, out: Any) -> None:
    for q in range(pcm.shape[0]):
        total = np.float32(0)
        for i in range(pcm.shape[1]):
            total += pcm[q, i] * pcm[q, i]
        out[q] = total


def _energy_numpy(pcm: F32, out: F32) -> None:
    np.einsum("ij,ij->i", pcm, pcm, out=out)


def _compare(heard: Any, error: Any, echo: Any, sums: Any) -> None:
    length = heard.shape[1]
    for q in range(heard.shape[0]):
        h, e, y = heard[q], error[q, length:], echo[q, length:]
        hh = ee = yy = hy = rr = er = np.float32(0)
        for i in range(length):
            hh += h[i] * h[i]
            ee += e[i] * e[i]
            yy += y[i] * y[i]
            hy += h[i] * y[i]
        for i in range(1, length - 1):
            rise = y[i + 1] - y[i - 1]
            rr += rise * rise
            er += e[i] * rise
        sums[0, q], sums[1, q], sums[2, q], sums[3, q], sums[4, q], sums[5, q] = hh, ee, yy, hy, rr, er


def _compare_numpy(heard: F32, error: F32, echo: F32, sums: F32) -> None:
    length = heard.shape[1]
    error, echo = error[:, length:], echo[:, length:]
    rise = echo[:, 2:] - echo[:, :-2]
    pairs = (heard, heard), (error, error), (echo, echo), (heard, echo), (rise, rise), (error[:, 1:-1], rise)
    for row, (one, other) in enumerate(pairs):
        np.einsum("ij,ij->i", one, other, out=sums[row])


energy = kernel(_energy, _energy_numpy)
compare = kernel(_compare, _compare_numpy)
"""Of heard (n, L), and the later halves of error and echo (n, 2L), into sums (6, n)."""


def energy_of(pcm: F32) -> F32:
    """Sum of squares (n,) of blocks (n, L)."""
    out = np.empty(len(pcm), np.float32)
    if pcm.flags.c_contiguous and pcm.dtype == np.float32:
        energy(pcm, out)
    else:  # the compiler would have to be asked again, in the middle of a call
        _energy_numpy(pcm, out)
    return out


def power_of(pcm: F32) -> F32:
    """Mean power per sample (n,) of blocks (n, L)."""
    return energy_of(pcm) / np.float32(pcm.shape[1])


def warm() -> None:
    """Compile, or load from the cache, before the first tick."""
    energy_of(np.zeros((1, 1), np.float32))
