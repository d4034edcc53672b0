"""EchoEngine: the caller's own voice at the delay asked for, after a pleasant greeting."""

import asyncio
import os
import time

import numpy as np
import pytest

from engine.api import FRAME, TICK_S, EngineError, SlotClosed, TextSpoken
from engine.echo import EchoEngine, greeting_frames, greeting_words


def by_hand(**options: object) -> EchoEngine:
    engine = EchoEngine(slots=4, **options)  # type: ignore[arg-type]
    engine.begin(0.0)
    return engine


def tick(engine: EchoEngine) -> None:
    assert engine.run_due(engine.clock.deadline)


def voice(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.9, 0.9, frames * FRAME).astype(np.float32)


@pytest.mark.parametrize("delay_s", [0.0, 0.08, 0.1, 1.0, 1.2345])
async def test_the_voice_comes_back_sample_for_sample_at_the_delay(delay_s: float) -> None:
    engine = by_hand(delay_s=delay_s, greeting=False)
    slot = await engine.open()
    said, heard = voice(25), []
    for frame in said.reshape(-1, FRAME):
        for block in frame.reshape(4, 480):
            slot.write(block)
        tick(engine)
        heard.append((await slot.read()).pcm)
    delay = round(delay_s * 24_000)
    out = np.concatenate(heard)
    assert not out[:delay].any() and np.array_equal(out[delay:], said[: len(said) - delay])


def test_the_greeting_is_quiet_faded_and_rises() -> None:
    greeting = greeting_frames().ravel()
    assert 0.09 < np.abs(greeting).max() <= 0.1
    assert np.abs(greeting[:48]).max() < 0.001 and np.abs(greeting[-48:]).max() < 0.001
    assert np.abs(np.diff(greeting)).max() < 0.1 * 2 * np.pi * 800 / 24_000
    notes = [greeting[k * 6720 : (k + 1) * 6720] for k in range(3)]
    pitch = [np.fft.rfft(note * np.hanning(6720)).__abs__().argmax() for note in notes]
    assert pitch[0] < pitch[1] < pitch[2]


async def test_each_caller_is_greeted_when_he_comes() -> None:
    engine = by_hand(delay_s=1.0, greeting=True)
    first = await engine.open()
    for _ in range(5):
        tick(engine)
    second = await engine.open()
    heard = {first: [], second: []}
    for _ in range(60):
        tick(engine)
        for slot, frames in heard.items():
            while int(engine.rows.spoken_end[slot.row]) > len(frames) * FRAME:
                frames.append((await slot.read()).pcm)
    for slot, frames in heard.items():
        assert np.array_equal(np.stack(frames[:11]), greeting_frames())
        assert not np.concatenate(frames[11:]).any()
        words = [event.text for event in slot.take_events() if isinstance(event, TextSpoken)]
        assert "".join(words) == "Hello! This is an echo: you hear your own voice 1 s later."
    assert greeting_words(0.0)[-1] == " once."


def test_a_delay_out_of_range_is_refused() -> None:
    for delay_s in (-0.1, 31.0):
        with pytest.raises(EngineError, match="delay"):
            EchoEngine(delay_s=delay_s)


async def test_the_thread_ticks_on_the_phase_asked_for_and_wakes_its_readers() -> None:
    phase = time.monotonic() + 0.023
    engine = EchoEngine(slots=8, delay_s=0.0, greeting=False, phase=phase)
    await engine.start()
    await engine.start()
    slots = [await engine.open() for _ in range(8)]
    for k, slot in enumerate(slots):
        slot.write(voice(1, seed=k))
    frames = await asyncio.wait_for(asyncio.gather(*(slot.read() for slot in slots)), 5)
    since = (time.monotonic() - phase) % TICK_S
    assert all(np.array_equal(frame.pcm, voice(1, seed=k)) for k, frame in enumerate(frames))
    assert since < 0.060  # a busy machine; a clock that ignored its phase would fail at times only
    await engine.stop()


async def test_the_thread_asks_to_go_first_and_ticks_where_it_may_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int, int]] = []

    def refused(which: int, who: int, priority: int) -> None:
        asked.append((which, who, priority))
        raise PermissionError

    monkeypatch.setattr("engine.tick.os.setpriority", refused)
    engine = EchoEngine(delay_s=0.0, greeting=False)
    await engine.start()
    slot = await engine.open()
    slot.write(voice(1))
    assert np.array_equal((await asyncio.wait_for(slot.read(), 5)).pcm, voice(1))
    ((which, who, priority),) = asked
    assert which == os.PRIO_PROCESS and who not in (0, os.getpid()) and priority < 0
    await engine.stop()


async def test_closing_or_stopping_wakes_a_reader_that_waits() -> None:
    engine = by_hand()
    closing, stopping = await engine.open(), await engine.open()
    readers = [asyncio.ensure_future(slot.read()) for slot in (closing, stopping)]
    await asyncio.sleep(0)
    closing.close()
    with pytest.raises(SlotClosed):
        await asyncio.wait_for(readers[0], 5)
    await engine.stop()
    with pytest.raises(SlotClosed, match="stopped"):
        await asyncio.wait_for(readers[1], 5)


async def test_an_open_waits_for_the_tick_that_frees_the_row() -> None:
    engine = by_hand()
    slots = [await engine.open() for _ in range(4)]
    tick(engine)
    slots[2].close()
    opening = asyncio.ensure_future(engine.open())
    await asyncio.sleep(0)
    assert not opening.done()
    tick(engine)
    assert (await asyncio.wait_for(opening, 5)).row == 2
