"""EchoCanceller: the agent's own voice is taken out of what the callers' lines bring back, all rows at once.

The reference is exactly what was sent. Per row it finds the delay, models the path, follows clock drift,
mends or starts anew after a jump and turns down what is left; a row without echo is passed on bit by bit
and costs a look now and then. One instance serves the rows of one sample rate in 20 ms blocks, with no
delay. It knows no codec, no duplex policy and no clock but its counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.media.alignment import AlignmentRows
from gateway.media.delay import AUDIBLE, LAGS, PEAK, DelayFinder, shift_between
from gateway.media.echo_rows import AT_MOST, LIKELY, LISTENING, NEAR, STARTING, TRACKING, EchoRows
from gateway.media.kalman import KalmanRows
from gateway.media.likeness import likeness
from gateway.media.power import ECHO, ERROR, HEARD, power_of
from gateway.media.reference import SentRows
from gateway.media.residual import ResidualRows, no_louder

F32 = NDArray[np.float32]
Flags = NDArray[np.bool_]
Rows = NDArray[np.intp]

REPLAYS, FIRST_REPLAYS = 4, 32
"""Past blocks a starting filter learns from besides the newest; and those in its first tick."""
STRIDE = 17
"""Blocks from one replay to the next: prime to the history's 48, so that all are visited in turn."""
START_BLOCKS = 150
"""Usable blocks after which a filter is no longer starting: 3 s."""
DRIFT_AFTER = 25
"""Usable blocks after which a filter's errors tell of drift."""
VERDICT_EVERY, LOOK_EVERY, REVIEW_EVERY = 2, 4, 6
"""Blocks between verdicts on a new call; between looks at, and verdicts on, one that is known."""
LAG_UNITS_MS = 20.0
MOST_JUMP = 6
"""Blocks by which a path may move and still be the same path."""
SURELY_SAME, SAME_PATH = 0.75, 0.6
"""Match of heard and predicted echo from which a moved path is still the same: at once; on reflection."""
SUSPECT, REFLECTED, BROKEN = 3, 6, 10
"""Blocks made louder in a row: a move is looked for; a fair match will do; the filter is dropped."""
USELESS = 25
"""Audible blocks in a row that a filter did not halve, after which its echo may be elsewhere: 0.5 s."""
PROVEN = 25
"""Blocks a filter must have halved before its failure says anything."""
GONE_DB, GONE_AFTER = 30.0, 32
"""Echo return loss, and verdicts in a row without an echo, from which there is none any more."""


@dataclass(frozen=True, slots=True)
class EchoReport:
    """One row's echo as measured."""

    state: str
    """`listening`, `clean`, `starting` or `tracking`."""
    delay_ms: float = 0.0
    """From a block's sending to its echo, in steps of 20 ms; 0 without echo."""
    erl_db: float = 99.0
    """Echo return loss: sent level less echo level."""
    erle_db: float = 0.0
    """How much lower the output is than what was heard, in blocks that hold mostly echo."""
    drift_ppm: float = 0.0
    """How fast the echo's delay shrinks, as two clocks make it."""
    restarts: int = 0
    """Times the path was given up and learnt anew."""
    mended: int = 0
    """Times the path had moved and was followed."""
    settled: bool = False
    """The filter has converged and has not diverged since; or no echo has shown."""


class EchoCanceller:
    """All rows of one rate. Once a 20 ms tick: hear(), then sent(), each with all rows that live."""

    def __init__(self, count: int, rate: int = 8_000, parts: int = 13) -> None:
        """Raises ValueError for a rate under 8 kHz or of no whole 20 ms, or fewer than 4 parts."""
        if rate < 8_000 or rate % 400:
            raise ValueError(f"rate must be at least 8,000 and a multiple of 400 Hz, not {rate}")
        if parts < 4:
            raise ValueError(f"an echo path needs at least 4 parts of 20 ms, not {parts}")
        self.rate = rate
        self.block = rate // 50
        self.parts = parts
        self._sent = SentRows(count, rate)
        self._finder = DelayFinder(count)
        self._align = AlignmentRows(count, self.block)
        self._filter = KalmanRows(count, self.block, parts)
        self._residual = ResidualRows(count, self.block)
        self._rows = EchoRows(count, self.block)
        self._likely = np.ones(count, np.int64)  # lag found by likeness(), in blocks
        self._tick = 0

    def open(self, row: int) -> None:
        """A new call on this row: nothing is known."""
        self._sent.clear(row)
        self._finder.forget(row)
        self._filter.clear(row)
        self._residual.start(row)
        self._rows.clear(row)

    def expect(self, row: int, round_trip_ms: float) -> None:
        """Hint where the echo should come from (RTCP's round trip): weaker evidence will do there."""
        self._rows.expected[row] = round(round_trip_ms / LAG_UNITS_MS) + 1

    def sent(self, rows: Rows, pcm: F32) -> None:
        """What was just prepared for sending, (n, L); it reaches the wire at the next tick."""
        self._sent.write(rows, pcm)
        self._rows.note_sent(rows, pcm)

    def hear(self, rows: Rows, pcm: F32, concealed: NDArray[np.int32]) -> F32:
        """The callers' blocks (n, L) without echo; concealed (n,): samples in them a decoder invented."""
        state = self._rows
        self._tick += 1
        self._sent.advance()
        usable = concealed == 0
        self._filter.listen(rows, pcm, usable)
        self._look(rows, pcm, usable)
        working = (state.state[rows] != LISTENING) & (state.quiet[rows] < self._reach(rows))
        if working.all():
            out = self._cancel(rows, pcm, usable)
        else:
            out = pcm.copy()
            which, idle = np.flatnonzero(working), np.flatnonzero(~working)
            if len(which):
                out[which] = self._cancel(rows[which], pcm[which], usable[which])
            state.loaded[rows[idle]] = False
            self._residual.pass_through(rows[idle], pcm[idle])
        state.last[rows] = pcm
        state.note_out(rows, out)
        self._align.advance(rows)
        return out

    def left(self, rows: Rows) -> F32:
        """Echo power per sample that may remain in each row's last block, (n,).

        Before it is known whether a row echoes, all that an echo return loss of 6 dB would explain, or, of
        what has borne no likeness to anything sent, a little; while a path seems to have moved, all that was
        heard.
        """
        return self._rows.left(rows, self._residual.left[rows])

    def sure(self, rows: Rows) -> Flags:
        """Rows (n,) of which left() can be relied on: no echo has shown, or a filter that has converged.

        Not in a call's first second, nor after its path has changed, until the filter is seen to work again.
        """
        state = self._rows
        listening = state.state[rows] == LISTENING
        return np.asarray(np.where(listening, state.known_clean(rows), state.settled[rows]), np.bool_)

    def noise(self, rows: Rows) -> F32:
        """Noise power per sample (n,) of the lines themselves, before it was turned down with the echo."""
        return self._residual.hiss[rows]

    def doubt(self, rows: Rows) -> NDArray[np.int8]:
        """NONE, LITTLE, MUCH or ALL (n,): of what a row puts out, how much may be the agent."""
        reach = np.where(self._rows.state[rows] == LISTENING, LAGS, self._reach(rows))
        return self._rows.doubt(rows, self.sure(rows), reach)

    def explains(self, row: int, blocks: int) -> bool:
        """Whether an echo as it was until now could be as loud as the last `blocks` blocks."""
        heard = float(np.mean(self._filter.recent(row, blocks) ** 2))
        return bool(heard < 2 * AT_MOST * self._rows.returned[row] * self._rows.source[row])

    def likeness(self, row: int, blocks: int, evenly: bool = False) -> tuple[float, float]:
        """Of a row's last `blocks` blocks (at most 16): what share may be echo by its likeness to what was
        sent, and how much more power is in the output than in the rest.

        1 to 2 where what is put out is the caller; far more where the filter should have taken more off.
        """
        count = blocks * self.block
        before = LAGS * self.block
        start = np.array([self._sent.now + self.block - count - before])
        sent = self._sent.at(np.array([row]), start, count - self.block + before)[0]
        heard = self._filter.recent(row, blocks)
        found = likeness(heard, sent, self.rate, evenly)
        self._likely[row] = found.lag // self.block + 1
        rest = (1 - found.share) * float(np.mean(heard**2)) + 1e-9
        return found.share, float(self._rows.outs[row, -blocks:].mean()) / rest

    def misled(self, row: int, blocks: int) -> None:
        """What a row puts out is the agent's own voice: the path is another than `blocks` blocks ago."""
        state = self._rows
        if state.state[row] == LISTENING or self._move(row, blocks, SAME_PATH):
            return
        lag = int(self._likely[row])
        if state.state[row] == STARTING and self._align.holds(row, lag, self.parts):
            return  # it has yet to learn
        state.stir(row)
        state.lag[row] = lag
        self._align.start(row, lag)
        self._restart(row, blocks)

    def report(self, row: int) -> EchoReport:
        state = self._rows
        restarts, mended = int(state.restarts[row]), int(state.mended[row])
        kind = ("listening", "starting", "tracking")[int(state.state[row])]
        sure = bool(self.sure(np.array([row]))[0])
        if kind == "listening":
            known = bool(state.known_clean(np.array([row]))[0])
            return EchoReport("clean" if known else kind, restarts=restarts, mended=mended, settled=sure)
        return EchoReport(
            kind,
            float(state.lag[row]) * LAG_UNITS_MS,
            min(99.0, state.erl_db(row)),
            state.erle_db(row),
            1e6 * float(self._align.pace[row]),
            restarts,
            mended,
            sure,
        )

    def _reach(self, rows: Rows) -> NDArray[np.float64]:
        """Blocks (n,) after which nothing of what was sent comes back."""
        return self._align.delay[rows] / self.block + self.parts

    # -- is there an echo, and where?

    def _look(self, rows: Rows, pcm: F32, usable: Flags) -> None:
        state = self._rows
        looks = (state.quiet[rows] < LAGS + 4) & (
            (state.state[rows] == LISTENING) | (state.useless[rows] > USELESS)
        )
        self._finder.forget(rows[looks & ~state.looking[rows]])
        state.looking[rows] = looks
        awake = np.flatnonzero(looks)
        if not len(awake):
            return
        rows, pcm, usable = rows[awake], pcm[awake], usable[awake]
        self._finder.sent(rows, self._sent.last(rows))
        new = (state.state[rows] == LISTENING) & ~state.known_clean(rows)
        usable = usable & state.comparable(rows, pcm)
        self._compare(rows, pcm, usable & new, 1)
        self._compare(rows, pcm, usable & ~new & self._turn(rows, LOOK_EVERY), LOOK_EVERY)
        state.looked[rows] += state.quiet[rows] == 0
        due = np.where(new, self._turn(rows, VERDICT_EVERY), self._turn(rows, REVIEW_EVERY))
        if due.any():
            self._judge(rows[due])

    def _compare(self, rows: Rows, pcm: F32, chosen: Flags, every: int) -> None:
        which = np.flatnonzero(chosen)
        if len(which):
            windows = np.concatenate([self._rows.last[rows[which]], pcm[which]], axis=1)
            self._finder.heard(rows[which], windows, every)

    def _turn(self, rows: Rows, every: int) -> Flags:
        return np.asarray((rows + self._tick) % every == 0, dtype=np.bool_)

    def _judge(self, rows: Rows) -> None:
        state = self._rows
        lag, peak = self._finder.verdict(rows)
        lag = lag + 1  # the newest block sent when one is heard is a tick old
        bar = np.where(np.abs(lag - state.expected[rows]) <= 2, 0.9 * PEAK, PEAK)
        seen = peak > bar
        again = seen & (np.abs(lag - state.candidate[rows]) <= 1)
        state.candidate[rows] = np.where(seen, lag, -9)
        for row, where, strength in zip(rows[again], lag[again], peak[again], strict=True):
            moved = strength > 1.3 * PEAK and not self._align.holds(int(row), int(where), self.parts)
            if state.state[row] == LISTENING or moved:
                self._align.start(int(row), int(where))
                state.lag[row] = where
                self._restart(int(row), self._filter.history)
        state.unseen[rows] = np.where(seen, 0, state.unseen[rows] + (peak > 0))
        for row in rows[(state.unseen[rows] >= GONE_AFTER) & (state.state[rows] == TRACKING)]:
            if state.erl_db(int(row)) > GONE_DB:
                state.state[row] = LISTENING

    def _restart(self, row: int, fresh: int) -> None:
        """A new filter for a row whose delay is known; its last `fresh` blocks may teach."""
        state = self._rows
        heard, sent = float(np.mean(self._filter.heard[row] ** 2)), float(state.sent_power[row])
        likely = np.clip(0.6 * heard / (sent + 1e-9), 0.003, 1.0)
        away = np.arange(self.parts) - (state.lag[row] - self._align.delay[row] / self.block)
        prior = likely * np.exp(np.where(away < 0, 0.7 * away, -0.3 * away))
        self._filter.start(np.array([row]), prior[None].astype(np.float32))
        self._filter.forget(row, fresh)
        self._residual.start(row, self._filter.quietest(row))
        state.begin(row, STARTING)
        state.returned[row] = self._returned(row, fresh)

    def _returned(self, row: int, fresh: int) -> float:
        """Echo power over sent power by a row's last `fresh` blocks, in which a caller may be heard too."""
        count = min(fresh, self._filter.history)
        samples = (count + NEAR) * self.block
        start = np.array([self._sent.now - self._align.delay[row] - samples])
        sent = power_of(self._sent.at(np.array([row]), start, samples).reshape(-1, self.block))
        near = np.lib.stride_tricks.sliding_window_view(sent, NEAR - 1)[-count - 1 : -1].max(axis=1)
        heard = power_of(self._filter.recent(row, count).reshape(-1, self.block))
        told = (near > AUDIBLE) & (heard > 0)
        return float(np.quantile(heard[told] / near[told], LIKELY)) if told.any() else 1.0

    # -- take it out

    def _cancel(self, rows: Rows, pcm: F32, usable: Flags) -> F32:
        state = self._rows
        self._bring_reference(rows)
        found = self._filter.step(rows, pcm, usable)
        before, after, echo = found.sums[[HEARD, ERROR, ECHO]] / np.float32(self.block)
        levels = before, after, echo
        error, mismatch = no_louder(pcm, found, levels)
        starting = rows[state.state[rows] == STARTING]
        if len(starting):
            self._replay(starting)
        self._align.follow(rows, found.sums, usable & (state.since[rows] >= DRIFT_AFTER))
        out = self._residual.apply(rows, found, error, mismatch | ~usable, state.most(rows))
        state.keep_score(rows, levels, out, usable)
        state.state[rows[(state.state[rows] == STARTING) & (state.since[rows] >= START_BLOCKS)]] = TRACKING
        for row in rows[(state.bad[rows] >= SUSPECT) & (state.good[rows] >= PROVEN)]:
            self._mend(int(row))
        return out

    def _bring_reference(self, rows: Rows) -> None:
        """Append to each filter the sent block that its newest echo comes from."""
        state, align = self._rows, self._align
        for row in rows[~state.loaded[rows]]:
            self._load(int(row))
        block = self._sent.at(rows, self._sent.now - align.delay[rows], self.block)
        self._filter.push(rows, np.concatenate([state.aligned[rows], block], axis=1))
        state.bring(rows, block)

    def _load(self, row: int) -> None:
        """Fill a filter's past from what was sent, at today's delay."""
        count = (self._filter.slots + 1) * self.block
        start = np.array([self._sent.now - self._align.delay[row] - count])
        past = self._sent.at(np.array([row]), start, count)[0]
        overwritten = int(count + self._align.delay[row] - (self._sent.size - 2 * self.block))
        past[: max(0, overwritten)] = 0
        self._filter.load(row, past)
        blocks = past.reshape(-1, self.block)
        self._rows.aligned[row] = blocks[-1]
        self._rows.near[row] = power_of(blocks[-NEAR:])
        self._rows.source[row] = power_of(blocks[-NEAR:]).max()
        self._rows.loaded[row] = True

    def _replay(self, rows: Rows) -> None:
        """Let starting filters learn from past blocks; one that has just begun, from many."""
        since, history = self._rows.since[rows], self._filter.history
        new = rows[since == 0]
        for turn in range(FIRST_REPLAYS if len(new) else 0):
            self._filter.replay(new, np.full(len(new), turn * STRIDE % history))
        for turn in range(REPLAYS):
            self._filter.replay(rows, (since * REPLAYS + turn) * STRIDE % history)

    def _mend(self, row: int) -> None:
        """The prediction makes a row louder: its path has changed. Has it only moved?"""
        bad = int(self._rows.bad[row])
        moved = self._move(row, bad + 2, SURELY_SAME if bad < REFLECTED else SAME_PATH)
        if not moved and bad >= BROKEN:
            self._restart(row, BROKEN)

    def _move(self, row: int, recent: int, alike: float) -> bool:
        """Follow a row's path if its last `recent` blocks are what the filter predicts, at another delay."""
        state = self._rows
        heard = self._filter.recent(row, recent)
        echo = self._filter.recall(row, recent + MOST_JUMP)
        shift, match = shift_between(heard, echo, 2 * self.block)
        if match <= alike or abs(shift) <= 2:
            return False
        state.lag[row] = max(1, state.lag[row] + round(shift / self.block))
        if self._align.shift(row, shift):
            self._filter.forget(row, 0)
            state.mend(row, PROVEN)
        else:  # the filter would have to begin before its reference was sent
            self._align.start(row, int(state.lag[row]))
            self._restart(row, recent)
        return True


def warm() -> None:
    """Compile (or load from the cache) all that a canceller runs: seconds the first time, then 50 ms."""
    canceller, rows, none = EchoCanceller(1), np.zeros(1, np.intp), np.zeros(1, np.int32)
    noise = np.random.default_rng(1).standard_normal((64, 1, canceller.block)).astype(
        np.float32
    ) * np.float32(0.1)
    canceller.open(0)
    for tick in range(len(noise)):
        canceller.sent(rows, noise[tick])
        canceller.hear(rows, np.float32(0.2) * noise[max(0, tick - 2)], none)
    if canceller.report(0).state == "listening":
        raise RuntimeError("the echo canceller did not find the echo it was warmed with")
