"""LocalEngine with the seeded tiny Moshi: loading, measuring, admission, page pressure, real time."""

from __future__ import annotations

import asyncio
import builtins
import itertools
import time
from pathlib import Path

import numpy as np
import pytest

from engine.api import FRAME, TICK_S, EngineError, EngineFull, EngineRefused, Persona, SlotClosed, SlotEnded
from engine.echo import EchoEngine, EchoStepper
from engine.frames import Batch, Mask
from engine.local import LocalEngine, LocalOptions, load_runner, measure
from engine.stepper import Stepped


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from engine.seeded import write_checkpoint

    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    write_checkpoint(folder, seed=2)
    return folder


def voice(seed: int, frames: int = 1) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(frames * FRAME)).astype(np.float32)


def quiet(stage: str) -> None:
    pass


async def test_a_model_that_is_not_loaded_takes_no_call() -> None:
    engine = LocalEngine(LocalOptions("nowhere"))
    with pytest.raises(EngineError, match="start the engine"):
        await engine.open()


@pytest.mark.slow
async def test_a_missing_checkpoint_says_which_file_is_missing(tmp_path: Path) -> None:
    engine = LocalEngine(LocalOptions(str(tmp_path)))
    with pytest.raises(EngineError, match=str(tmp_path)):
        await engine.start()
    await engine.stop()


@pytest.mark.slow
def test_float8_weights_and_pages_are_taken_from_the_options(checkpoint: Path) -> None:
    options = LocalOptions(str(checkpoint), slots=1, weight_dtype="float8", kv_dtype="float8")
    plain = load_runner(LocalOptions(str(checkpoint), slots=1), quiet)
    small = load_runner(options, quiet)
    assert small._generator.pool.nbytes_per_page * 4 == plain._generator.pool.nbytes_per_page
    small.open(0, Persona(seed=1))
    for n in range(5):
        result = small.step(voice(n)[None], np.array([True]))
    assert result.valid.all() and np.isfinite(result.pcm).all()


async def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_torch(name: str, *rest: object) -> object:
        if name == "torch":
            raise ImportError("No module named 'torch'", name="torch")
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(EngineError, match=r"torch is not installed: pip install 'moshi-gateway\[engine\]'"):
        load_runner(LocalOptions("anything"), quiet)


@pytest.mark.slow
async def test_start_tells_its_stages_measures_ticks_and_talks_in_real_time(checkpoint: Path) -> None:
    stages: list[str] = []
    engine = LocalEngine(LocalOptions(str(checkpoint), slots=2), phase=0.01, progress=stages.append)
    await engine.start()
    assert stages[:2] == [f"looking for {checkpoint}", f"loading {checkpoint.name}"]
    assert sorted(engine.curve) == [1, 2] and 0 < engine.curve[1][0] <= engine.curve[1][1]
    assert 1 <= engine.capacity().slots <= 2
    slot = await engine.open(Persona(seed=1))
    began = time.monotonic()
    for n in range(13):
        slot.write(voice(n))
        assert (await asyncio.wait_for(slot.read(), 10)).index == n
    assert time.monotonic() - began > 11 * TICK_S
    await engine.stop()
    with pytest.raises(SlotClosed):
        await slot.read()


@pytest.mark.slow
async def test_a_machine_that_is_busy_at_start_costs_no_calls_and_is_told_of(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks = itertools.count(step=100)  # a second look at the clock comes 100 s later
    monkeypatch.setattr("engine.local.time.perf_counter", lambda: float(next(looks)))
    engine = LocalEngine(LocalOptions(str(checkpoint), slots=2))
    await engine.load()
    assert engine.capacity().slots == 2
    assert "measuring took 100.0 s for 0." in caplog.text


@pytest.mark.slow
async def test_nan_through_the_rows_is_silence_to_the_model_and_hurts_no_neighbour(checkpoint: Path) -> None:
    runner = load_runner(LocalOptions(str(checkpoint), slots=2), quiet)
    heard = []
    for poison in (False, True):
        engine = LocalEngine(LocalOptions("tiny", slots=2))
        engine.adopt(runner)
        engine.begin(0.0)
        first, second = [await engine.open(Persona(seed=4)) for _ in range(2)]
        for n in range(8):
            engine.rows.write_heard(first.row, np.full(FRAME, np.nan, np.float32) if poison else voice(n))
            second.write(voice(n))
            engine.run_due(engine.clock.deadline)
        assert np.isfinite(engine.rows.spoken).all()
        assert first.counters.short_samples == (8 * FRAME if poison else 0)
        heard.append(engine.rows.read_spoken(second.row, 0, 7 * FRAME))
        runner.close(first.row), runner.close(second.row)
    assert np.allclose(heard[0], heard[1], atol=1e-5)


@pytest.mark.slow
async def test_under_page_pressure_windows_shrink_and_calls_go_on(checkpoint: Path) -> None:
    # Two calls of 250 frames want 4 or 5 pages each; there are 7.
    runner = load_runner(LocalOptions(str(checkpoint), slots=2, pages=7), quiet)
    engine = LocalEngine(LocalOptions("tiny", slots=2))
    engine.adopt(runner)
    engine.admit = lambda persona: None  # type: ignore[method-assign]
    engine.begin(0.0)
    slots = [await engine.open(Persona(seed=n)) for n in range(2)]
    for n in range(290):
        for slot in slots:
            slot.write(voice(n))
        engine.run_due(engine.clock.deadline)
    assert engine.capacity().detail["pages_shrunk"] > 0
    assert [slot.counters.frames for slot in slots] == [289] * 2
    assert not any(isinstance(event, SlotEnded) for slot in slots for event in slot.take_events())
    await engine.stop()


@pytest.mark.slow
async def test_a_call_whose_pages_will_not_be_there_is_refused_before_it_begins(checkpoint: Path) -> None:
    runner = load_runner(LocalOptions(str(checkpoint), slots=6, pages=18), quiet)
    engine = LocalEngine(LocalOptions("tiny", slots=6))
    engine.adopt(runner)
    engine.begin(0.0)
    opened = 0
    with pytest.raises(EngineFull, match="memory") as refusal:
        for _ in range(6):
            await engine.open()
            engine.run_due(engine.clock.deadline)
            opened += 1
    assert 2 <= opened < 6 and refusal.value.retry_after_s >= 30.0
    with pytest.raises(EngineRefused):
        await engine.open(Persona(voice="../../etc/passwd"))
    await engine.stop()


@pytest.mark.slow
def test_measuring_stops_where_the_budget_is_passed(checkpoint: Path) -> None:
    runner = load_runner(LocalOptions(str(checkpoint), slots=4), quiet)
    assert sorted(measure(runner, quiet, budget_ms=1e9)) == [1, 2, 4]
    assert sorted(measure(runner, quiet, budget_ms=0.0)) == [1]
    assert runner.pages.used == 0


class Breaking(EchoStepper):
    """Fails at its fifth step."""

    steps = 0

    def step(self, pcm: Batch, active: Mask) -> Stepped:
        self.steps += 1
        if self.steps == 5:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().step(pcm, active)


async def test_a_model_that_breaks_ends_its_calls_with_a_reason_and_takes_no_more() -> None:
    engine = EchoEngine(slots=2)
    engine._stepper = Breaking(2, 0.0, False)
    await engine.start()
    slot = await engine.open()
    with pytest.raises(SlotClosed, match="failed"):
        while True:
            await asyncio.wait_for(slot.read(), 5)
    assert [type(event) for event in slot.take_events()] == [SlotEnded]
    with pytest.raises(EngineError, match="failed"):
        await engine.open()
    await engine.stop()
