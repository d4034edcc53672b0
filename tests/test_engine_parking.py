"""Parking a call of LocalEngine and bringing it back, tick by tick, and everything that may come between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from engine.api import FRAME, EngineError, EngineFull, EngineRefused, Persona, SlotClosed
from engine.local import LocalEngine, LocalOptions
from engine.runner import ModelRunner, SlotSnapshot
from engine.seeded import write_checkpoint
from engine.shuttle import Cargo, Shuttle
from engine.slot import RowSlot
from tests.test_model_runner import SMALL_LM, SMALL_MIMI, runner

pytestmark = pytest.mark.slow

NOISE = (0.1 * np.random.default_rng(1).standard_normal((400, FRAME))).astype(np.float32)
OLD = 160
"""Frames of a call that is parked: three pages, two of them settled."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    path = tmp_path_factory.mktemp("tiny")
    write_checkpoint(path, 3, SMALL_LM, SMALL_MIMI)
    return runner(path, 3, pages=13)


@pytest.fixture(scope="module")
def aged(model: ModelRunner) -> SlotSnapshot:
    """A call ten frames before it is old."""
    model.open(0, Persona(seed=9))
    for frame in NOISE[: OLD - 10]:
        model.step(np.stack([frame] * 3), np.array([True, False, False]))
    snapshot = model.snapshot(0)
    model.close(0)
    return snapshot


class Gated(Shuttle):
    """Carries when it is let."""

    def __init__(self, model: ModelRunner) -> None:
        super().__init__(model._generator.pool, model._cache, threaded=True)
        self.load = 1
        self.gate = threading.Event()

    def _carry(self, carry: Callable[[], Cargo], before: object) -> Cargo:
        assert self.gate.wait(30)
        return super()._carry(carry, None)


class Ticks:
    """An engine whose ticks are run by hand; every caller says frame n of NOISE at tick n of his call."""

    def __init__(self, model: ModelRunner, aged: SlotSnapshot) -> None:
        model.shuttle = Shuttle(model._generator.pool, model._cache)
        model.shuttle.load = 1
        self.model, self.aged = model, aged
        self.engine = LocalEngine(LocalOptions("tiny", slots=model.slots))
        self.engine.adopt(model)
        self.engine.begin(0.0)
        self.heard: dict[RowSlot, int] = {}
        self.most = 0
        """Pages the fullest tick copied."""

    async def run(self, ticks: int = 1) -> None:
        for _ in range(ticks):
            for slot, n in self.heard.items():
                if slot.ended is None:
                    slot.write(NOISE[n])
                    self.heard[slot] = n + 1
            before = self.model.shuttle.carried
            self.engine.run_due(self.engine.clock.deadline)
            self.most = max(self.most, self.model.shuttle.carried - before)
            for _ in range(3):
                await asyncio.sleep(0)

    async def until(self, done: Callable[[], bool]) -> int:
        for tick in range(100):
            if done():
                return tick
            await self.run()
            if not isinstance(self.model.shuttle, Gated) or self.model.shuttle.gate.is_set():
                self.model.shuttle.wait()
        raise AssertionError("not within 100 ticks")

    async def call(self, seed: int = 9) -> RowSlot:
        slot = await self.engine.open(Persona(seed=seed))
        self.heard[slot] = 0
        return slot

    async def old_call(self, row: int = 0) -> RowSlot:
        """OLD frames old and with ten to rewind into."""
        slot = await self.unparked(self.aged, row)
        await self.run(9)
        return slot

    async def parked(self, slot: RowSlot) -> SlotSnapshot:
        parking = asyncio.ensure_future(self.engine.park(slot))
        await self.until(parking.done)
        await self.run()
        return await parking

    async def unparked(self, snapshot: SlotSnapshot, row: int) -> RowSlot:
        """Its caller goes on with the frame he was at."""
        at = snapshot.frames
        coming = asyncio.ensure_future(self.engine.unpark(snapshot, row))
        while not coming.done():
            self.engine.rows.write_heard(row, NOISE[at])
            await self.run()
        slot = await coming
        self.heard[slot] = at + 1
        return slot

    def said(self, slot: RowSlot, frames: int) -> np.ndarray:
        """Its last frames."""
        end = int(self.engine.rows.spoken_end[slot.row])
        return self.engine.rows.read_spoken(slot.row, end - frames * FRAME, frames * FRAME)


@pytest.fixture
async def ticks(model: ModelRunner, aged: SlotSnapshot) -> AsyncIterator[Ticks]:
    house = Ticks(model, aged)
    yield house
    await house.engine.stop()
    for slot in range(model.slots):
        model.close(slot)
    model.shuttle.wait()
    assert model.pages.used == 0


def gated(ticks: Ticks) -> Gated:
    ticks.model.shuttle = shuttle = Gated(ticks.model)
    return shuttle


async def test_a_call_is_parked_beside_the_ticks_and_goes_on_in_another_row_as_if_nothing_had_been(
    ticks: Ticks,
) -> None:
    whole = await ticks.call()
    await ticks.run(OLD + 20)
    expected = ticks.said(whole, 12)
    whole.close()
    await ticks.run()
    early, other = await ticks.call(), await ticks.call(seed=3)
    await ticks.run(OLD)
    snapshot = await ticks.parked(early)
    assert snapshot.frames >= OLD + 2 and early.counters.missed_ticks == 0, "it went on while it was copied"
    assert ticks.engine.capacity().used == 1 and ticks.model.pages.used == ticks.model.slot_pages(other.row)
    resumed = await ticks.unparked(snapshot, early.row)
    await ticks.run(OLD + 20 - snapshot.frames - 1)
    assert np.allclose(ticks.said(resumed, 12), expected, atol=1e-5)
    assert other.counters.missed_ticks == 0 and ticks.most <= 2
    with pytest.raises(EngineError, match="nothing to park"):
        await ticks.engine.park(early)


async def test_what_cannot_be_parked_is_said(ticks: Ticks) -> None:
    slot = await ticks.call()
    parking = asyncio.ensure_future(ticks.engine.park(slot))
    slot.close()
    await ticks.until(parking.done)
    with pytest.raises(EngineError, match="nothing to park"):
        await parking


async def test_a_call_that_ends_while_it_is_copied_leaves_nothing_behind(ticks: Ticks) -> None:
    slot = await ticks.old_call()
    shuttle = gated(ticks)
    parking = asyncio.ensure_future(ticks.engine.park(slot))
    await ticks.run(2)
    slot.close()
    await ticks.run()
    with pytest.raises(EngineError, match="nothing to park"):
        await parking
    assert ticks.model.pages.used == 1, "the page under way"
    shuttle.gate.set()
    await ticks.until(lambda: ticks.model.pages.used == 0)
    assert ticks.engine.capacity().used == 0


async def test_parking_that_is_called_off_leaves_the_call_as_it_was(ticks: Ticks) -> None:
    whole = await ticks.old_call()
    await ticks.run(20)
    expected = ticks.said(whole, 10)
    whole.close()
    await ticks.run()
    slot = await ticks.old_call()
    parking = asyncio.ensure_future(ticks.engine.park(slot))
    await ticks.run(2)
    parking.cancel()
    await ticks.run(18)
    assert parking.cancelled() and np.array_equal(ticks.said(slot, 10), expected)
    assert slot.counters.missed_ticks == 0 and ticks.model.pages.used == ticks.model.slot_pages(slot.row)


async def last_load(ticks: Ticks, slot: RowSlot) -> tuple[asyncio.Future[SlotSnapshot], Gated]:
    """The call stands still and its last load is under way."""
    shuttle = gated(ticks)
    shuttle.load = 8
    parking = asyncio.ensure_future(ticks.engine.park(slot))
    await ticks.run(2)
    assert not ticks.engine.steps(slot) and not parking.done()
    return parking, shuttle


async def test_parking_called_off_at_its_last_load_lets_the_call_step_again(ticks: Ticks) -> None:
    slot = await ticks.old_call()
    parking, shuttle = await last_load(ticks, slot)
    before = slot.counters.frames
    parking.cancel()
    await ticks.run(5)
    assert ticks.engine.steps(slot) and slot.counters.frames >= before + 4
    shuttle.gate.set()
    ticks.model.shuttle.wait()
    assert ticks.model.pages.used == ticks.model.slot_pages(slot.row)


async def test_a_held_call_is_parked_and_a_release_at_its_last_load_calls_that_off(ticks: Ticks) -> None:
    slot = await ticks.old_call()
    slot.hold()
    await ticks.run()
    parking, shuttle = await last_load(ticks, slot)
    slot.release()
    await ticks.run(2)
    shuttle.gate.set()
    await ticks.until(parking.done)
    with pytest.raises(EngineError, match="released while"):
        await parking
    assert ticks.engine.steps(slot)
    slot.hold()
    await ticks.run()
    frames = slot.counters.frames
    snapshot = await ticks.parked(slot)
    assert slot.counters.frames == frames and snapshot.frames >= frames


async def test_an_interrupted_call_comes_back_silent_until_it_is_released(ticks: Ticks) -> None:
    slot = await ticks.old_call()
    parking = asyncio.ensure_future(ticks.engine.park(slot))
    await ticks.run()
    slot.interrupt(int(ticks.engine.rows.spoken_end[slot.row]) - 7 * FRAME)
    await ticks.until(parking.done)
    await ticks.run()
    back = await ticks.unparked(await parking, 0)
    await ticks.run(5)
    assert not ticks.said(back, 5).any()
    back.release()
    await ticks.run(5)
    assert ticks.said(back, 3).any()


async def test_a_call_that_is_not_awaited_any_more_gives_its_slot_and_pages_back(ticks: Ticks) -> None:
    shuttle = gated(ticks)
    coming = asyncio.ensure_future(ticks.engine.unpark(ticks.aged))
    await ticks.run(2)
    assert ticks.engine.capacity().used == 1 and ticks.model.pages.used == len(ticks.aged.pages)
    coming.cancel()
    await ticks.run(2)
    assert ticks.engine.capacity().used == 0 and ticks.model.pages.used == 1, "the page under way"
    shuttle.gate.set()
    await ticks.until(lambda: ticks.model.pages.used == 0)


async def test_who_is_on_the_way_in_weighs_in_admission(ticks: Ticks) -> None:
    shuttle = gated(ticks)
    coming = asyncio.ensure_future(ticks.engine.unpark(ticks.aged))
    await ticks.run(2)
    assert ticks.engine._model is not None
    assert ticks.engine._model.held() == {0: len(ticks.aged.pages)}
    shuttle.gate.set()
    await ticks.until(coming.done)


async def test_a_parked_call_that_does_not_fit_is_told_so_and_leaves_no_slot_taken(ticks: Ticks) -> None:
    others = [await ticks.old_call(row) for row in (0, 1)]
    with pytest.raises(EngineFull, match="memory of 2 calls"):
        await ticks.engine.unpark(ticks.aged)
    ticks.engine._admit_pages = lambda pages: None  # type: ignore[method-assign]
    taken = ticks.model._prompts.take(ticks.model.pages.free - 2)
    coming = asyncio.ensure_future(ticks.engine.unpark(ticks.aged))
    await ticks.until(coming.done)
    with pytest.raises(EngineFull, match="does not fit"):
        await coming
    await ticks.run()
    assert ticks.engine.capacity().used == 2
    theirs = sum(ticks.model.slot_pages(slot.row) for slot in others)
    assert ticks.model.pages.used == theirs + len(taken)
    for page in taken:
        ticks.model._cache.give_back(page)
    back = await ticks.old_call(2)
    with pytest.raises(EngineFull, match="slots are taken"):
        await ticks.engine.unpark(ticks.aged)
    assert [slot.ended for slot in (*others, back)] == [None] * 3


async def test_another_models_snapshot_is_refused(ticks: Ticks, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 4, SMALL_LM, SMALL_MIMI)
    other = runner(tmp_path, 1, context=100)
    other.open(0, Persona(seed=1))
    other.step(NOISE[:1], np.ones(1, bool))
    with pytest.raises(EngineRefused, match="snapshot is of"):
        await ticks.engine.unpark(other.snapshot(0))
    assert ticks.engine.capacity().used == 0


async def test_an_engine_that_stops_while_calls_move_says_so_to_all(ticks: Ticks) -> None:
    leaving = await ticks.old_call()
    shuttle = gated(ticks)
    moving: list[asyncio.Future[object]] = [
        asyncio.ensure_future(ticks.engine.park(leaving)),
        asyncio.ensure_future(ticks.engine.unpark(ticks.aged)),
    ]
    await ticks.run(2)
    shuttle.gate.set()
    await ticks.engine.stop()
    for waiting in moving:
        with pytest.raises(EngineError, match="has stopped"):
            await waiting
    with pytest.raises(SlotClosed):
        leaving.write(NOISE[0])
    assert ticks.model.pages.used == ticks.model.slot_pages(leaving.row)


async def test_under_pressure_a_page_under_way_is_waited_for_before_a_call_is_lost(ticks: Ticks) -> None:
    short, model = await ticks.call(), ticks.model
    await ticks.run(64)
    ended = await ticks.call(2)
    await ticks.run(63)
    assert [model.slot_pages(slot.row) for slot in (short, ended)] == [2, 1]
    shuttle = gated(ticks)
    shuttle.out([page for _, page in model.pages_of(ended.row)])
    ended.close()
    await ticks.run()
    taken = model._prompts.take(model.pages.free)
    wait, waits = shuttle.wait, []

    def opened() -> None:
        waits.append(shuttle.gate.set())
        wait()

    shuttle.wait = opened  # type: ignore[method-assign]
    await ticks.run(2)
    assert waits and short.ended is None and model.slot_pages(short.row) >= 2
    for page in taken:
        model._cache.give_back(page)
