"""The energy gate before the speech detector: which blocks are loud, and which frames are worth asking about.

Blocks of 20 ms are gathered into frames of 32 ms; a frame is worth it that stands over the row's noise, over
what echo may remain in it and not far below the caller's own voice. It knows no model and no speech but the
counts it is told.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.media.compiled import kernel
from gateway.media.power import energy_of

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]
Rows = NDArray[np.intp]

BLOCK = 160
FRAME = 256
"""Samples judged at once: 32 ms at 8 kHz."""
CONTEXT = 32
FIRST = 10
"""Frames of a call whose quietest is its noise: 0.3 s."""
LEAST_NOISE = np.float32(1e-10)


class Limits(NamedTuple):
    """Ratios of power, and powers."""

    louder: float
    """By what a frame over the noise raises it."""
    quieter: float
    over_noise: np.float32
    stay_over_noise: np.float32
    over_echo: np.float32
    loud_over_noise: np.float32
    loud_over_echo: np.float32
    of_caller: np.float32
    """Share of the caller's usual power."""
    least: np.float32
    stay: int
    """Samples of silence within a talkspurt after which more of it must be as clear as its beginning."""


class Heard(NamedTuple):
    """What is known of each row; (count,) but for `waiting`."""

    waiting: F32  # (count, CONTEXT + FRAME + BLOCK)
    filled: Rows  # samples waiting after the context
    echo: F32  # most that may remain in the frame being filled
    hiss: F32  # noise of the line before a canceller turned it down
    noise: F32
    voice: F32
    judged: I64  # frames since the call began, up to FIRST
    least: F32  # power of the quietest of them
    speech: I64
    silence: I64
    loud: Flags


def heard(count: int) -> Heard:
    """Of `count` rows, all of them new."""
    echo, hiss, noise, voice, least = (np.zeros(count, np.float32) for _ in range(5))
    judged, speech, silence = (np.zeros(count, np.int64) for _ in range(3))
    waiting, filled = np.zeros((count, CONTEXT + FRAME + BLOCK), np.float32), np.zeros(count, np.intp)
    noise[:] = 1e-6
    return Heard(
        waiting, filled, echo, hiss, noise, voice, judged, least, speech, silence, np.zeros(count, np.bool_)
    )


def _pass_on(rows: Any, pcm: Any, left: Any, h: Any, limits: Any, ready: Any, power: Any, asked: Any) -> int:
    """A block (n, 160) of each row, of which left (n,) may be echo. How many rows completed a frame: those
    rows go into ready, their frames' power into power, and whether they are worth asking about into asked."""
    count = 0
    for q in range(len(rows)):
        i = rows[q]
        noise, hiss, quiet = h.noise[i], h.hiss[i], h.voice[i] * limits.of_caller
        if h.filled[i] >= FRAME:  # a judged frame makes room, but for the next one's context
            for k in range(CONTEXT + BLOCK):
                h.waiting[i, k] = h.waiting[i, FRAME + k]
            h.filled[i] -= FRAME
        at = CONTEXT + h.filled[i]
        total = np.float32(0)
        for k in range(BLOCK):
            h.waiting[i, at + k] = pcm[q, k]
            total += pcm[q, k] * pcm[q, k]
        h.filled[i] += BLOCK
        bar = max(max(noise, hiss) * limits.loud_over_noise, left[q] * limits.loud_over_echo)
        h.loud[i] = total / np.float32(BLOCK) > max(max(bar, quiet), limits.least)
        h.echo[i] = max(h.echo[i], left[q])
        if h.filled[i] < FRAME:
            continue
        total = np.float32(0)
        for k in range(CONTEXT, CONTEXT + FRAME):
            total += h.waiting[i, k] * h.waiting[i, k]
        total /= np.float32(FRAME)
        raised = noise * (limits.louder if total > noise else limits.quieter)
        h.noise[i] = max(np.float32(raised), LEAST_NOISE)
        if h.judged[i] < FIRST:
            h.judged[i] += 1
            h.least[i] = min(h.least[i], total)
            if h.judged[i] == FIRST:
                h.noise[i] = max(h.noise[i], h.least[i])
        running = h.speech[i] > 0 and h.silence[i] <= limits.stay
        bar = max(noise * (limits.stay_over_noise if running else limits.over_noise), quiet)
        bar = max(max(bar, hiss * limits.stay_over_noise), limits.least)
        ready[count], power[count], asked[count] = i, total, total > max(bar, h.echo[i] * limits.over_echo)
        h.echo[i] = 0
        count += 1
    return count


def _pass_on_numpy(
    rows: Rows, pcm: F32, left: F32, h: Heard, limits: Limits, ready: Rows, power: F32, asked: Flags
) -> int:
    full = rows[h.filled[rows] >= FRAME]
    h.waiting[full, : CONTEXT + BLOCK] = h.waiting[full, FRAME:]
    h.filled[full] -= FRAME
    h.waiting[rows[:, None], CONTEXT + h.filled[rows][:, None] + np.arange(BLOCK)] = pcm
    h.filled[rows] += BLOCK
    quiet = h.voice[rows] * limits.of_caller
    bar = np.maximum(np.maximum(h.noise[rows], h.hiss[rows]) * limits.loud_over_noise, quiet)
    bar = np.maximum(np.maximum(bar, left * limits.loud_over_echo), limits.least)
    h.loud[rows] = energy_of(pcm) / BLOCK > bar
    h.echo[rows] = np.maximum(h.echo[rows], left)
    done = rows[h.filled[rows] >= FRAME]
    n = len(done)
    frames = np.ascontiguousarray(h.waiting[done, CONTEXT : CONTEXT + FRAME])
    ready[:n], power[:n] = done, energy_of(frames) / FRAME
    asked[:n] = _gated(done, power[:n], h, limits)
    h.echo[done] = 0
    return n


def _gated(rows: Rows, power: F32, h: Heard, limits: Limits) -> Flags:
    """Frames (n,) worth asking about."""
    noise = h.noise[rows]
    h.noise[rows] = np.maximum(noise * np.where(power > noise, limits.louder, limits.quieter), LEAST_NOISE)
    which = h.judged[rows] < FIRST
    new = rows[which]
    h.judged[new] += 1
    h.least[new] = np.minimum(h.least[new], power[which])
    known = new[h.judged[new] == FIRST]
    h.noise[known] = np.maximum(h.noise[known], h.least[known])
    running = (h.speech[rows] > 0) & (h.silence[rows] <= limits.stay)
    bar = noise * np.where(running, limits.stay_over_noise, limits.over_noise)
    for other in (h.hiss[rows] * limits.stay_over_noise, h.echo[rows] * limits.over_echo):
        bar = np.maximum(bar, other)
    bar = np.maximum(np.maximum(bar, h.voice[rows] * limits.of_caller), limits.least)
    return np.asarray(power > bar)


pass_on = kernel(_pass_on, _pass_on_numpy)
