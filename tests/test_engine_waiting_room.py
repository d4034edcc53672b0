"""Held calls of LocalEngine give their slot and memory to others and take them up again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from engine.api import FRAME, EngineFull, Persona, SlotEnded
from engine.local import LocalEngine, LocalOptions
from engine.rows import AudioRows
from engine.runner import ModelRunner
from engine.seeded import write_checkpoint
from engine.slot import RowSlot
from engine.waiting_room import RoomOptions
from tests.test_model_runner import SMALL_LM, SMALL_MIMI, runner

pytestmark = pytest.mark.slow

NOISE = (0.1 * np.random.default_rng(1).standard_normal((200, FRAME))).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    path = tmp_path_factory.mktemp("tiny")
    write_checkpoint(path, 3, SMALL_LM, SMALL_MIMI)
    return runner(path, 3)


class House:
    """Two slots and one place for a parked call, unless told otherwise; ticks are run by hand.

    A caller says frame n of NOISE until the agent has heard it.
    """

    def __init__(self, model: ModelRunner, options: RoomOptions) -> None:
        self.engine = LocalEngine(LocalOptions("tiny", parking=options), rows=AudioRows(3))
        self.engine.adopt(model)
        self.engine.begin(0.0)
        self.model = model
        self.heard: dict[RowSlot, int] = {}

    async def run(self, ticks: int = 1) -> None:
        for _ in range(ticks):
            for slot, n in self.heard.items():
                if slot.ended is None:
                    slot.write(NOISE[n])
            self.engine.run_due(self.engine.clock.deadline)
            for slot in self.heard:
                self.heard[slot] += self.engine.steps(slot)
            for _ in range(5):
                await asyncio.sleep(0)

    async def call(self, seed: int = 1, ticks: int = 3) -> RowSlot:
        slot = await self.engine.open(Persona(seed=seed))
        self.heard[slot] = 0
        await self.run(ticks)
        return slot

    async def held(self, slot: RowSlot, ticks: int = 4) -> None:
        slot.hold()
        slot.away()
        await self.run(ticks)

    @property
    def parked(self) -> int:
        return int(self.engine.capacity().detail["parked"])

    def said(self, slot: RowSlot, frames: int) -> np.ndarray:
        end = int(self.engine.rows.spoken_end[slot.row])
        return self.engine.rows.read_spoken(slot.row, end - frames * FRAME, frames * FRAME)


def rooms(model: ModelRunner, **options: float) -> House:
    return House(model, RoomOptions(**{"places": 1, "after_s": 0.0} | options))  # type: ignore[arg-type]


async def ended(house: House) -> None:
    await house.engine.stop()
    for slot in range(house.model.slots):
        house.model.close(slot)
    assert house.model.pages.used == 0


@pytest.fixture
async def house(model: ModelRunner) -> AsyncIterator[House]:
    house = rooms(model)
    yield house
    await ended(house)


async def test_a_held_calls_place_is_taken_by_another_and_it_goes_on_where_it_stood(house: House) -> None:
    whole = await house.call(ticks=40)
    expected = house.said(whole, 10)
    whole.close()
    await house.run()
    first, second = await house.call(ticks=20), await house.call(2)
    assert house.engine.capacity().free == 0
    await house.held(first)
    assert house.parked == 1 and house.engine.capacity().free == 1
    assert house.model.pages.used == house.model.slot_pages(second.row), "its memory is free"
    third = await house.call(3)
    assert third.row not in (first.row, second.row) and house.engine.capacity().free == 0
    first.release()
    await house.run(5)
    assert not house.engine.steps(first), "it waits for a place"
    third.close()
    with pytest.raises(EngineFull):
        await house.engine.open()  # he who was here before goes first
    while house.heard[first] < 40:
        await house.run()
    assert house.parked == 0 and first.ended is None
    assert np.allclose(house.said(first, 10), expected, atol=1e-5)


async def test_who_waits_too_long_for_a_place_is_told_so(model: ModelRunner) -> None:
    house = rooms(model, patience_s=0.0)
    first, _ = await house.call(), await house.call(2)
    await house.held(first)
    third = await house.call(3)
    first.release()
    await house.run(2)
    assert first.ended == "no slot came free within 0 s after the hold"
    assert first.take_events()[-1] == SlotEnded(first.ended)
    first.close()
    await house.run()
    assert house.parked == 0 and house.engine.capacity().used == 2 and third.ended is None
    third.close()
    await house.run()
    assert house.engine.capacity().free == 1
    await ended(house)


async def test_a_call_that_is_back_before_it_is_parked_goes_on_at_once(model: ModelRunner) -> None:
    house = rooms(model, after_s=3600.0)
    slot = await house.call()
    await house.held(slot)
    slot.release()
    await house.run(2)
    assert house.engine.steps(slot) and house.parked == 0
    await ended(house)


async def test_with_no_place_left_a_held_call_keeps_its_slot(house: House) -> None:
    first, second = await house.call(), await house.call(2)
    await house.held(first)
    await house.held(second)
    assert house.parked == 1 and house.engine.capacity().used == 1
    second.release()
    await house.run()
    assert house.engine.steps(second)


async def test_a_parked_call_that_hangs_up_leaves_nothing_behind(house: House) -> None:
    first = await house.call()
    await house.held(first)
    first.close()
    await house.run()
    assert house.parked == 0 and house.engine.capacity().used == 0 and house.model.pages.used == 0
    again = [await house.call(seed) for seed in (4, 5)]
    assert {slot.row for slot in again} <= {0, 1, 2} and house.engine.capacity().free == 0
    with pytest.raises(EngineFull):
        await house.engine.open()


async def test_held_again_while_it_waits_for_a_place_a_call_stays_parked(house: House) -> None:
    first, _ = await house.call(), await house.call(2)
    await house.held(first)
    third = await house.call(3)
    first.release()
    await house.held(first)
    third.close()
    await house.run(3)
    assert house.parked == 1 and house.engine.capacity().free == 1 and not house.engine.steps(first)
    first.release()
    await house.run(3)
    assert house.engine.steps(first)


async def test_held_again_in_the_moment_it_comes_back_a_call_is_parked_again(house: House) -> None:
    first = await house.call()
    await house.held(first)
    first.release()
    first.hold()
    first.away()
    await house.run(8)
    assert house.parked == 1 and not house.engine.steps(first) and first.ended is None
    first.release()
    first.release()
    await house.run(3)
    assert house.engine.steps(first) and house.parked == 0


async def test_an_interrupted_call_that_was_parked_speaks_again_when_it_is_back(house: House) -> None:
    first = await house.call(ticks=10)
    first.interrupt(None)
    await house.held(first)
    assert house.parked == 1
    first.release()
    await house.run(8)
    assert house.engine.steps(first) and house.said(first, 3).any()


async def test_where_its_memory_is_gone_the_longest_calls_look_back_less(house: House) -> None:
    first = await house.call(ticks=140)
    await house.held(first)
    taken = house.model._prompts.take(house.model.pages.free - 2)
    first.release()
    await house.run(4)
    assert house.engine.steps(first) and first.ended is None
    assert house.model.slot_pages(first.row) == 2
    for page in taken:
        house.model._cache.give_back(page)
    await house.run(3)


async def test_an_engine_that_stops_ends_parked_calls_too(house: House) -> None:
    first, second = await house.call(), await house.call(2)
    await house.held(first)
    second.hold()
    second.away()
    await house.engine.stop()
    assert first.ended == second.ended == "the engine has stopped"
    first.close()
    second.close()


async def test_a_ring_is_no_reason_to_give_a_place_away(house: House) -> None:
    slot = await house.call()
    slot.hold()
    await house.run(5)
    assert house.parked == 0 and house.engine.capacity().used == 1
