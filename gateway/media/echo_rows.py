"""EchoRows: what an EchoCanceller knows of each row's state and levels, as arrays (count,).

It decides nothing; it keeps the counts that the canceller's decisions are made of.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gateway.media.delay import AUDIBLE, LAGS
from gateway.media.power import power_of

F32 = NDArray[np.float32]
Flags = NDArray[np.bool_]
Rows = NDArray[np.intp]
Levels = tuple[F32, F32, F32]
"""Power per sample (n,) of what was heard, of the error and of the echo predicted."""

LISTENING, STARTING, TRACKING = 0, 1, 2
NONE, LITTLE, MUCH, ALL = 0, 1, 2, 3
"""Of what a row puts out, what may be the agent: nothing, he was not sent; what a filter leaves that has
converged; that has not; and all, because it is unknown yet whether there is an echo."""
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
SETTLED_DB, UNSETTLED_DB = np.float32(6), np.float32(3)
"""How much of the echo a filter must take off, lately, to have converged; and under which it has not."""
HARMLESS_DB, HARMFUL_DB = np.float32(-1), np.float32(-3)
"""The same of a filter that has learned for 3 s: behind a speech codec no filter takes off much more."""
OFF_LEAST_DB, OFF_MOST_DB = np.float32(-6), np.float32(20)
"""One block's say in that."""
SETTLING = np.float32(0.1)
NEAR = 5
"""Newest blocks of the reference: three before the echo, the echo's own and the one before it."""
RING = np.float32(0.5)
"""What of an echo's power still rings a block later, at most."""
LIKELY, LIKELY_STEP_DB = 0.4, 0.6
"""Quantile of heard over sent, block by block, that is taken for the echo's: callers pause. Its pace."""
AT_MOST = np.float32(2)
"""How far a block's echo may stand over what that quantile says."""
STILL, RESTLESS = 150, 500
"""Blocks after which a path that moved is as good as one that never did: 3 s; or 10 s, if it moved twice."""
SUSPICIOUS = 3
"""Blocks made louder in a row after which a filter is no longer held to have converged."""
PAST = 16
"""Blocks put out whose power is kept."""
LONG_AGO = 1 << 20


def source_of(near: F32, before: F32) -> F32:
    """Power (n,) that the newest echo goes back to, of the reference's last NEAR blocks (n, NEAR)."""
    return np.asarray(np.maximum(near[:, : NEAR - 1].max(axis=1), RING * before), dtype=np.float32)


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
        self.off_db = np.zeros(count, np.float32)
        """What the filter takes off, in blocks in which it predicts much of what was heard."""
        self.settled = np.zeros(count, np.bool_)
        """The filter has converged."""
        self.still, self.restless = (np.zeros(count, np.int64) for _ in range(2))
        """Usable blocks since its path last moved; blocks for which one that moves often is not relied on."""
        self.outs = np.zeros((count, PAST), np.float32)
        """Power of the last blocks put out, the newest at the end."""
        self.returned = np.zeros(count, np.float32)
        """Echo power over sent power, as the quieter blocks since the filter began tell it."""
        self.near = np.zeros((count, NEAR), np.float32)
        """Powers of the reference's last blocks."""
        self.source = np.zeros(count, np.float32)
        """Power of what the newest echo goes back to."""
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
        self.still[row] = LONG_AGO
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
        self.stir(row)
        self._forget(row)
        self.good[row] = good

    def stir(self, row: int) -> None:
        """The path of a row has moved."""
        self.restless[row] = RESTLESS if self.still[row] < RESTLESS else 0
        self.still[row] = 0

    def _forget(self, row: int) -> None:
        self.loaded[row] = False
        self.good[row] = self.bad[row] = self.useless[row] = 0
        self.heard_fast[row] = self.error_fast[row] = self.off_db[row] = 0
        self.settled[row] = False

    def note_sent(self, rows: Rows, pcm: F32) -> None:
        power = power_of(pcm)
        audible = power > AUDIBLE
        peak = np.maximum(power, PEAK_FADE * self.sent_peak[rows])
        self.sent_peak[rows] = np.where(self.quiet[rows] < LAGS, peak, power)
        self.quiet[rows] = np.where(audible, 0, self.quiet[rows] + 1)
        self.sent_power[rows] += np.float32(0.05) * audible * (power - self.sent_power[rows])

    def note_out(self, rows: Rows, out: F32) -> None:
        """What is put out (n, L), of each row that lives."""
        self.outs[rows, :-1] = self.outs[rows, 1:]
        self.outs[rows, -1] = power_of(out)

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
        echoes = (y > 0.25 * d) & usable
        self._settle(rows, d, e, echoes)
        self._measure_return(rows, d, usable, echoes)

    def bring(self, rows: Rows, block: F32) -> None:
        """The reference's newest blocks (n, L)."""
        self.aligned[rows] = block
        self.near[rows, :-1] = self.near[rows, 1:]
        self.near[rows, -1] = power_of(block)
        self.source[rows] = source_of(self.near[rows], self.source[rows])

    def _measure_return(self, rows: Rows, heard: F32, usable: Flags, echoes: Flags) -> None:
        """Follow the quantile of heard over sent; upwards only in blocks that hold much echo."""
        source, known = self.source[rows], self.returned[rows]
        more = heard > known * source
        step = np.where(more, LIKELY, LIKELY - 1) * LIKELY_STEP_DB
        told = usable & (source > AUDIBLE) & (echoes | ~more)
        self.returned[rows] = np.where(told, known * 10 ** (step / 10), known)

    def _settle(self, rows: Rows, heard: F32, error: F32, telling: Flags) -> None:
        """Whether the filters have converged, from powers (n,) before and after them."""
        off = np.float32(10) * np.log10((heard + SILENT) / (error + SILENT))
        step = np.clip(off, OFF_LEAST_DB, OFF_MOST_DB) - self.off_db[rows]
        self.off_db[rows] += SETTLING * telling * step
        settled = self.settled[rows]
        self.still[rows] += 1
        self.restless[rows] = np.maximum(self.restless[rows] - 1, 0)
        starting = (self.state[rows] == STARTING) | (self.still[rows] < STILL)
        young = np.where(settled, UNSETTLED_DB, SETTLED_DB)
        least = np.where(starting, young, np.where(settled, HARMFUL_DB, HARMLESS_DB))
        calm = (self.bad[rows] < SUSPICIOUS) & (self.restless[rows] == 0)
        self.settled[rows] = (self.off_db[rows] >= least) & calm

    def known_clean(self, rows: Rows) -> Flags:
        """Rows (n,) that have been looked at for long enough to have shown an echo."""
        return np.asarray(self.looked[rows] >= CLEAN_AFTER, dtype=np.bool_)

    def unlike(self, rows: Rows) -> Flags:
        """Rows (n,) of which enough was heard that an echo in it would have shown."""
        return np.asarray(self.compared[rows] >= UNLIKE_AFTER, dtype=np.bool_)

    def doubt(self, rows: Rows, sure: Flags, reach: NDArray[np.float64]) -> NDArray[np.int8]:
        """How much of what rows (n,) put out may be the agent, who is heard for `reach` blocks."""
        listening = self.state[rows] == LISTENING
        doubt = np.where(listening, np.where(sure, NONE, ALL), np.where(sure, LITTLE, MUCH))
        return np.where(self.quiet[rows] < reach, doubt, NONE).astype(np.int8)

    def left(self, rows: Rows, residual: F32) -> F32:
        """Echo power that may remain (n,), given what the residual stage says."""
        unknown = (self.state[rows] == LISTENING) & ~self.known_clean(rows)
        most = UNKNOWN_ECHO * self.sent_peak[rows]
        most = np.where(self.unlike(rows), np.minimum(most, UNLIKE * self.compared_power[rows]), most)
        left = np.where(unknown, most, residual)
        suspect = self.bad[rows] > 0
        left = np.where(suspect, np.maximum(left, self.heard_fast[rows]), left)
        return np.minimum(left, self.most(rows)).astype(np.float32)

    def most(self, rows: Rows) -> F32:
        """Power of the most echo (n,) that the reference can bring to a filter that has yet to converge."""
        new = (self.state[rows] == STARTING) & ~self.settled[rows]
        most = AT_MOST * self.returned[rows] * self.source[rows]
        return np.where(new, most, np.inf).astype(np.float32)

    def erl_db(self, row: int) -> float:
        return 10 * float(np.log10((self.sent_power[row] + 1e-12) / (self.echo_power[row] + 1e-12)))

    def erle_db(self, row: int) -> float:
        return 10 * float(np.log10((self.heard_power[row] + 1e-12) / (self.out_power[row] + 1e-12)))
