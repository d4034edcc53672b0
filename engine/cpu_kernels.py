"""Kernels compiled by numba for float32 on the CPU: the parts of a step that torch would do in many passes.

Each has its torch twin in engine/kernels.py, which takes over where numba is missing, switched off
(MOSHI_NUMBA=0) or the type is another. Compiled at first use, cached on disk, without the GIL.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)


def enabled() -> bool:
    """Compiled kernels are wanted and numba is there."""
    if os.environ.get("MOSHI_NUMBA", "1") == "0":
        return False
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def _exp(x: Any) -> Any:
    """e**x for x <= 0 in float32, within 2 units in the last place (Cephes expf), vectorisable."""
    x = max(x, np.float32(-87.0))
    n = np.floor(x * _LOG2_E + np.float32(0.5))
    r = x - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    power = np.int32(n) + np.int32(127)
    return (p * r * r + r + np.float32(1.0)) * np.int32(power << np.int32(23)).view(np.float32)


def _rms_norm(x: Any, alpha: Any, eps: float, out: Any) -> None:
    """x (N, dim) -> out (N, dim)."""
    rows, dim = x.shape
    for i in range(rows):
        total = np.float32(0.0)
        for j in range(dim):
            total += x[i, j] * x[i, j]
        scale = np.float32(1.0) / np.sqrt(total / np.float32(dim) + np.float32(eps))
        for j in range(dim):
            out[i, j] = x[i, j] * (alpha[j] * scale)


def _gated(hidden: Any, out: Any) -> None:
    """hidden (N, 2 width) -> out (N, width): silu of the first half times the second."""
    rows, width = out.shape
    for i in range(rows):
        for j in range(width):
            x = hidden[i, j]
            small = _exp(-abs(x))
            down = small if x < 0 else np.float32(1.0)
            out[i, j] = x * down / (np.float32(1.0) + small) * hidden[i, width + j]


def _store(qkv: Any, angles: Any, at: Any, lines: Any) -> None:
    """Turn queries and keys in place by angles (N, D / 2), unless there are none; write keys and values.

    qkv (N, 3, H, D), at (N,), lines (P, 64, 2, H, D).
    """
    rows, _, heads, dim = qkv.shape
    page = lines.shape[1]
    for row in range(rows):
        if angles.shape[0]:
            for part in range(2):
                for head in range(heads):
                    for j in range(dim // 2):
                        turn = angles[row, j]
                        real, imaginary = qkv[row, part, head, 2 * j], qkv[row, part, head, 2 * j + 1]
                        qkv[row, part, head, 2 * j] = real * turn.real - imaginary * turn.imag
                        qkv[row, part, head, 2 * j + 1] = real * turn.imag + imaginary * turn.real
        line = lines[at[row] // page, at[row] % page]
        for part in range(2):
            for head in range(heads):
                for d in range(dim):
                    line[part, head, d] = qkv[row, 1 + part, head, d]


def _depth(qkv: Any, seen: Any, step: int, out: Any) -> None:
    """qkv (B, 3, H, D), seen (B, steps, 2, H, D) -> out (B, H, D): see engine/kernels.py `attend_depth`."""
    batch, _, heads, dim = qkv.shape
    scale = np.float32(1.0 / np.sqrt(dim))
    weights = np.empty(step + 1, np.float32)
    for row in range(batch):
        seen[row, step] = qkv[row, 1:]
        for head in range(heads):
            top = np.float32(-3.0e38)
            for k in range(step + 1):
                dot = np.float32(0.0)
                for d in range(dim):
                    dot += qkv[row, 0, head, d] * seen[row, k, 0, head, d]
                weights[k] = dot * scale
                top = max(top, weights[k])
            total = np.float32(0.0)
            for k in range(step + 1):
                weights[k] = _exp(weights[k] - top)
                total += weights[k]
            out[row, head] = np.float32(0.0)
            for k in range(step + 1):
                weight = weights[k] / total
                for d in range(dim):
                    out[row, head, d] += weight * seen[row, k, 1, head, d]


def _attend(qkv: Any, lines: Any, table: Any, position: Any, low: Any, first: Any, out: Any) -> None:
    """One query a row over the pages of its group.

    qkv (N, 3, H, D), lines (P, 64, 2, H, D), table and first (B, n), position and low (B, N / B) ->
    out (N, H, D).
    """
    rows, _, heads, dim = qkv.shape
    page = lines.shape[1]
    queries = position.shape[1]
    scale = np.float32(1.0 / np.sqrt(dim))
    score = np.empty((page, heads), np.float32)
    most, total = np.empty(heads, np.float32), np.empty(heads, np.float32)
    for row in range(rows):
        group, query = row // queries, row % queries
        newest, oldest = position[group, query], low[group, query]
        out[row] = np.float32(0.0)
        most[:] = np.float32(-3.0e38)
        total[:] = np.float32(0.0)
        for column in range(table.shape[1]):
            begin = first[group, column]
            start, stop = max(0, oldest + 1 - begin), min(page, newest + 1 - begin)
            if begin < 0 or start >= stop:
                continue
            _attend_page(
                qkv[row, 0], lines[table[group, column]], start, stop, scale, score, most, total, out[row]
            )
        for head in range(heads):
            inverse = np.float32(1.0) / total[head]
            for d in range(dim):
                out[row, head, d] *= inverse


def _attend_page(
    q: Any, lines: Any, start: int, stop: int, scale: Any, score: Any, most: Any, total: Any, out: Any
) -> None:
    """Fold lines start … stop of one page into the running softmax of every head."""
    heads, dim = q.shape
    for line in range(start, stop):
        for head in range(heads):
            dot = np.float32(0.0)
            for d in range(dim):
                dot += q[head, d] * lines[line, 0, head, d]
            score[line, head] = dot * scale
    for head in range(heads):
        top = most[head]
        for line in range(start, stop):
            top = max(top, score[line, head])
        shrink = _exp(most[head] - top)
        added = np.float32(0.0)
        for line in range(start, stop):
            weight = _exp(score[line, head] - top)
            score[line, head] = weight
            added += weight
        most[head] = top
        total[head] = total[head] * shrink + added
        for d in range(dim):
            out[head, d] *= shrink
    for line in range(start, stop):
        for head in range(heads):
            weight = score[line, head]
            for d in range(dim):
                out[head, d] += weight * lines[line, 1, head, d]


def _choose(logits: Any, inverse_temperature: Any, top_k: Any, number: Any, out: Any) -> None:
    """logits (B, V) float32, the others (B,) -> out (B,) int64: see engine/kernels.py `choose`."""
    rows, size = logits.shape
    order = np.empty(size, np.int32)
    for row in range(rows):
        least = _kth_largest(logits[row], min(size, top_k[row]), order)
        top = logits[row, 0]
        for i in range(size):
            top = max(top, logits[row, i])
        total = np.float32(0.0)
        for i in range(size):
            if logits[row, i] >= least:
                total += _exp((logits[row, i] - top) * inverse_temperature[row])
        target, reached = total * number[row], np.float32(0.0)
        chosen = -1
        for i in range(size):
            if logits[row, i] >= least:
                reached += _exp((logits[row, i] - top) * inverse_temperature[row])
                chosen = i
                if reached > target:
                    break
        out[row] = chosen


def _kth_largest(values: Any, k: int, keys: Any) -> Any:
    """The k-th largest of a float32 row: a radix search over its bits, most significant byte first."""
    size = values.shape[0]
    bits = values.view(np.int32)
    for i in range(size):
        bit = bits[i]
        keys[i] = bit if bit >= 0 else bit ^ np.int32(0x7FFFFFFF)
    counts = np.empty(256, np.int32)
    prefix, mask, left = 0, 0, k
    for level in range(4):
        shift = 24 - 8 * level
        counts[:] = 0
        for i in range(size):
            key = np.int64(keys[i]) + 0x80000000
            if (key & mask) == prefix:
                counts[(key >> shift) & 255] += 1
        digit = 255
        while counts[digit] < left:
            left -= counts[digit]
            digit -= 1
        prefix |= digit << shift
        mask |= 255 << shift
    found = np.int32(prefix - 0x80000000)
    found = found if found >= 0 else found ^ np.int32(0x7FFFFFFF)
    return np.int32(found).view(np.float32)


def _cache_folder() -> str:
    """A folder only this user writes: XDG_CACHE_HOME, ~/.cache, or a fresh one under the temp folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "moshi-gateway" / "numba"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return tempfile.mkdtemp(prefix="moshi-gateway-numba-")
    return str(folder) if os.access(folder, os.W_OK) else tempfile.mkdtemp(prefix="moshi-gateway-numba-")


_KERNELS: dict[str, Callable[..., None]] = {}


def kernel(name: str) -> Callable[..., None]:
    """`rms_norm`, `gated`, `store`, `attend`, `depth` or `choose`, compiled at its first call."""
    if not _KERNELS:
        os.environ.setdefault("NUMBA_CACHE_DIR", _cache_folder())
        import numba

        compiled = numba.njit(fastmath={"contract", "reassoc", "nsz", "arcp"}, nogil=True, cache=True)
        for part in ("_exp", "_attend_page", "_kth_largest"):
            globals()[part] = compiled(globals()[part])
        names = ("rms_norm", "gated", "store", "attend", "depth", "choose")
        _KERNELS.update({name: compiled(globals()[f"_{name}"]) for name in names})
    return _KERNELS[name]
