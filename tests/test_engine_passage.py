"""A call leaves the runner in loads beside the steps, bit for bit as one snapshot at the end takes it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.api import EngineRefused, Persona
from engine.checkpoint import Checkpoint
from engine.kv import PAGE, OutOfPages
from engine.passage import Departure
from engine.runner import ModelRunner, RunnerOptions, SlotSnapshot
from engine.seeded import write_checkpoint
from engine.shuttle import LOAD, Shuttle
from tests.test_model_runner import SAMPLED, SMALL_LM, SMALL_MIMI, noise, runner, speech, talk

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_checkpoint(path, 3, SMALL_LM, SMALL_MIMI)
    return path


@pytest.fixture(scope="module")
def shared(folder: Path) -> ModelRunner:
    return runner(folder, 3)


@pytest.fixture(scope="module")
def long_call(shared: ModelRunner) -> SlotSnapshot:
    """330 frames: more than the ring holds."""
    shared.open(0, SAMPLED)
    talk(shared, 0, noise(speech(9), 330))
    snapshot = shared.snapshot(0)
    shared.close(0)
    return snapshot


@pytest.fixture
def engine(shared: ModelRunner, long_call: SlotSnapshot) -> Iterator[ModelRunner]:
    """Slot 0 is 381 frames old and can be rewound, slot 1 has just begun, slot 2 is free."""
    small_loads(shared)
    shared.restore(0, long_call)
    talk(shared, 0, noise(speech(8), 51))
    shared.open(1, Persona(seed=8))
    yield shared
    for slot in range(3):
        shared.close(slot)
    assert shared.pages.used == 0


def small_loads(engine: ModelRunner, pages: int = 1, threaded: bool = False) -> ModelRunner:
    engine.shuttle = Shuttle(engine._generator.pool, engine._cache, threaded)
    engine.shuttle.load = pages
    return engine


def leave(engine: ModelRunner, slot: int, between: Callable[[Departure, int], None]) -> SlotSnapshot:
    """Take a slot out; `between` is called after each turn with its number, while the call goes on."""
    departure, turn = engine.depart(slot), 0
    while not departure.advance():
        between(departure, turn)
        turn += 1
        if turn > 20:  # its thread may not have come to the processor yet
            engine.shuttle.wait()
    departure.finish()
    while (snapshot := departure.snapshot()) is None:
        engine.shuttle.wait()
    return snapshot


def assert_same(left: SlotSnapshot, right: SlotSnapshot) -> None:
    assert (left.model, left.call) == (right.model, right.call)
    assert list(left.pages) == list(right.pages) and left.codec.keys() == right.codec.keys()
    pairs = [(left.pages[number], right.pages[number]) for number in left.pages]
    pairs += [(left.tokens, right.tokens)] + [(left.codec[name], right.codec[name]) for name in left.codec]
    for ours, theirs in pairs:
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def shrinks(engine: ModelRunner, turn: int) -> None:
    if turn == 2:
        assert engine.shrink(0, 3) > 0


def rewinds(engine: ModelRunner, turn: int) -> None:
    # Turns begin at frame 381: the step to 384 fills a page, which the rewind opens again.
    if turn == 4:
        assert engine._cache.frames[0] > 6 * PAGE
        assert engine.rewind(0, 20) == 20 and engine._cache.frames[0] < 6 * PAGE


def interrupts(engine: ModelRunner, turn: int) -> None:
    if turn == 1:
        engine.rewind(0, 7)
        engine.interrupt(0)


def is_told_words(engine: ModelRunner, turn: int) -> None:
    if turn == 3:
        engine.inject(0, "one two three four five six seven eight nine ten")


def nothing(engine: ModelRunner, turn: int) -> None:
    pass


@pytest.mark.parametrize("threaded", [False, True], ids=["at_once", "in_a_thread"])
@pytest.mark.parametrize("happens", [nothing, shrinks, rewinds, interrupts, is_told_words])
def test_a_call_that_went_on_while_it_was_copied_left_as_it_then_was(
    engine: ModelRunner, happens: Callable[[ModelRunner, int], None], threaded: bool
) -> None:
    frames, heard = noise(speech(1), 400), 0
    small_loads(engine, 1, threaded)

    def between(departure: Departure, turn: int) -> None:
        nonlocal heard
        happens(engine, turn)
        engine.step(np.stack([frames[heard], frames[0], frames[0]]), np.array([True, True, False]))
        heard += 1

    snapshot = leave(engine, 0, between)
    assert heard >= 3, "the call went on"
    assert_same(snapshot, engine.snapshot(0))
    expected = talk(engine, 0, frames[heard : heard + 20])
    engine.restore(2, pickle.loads(pickle.dumps(snapshot)))
    assert talk(engine, 2, frames[heard : heard + 20]) == expected


def test_a_call_may_outlast_the_ring_while_it_is_copied(folder: Path) -> None:
    engine, frames = small_loads(runner(folder, context=40, history=10)), noise(speech(1), 230)
    engine.open(0, SAMPLED)
    talk(engine, 0, frames[:100])
    heard = 100

    def between(departure: Departure, turn: int) -> None:
        nonlocal heard  # more than the whole window passes between two loads
        if turn == 0:
            talk(engine, 0, frames[heard:])
            heard = len(frames)

    before = dict(engine.pages_of(0))
    snapshot = leave(engine, 0, between)
    assert heard == 230 and not set(before) & set(snapshot.pages)
    assert_same(snapshot, engine.snapshot(0))


@pytest.mark.parametrize("load", [2, 3, LOAD])
def test_no_turn_copies_more_than_a_load_out_or_in(engine: ModelRunner, load: int) -> None:
    frames, carried = noise(speech(1), 3), [0]
    small_loads(engine, load)

    def between(departure: Departure, turn: int) -> None:
        carried.append(engine.shuttle.carried)
        talk(engine, 0, frames[:1])

    snapshot = leave(engine, 0, between)
    carried.append(engine.shuttle.carried)
    count = len(snapshot.pages)
    assert count == carried[-1] >= 5
    engine.close(0)
    arrival = engine.arrive(0, snapshot)
    while not arrival.advance():
        carried.append(engine.shuttle.carried)
        assert not engine.ready(0) and engine.slot_pages(0) == count
        assert not engine.step(frames, np.array([True, False, True])).valid.any()
    carried.append(engine.shuttle.carried)
    assert carried[-1] == 2 * count and np.diff(carried).max() <= load


def test_a_call_whose_window_shrinks_while_it_comes_in_has_the_newest_pages(engine: ModelRunner) -> None:
    frames, snapshot = noise(speech(1), 20), engine.snapshot(0)
    engine.shrink(0, 3)
    expected = talk(engine, 0, frames)
    arrival, before = engine.arrive(2, snapshot), engine.shuttle.carried
    assert not arrival.advance()
    assert engine.shrink(2, 3) == len(snapshot.pages) - 3
    while not arrival.advance():
        pass
    assert engine.shuttle.carried - before == 1 + 3
    assert talk(engine, 2, frames) == expected


def test_settled_pages_are_those_no_rewind_reaches(folder: Path) -> None:
    engine, frames = runner(folder, history=10), noise(speech(1), 90)
    engine.open(0, SAMPLED)
    settled = []
    for frame in frames:
        talk(engine, 0, frame[None])
        settled.append(engine.settled_pages(0))
    assert settled == [0] * (PAGE + 10 - 1) + [1] * (90 - PAGE - 9)
    engine.rewind(0, 10)
    assert engine.settled_pages(0) == 1
    talk(engine, 0, frames[:1])
    assert engine.settled_pages(0) == 1


def test_a_prompts_shared_pages_leave_as_the_calls_own(folder: Path) -> None:
    engine, frames = small_loads(runner(folder)), noise(speech(1), 12)
    persona = Persona(seed=5, text_prompt="you are a kind host who answers the phone " * 6)
    for slot in (0, 1):
        engine.open(slot, persona)
        for _ in range(20):
            engine.step(np.zeros((2, 1920), np.float32), np.zeros(2, bool))
    talk(engine, 0, frames[:3])
    kept = engine.pages.used
    snapshot = engine.snapshot(0)
    assert len(snapshot.pages) >= 2 and engine.pages.used == kept
    expected = talk(engine, 0, frames[3:])
    engine.close(0)
    engine.restore(0, snapshot)
    assert talk(engine, 0, frames[3:]) == expected
    engine.close(0)
    engine.close(1)
    prefix = sum(len(kept.pages) for kept in engine._prompts.prefixes._prefixes.values())
    assert engine.pages.used == prefix > 0


def test_a_snapshot_that_does_not_fit_takes_no_page(folder: Path) -> None:
    engine, frames = runner(folder, pages=3), noise(speech(1), 130)
    engine.open(0, SAMPLED)
    talk(engine, 0, frames[:100])
    snapshot = engine.snapshot(0)
    with pytest.raises(OutOfPages):
        engine.arrive(1, snapshot)
    with pytest.raises(EngineRefused, match="snapshot is of"):
        runner(folder, context=100).arrive(1, snapshot)
    assert engine.pages.used == 2 and not engine.ready(1)
    engine.open(1, SAMPLED)
    engine.close(0)
    engine.restore(0, snapshot)
    assert engine.pages.used == 2


def test_pages_of_a_call_that_ended_stay_taken_until_they_have_landed(folder: Path) -> None:
    engine = small_loads(runner(folder, pages=4), LOAD)
    engine.open(0, SAMPLED)
    talk(engine, 0, noise(speech(1), 70))
    (_, page), *_ = engine.pages_of(0)
    before = engine._generator.pool.layers[0][page].clone()
    load = engine.shuttle.out([page])
    engine.close(0)
    assert engine.pages.used == 1
    assert engine._prompts.take(3) and page not in [p for _, p in engine.pages_of(0)]
    with pytest.raises(OutOfPages):
        engine._prompts.take(1)
    assert engine.shuttle.collect() and engine._prompts.take(1) == [page]
    assert torch.equal(load.result().pages[0][0], before)


def test_a_host_without_memory_is_told_and_the_pages_come_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = runner(folder)
    engine.open(0, SAMPLED)
    talk(engine, 0, noise(speech(1), 3))

    def full(*_: object) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as broken, pytest.raises(MemoryError, match="no room"):
        broken.setattr(engine.shuttle, "_read", full)
        engine.snapshot(0)
    assert engine.pages.used == 1 and engine.snapshot(0).frames == 3
    engine.close(0)
    assert engine.pages.used == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_pages_are_carried_beside_the_graphs_and_the_call_goes_on_equal(folder: Path) -> None:
    options = RunnerOptions(device="cuda", dtype="float32")
    engine, frames = ModelRunner.load(Checkpoint.find(folder), 2, options), noise(speech(1), 420)
    engine.shuttle.load = 1
    engine.open(0, SAMPLED)
    talk(engine, 0, frames[:381])
    heard = 381

    def between(departure: Departure, turn: int) -> None:
        nonlocal heard
        talk(engine, 0, frames[heard : heard + 1])
        heard += 1

    snapshot = leave(engine, 0, between)
    assert_same(snapshot, engine.snapshot(0))
    expected = talk(engine, 0, frames[heard : heard + 15])
    arrival = engine.arrive(1, snapshot)
    while not arrival.advance():
        engine.shuttle.wait()
    said = talk(engine, 1, frames[heard : heard + 15])
    assert [token for token, _ in said] == [token for token, _ in expected]
    for slot in (0, 1):
        engine.close(slot)
    assert engine.pages.used == 0
