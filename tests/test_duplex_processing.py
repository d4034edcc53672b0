"""Canceller, detector and Duplex together: a caller beside an agent who comes back as echo."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from bench.echo_scenes import read_flac
from gateway.duplex import CallerStarted, Ducked, DuplexEvent, Give, Held, Interrupted, Policy, Resumed
from gateway.media import delay, foresight, gains, gate, kalman, power, reference, residual
from gateway.media.holdback import MOST_HELD, Holdback
from gateway.media.messages import Processing
from gateway.media.processing import DuplexProcessing
from gateway.media.resample import Resampler
from gateway.media.vad import Silero

SPEECH = Path(__file__).parent / "data" / "speech"
BLOCK = 480
ROW = 3


@pytest.fixture(scope="module")
def silero() -> Silero:
    return Silero()


def agent_voice(seconds: float) -> np.ndarray:
    """24 kHz, without a pause: the recording's loud blocks one after another."""
    narrow, _ = read_flac(SPEECH / "ast_en_far_8k.flac")
    blocks = narrow[: len(narrow) // 160 * 160].reshape(-1, 160)
    loud = blocks[np.mean(blocks**2, axis=1) > 1e-3]
    wide = Resampler(1, 8_000, 24_000).run(np.array([0]), loud.reshape(1, -1))[0]
    return wide[: int(seconds * 24_000) // BLOCK * BLOCK]


def caller_voice(seconds: float) -> np.ndarray:
    return read_flac(SPEECH / "ast_en_near2_8k.flac")[0][800 : 800 + int(seconds * 8_000)]


@dataclass
class Line:
    """A phone line at 8 kHz around one row: what is sent comes back after 100 ms, 14 dB lower."""

    processing: DuplexProcessing
    erl_db: float = 14.0
    moves: tuple[tuple[float, float], ...] = ()
    """(second, ms): from then on it comes back after so many ms instead."""
    tick: int = 0
    wire: list[np.ndarray] = field(default_factory=list)
    out: list[np.ndarray] = field(default_factory=list)
    heard: list[np.ndarray] = field(default_factory=list)
    events: list[DuplexEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.processing.opened(ROW, 8_000)
        self.rows = np.array([ROW])
        self._down = Resampler(8, 24_000, 8_000)
        self._up = Resampler(8, 8_000, 24_000)
        self._noise = np.random.default_rng(8)

    def step(self, agent: np.ndarray, caller: np.ndarray | None = None) -> None:
        line = self._noise.standard_normal(160).astype(np.float32) * 10 ** (-65 / 20)
        line = line + self._come_back() * np.float32(10 ** (-self.erl_db / 20))
        if caller is not None:
            line = line + caller
        at = np.array([self.tick * BLOCK])
        low = self.processing.hear(self.rows, line[None].astype(np.float32), 8_000, np.zeros(1, np.int32))
        wide = self.processing.heard(self.rows, self._up.run(self.rows, low), at)
        out = self.processing.speak(self.rows, agent[None].copy(), at)
        sent = self._down.run(self.rows, out)
        self.processing.sent(self.rows, sent, 8_000)
        self.heard.append(wide[0])
        self.out.append(out[0])
        self.wire.append(sent[0])
        self.events += [event for _, event in self.processing.take_events()]
        self.tick += 1

    def _come_back(self) -> np.ndarray:
        now = self.tick * 0.02
        delay_ms = ([100.0] + [ms for second, ms in self.moves if second <= now])[-1]
        past = np.concatenate([np.zeros(9_600, np.float32), *self.wire[-60:]])
        end = len(past) - int(delay_ms * 8)  # what was sent last reaches the wire in this tick
        return past[end - 160 : end]

    def only(self, kind: type) -> list[DuplexEvent]:
        return [event for event in self.events if isinstance(event, kind)]


def talk(line: Line, agent: np.ndarray, caller: np.ndarray, start: float) -> None:
    """The agent through to its end; the caller from `start` seconds on."""
    padded = np.zeros(len(agent) // 3, np.float32)
    padded[int(start * 8_000) : int(start * 8_000) + len(caller)] = caller
    for tick in range(len(agent) // BLOCK):
        line.step(agent[tick * BLOCK : (tick + 1) * BLOCK], padded[tick * 160 : (tick + 1) * 160])


def test_it_is_what_the_media_plane_asks_for(silero: Silero) -> None:
    processing: Processing = DuplexProcessing(8, silero=silero)
    assert processing is not None


def test_warming_compiles_every_loop_and_opens_no_row(silero: Silero) -> None:
    processing = DuplexProcessing(8, silero=silero)
    processing.warm()
    mine = kalman.relearn, kalman.trust, kalman.pick, kalman.put, foresight.predict, foresight.correct
    others = delay.gather, reference.read, gains.weigh, residual.shape, power.compare, power.energy
    assert all(loop.chosen for loop in (*mine, *others, gate.pass_on, delay.grade, delay.phase))
    assert all(processing.echo(row) is None for row in range(8))


def test_an_agent_who_hears_himself_come_back_does_not_interrupt_himself(silero: Silero) -> None:
    processing = DuplexProcessing(8, silero=silero)
    line = Line(processing)
    processing.set_policy(ROW, Policy.CUT)
    agent = agent_voice(8.0)
    talk(line, agent, np.zeros(0, np.float32), 0.0)
    assert not line.only(CallerStarted)
    np.testing.assert_array_equal(np.concatenate(line.out), agent)
    settled = np.concatenate(line.heard[150:])
    assert 10 * np.log10(np.mean(settled**2)) < -60


def test_a_caller_over_the_echo_cuts_and_no_stale_sample_follows(silero: Silero) -> None:
    processing = DuplexProcessing(8, silero=silero)
    line = Line(processing)
    processing.set_policy(ROW, Policy.DUCK)
    agent = agent_voice(6.0)
    talk(line, agent, caller_voice(2.0), 4.0)
    (cut,) = line.only(Interrupted)
    assert isinstance(cut, Interrupted)
    assert 4.3 * 24_000 < cut.at < 5.0 * 24_000
    held = line.only(Held)[0].at
    assert held - 4.0 * 24_000 < 0.3 * 24_000
    assert abs(cut.heard - held) <= 2 * BLOCK
    out = np.concatenate(line.out)
    assert np.all(out[held + BLOCK :] == 0)
    assert np.array_equal(out[: line.only(Ducked)[0].at - BLOCK], agent[: line.only(Ducked)[0].at - BLOCK])


@pytest.mark.parametrize("erl_db", [12.0, 20.0])
@pytest.mark.parametrize("start", [0.6, 1.0])
def test_a_caller_in_the_first_seconds_is_cut_for_and_the_echo_alone_is_not(
    silero: Silero, erl_db: float, start: float
) -> None:
    alone, over = (Line(DuplexProcessing(8, silero=silero), erl_db) for _ in range(2))
    for line in (alone, over):
        line.processing.set_policy(ROW, Policy.DUCK)
    talk(alone, agent_voice(3.5), np.zeros(0, np.float32), 0.0)
    talk(over, agent_voice(3.5), caller_voice(2.5), start)
    assert not alone.only(CallerStarted) and not alone.only(Ducked) and not alone.only(Held)
    assert len(over.only(Interrupted)) == 1


@pytest.mark.parametrize("start", [0.3, 0.75, 1.1])
def test_a_caller_on_a_clean_line_is_heard_at_once_from_the_calls_first_words_on(
    silero: Silero, start: float
) -> None:
    line = Line(DuplexProcessing(8, silero=silero), erl_db=200.0)
    line.processing.set_policy(ROW, Policy.DUCK)
    talk(line, agent_voice(3.0), caller_voice(1.5), start)
    assert start < line.only(Held)[0].at / 24_000 < start + 0.4
    assert len(line.only(Interrupted)) == 1


RESTLESS = (
    (0.0, 400.0),
    *((1.0 + 0.1 * step, 400.0 - 10.0 * step) for step in range(1, 16)),
    (3.3, 310.0),
    (4.2, 280.0),
    (4.9, 430.0),
    (5.8, 270.0),
    (6.4, 290.0),
)
"""As a browser does that falls behind and catches up: a few ms at a time, or much at once."""


def test_a_path_that_does_not_stand_still_does_not_make_the_agent_wait_for_himself(silero: Silero) -> None:
    line = Line(DuplexProcessing(8, silero=silero), erl_db=12.0, moves=RESTLESS)
    line.processing.set_policy(ROW, Policy.DUCK)
    talk(line, agent_voice(9.0), caller_voice(2.0), 7.0)
    alone = [event for event in line.events if event.at < 7.0 * 24_000]
    assert not [event for event in alone if isinstance(event, Held | Interrupted)]
    assert sum(isinstance(event, Ducked) for event in alone) <= 2
    assert 7.3 * 24_000 < line.only(Interrupted)[0].at < 8.2 * 24_000


def test_after_yielded_the_agent_speaks_at_once_and_only_what_is_new(silero: Silero) -> None:
    processing = DuplexProcessing(8, silero=silero)
    line = Line(processing)
    processing.set_policy(ROW, Policy.CUT)
    old = agent_voice(5.0)
    talk(line, old, caller_voice(1.0), 4.0)
    assert line.only(Interrupted)
    processing.yielded(ROW)
    for _ in range(8):  # the frame in the making and the one on its way
        line.step(old[:BLOCK])
        assert np.all(line.out[-1] == 0)
    new = np.full(BLOCK, 0.25, np.float32)
    line.step(new)
    line.step(new)
    assert np.all(line.out[-2] >= 0) and line.out[-2][-1] == np.float32(0.25)
    np.testing.assert_array_equal(line.out[-1], new)


def test_a_backchannel_costs_a_pause_and_not_a_sample(silero: Silero) -> None:
    processing = DuplexProcessing(8, silero=silero)
    line = Line(processing)
    processing.set_policy(ROW, Policy.DUCK)
    agent = agent_voice(6.0)
    talk(line, agent, caller_voice(0.3), 4.0)
    for _ in range(60):
        line.step(np.zeros(BLOCK, np.float32))
    assert not line.only(Interrupted)
    (resumed,) = line.only(Resumed)
    assert isinstance(resumed, Resumed) and resumed.why == "passed"
    out = np.concatenate(line.out)
    # what was held comes in order and whole: the second half of the agent's words is there, unchanged
    tail = agent[-24_000:]
    found = np.correlate(out[-72_000:], tail, "valid").max() / np.dot(tail, tail)
    assert found == pytest.approx(1.0, abs=1e-3)
    assert processing.echo(ROW) is not None


@pytest.mark.parametrize("policy", [Policy.MODEL, Policy.NEVER])
def test_a_model_that_decides_itself_is_never_touched(silero: Silero, policy: Policy) -> None:
    processing = DuplexProcessing(8, silero=silero)
    line = Line(processing)
    processing.set_policy(ROW, policy)
    agent = agent_voice(5.0)
    talk(line, agent, caller_voice(1.0), 4.0)
    assert [event.over_agent for event in line.only(CallerStarted) if isinstance(event, CallerStarted)] == [
        True
    ]
    np.testing.assert_array_equal(np.concatenate(line.out), agent)


def test_a_row_reopened_at_another_rate_begins_anew(silero: Silero) -> None:
    processing = DuplexProcessing(8, silero=silero)
    line = Line(processing)
    processing.set_policy(ROW, Policy.CUT)
    talk(line, agent_voice(5.0), caller_voice(1.0), 4.0)
    processing.closed(ROW)
    assert processing.echo(ROW) is None
    processing.opened(ROW, 16_000)
    rows, quiet = np.array([ROW]), np.zeros(1, np.int64)
    block = agent_voice(0.02)[None]
    processing.hear(rows, np.zeros((1, 320), np.float32), 16_000, np.zeros(1, np.int32))
    processing.heard(rows, np.zeros((1, BLOCK), np.float32), quiet)
    np.testing.assert_array_equal(processing.speak(rows, block.copy(), quiet), block)


def test_what_is_held_for_too_long_loses_its_oldest_and_says_so() -> None:
    holdback = Holdback(1)
    for index in range(MOST_HELD + 5):
        out = holdback.pass_on(0, Give.HELD, np.full(BLOCK, float(index), np.float32))
    assert np.all(out == 0)
    assert holdback.held(0) == MOST_HELD * BLOCK
    assert holdback.dropped == 5 * BLOCK
    assert holdback.pass_on(0, Give.WHOLE, np.zeros(BLOCK, np.float32))[-1] == 5.0


def test_pauses_of_the_agent_take_up_the_delay() -> None:
    holdback = Holdback(1)
    loud, pause = np.ones(BLOCK, np.float32), np.zeros(BLOCK, np.float32)
    for _ in range(10):
        holdback.pass_on(0, Give.HELD, loud)
    for _ in range(5):
        holdback.pass_on(0, Give.WHOLE, loud)
    assert holdback.held(0) == 10 * BLOCK
    for _ in range(10):
        assert holdback.pass_on(0, Give.WHOLE, pause)[-1] == 1.0
    assert holdback.held(0) == 0
    assert not holdback.touches(0)
