"""Real Fourier transforms over the rows of float32 arrays: scipy's where it is installed, else numpy's.

The results are equal to rounding; scipy's forward transform of many short rows takes a fifth of the time. Its
own functions are called without what scipy.fft puts before them, which takes longer than a transform of few
rows; where a scipy has them no longer, scipy.fft is called.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
C64 = NDArray[np.complex64]
Pair = tuple[Callable[[F32], Any], Callable[[NDArray[Any]], Any]]

_chosen: list[Pair] = []


def rfft(rows: F32) -> C64:
    """(n, 2L) float32 to (n, L + 1) complex64."""
    return np.asarray((_chosen or _choose())[0][0](rows), dtype=np.complex64)


def irfft(spectra: NDArray[Any]) -> F32:
    """(n, L + 1) complex64 (or real, float32) to (n, 2L) float32."""
    return np.asarray((_chosen or _choose())[0][1](spectra), dtype=np.float32)


def _choose() -> list[Pair]:
    _chosen.append(_direct() or _usual())
    return _chosen


def _direct() -> Pair | None:
    try:
        own = importlib.import_module("scipy.fft._pocketfft.pypocketfft")
        pair = (
            lambda rows: own.r2c(rows, (1,), True, 0, None, 1),
            lambda spectra: own.c2r(_complex(spectra), (1,), 2 * spectra.shape[1] - 2, False, 2, None, 1),
        )
        return pair if _right(pair) else None
    except (ImportError, AttributeError, TypeError):
        return None


def _right(pair: Pair) -> bool:
    """Whether they do what they did when this was written."""
    rows = np.array([[1, 2, -3, 0.5], [0, 1, 0, 0]], np.float32)
    spectra = np.asarray(pair[0](rows))
    return np.allclose(spectra, np.fft.rfft(rows), atol=1e-5) and np.allclose(
        pair[1](spectra), rows, atol=1e-5
    )


def _usual() -> Pair:
    try:
        library = importlib.import_module("scipy.fft")
    except ImportError:
        library = np.fft
    return (lambda rows: library.rfft(rows, axis=1)), (lambda spectra: library.irfft(spectra, axis=1))


def _complex(spectra: NDArray[Any]) -> NDArray[Any]:
    return spectra if np.iscomplexobj(spectra) else spectra.astype(np.complex64)
