"""Gains: how far each band of a block is turned down so that what is left of an echo goes unheard.

From what came out of the filter, what echo it predicted and how sure it is; what they say of a row's leakage
and noise is kept in `Bands`. It knows no samples.

Sources: see residual.py, whose middle this is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.media.compiled import kernel

F32 = NDArray[np.float32]
Flags = NDArray[np.bool_]
Rows = NDArray[np.intp]

BAND = 8
"""Bins of 25 Hz a band."""
FLOOR = np.float32(0.1)
"""Smallest gain: -20 dB."""
OVER = np.float32(1.3)
"""How much more echo is assumed than was estimated."""
LEAST_LEAK, MOST_LEAK = np.float32(0.001), np.float32(1.0)
"""Least and most of the predicted echo that is thought to remain."""
MOSTLY = np.float32(0.5)
"""Share of the predicted echo below which a block's output must lie to teach the leakage."""
SEEN = np.float32(25)
"""Blocks after which the leakage is known."""
UP, DOWN = np.float32(0.04), np.float32(0.08)
NOISE_FALL, NOISE_RISE = np.float32(0.3), np.float32(1.01)
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
TINY_POWER = np.float32(1e-9)


class Bands(NamedTuple):
    """What is known of each row."""

    ring: F32  # (count, bands) echo that may still ring
    clean: F32  # (count, bands) the last block without its echo
    leak: F32  # (count, bands) share of the predicted echo that remains
    noise: F32  # (count, bands)
    seen: NDArray[np.int64]  # (count,) blocks that taught the leakage
    left: F32  # (count,) echo power per sample that may remain in the last block put out
    hiss: F32  # (count,) power per sample of the line's noise


class Block(NamedTuple):
    """One block of some rows."""

    error: F32  # (n, F) power that came out of the filter
    echo: F32  # (n, F) power of the echo predicted
    doubt: F32  # (n, F) of error, what the filter's own uncertainty explains
    lost: Flags  # (n,) something else stands in for it: as much echo may remain as was predicted
    most: F32  # (n,) power per sample of all echo that there can be


def bands(count: int, number: int) -> Bands:
    """Of `count` rows."""
    ring, clean, leak, noise = (np.zeros((count, number), np.float32) for _ in range(4))
    left, hiss = np.zeros(count, np.float32), np.zeros(count, np.float32)
    return Bands(ring, clean, leak, noise, np.zeros(count, np.int64), left, hiss)


def _weigh(rows: Any, known: Any, block: Any, gain: Any) -> None:
    ring, clean, leak, noise, seen, left, hiss = known
    error_power, echo_power, doubt_power, lost, most = block
    number = gain.shape[1]
    zero, one, two, four = np.float32(0), np.float32(1), np.float32(2), np.float32(4)
    # Parseval: over half the bins of 2L points, |E|^2 sums to L times the block's energy
    scale = one / np.float32((error_power.shape[1] - 1) ** 2)
    error, echo, residual = np.empty((3, number), np.float32)
    for q in range(len(rows)):
        i = rows[q]
        all_error = all_echo = zero
        for b in range(number):
            e = y = d = zero
            for f in range(1 + BAND * b, 1 + BAND * b + BAND):
                e += error_power[q, f]
                y += echo_power[q, f]
                d += doubt_power[q, f]
            error[b], echo[b], residual[b] = e, y, d
            all_error += e
            all_echo += y
        mostly = not lost[q] and all_error < MOSTLY * all_echo
        if mostly:
            seen[i] += 1
        trust = min(np.float32(seen[i]) / SEEN, one)
        all_left = all_hiss = zero
        for b in range(number):
            before, share = noise[i, b], leak[i, b]
            if mostly and echo[b] > four * before:
                ratio = max(error[b] - two * before, zero) / (echo[b] + TINY_POWER)
                step = min(ratio, four * share) - share
                share += (UP if step > zero else DOWN) * step
            share = min(max(share, LEAST_LEAK), MOST_LEAK)
            leak[i, b] = share
            noise[i, b] = (
                before + NOISE_FALL * (error[b] - before) if error[b] < before else before * NOISE_RISE
            )
            ringing = max(echo[b], RING * ring[i, b])
            ring[i, b] = ringing
            leaking = ringing if lost[q] else share * ringing
            doubt = residual[b]
            residual[b] = doubt + trust * (min(doubt, leaking) - doubt) + leaking
            all_left += residual[b]
            all_hiss += noise[i, b]
        too_much = max(scale * all_left / (most[q] + TINY_POWER), one)
        hiss[i] = scale * HISS * all_hiss
        all_left = zero
        for b in range(number):
            echo_left = residual[b] / too_much
            masked = OVER * echo_left + HISS * noise[i, b] + TINY_POWER
            prior = max(SMOOTH * clean[i, b] / masked, INSTANT * max(error[b] / masked - one, zero))
            g = prior / (one + prior)
            clean[i, b] = g * g * error[b]
            least = QUIETER * np.sqrt(noise[i, b] / (error[b] + TINY_POWER))
            g = max(g, min(max(least, FLOOR), one))
            gain[q, b] = g
            all_left += g * g * min(echo_left, error[b])
        left[i] = scale * all_left


def _weigh_numpy(rows: Rows, known: Bands, block: Block, gain: F32) -> None:
    error, echo, doubt = (_banded(power, gain.shape[1]) for power in block[:3])
    _learn(rows, known, error, echo, ~block.lost)
    ring = np.maximum(echo, RING * known.ring[rows])
    known.ring[rows] = ring
    leaking = np.where(block.lost[:, None], np.float32(1), known.leak[rows]) * ring
    trust = np.minimum(known.seen[rows].astype(np.float32) / SEEN, 1)[:, None]
    residual = doubt + trust * (np.minimum(doubt, leaking) - doubt) + leaking
    scale = np.float32(1 / (block.error.shape[1] - 1) ** 2)
    too_much = scale * np.sum(residual, axis=1) / (block.most + TINY_POWER)
    residual /= np.maximum(too_much, 1)[:, None]
    gain[:] = _gains(rows, known, error, OVER * residual + HISS * known.noise[rows] + TINY_POWER)
    known.left[rows] = scale * np.sum(gain * gain * np.minimum(residual, error), axis=1)
    known.hiss[rows] = scale * HISS * np.sum(known.noise[rows], axis=1)


def _banded(power: F32, number: int) -> F32:
    banded: F32 = power[:, 1:].reshape(len(power), number, BAND).sum(axis=2)
    return banded


def _learn(rows: Rows, known: Bands, error: F32, echo: F32, learn: Flags) -> None:
    noise, leak = known.noise[rows], known.leak[rows]
    ratio = np.maximum(error - 2 * noise, 0) / (echo + TINY_POWER)
    mostly = learn & (np.sum(error, axis=1) < MOSTLY * np.sum(echo, axis=1))
    known.seen[rows] += mostly
    audible = mostly[:, None] & (echo > 4 * noise)
    step = np.minimum(ratio, 4 * leak) - leak
    known.leak[rows] = np.clip(leak + audible * np.where(step > 0, UP, DOWN) * step, LEAST_LEAK, MOST_LEAK)
    known.noise[rows] = np.where(error < noise, noise + NOISE_FALL * (error - noise), noise * NOISE_RISE)


def _gains(rows: Rows, known: Bands, error: F32, masked: F32) -> F32:
    prior = np.maximum(SMOOTH * known.clean[rows] / masked, INSTANT * np.maximum(error / masked - 1, 0))
    gain = prior / (1 + prior)
    known.clean[rows] = gain * gain * error
    least = np.clip(QUIETER * np.sqrt(known.noise[rows] / (error + TINY_POWER)), FLOOR, 1)
    return np.asarray(np.maximum(gain, least), dtype=np.float32)


weigh = kernel(_weigh, _weigh_numpy)
"""Gains (n, bands) of a block, and what it teaches.

Leakage is learnt from blocks that are mostly echo: a caller's voice would be taken for it. The filter's
uncertainty counts in full at first, and later for at most as much as leaks: it is an upper bound (replays
improve the filter, and do not lower it), leakage is seen.
"""
