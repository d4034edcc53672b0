"""An engine in another process that hangs, dies, comes back or takes its leave: what becomes of its calls."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from engine.api import EngineError, SlotEnded
from engine.worker import WorkerEngine, WorkerServer, serve_worker
from engine.worker_link import HUNG_TICKS
from tests.workers import echo, gateway, last_frame, turn, until, voice, working


async def test_a_hung_worker_is_noticed_after_four_silent_ticks_and_its_calls_go_on_elsewhere() -> None:
    async with working(echo(4)) as bad, working(echo(3)) as good:
        engine = await gateway(bad, good)
        slots = [await engine.open() for _ in range(3)]
        assert bad.calls == 2 and good.calls == 1
        for n in range(3):
            for slot in slots:
                slot.write(voice(n))
            await turn(engine, bad, good)
        bad.hung = True
        before = [slot.counters.frames for slot in slots]
        for _ in range(1 + HUNG_TICKS):
            assert engine.links[0].up
            await turn(engine, bad, good)
            await asyncio.sleep(0)
        await until(lambda: good.calls == 3)
        await until(lambda: engine.failovers == 2)
        for n in range(3):
            for k, slot in enumerate(slots):
                slot.write(voice(100 * k + n))
            await turn(engine, bad, good)
        for k, slot in enumerate(slots):
            assert np.allclose(await last_frame(slot), voice(100 * k + 2), atol=1e-4)
        gained = [slot.counters.frames - frames for slot, frames in zip(slots, before, strict=True)]
        stayed = slots[gained.index(1 + HUNG_TICKS + 3)]
        assert stayed.counters.missed_ticks == 0
        moved = [slot for slot in slots if slot is not stayed]
        assert all(HUNG_TICKS <= slot.counters.missed_ticks <= HUNG_TICKS + 2 for slot in moved)
        assert not any(isinstance(event, SlotEnded) for slot in slots for event in slot.take_events())
        await engine.stop()


async def test_without_another_worker_the_slots_end_with_the_reason() -> None:
    async with working(echo()) as worker:
        engine = await gateway(worker)
        slot = await engine.open()
        await turn(engine, worker)
        await worker.server.stop()
        await until(lambda: slot.ended is not None)
        [ended] = [event for event in slot.take_events() if isinstance(event, SlotEnded)]
        assert "worker was lost" in ended.reason
        assert engine.capacity().free == 0
        slot.close()
        with pytest.raises(EngineError):
            await engine.open()
        await engine.stop()


async def test_a_worker_that_comes_back_takes_calls_again() -> None:
    async with working(echo()) as worker:
        engine = await gateway(worker)
        await worker.server.stop()
        await until(lambda: not engine.links[0].up)
        worker.server = WorkerServer(worker.engine)
        await worker.server.start(port=int(worker.url.rstrip("/").rsplit(":", 1)[1]))
        await until(lambda: engine.links[0].up)
        slot = await engine.open()
        slot.write(voice(5))
        await turn(engine, worker)
        assert np.allclose(await last_frame(slot), voice(5), atol=1e-4)
        await engine.stop()


async def test_a_worker_whose_engine_ends_a_slot_says_so() -> None:
    async with working(echo()) as worker:
        engine = await gateway(worker)
        slot = await engine.open()
        await turn(engine, worker)
        [link] = worker.server.links
        [call] = link.calls.values()
        worker.engine.retire(call.slot, "out of memory")
        await until(lambda: slot.ended is not None)
        assert slot.ended == "out of memory"
        await engine.stop()


async def test_a_draining_worker_keeps_its_calls_and_takes_no_more() -> None:
    async with working(echo(3)) as leaving, working(echo(2)) as staying:
        engine = await gateway(leaving, staying)
        slot = await engine.open()
        assert leaving.calls == 1
        draining = asyncio.ensure_future(leaving.server.drain(limit_s=10))
        await until(lambda: engine.links[0].draining)
        assert engine.capacity().free == 2
        await engine.open()
        assert staying.calls == 1
        slot.write(voice(8))
        await turn(engine, leaving, staying)
        assert np.allclose(await last_frame(slot), voice(8), atol=1e-4) and not draining.done()
        slot.close()
        await until(lambda: leaving.calls == 0)
        leaving.engine.run_due(leaving.engine.clock.deadline)
        await asyncio.wait_for(draining, 10)
        await engine.stop()


async def test_a_drain_ends_at_its_limit_and_health_tells_it() -> None:
    async with working(echo()) as worker, aiohttp.ClientSession() as http:
        health = worker.url.replace("ws", "http", 1) + "health"
        async with http.get(health) as answer:
            assert answer.status == 200 and (await answer.json())["slots"] == 3
        engine = await gateway(worker)
        await engine.open()
        await worker.server.drain(limit_s=0.01)
        async with http.get(health) as answer:
            assert answer.status == 503 and (await answer.json())["draining"] is True
        await engine.stop()


async def test_an_idle_worker_sets_its_clock_to_follow_its_gateway() -> None:
    async with working(echo()) as worker:
        engine = await gateway(worker, phase=0.0)
        worker.engine.run_due(worker.engine.clock.deadline)
        clock = worker.engine.clock
        apart = (clock.phase - engine.clock.phase) % clock.period
        assert 0.006 < apart < 0.040  # 8 ms, and what a busy machine took to deliver the greeting
        await engine.open()
        phase = clock.phase
        other = await gateway(worker, phase=0.033)
        worker.engine.run_due(clock.deadline)
        assert clock.phase == phase
        for one in (engine, other):
            await one.stop()


async def test_serving_ends_when_asked_and_leaves_nothing_behind(unused_tcp_port: int) -> None:
    stopping, engine = asyncio.Event(), echo()
    serving = asyncio.ensure_future(
        serve_worker(engine, "127.0.0.1", unused_tcp_port, None, stopping, drain_s=5)
    )
    link = WorkerEngine([f"ws://127.0.0.1:{unused_tcp_port}"], slots=1)
    async with asyncio.timeout(10):
        while True:
            try:
                await link.connect()
                break
            except EngineError:
                await asyncio.sleep(0)
    await link.stop()
    stopping.set()
    await asyncio.wait_for(serving, 10)
    with pytest.raises(EngineError):
        await engine.open()


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_a_real_process_that_dies_or_freezes_costs_less_than_a_second(blow: signal.Signals) -> None:
    root = Path(__file__).resolve().parent.parent
    workers = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.workers",
            stdout=asyncio.subprocess.PIPE,
            cwd=root,
            env=dict(os.environ),
        )
        for _ in range(2)
    ]
    try:
        ports = [int(await worker.stdout.readline()) for worker in workers]  # type: ignore[union-attr]
        engine = WorkerEngine([f"ws://127.0.0.1:{port}" for port in ports], slots=4)
        await engine.start()
        slots = [await engine.open() for _ in range(4)]
        await asyncio.gather(*(slot.read() for slot in slots))
        first = workers[0]
        first.send_signal(blow)
        struck, ends = time.monotonic(), [int(engine.rows.spoken_end[slot.row]) for slot in slots]
        lost = [slot for slot in slots if engine._link_of[slot.row] == 0]
        assert len(lost) == 2
        await until(lambda: engine.failovers == 2)
        marks = {slot: int(engine.rows.spoken_end[slot.row]) for slot in lost}
        await until(lambda: all(int(engine.rows.spoken_end[slot.row]) > marks[slot] for slot in lost))
        gap_s = time.monotonic() - struck
        print(f"{blow.name}: {gap_s * 1e3:.0f} ms without frames")
        assert gap_s < 1.0 and all(end > 0 for end in ends)
        assert all(slot.ended is None for slot in slots)
        await engine.stop()
    finally:
        for worker in workers:
            if worker.returncode is None:
                worker.send_signal(signal.SIGCONT)
                worker.kill()
            await worker.wait()
