"""What every engine owes a call, said once and run over each of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from engine.api import (
    FRAME,
    AgentFrame,
    BadAudio,
    Engine,
    EngineError,
    EngineFull,
    Persona,
    Slot,
    SlotClosed,
    SlotEnded,
    TextSpoken,
)
from engine.chat import ChatEngine
from engine.chat_line import Remote
from engine.echo import EchoEngine
from engine.local import LocalEngine, LocalOptions, load_runner
from engine.worker import WorkerEngine
from tests.chat_remote import ChatRemote, answered, serving
from tests.workers import turn, working

if TYPE_CHECKING:
    from engine.runner import ModelRunner

SLOTS = 3


@dataclass
class Rig:
    """An engine whose 80 ms clock the test turns by hand."""

    engine: Engine
    tick: Callable[[int], object]
    """Awaitable: run one tick, n periods late."""
    taken: dict[Slot, int] = field(default_factory=dict)

    async def frames(self, slot: Slot) -> list[AgentFrame]:
        """Those that wait."""
        read = []
        while int(self.engine.rows.spoken_end[slot.row]) > FRAME * self.taken.get(slot, 0):
            read.append(await slot.read())
            self.taken[slot] = read[-1].index + 1
        return read


async def echo_rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    engine = EchoEngine(slots=SLOTS, delay_s=0.0, greeting=True)
    engine.begin(0.0)

    async def tick(late: int = 0) -> None:
        assert engine.run_due(engine.clock.deadline + late * engine.clock.period)

    yield Rig(engine, tick)
    await engine.stop()


async def chat_rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    async with serving(ChatRemote(style="rust")) as remote:
        engine = ChatEngine(Remote(remote.url), slots=SLOTS)
        engine.begin(0.0)

        async def tick(late: int = 0) -> None:
            assert engine.run_due(engine.clock.deadline + late * engine.clock.period)
            await answered(engine)

        yield Rig(engine, tick)
        await engine.stop()


@cache
def tiny_runner(folder: Path) -> ModelRunner:
    """The seeded tiny Moshi, loaded once."""
    from engine.seeded import write_checkpoint

    write_checkpoint(folder, seed=1)
    return load_runner(LocalOptions(str(folder), slots=SLOTS), lambda stage: None)


@pytest.fixture(scope="module")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny") / "checkpoint"


async def local_rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    runner = tiny_runner(request.getfixturevalue("checkpoint_folder"))
    engine = LocalEngine(LocalOptions("tiny", slots=SLOTS))
    engine.adopt(runner)
    engine.begin(0.0)

    async def tick(late: int = 0) -> None:
        assert engine.run_due(engine.clock.deadline + late * engine.clock.period)

    yield Rig(engine, tick)
    await engine.stop()
    for slot in range(SLOTS):
        runner.close(slot)


async def worker_rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    async with working(EchoEngine(slots=SLOTS, delay_s=0.0)) as worker:
        engine = WorkerEngine([worker.url], slots=SLOTS)
        await engine.connect()
        engine.begin(0.0)
        yield Rig(engine, lambda late: turn(engine, worker, late=late))
        await engine.stop()


RIGS = {"echo": echo_rig, "chat": chat_rig, "local": local_rig, "worker": worker_rig}


@pytest.fixture(params=["echo", "chat", "worker", pytest.param("local", marks=pytest.mark.slow)])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    async for made in RIGS[request.param](request):
        yield made


def voice(seed: int, frames: int = 1) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(frames * FRAME)).astype(np.float32)


async def run(rig: Rig, slots: list[Slot], ticks: int) -> list[list[np.ndarray]]:
    """Each slot's frames over some ticks, each caller speaking with a voice of his own."""
    heard: list[list[np.ndarray]] = [[] for _ in slots]
    for n in range(ticks):
        for k, slot in enumerate(slots):
            slot.write(voice(100 * k + n))
        await rig.tick(0)
        for k, slot in enumerate(slots):
            heard[k] += [frame.pcm for frame in await rig.frames(slot)]
    return heard


async def test_an_engine_is_an_engine_and_its_slot_a_slot(rig: Rig) -> None:
    assert isinstance(rig.engine, Engine)
    assert isinstance(await rig.engine.open(), Slot)


async def test_frames_come_in_order_with_their_length_and_type(rig: Rig) -> None:
    slot = await rig.engine.open()
    for n in range(12):
        slot.write(voice(n))
        await rig.tick(0)
    first = int(rig.engine.rows.spoken_end[slot.row]) // FRAME
    assert first >= 8
    for index in range(first):
        frame = await slot.read()
        assert frame.index == index
        assert frame.pcm.shape == (FRAME,) and frame.pcm.dtype == np.float32
        assert np.isfinite(frame.pcm).all()
    assert slot.counters.frames == first
    assert (slot.counters.short_samples, slot.counters.dropped_samples) == (0, 0)


async def test_a_full_engine_says_when_to_come_back_and_a_closed_slot_is_free_again(rig: Rig) -> None:
    slots = [await rig.engine.open() for _ in range(SLOTS)]
    assert len({slot.row for slot in slots}) == SLOTS
    assert rig.engine.capacity().free == 0
    with pytest.raises(EngineFull) as refusal:
        await rig.engine.open()
    assert refusal.value.retry_after_s > 0
    await rig.tick(0)
    slots[1].close()
    assert rig.engine.capacity().free == 1
    await rig.tick(0)
    assert (await rig.engine.open()).row == slots[1].row


async def test_a_wanted_row_is_given_once_and_a_row_that_does_not_exist_is_refused(rig: Rig) -> None:
    assert (await rig.engine.open(row=2)).row == 2
    for row in (2, SLOTS, -1):
        with pytest.raises(EngineError):
            await rig.engine.open(row=row)


async def test_a_closed_slot_takes_and_gives_nothing_and_closes_twice(rig: Rig) -> None:
    slot = await rig.engine.open()
    slot.write(voice(1))
    await rig.tick(0)
    slot.close()
    slot.close()
    with pytest.raises(SlotClosed):
        slot.write(voice(1))
    with pytest.raises(SlotClosed):
        await slot.read()
    assert [e for e in slot.take_events() if isinstance(e, SlotEnded)] == [SlotEnded("slot closed")]
    assert not slot.interrupt()


@pytest.mark.parametrize(
    "pcm",
    [
        np.full(FRAME, np.nan, np.float32),
        np.array([np.inf], np.float32),
        np.zeros((2, FRAME), np.float32),
        np.zeros(FRAME, np.float64),
        np.zeros(FRAME, np.int16),
        b"\0" * 3840,
    ],
    ids=["nan", "inf", "stereo", "float64", "int16", "bytes"],
)
async def test_bad_audio_is_named_and_changes_nothing(rig: Rig, pcm: object) -> None:
    slot = await rig.engine.open()
    with pytest.raises(BadAudio):
        slot.write(pcm)  # type: ignore[arg-type]
    assert rig.engine.rows.heard_end[slot.row] == 0


async def test_any_length_may_be_written(rig: Rig) -> None:
    slot = await rig.engine.open()
    for size in (0, 1, 7, 412, 480, 60, 960):
        slot.write(voice(3)[:size])
    await rig.tick(0)
    slot.write(voice(4))
    await rig.tick(0)
    assert slot.counters.dropped_samples == slot.counters.short_samples == 0


async def test_a_caller_who_is_short_is_counted_and_heard_again(rig: Rig) -> None:
    slot = await rig.engine.open()
    slot.write(voice(1))
    await rig.tick(0)
    slot.write(voice(2)[:1000])
    await rig.tick(0)
    assert slot.counters.short_samples == FRAME - 1000
    await rig.tick(0)
    assert slot.counters.short_samples == 2 * FRAME - 1000


async def test_a_late_tick_catches_up_once_and_then_drops(rig: Rig) -> None:
    slot = await rig.engine.open()
    for n in range(4):
        slot.write(voice(n))
    await rig.tick(3)
    await rig.tick(0)
    assert slot.counters.dropped_samples == 2 * FRAME
    assert slot.counters.missed_ticks >= 2
    assert slot.counters.short_samples == 0
    assert rig.engine.capacity().dropped_frames == 2


async def test_two_slots_never_mix(rig: Rig) -> None:
    alone = await rig.engine.open(Persona(seed=7), row=0)
    [expected] = await run(rig, [alone], 12)
    alone.close()
    await rig.tick(0)
    slots = [await rig.engine.open(Persona(seed=7), row=row) for row in range(SLOTS)]
    together = await run(rig, slots, 12)
    assert np.allclose(np.concatenate(together[0]), np.concatenate(expected), atol=1e-5)
    assert not np.allclose(np.concatenate(together[0]), np.concatenate(together[1]), atol=1e-3)


async def test_a_new_call_on_an_old_row_hears_nothing_of_the_old_one(rig: Rig) -> None:
    first = await rig.engine.open(Persona(seed=3), row=1)
    expected = (await run(rig, [first], 10))[0]
    first.take_events()
    first.close()
    await rig.tick(0)
    second = await rig.engine.open(Persona(seed=3), row=1)
    assert second.take_events() == []
    again = (await run(rig, [second], 10))[0]
    assert np.allclose(np.concatenate(again), np.concatenate(expected), atol=1e-5)


async def test_a_reader_far_behind_loses_the_oldest_and_sees_it(rig: Rig) -> None:
    slot = await rig.engine.open()
    for n in range(40):
        slot.write(voice(n))
        await rig.tick(0)
    written = slot.counters.frames
    frame = await slot.read()
    assert frame.index == written - 24
    rest = [(await slot.read()).index for _ in range(23)]
    assert rest == list(range(written - 23, written))


async def test_a_stopped_engine_ends_its_slots_and_opens_no_more(rig: Rig) -> None:
    slot = await rig.engine.open()
    await rig.engine.stop()
    await rig.engine.stop()
    assert any(isinstance(event, SlotEnded) for event in slot.take_events())
    with pytest.raises(SlotClosed):
        await slot.read()
    with pytest.raises(EngineError):
        await rig.engine.open()
    slot.close()


async def test_text_comes_with_its_frame_and_as_events(rig: Rig) -> None:
    slot = await rig.engine.open(Persona(seed=1))
    events, frames = [], []
    for n in range(45):
        slot.write(voice(n))
        await rig.tick(0)
        events += [event for event in slot.take_events() if isinstance(event, TextSpoken)]
        frames += await rig.frames(slot)
    said = [(frame.index, piece) for frame in frames for piece in frame.text]
    assert said and said == [(event.frame, event.text) for event in events if event.frame < len(frames)]


async def test_words_are_put_in_the_agents_mouth_where_the_engine_can(rig: Rig) -> None:
    slot = await rig.engine.open(Persona(seed=2))
    await run(rig, [slot], 3)
    slot.take_events()
    if not slot.inject("hello my name is number one"):
        return
    await run(rig, [slot], 40)
    said = "".join(event.text for event in slot.take_events() if isinstance(event, TextSpoken))
    assert "hello my name is number one" in said
    slot.close()
    assert slot.inject("more") is False


async def test_an_interrupted_agent_falls_silent_until_released(rig: Rig) -> None:
    slot = await rig.engine.open()
    await run(rig, [slot], 6)
    if not slot.interrupt(heard_samples=2 * FRAME):
        return
    faded = np.concatenate((await run(rig, [slot], 6))[0])
    assert np.abs(faded[:480]).max() > 0 and not faded[FRAME:].any()
    slot.release()
    assert np.abs(np.concatenate((await run(rig, [slot], 4))[0][-2:])).max() > 0


async def test_a_held_agent_begins_after_its_release_as_it_would_have_before(rig: Rig) -> None:
    slot = await rig.engine.open(Persona(seed=3))
    can = slot.hold()
    assert can is not isinstance(rig.engine, ChatEngine)
    if isinstance(rig.engine, ChatEngine):
        slot.release()
        return  # whose clock is elsewhere
    for _ in range(5):
        await rig.tick(0)
    early = await rig.frames(slot)
    # A worker may have ticked before it heard of it.
    assert len(early) <= isinstance(rig.engine, WorkerEngine) and slot.counters.missed_ticks == 0
    slot.release()
    for _ in range(12):
        await rig.tick(0)
    other = await rig.engine.open(Persona(seed=3))
    for _ in range(12):
        await rig.tick(0)
    first, second = early + await rig.frames(slot), await rig.frames(other)
    assert [frame.index for frame in first[:10]] == list(range(10)) and len(second) >= 10
    assert all(np.allclose(a.pcm, b.pcm, atol=1e-4) for a, b in zip(first[:10], second, strict=False))
