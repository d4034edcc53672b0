"""Inventing what was lost and bending time, in the pitch periods of speech.

Concealment repeats the last one to three pitch periods and fades to background noise within 60 ms (after
ITU-T G.711 Appendix I, without its 3.75 ms of delay: the seam is bent instead of overlapped). Time is
squeezed or stretched by whole pitch periods with a cross-fade (WSOLA; Verhelst & Roelands, ICASSP 1993).
Samples are integers throughout, so that compiled and interpreted runs are equal to the bit. Lengths follow
the rate: `d` is rate // 8000, and searches step d samples before they refine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gateway.media import columns as c
from gateway.media.rows import ReceiveRows

I16 = NDArray[np.int16]
I64 = NDArray[np.int64]

SHORTEST, LONGEST = 20, 120
"""Pitch periods searched, in samples at 8 kHz: 400 to 67 Hz."""
WINDOW = 160
"""Samples compared in a search, at 8 kHz."""


def likeness_by_loops(x: I16, at: int, lags: I64, window: int, step: int) -> NDArray[np.float64]:
    """Normalised correlation (signed square) of x[at : at + window] with itself `lags` later (or earlier)."""
    scores = np.zeros(len(lags), np.float64)
    own = 0
    for i in range(at, at + window, step):
        own += int(x[i]) * int(x[i])
    for k in range(len(lags)):
        product, energy = 0, 0
        for i in range(at, at + window, step):
            other = int(x[i + lags[k]])
            product += int(x[i]) * other
            energy += other * other
        scores[k] = _normalised(product, own, energy)
    return scores


def _normalised(product: int, own: int, energy: int) -> float:
    return float(product) * abs(float(product)) / (float(own) * float(energy) + 1.0)


def likeness(x: I16, at: int, lags: I64, window: int, step: int) -> NDArray[np.float64]:
    """The same as likeness_by_loops(), which stands in for it where compiled."""
    places = np.arange(at, at + window, step)
    own = x[places].astype(np.int64)
    others = x[places[None, :] + lags[:, None]].astype(np.int64)
    product = (others @ own).astype(np.float64)
    energy = (others * others).sum(axis=1).astype(np.float64)
    scores: NDArray[np.float64] = product * np.abs(product) / (float(own @ own) * energy + 1.0)
    return scores


def best_lag(x: I16, at: int, sign: int, span: tuple[int, int], window: int, d: int) -> tuple[int, float]:
    """The lag within span (both ends in) whose audio is most like that at `at`: (lag, likeness -1..1)."""
    low, high = span
    lags = np.arange(low, high + 1, d)
    scores = likeness(x, at, sign * lags, window, d)
    best = int(lags[np.argmax(scores)])
    if d > 1:
        lags = np.arange(max(low, best - d), min(high, best + d) + 1)
        scores = likeness(x, at, sign * lags, window, d)
        best = int(lags[np.argmax(scores)])
    return best, float(scores.max())


def noise(r: ReceiveRows, row: int) -> int:
    """One sample of background noise, uniform, at the caller's background level."""
    r.n[row, c.SEED] = (int(r.n[row, c.SEED]) * 1_103_515_245 + 12_345) & 0x7FFF_FFFF
    width = 4 * int(r.n[row, c.QUIET]) + 1
    return (int(r.n[row, c.SEED]) >> 8) % width - 2 * int(r.n[row, c.QUIET])


def prepare(r: ReceiveRows, row: int, end: int) -> None:
    """Find the pitch before line[end] and lay its last three periods out for repetition."""
    d = int(r.n[row, c.RATE]) // 8_000
    x = r.line[row]
    window = min(WINDOW * d, end - LONGEST * d)
    lag, _ = best_lag(x, end - window, -1, (SHORTEST * d, LONGEST * d), window, d)
    r.n[row, c.CYCLE_LENGTH] = lag
    for i in range(3 * lag):
        r.cycle[row, i] = x[end - 3 * lag + i] if 3 * lag <= end else x[end - lag + i % lag]


def repeated(r: ReceiveRows, row: int, age: int) -> int:
    """Sample `age` of the repetition: from the last period in the first 10 ms, then from two, then three."""
    lag = int(r.n[row, c.CYCLE_LENGTH])
    ms10 = int(r.n[row, c.RATE]) // 100
    periods = 1 if age < ms10 else 2 if age < 2 * ms10 else 3
    length = periods * lag
    offset = 3 * lag - length
    place = age % length
    value = int(r.cycle[row, offset + place])
    seam = lag // 4
    if place >= length - seam and offset >= seam:
        before = int(r.cycle[row, offset - (length - place)])
        weight = place - (length - seam) + 1
        value = (value * (seam + 1 - weight) + before * weight) // (seam + 1)
    bend = ms10 // 5
    return value + int(r.n[row, c.BEND]) * (bend - age) // bend if age < bend else value


def conceal(r: ReceiveRows, row: int, at: int, count: int) -> None:
    """Write `count` invented samples to line[at:], continuing what was played before."""
    if r.n[row, c.AGE] == 0:
        prepare(r, row, at)
        lag = int(r.n[row, c.CYCLE_LENGTH])
        r.n[row, c.BEND] = int(r.line[row, at - 1]) - int(r.line[row, at - lag - 1])
    ms10 = int(r.n[row, c.RATE]) // 100
    for i in range(count):
        r.line[row, at + i] = invented(r, row, ms10)


def invented(r: ReceiveRows, row: int, ms10: int) -> int:
    """The next sample of a concealment: the codec's own where it gave one, else the fading repetition."""
    age = int(r.n[row, c.AGE])
    r.n[row, c.AGE] += 1
    if r.n[row, c.SPARE_AT] < r.n[row, c.SPARE_LENGTH]:
        value = int(r.spare[row, r.n[row, c.SPARE_AT]])
        r.n[row, c.SPARE_AT] += 1
        return value
    gain = 256 if age < ms10 else max(0, 256 - 256 * (age - ms10) // (5 * ms10))
    if gain == 0:
        return noise(r, row)
    value = (repeated(r, row, age) * gain + noise(r, row) * (256 - gain)) >> 8
    return min(32_767, max(-32_767, value))


def merge(r: ReceiveRows, row: int, at: int, count: int) -> None:
    """Cross-fade from the concealment, continued, into the real audio at line[at : at + count]."""
    ms = int(r.n[row, c.RATE]) // 1000
    length = min(count, min(10 * ms, 4 * ms + int(r.n[row, c.AGE]) // 4))
    for i in range(length):
        old = invented(r, row, 10 * ms)
        new = int(r.line[row, at + i])
        r.line[row, at + i] = (old * (length - i) + new * (i + 1)) // (length + 1)


def squeeze(x: I16, out: I16, lag: int) -> None:
    """Fill out[:n] from x[: n + lag], one period shorter: fade from x to x `lag` later."""
    n = len(out)
    fade = min(lag, n)
    for i in range(n):
        later = int(x[i + lag])
        out[i] = (int(x[i]) * (fade - i) + later * i) // fade if i < fade else later


def stretch(x: I16, out: I16, lag: int) -> None:
    """Fill out[:n] from x[: n - lag]: play x up to `fade + lag`, then from `lag` earlier."""
    n = len(out)
    fade = min(lag, n - 2 * lag)
    for i in range(n):
        if i < lag:
            out[i] = x[i]
        elif i < lag + fade:
            k = i - lag
            out[i] = (int(x[i]) * (fade - k) + int(x[k]) * k) // fade
        else:
            out[i] = x[i - lag]
