"""EchoRows: what an EchoCanceller knows of each row's state and levels, as arrays (count,).

It decides nothing; it keeps the counts that the canceller's decisions are made of.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gateway.media.delay import AUDIBLE, LAGS

F32 = NDArray[np.float32]
Flags = NDArray[np.bool_]
Rows = NDArray[np.intp]
Levels = tuple[F32, F32, F32]
"""Power per sample (n,) of what was heard, of the error and of the echo predicted."""

LISTENING, STARTING, TRACKING = 0, 1, 2
CLEAN_AFTER = 75
"""Audible sent blocks without a sign of echo before a call is held to be clean: 1.5 s."""
UNKNOWN_ECHO = np.float32(0.25)
"""Echo power over sent power that is assumed until it is known: a return loss of 6 dB."""
UNLIKE_AFTER = 30
"""Blocks heard and compared with all that was sent, after which what bears no likeness is the caller."""
UNLIKE = np.float32(0.05)
"""Share of what was heard in them that may still be echo: more would have shown."""
FAINT = np.float32(3e-5)
"""Heard power over sent power (-45 dB) under which there is nothing to find."""
SILENT = np.float32(6e-8)
LOUDER = np.float32(4)
"""Power over that of what was compared, from which a block is something else."""
PEAK_FADE = np.float32(0.98)
LONG_AGO = 1 << 20


def power_of(pcm: F32) -> F32:
    """Mean power per sample of blocks (n, L)."""
    return np.asarray(np.einsum("ij,ij->i", pcm, pcm) / pcm.shape[1], dtype=np.float32)


class EchoRows:
    """Arrays of `count` rows for blocks of `block` samples."""

    def __init__(self, count: int, block: int) -> None:
        self.state = np.zeros(count, np.int8)
        self.quiet = np.zeros(count, np.int64)
        """Blocks since something audible was sent."""
        self.looked = np.zeros(count, np.int64)
        """Audible blocks whose echo was looked for."""
        self.compared = np.zeros(count, np.int64)
        """Blocks heard that were held against what was sent."""
        self.lag, self.candidate, self.expected = (np.zeros(count, np.int64) for _ in range(3))
        self.since = np.zeros(count, np.int64)
        """Usable blocks since the filter began."""
        self.unseen = np.zeros(count, np.int64)
        """Verdicts in a row that saw no echo."""
        self.good, self.bad = (np.zeros(count, np.int64) for _ in range(2))
        """Blocks the filter halved, in all; made louder, in a row."""
        self.restarts, self.mended = (np.zeros(count, np.int64) for _ in range(2))
        self.useless = np.zeros(count, np.int64)
        """Audible blocks in a row that the filter did not halve."""
        self.looking = np.zeros(count, np.bool_)
        """The delay finder was told of every block up to the last."""
        self.loaded = np.zeros(count, np.bool_)
        """The filter's reference is unbroken up to the last block."""
        self.sent_peak, self.sent_power, self.echo_power = (np.zeros(count, np.float32) for _ in range(3))
        self.heard_power, self.out_power = (np.zeros(count, np.float32) for _ in range(2))
        self.compared_power = np.zeros(count, np.float32)
        """Of the blocks compared."""
        self.heard_fast, self.error_fast = (np.zeros(count, np.float32) for _ in range(2))
        self.last, self.aligned = (np.zeros((count, block), np.float32) for _ in range(2))
        """The last block heard; the last block of the reference."""

    def clear(self, row: int) -> None:
        for array in vars(self).values():
            array[row] = 0
        self.quiet[row] = LONG_AGO
        self.candidate[row] = self.expected[row] = -9
        self.restarts[row] = -1

    def begin(self, row: int, state: int) -> None:
        """The filter of a row starts anew."""
        self.state[row] = state
        self.since[row] = 0
        self.restarts[row] += 1
        self._forget(row)

    def mend(self, row: int, good: int) -> None:
        """The filter of a row goes on at another delay."""
        self.mended[row] += 1
        self._forget(row)
        self.good[row] = good

    def _forget(self, row: int) -> None:
        self.loaded[row] = False
        self.good[row] = self.bad[row] = self.useless[row] = 0
        self.heard_fast[row] = self.error_fast[row] = 0

    def note_sent(self, rows: Rows, pcm: F32) -> None:
        power = power_of(pcm)
        audible = power > AUDIBLE
        peak = np.maximum(power, PEAK_FADE * self.sent_peak[rows])
        self.sent_peak[rows] = np.where(self.quiet[rows] < LAGS, peak, power)
        self.quiet[rows] = np.where(audible, 0, self.quiet[rows] + 1)
        self.sent_power[rows] += np.float32(0.05) * audible * (power - self.sent_power[rows])

    def comparable(self, rows: Rows, pcm: F32) -> Flags:
        """Blocks heard (n, L) in which an echo worth finding could be.

        What stands far over all that was compared before is something else, of which nothing is known yet.
        """
        power = power_of(pcm)
        loud = (power > FAINT * self.sent_peak[rows]) & (power > SILENT)
        newer = loud & (power > LOUDER * self.compared_power[rows])
        self.compared[rows] = np.where(newer, 0, self.compared[rows]) + loud
        pace = np.maximum(1 / np.maximum(self.compared[rows], 1), 0.05).astype(np.float32)
        self.compared_power[rows] += pace * loud * (power - self.compared_power[rows])
        return loud

    def keep_score(self, rows: Rows, levels: Levels, out: F32, usable: Flags) -> None:
        """Levels before and after, and whether the filter did good."""
        (d, e, y), o = levels, power_of(out)
        self.heard_fast[rows] += np.float32(0.3) * (d - self.heard_fast[rows])
        self.error_fast[rows] += np.float32(0.3) * (e - self.error_fast[rows])
        self.echo_power[rows] += np.float32(0.02) * (self.quiet[rows] == 0) * (y - self.echo_power[rows])
        pace = np.float32(0.05) * ((y > 0.5 * d) & usable)
        self.heard_power[rows] += pace * (d - self.heard_power[rows])
        self.out_power[rows] += pace * (o - self.out_power[rows])
        self.since[rows] += usable
        self.good[rows] += self.heard_fast[rows] > 4 * self.error_fast[rows]
        halved = self.error_fast[rows] < 0.5 * self.heard_fast[rows]
        self.useless[rows] = np.where(halved, 0, self.useless[rows] + (self.quiet[rows] == 0))
        bad = self.error_fast[rows] > 1.15 * self.heard_fast[rows]
        self.bad[rows] = np.where(bad, self.bad[rows] + 1, 0)

    def known_clean(self, rows: Rows) -> Flags:
        """Rows (n,) that have been looked at for long enough to have shown an echo."""
        return np.asarray(self.looked[rows] >= CLEAN_AFTER, dtype=np.bool_)

    def left(self, rows: Rows, residual: F32) -> F32:
        """Echo power that may remain (n,), given what the residual stage says."""
        unknown = (self.state[rows] == LISTENING) & ~self.known_clean(rows)
        most = UNKNOWN_ECHO * self.sent_peak[rows]
        unlike = self.compared[rows] >= UNLIKE_AFTER
        most = np.where(unlike, np.minimum(most, UNLIKE * self.compared_power[rows]), most)
        left = np.where(unknown, most, residual)
        suspect = self.bad[rows] > 0
        return np.where(suspect, np.maximum(left, self.heard_fast[rows]), left).astype(np.float32)

    def erl_db(self, row: int) -> float:
        return 10 * float(np.log10((self.sent_power[row] + 1e-12) / (self.echo_power[row] + 1e-12)))

    def erle_db(self, row: int) -> float:
        return 10 * float(np.log10((self.heard_power[row] + 1e-12) / (self.out_power[row] + 1e-12)))
