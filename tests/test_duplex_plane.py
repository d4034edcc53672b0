"""The media plane with echo cancelling and duplex in it: a phone whose far end feeds the agent back."""

from pathlib import Path

import numpy as np
import pytest

from bench.echo_scenes import read_flac
from engine.rows import FRAME, AudioRows
from gateway.duplex import CallerStarted, DuplexEvent, Interrupted, Policy
from gateway.media import g711
from gateway.media.plane import MediaPlane, MediaSettings
from gateway.media.processing import DuplexProcessing
from gateway.media.resample import Resampler
from tests.phone import BLOCK, Bench, Phone, bound_socket

SPEECH = Path(__file__).parent / "data" / "speech"
ROW = 1
DELAY_BLOCKS = 5
ECHO = 10 ** (-12 / 20)


class EchoingPhone(Phone):
    """Says its own words with what it heard 100 ms ago, 12 dB lower, under them."""

    def __init__(self, pcm: np.ndarray) -> None:
        super().__init__(np.zeros(BLOCK, np.int16))
        self.words = pcm
        self.played = [np.zeros(BLOCK)] * DELAY_BLOCKS

    def say(self, lost: bool = False) -> None:
        start = self.sent * BLOCK
        words = np.resize(self.words[start : start + BLOCK], BLOCK) if start < len(self.words) else 0.0
        mixed = words + ECHO * self.played[-DELAY_BLOCKS]
        self.sent += 1
        payload = bytes(g711.encode(np.clip(mixed, -32_768, 32_767).astype(np.int16), 0))
        self.sock.sendto(self.packet(payload), self.peer)

    def listen(self, step: int) -> None:
        before = len(self.heard)
        super().listen(step)
        for _, _, _, payload in self.heard[before:]:
            self.played.append(g711.decode(np.frombuffer(payload, np.uint8), 0).astype(np.float64))


class Talk:
    """An agent who reads a recording aloud into `rows.spoken`, frame by frame, through a plane to a phone."""

    def __init__(self, policy: Policy, caller: np.ndarray) -> None:
        self.rows = AudioRows(2)
        self.processing = DuplexProcessing(2)
        self.plane = MediaPlane(self.rows, MediaSettings(kernel_times=False, compiled=False), self.processing)
        self.phone = EchoingPhone(caller)
        sock = bound_socket()
        self.phone.peer = sock.getsockname()
        self.plane.open_rtp(ROW, sock, Bench.media(self.phone))
        self.plane.start(ROW)
        self.step_number = 1_000
        self.heard: list[np.ndarray] = []
        self.events: list[DuplexEvent] = []
        self.run(4, np.zeros(0, np.float32))
        self.processing.set_policy(ROW, policy)

    def run(self, steps: int, agent: np.ndarray) -> None:
        for step in range(steps):
            self.phone.say()
            self.step_number += 1
            before = int(self.rows.heard_end[ROW])
            self.plane.tick(self.step_number * 0.02)
            after = int(self.rows.heard_end[ROW])
            self.heard.append(self.rows.read_heard(ROW, before, after - before))
            if self.step_number % 4 == 1:
                self.rows.write_spoken(
                    ROW, np.resize(agent[step // 4 * FRAME :], FRAME) if len(agent) else 0 * agent
                )
            self.phone.listen(self.step_number)
            self.events += [event for _, event in self.processing.take_events()]

    def close(self) -> None:
        self.plane.close_all()
        self.phone.sock.close()


@pytest.fixture(scope="module")
def agent() -> np.ndarray:
    narrow = read_flac(SPEECH / "ast_en_far_8k.flac")[0][26 * 8_000 : 38 * 8_000]
    return Resampler(1, 8_000, 24_000).run(np.array([0]), narrow[None])[0]


def words(at_s: float, seconds: float) -> np.ndarray:
    voice = read_flac(SPEECH / "ast_en_near2_8k.flac")[0][800 : 800 + int(seconds * 8_000)]
    return np.concatenate([np.zeros(int(at_s * 8_000)), voice]) * 32_767


def level_dbfs(blocks: list[np.ndarray]) -> float:
    return 10 * float(np.log10(np.mean(np.concatenate(blocks) ** 2) + 1e-12))


@pytest.mark.slow
def test_the_engine_does_not_hear_its_own_voice_and_nobody_is_said_to_speak(agent: np.ndarray) -> None:
    talk = Talk(Policy.CUT, np.zeros(BLOCK))
    talk.run(10 * 50, agent)
    talk.close()
    assert not any(isinstance(event, CallerStarted | Interrupted) for event in talk.events)
    report = talk.processing.echo(ROW)
    assert report is not None and report.state == "tracking"
    assert 10 < report.erl_db < 16
    raw = level_dbfs([block / 32_768 * ECHO for block in talk.phone.played[150:500]])
    assert level_dbfs(talk.heard[150:500]) < raw - 25


@pytest.mark.slow
def test_a_caller_over_his_own_echo_reaches_the_engine_and_stops_the_agent(agent: np.ndarray) -> None:
    talk = Talk(Policy.DUCK, words(6.0, 2.0))
    talk.run(9 * 50, agent)
    talk.close()
    (cut,) = [event for event in talk.events if isinstance(event, Interrupted)]
    spoken_over = level_dbfs(talk.heard[6 * 50 + 15 : 8 * 50])
    residual = level_dbfs(talk.heard[4 * 50 : 6 * 50])
    assert spoken_over > residual + 15
    started = next(event for event in talk.events if isinstance(event, CallerStarted))
    assert started.over_agent
    assert 0 < (cut.at - started.at) / 24 < 1_200
    silent = np.concatenate(talk.phone.played[-25:])  # until the engine yields nothing more is sent
    assert np.abs(silent).max() < 64
