"""The agent does not hear itself: a seeded Moshi in phone loops whose far ends feed its voice back.

A random codec is the harshest judge there is: its layer norms blow the faintest input up to full size, so
that it tells -90 dBFS from silence in every code, and one other code makes all later tokens others. Hence
two measures: how loud what the model hears of itself is, beside the least step of the line (µ-law: 8 of
32,768); and tokens, with and without what lies under that step being taken for silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from bench.barge_calls import StepPhone
from bench.barge_scenes import RATE, FarEnd, Script, at_level, without_pauses
from bench.echo_scenes import EchoPath, Pcm
from engine.api import FRAME, Persona
from engine.checkpoint import Checkpoint
from engine.model_stepper import ModelStepper
from engine.rows import AudioRows
from engine.runner import ModelRunner, RunnerOptions, StepResult
from engine.seeded import write_checkpoint
from engine.slots import SlotTable
from engine.tick import TickEngine
from gateway.floor import Floor
from gateway.media.messages import RtpMedia
from gateway.media.plane import MediaPlane, MediaSettings
from gateway.media.processing import DuplexProcessing
from gateway.switchboard import Offer, Switchboard
from tests.audio import align, steady_noise
from tests.phone import bound_socket, speech

pytestmark = pytest.mark.slow
GREEDY = Persona(temperature=0.0, text_temperature=0.0, seed=1)
LOOP, NO_LOOP = EchoPath(delay_ms=120, erl_db=15), EchoPath(erl_db=None)
SECONDS, WORD_AT_S, WORD_S = 20.0, 14.0, 1.0
READY = 100
"""Frames (8 s) after which the canceller has converged."""
LEAST_STEP = 8 / 32_768
LEAST_DBFS = 20 * np.log10(LEAST_STEP)


class Ears(ModelStepper):
    """A Moshi that keeps what each slot heard and said. It is deaf for its first READY frames."""

    def __init__(self, runner: ModelRunner) -> None:
        super().__init__(runner)
        self.heard: list[np.ndarray] = []
        self.said: list[StepResult] = []

    def step(self, pcm: np.ndarray, active: np.ndarray) -> StepResult:
        result = super().step(pcm if len(self.heard) >= READY else np.zeros_like(pcm), active)
        self.heard.append(pcm.copy())
        self.said.append(StepResult(result.pcm.copy(), result.text.copy(), result.valid.copy()))
        return result


@dataclass(frozen=True)
class Calls:
    """What was heard and said, from the first frame on: (frames, slots, 1920), (frames, slots)."""

    heard: np.ndarray
    pcm: np.ndarray
    text: np.ndarray


async def hold(runner: ModelRunner, calls: list[tuple[Script, EchoPath]]) -> Calls:
    """All calls at once through one plane and one engine, in made-up time."""
    count = runner.slots
    rows, ears = AudioRows(count), Ears(runner)
    engine = TickEngine("seeded", ears, rows, SlotTable(count), 0.005)
    processing = DuplexProcessing(count)
    plane = MediaPlane(rows, MediaSettings(kernel_times=False), processing)
    switchboard = Switchboard(engine, plane, {"default": GREEDY})
    duplex = Floor(switchboard, processing, {})
    engine.begin(20.0 + 0.005)
    phones = []
    for script, path in calls:
        call = await switchboard.admit(Offer("sip"))
        phone = StepPhone(script, FarEnd(RATE, path, steady_noise(10).astype(np.float32), seed=3))
        sock = bound_socket()
        phone.peer = sock.getsockname()
        call.media_opened(plane.open_rtp(call.row, sock, RtpMedia("PCMU", 0, phone.sock.getsockname(), 77)))
        call.answered()
        phones.append(phone)
    for number in range(1_001, 1_001 + round(SECONDS * 50)):
        now = number * 0.02
        for phone in phones:
            phone.step(now)
        plane.tick(now)
        engine.run_due(now + 0.005)
        for phone in phones:
            phone.take(now)
        if number % 4 == 0:
            await asyncio.sleep(0)
            switchboard.deliver_media_events()
            duplex.carry()
    plane.close_all()
    for phone in phones:
        phone.sock.close()
    said = ears.said
    return Calls(np.stack(ears.heard), np.stack([s.pcm for s in said]), np.stack([s.text for s in said]))


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelRunner]:
    folder = tmp_path_factory.mktemp("seeded")
    write_checkpoint(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = ModelRunner.load(Checkpoint.find(folder), 3, RunnerOptions(device="cpu"))
    yield made
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def free(runner: ModelRunner) -> Iterator[None]:
    yield
    for slot in range(runner.slots):
        runner.close(slot)


def silent() -> Script:
    return Script(np.zeros(int(SECONDS * RATE), np.float32))


def word() -> Script:
    """A second of clear speech."""
    said = at_level(without_pauses((speech() / 32_768).astype(np.float32))[: int(WORD_S * RATE)], -22.0)
    pcm = silent().pcm
    start = int(WORD_AT_S * RATE)
    pcm[start : start + len(said)] = said
    return Script(pcm)


def dbfs(pcm: Pcm) -> np.ndarray:
    """Of every frame."""
    return 10 * np.log10(np.mean(pcm.astype(np.float64) ** 2, axis=-1) + 1e-14)


@pytest.fixture(scope="module")
def heard(runner: ModelRunner) -> Calls:
    """A loop, a loop with a word over it, and the word alone."""
    calls = asyncio.run(hold(runner, [(silent(), LOOP), (word(), LOOP), (word(), NO_LOOP)]))
    for slot in range(runner.slots):
        runner.close(slot)
    return calls


def test_what_the_model_hears_of_itself_lies_under_the_lines_least_step(heard: Calls) -> None:
    assert np.median(dbfs(heard.pcm[READY:])) > -25, "it talks"
    assert np.max(dbfs(heard.heard[:25, 0])) > -45, "its voice does come back"
    level = dbfs(heard.heard[READY:, 0])
    print(f"residual {np.median(level):.0f} dBFS, 99 % under {np.quantile(level, 0.99):.0f}")
    assert np.mean(level < LEAST_DBFS) >= 0.99


def test_a_word_over_the_agents_voice_reaches_the_model_whole(heard: Calls) -> None:
    first, count = round(WORD_AT_S * 12.5), round(WORD_S * 12.5)
    over, inside = slice(first + 2, first + count), slice(first, first + count + 4)
    rest = np.concatenate([heard.heard[READY : first - 2, 1], heard.heard[first + count + 6 :, 1]])
    above = dbfs(heard.heard[over, 1].reshape(-1)) - np.quantile(dbfs(rest), 0.99)
    same = align(heard.heard[inside, 1].reshape(-1), heard.heard[inside, 2].reshape(-1), longest=FRAME)
    print(f"the word stands {above:.0f} dB over what is left of the agent, itself by {same.correlation:.3f}")
    assert above > 15
    assert same.correlation > 0.9


async def test_its_tokens_are_those_of_a_call_without_an_echo(runner: ModelRunner) -> None:
    calls = await hold(runner, [(silent(), LOOP), (silent(), NO_LOOP)])
    text = calls.text[READY:, 0] == calls.text[READY:, 1]
    audio = (calls.pcm[READY:, 0] == calls.pcm[READY:, 1]).all(axis=1)
    print(f"the same text in {np.mean(text):.3f} and audio in {np.mean(audio):.3f} of {len(text)} frames")
    assert np.mean(text & audio) >= 0.99


async def test_the_word_changes_what_the_model_says(runner: ModelRunner) -> None:
    """The comparison can fail: what is said to it does reach its tokens."""
    calls = await hold(runner, [(word(), LOOP), (silent(), NO_LOOP)])
    spoken = round(WORD_AT_S * 12.5) + 25
    assert not (calls.pcm[spoken:, 0] == calls.pcm[spoken:, 1]).all(axis=1).any()
