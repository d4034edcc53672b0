"""Tones: keys pressed in the audio itself, on legs that agreed on no telephone-event; all such rows at once.

A window of 20 ms, every 10 ms, is a key's when two tones of the keypad hold nearly all of its energy at
levels not far apart; two windows in a row press the key, three without it release it. What is a key's is
silence to everything behind: model, echo canceller and speech detector. It knows blocks and no packets.

Source: ITU-T Q.23 (the frequencies), Q.24 (levels, twist, durations); the fit of a tone whose frequency is a
little off is that of the tone and its first derivative by frequency.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from engine.api import Pcm
from gateway.media.power import energy_of

Rows = NDArray[np.intp]
I64 = NDArray[np.int64]

LOW, HIGH = (697, 770, 852, 941), (1_209, 1_336, 1_477, 1_633)
KEYS = "123A456B789C*0#D"
SHARE = 0.86
"""Of a window's energy that the two tones must hold."""
TWIST_DB = 9.0
LEAST_DBFS = -40.0
"""Of a window; Q.24 asks for -25 dBm a tone."""
PRESS, RELEASE = 2, 3
"""Windows in a row, 10 ms apart."""
STEP_MS = 10
MOST_BLIND = 3
"""Blocks of concealment in a row that decide nothing; then a key is released."""


class Tones:
    """State of `count` rows. One thread."""

    def __init__(self, count: int) -> None:
        self.listening = np.zeros(count, np.bool_)
        """Rows whose keys may come as tones."""
        self._before: dict[int, Pcm] = {}  # (count, half a window), by rate
        self._energy = np.zeros(count, np.float32)  # of that half
        self._count = count
        self._key = np.full(count, -1, np.int64)  # of the last windows that had one
        self._hits: I64 = np.zeros(count, np.int64)
        self._misses: I64 = np.zeros(count, np.int64)
        self._pressed = np.zeros(count, np.bool_)
        self._blind: I64 = np.zeros(count, np.int64)  # blocks in a row that are concealment

    def listen(self, row: int, wanted: bool) -> None:
        """From the next block on; what was half heard is forgotten."""
        self.listening[row] = wanted
        self._key[row] = -1
        self._hits[row] = self._misses[row] = self._blind[row] = 0
        self._pressed[row] = False
        self._energy[row] = 0.0
        for half in self._before.values():
            half[row] = 0.0

    def hear(self, rows: Rows, pcm: Pcm, rate: int, invented: I64) -> tuple[Pcm, list[tuple[int, str, int]]]:
        """20 ms of these rows, (n, rate / 50), of which `invented` (n,) samples are concealment: the same
        without tones, and (row, key, milliseconds) for each key that was released."""
        if not self.listening.any():
            return pcm, []
        at = np.flatnonzero(self.listening[rows])
        if not len(at):
            return pcm, []
        heard, block = (rows, pcm) if len(at) == len(rows) else (rows[at], pcm[at])
        blind, was_blind = invented[at] > 0, self._blind[heard] > 0
        self._blind[heard] = np.where(blind, self._blind[heard] + 1, 0)
        before = self._before.setdefault(rate, np.zeros((self._count, block.shape[1] // 2), np.float32))
        awake = np.flatnonzero(self._may_hold_keys(heard, block))
        released: list[tuple[int, str, int]] = []
        if len(awake):
            mine, at = heard[awake], at[awake]
            windows = np.concatenate([before[mine], block[awake]], axis=1)
            released, silent = self._judge(mine, windows, blind[awake], was_blind[awake], rate)
            if silent.any():
                pcm = pcm.copy()
                pcm[at[silent]] = 0.0
        before[heard] = block[:, before.shape[1] :]
        return pcm, released

    def _may_hold_keys(self, rows: Rows, block: Pcm) -> NDArray[np.bool_]:
        """Rows (n,) with a key that is held, or loud enough for one: of all others nothing changes."""
        half = block.shape[1] // 2
        first, second = energy_of(block.reshape(-1, half)).reshape(-1, 2).T
        loudest = first + np.maximum(self._energy[rows], second)
        self._energy[rows] = second
        return np.asarray((self._key[rows] >= 0) | (loudest > 0.99 * _least(2 * half)), dtype=np.bool_)

    def _judge(
        self, rows: Rows, pcm: Pcm, blind: NDArray[np.bool_], was_blind: NDArray[np.bool_], rate: int
    ) -> tuple[list[tuple[int, str, int]], NDArray[np.bool_]]:
        """Keys released, and rows (n,) to be silent; of half a block and a block, (n, 1.5 blocks)."""
        released: list[tuple[int, str, int]] = []
        silent = np.zeros(len(rows), np.bool_)
        waits = self._blind[rows] <= MOST_BLIND
        length = pcm.shape[1] // 3 * 2
        for window, unsure in ((pcm[:, :length], blind | was_blind), (pcm[:, -length:], blind)):
            keys = keys_in(window, rate)
            seen = ~(unsure & waits)  # a short gap says neither that a key is held nor that it is not
            released += self._step(rows[seen], np.where(unsure, -1, keys)[seen])
            silent |= (keys >= 0) | self._pressed[rows]
        return released, silent

    def _step(self, rows: Rows, keys: I64) -> list[tuple[int, str, int]]:
        """One window of each row: which key it holds, -1 for none."""
        same = (keys >= 0) & (keys == self._key[rows])
        other = (keys >= 0) & ~same
        released = [self._release(row) for row in rows[other & self._pressed[rows]].tolist()]
        self._hits[rows] = np.where(same, self._hits[rows] + 1, np.where(other, 1, self._hits[rows]))
        self._key[rows] = np.where(keys >= 0, keys, self._key[rows])
        self._misses[rows] = np.where(keys >= 0, 0, self._misses[rows] + 1)
        self._pressed[rows] |= self._hits[rows] >= PRESS
        gone = self._misses[rows] >= np.where(self._pressed[rows], RELEASE, 1)
        released += [self._release(row) for row in rows[gone & self._pressed[rows]].tolist()]
        self._hits[rows[gone]], self._key[rows[gone]] = 0, -1
        return released

    def _release(self, row: int) -> tuple[int, str, int]:
        key, held_ms = KEYS[int(self._key[row])], STEP_MS * (int(self._hits[row]) + 1)
        self._pressed[row], self._hits[row] = False, 0
        return row, key, held_ms


def keys_in(windows: Pcm, rate: int) -> I64:
    """(n, rate / 50) -> (n,): index into KEYS, or -1."""
    energy = energy_of(windows)
    found = np.full(len(windows), -1, np.int64)
    loud = np.flatnonzero(energy > _least(windows.shape[1]))
    if not len(loud):
        return found
    fitted = windows[loud] @ _bases(rate)  # (m, 8 tones * 4)
    tones = np.square(fitted).reshape(len(loud), 8, 4).sum(axis=2)
    low, high = tones[:, :4], tones[:, 4:]
    best_low, best_high = low.argmax(axis=1), high.argmax(axis=1)
    each = np.arange(len(loud))
    a, b = low[each, best_low], high[each, best_high]
    twist = 10 ** (TWIST_DB / 10)
    whole = (a + b > SHARE * energy[loud]) & (a < twist * b) & (b < twist * a)
    found[loud[whole]] = (4 * best_low + best_high)[whole]
    return found


def _least(samples: int) -> float:
    """Energy of a window under which it holds no key."""
    return 10 ** (LEAST_DBFS / 10) * samples


@cache
def _bases(rate: int) -> Pcm:
    """(rate / 50, 32): an orthonormal basis of each tone and its derivative by frequency, 20 ms long."""
    t = np.arange(rate // 50) / rate
    bent = t - t.mean()
    columns = []
    for frequency in (*LOW, *HIGH):
        wave = np.exp(2j * np.pi * frequency * t)
        both = np.stack([wave.real, wave.imag, bent * wave.real, bent * wave.imag], axis=1)
        columns.append(np.linalg.qr(both)[0])
    return np.concatenate(columns, axis=1).astype(np.float32)
