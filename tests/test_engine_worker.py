"""Engines in other processes: one message a tick, who holds which call, and what happens when one dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from engine import worker_protocol as wire
from engine.api import FRAME, EngineError, EngineFull, EngineRefused, Persona, SlotEnded, TextSpoken
from engine.echo import EchoEngine, EchoStepper
from engine.slot import RowSlot
from engine.worker import WorkerEngine, WorkerServer, serve_worker
from engine.worker_link import HUNG_TICKS
from tests.workers import Worker, turn, until, working


def echo(slots: int = 3) -> EchoEngine:
    return EchoEngine(slots=slots, delay_s=0.0, greeting=False)


def voice(seed: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(FRAME)).astype(np.float32)


async def gateway(*workers: Worker, slots: int = 6, **options: object) -> WorkerEngine:
    engine = WorkerEngine([worker.url for worker in workers], slots=slots, **options)  # type: ignore[arg-type]
    await engine.connect()
    engine.begin(0.0)
    return engine


async def last_frame(slot: RowSlot) -> np.ndarray:
    rows, row = slot._rows, slot.row
    return rows.read_spoken(row, int(rows.spoken_end[row]) - FRAME, FRAME)


# -- the wire ---------------------------------------------------------------------------------------


def batch() -> wire.FrameBatch:
    pcm = np.stack([voice(n) for n in range(3)])
    return wire.FrameBatch(
        7, np.array([0x10002, 5, 0xFFFF0001], np.uint32), pcm, ((5, " grün"), (5, ""), (9, " b"))
    )


def test_a_batch_comes_back_from_its_bytes_within_half_a_step() -> None:
    sent = batch()
    got = wire.FrameBatch.decode(sent.encode())
    assert (got.tick, got.calls.tolist(), got.texts) == (7, sent.calls.tolist(), sent.texts)
    assert np.abs(got.pcm - sent.pcm).max() <= 0.5 / 32_767 + 1e-7
    again = wire.FrameBatch.decode(got.encode())
    assert np.array_equal(again.pcm, got.pcm)


def test_a_batch_cut_at_any_byte_is_an_error_of_its_own() -> None:
    data = batch().encode()
    for length in [*range(40), *range(40, len(data), 97), len(data) - 1]:
        with pytest.raises(wire.WorkerProtocolError):
            wire.FrameBatch.decode(data[:length])
    with pytest.raises(wire.WorkerProtocolError):
        wire.FrameBatch.decode(data + b"\0")


@given(st.binary(max_size=200))
def test_garbage_is_an_error_of_its_own(data: bytes) -> None:
    for read in (wire.FrameBatch.decode, lambda d: wire.parse(d.decode("latin-1"))):
        with contextlib.suppress(wire.WorkerProtocolError, wire.WorkerVersionError):
            read(data)


MESSAGES = [
    wire.Greeting(1, 12.5),
    wire.Welcome(1, "echo", True),
    wire.Open(3, {"name": "anna", "seed": 4}),
    wire.Opened(3),
    wire.Refused(3, "full", "no", 2.0),
    wire.Close(3),
    wire.Ended(3, "gone"),
    wire.Interrupt(3, 1920),
    wire.Release(3),
    wire.Inject(3, "hello"),
    wire.Load(8, 3, detail={"pages": 4.0}),
    wire.Draining(),
    wire.Fault("version", "no"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_every_control_message_comes_back_and_bears_new_keys(message: wire.Control) -> None:
    text = wire.serialise(message)
    assert wire.parse(text) == message
    assert wire.parse(json.dumps(json.loads(text) | {"new": 1})) == message


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"type":"dance"}', '{"type":"open","call":1}',
     '{"type":"open","call":"1","persona":{}}',
     '{"type":"open","call":true,"persona":{}}', '{"type":"load","slots":1.5,"used":0}', "[" * 100_000],
)  # fmt: skip
def test_control_messages_of_wrong_shape_are_errors_of_their_own(text: str) -> None:
    with pytest.raises(wire.WorkerProtocolError):
        wire.parse(text)


# -- who may speak ----------------------------------------------------------------------------------


async def test_a_gateway_of_another_version_is_told_so_and_hurts_nobody() -> None:
    async with working(echo()) as worker, aiohttp.ClientSession() as http:
        engine = await gateway(worker)
        slot = await engine.open()
        async with http.ws_connect(worker.url) as socket:
            await socket.send_str(wire.serialise(wire.Greeting(99, 0.0)))
            fault = wire.parse(await socket.receive_str())
            assert isinstance(fault, wire.Fault) and fault.code == "version" and "99" in fault.message
            assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
        slot.write(voice(1))
        await turn(engine, worker)
        assert slot.counters.frames == 1
        await engine.stop()


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (
            wire.serialise(wire.Welcome(2, "echo", True)),
            wire.WorkerVersionError,
            "version 1 here and 2 there",
        ),
        (
            wire.serialise(wire.Fault("version", "no", 3)),
            wire.WorkerVersionError,
            "version 1 here and 3 there",
        ),
        (wire.serialise(wire.Draining()), EngineError, "no engine worker"),
        ("hello", EngineError, "not JSON"),
    ],
)
async def test_what_is_no_worker_of_our_version_is_named_when_connecting(
    answer: str, error: type[EngineError], words: str
) -> None:
    async def greet(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str(answer)
        await socket.receive()
        return socket

    app = web.Application()
    app.router.add_get("/", greet)
    async with TestServer(app) as server:
        with pytest.raises(error, match=words):
            await WorkerEngine([str(server.make_url("/"))]).connect()


@pytest.mark.parametrize("given", [None, "wrong"])
async def test_a_worker_with_a_token_lets_only_its_gateways_in(given: str | None) -> None:
    async with working(echo(), token="s3cret") as worker:
        engine = await gateway(worker, token="s3cret")
        await engine.open()
        await engine.stop()
        with pytest.raises(EngineRefused, match="token") as refusal:
            await gateway(worker, token=given)
        assert "wrong" not in str(refusal.value)


NOISE = [
    b"",
    b"\1",
    b"\2" + bytes(30),
    b"\1\0\xff\xff" + bytes(20),
    "{",
    '{"type":"opened","call":1}',
    '{"type":"load"}',
]


@pytest.mark.parametrize("noise", NOISE, ids=repr)
async def test_noise_ends_its_own_connection_and_no_other(noise: bytes | str) -> None:
    async with working(echo()) as worker, aiohttp.ClientSession() as http:
        engine = await gateway(worker)
        slot = await engine.open()
        async with http.ws_connect(worker.url) as socket:
            await socket.send_str(wire.serialise(wire.Greeting(wire.VERSION, 0.0)))
            await (socket.send_bytes(noise) if isinstance(noise, bytes) else socket.send_str(noise))
            said = [message async for message in socket]
        assert '"fault"' in said[-1].data
        slot.write(voice(2))
        await turn(engine, worker)
        assert np.allclose(await last_frame(slot), voice(2), atol=1e-4)
        await engine.stop()


async def test_no_worker_at_all_names_each(unused_tcp_port_factory: object) -> None:
    urls = [f"ws://127.0.0.1:{unused_tcp_port_factory()}" for _ in range(2)]  # type: ignore[operator]
    with pytest.raises(EngineError) as error:
        await WorkerEngine(urls).start()
    assert all(url in str(error.value) for url in urls)
    with pytest.raises(EngineError):
        WorkerEngine([])


# -- where calls go ---------------------------------------------------------------------------------


async def test_calls_go_to_the_least_loaded_worker_until_all_are_full() -> None:
    async with working(echo(2)) as small, working(echo(3)) as large:
        engine = await gateway(small, large)
        assert engine.capacity().slots == 5
        for _ in range(5):
            await engine.open()
        assert (small.calls, large.calls) == (2, 3)
        assert (engine.capacity().used, engine.capacity().free) == (5, 0)
        with pytest.raises(EngineFull) as refusal:
            await engine.open()
        assert refusal.value.retry_after_s > 0
        await engine.stop()


async def test_two_gateways_on_one_worker_hear_their_own_callers() -> None:
    async with working(echo(2)) as worker:
        engines = [await gateway(worker, slots=2) for _ in range(2)]
        slots = [await engine.open() for engine in engines]
        for n in range(5):
            batches = worker.batches
            for k, engine in enumerate(engines):
                slots[k].write(voice(10 * k + n))
                engine.run_due(engine.clock.deadline)
            await until(lambda: worker.batches == batches + 2)  # noqa: B023
            worker.engine.run_due(worker.engine.clock.deadline)
            await until(lambda: all(slot.counters.frames == n + 1 for slot in slots))  # noqa: B023
            for k, slot in enumerate(slots):
                assert np.allclose(await last_frame(slot), voice(10 * k + n), atol=1e-4)
        with pytest.raises(EngineFull):
            await engines[0].open()
        for engine in engines:
            await engine.stop()


async def test_a_gateway_that_vanishes_frees_its_slots() -> None:
    async with working(echo(2)) as worker:
        engine = await gateway(worker)
        for _ in range(2):
            await engine.open()
        await engine.stop()
        await until(lambda: worker.calls == 0)
        worker.engine.run_due(worker.engine.clock.deadline)
        assert worker.engine.capacity().used == 0
        other = await gateway(worker)
        await other.open()
        await other.stop()


async def test_a_late_frame_of_a_call_never_reaches_the_next_on_its_row() -> None:
    async with working(echo()) as worker:
        engine = await gateway(worker, slots=1)
        first = await engine.open()
        number = engine._calls[:1].copy()
        await turn(engine, worker)
        first.close()
        await turn(engine, worker)
        second = await engine.open()
        assert second.row == first.row
        late = wire.FrameBatch(1, number, voice(1)[None], ((int(number[0]), " secret"),))
        engine.heard_batch(engine.links[0], late)
        engine.heard_batch(engine.links[0], wire.FrameBatch(1, np.array([77], np.uint32), voice(1)[None]))
        assert second.counters.frames == 0 and second.take_events() == []
        await engine.stop()


async def test_words_arrive_with_the_frame_they_were_spoken_in() -> None:
    async with working(EchoEngine(slots=1, greeting=True)) as worker:
        engine = await gateway(worker)
        slot = await engine.open()
        for _ in range(10):
            await turn(engine, worker)
        spoken = [event for event in slot.take_events() if isinstance(event, TextSpoken)]
        assert spoken == [TextSpoken(0, "Hello!"), TextSpoken(4, " This"), TextSpoken(8, " is")]
        await engine.stop()


async def test_a_persona_the_worker_refuses_is_refused_here() -> None:
    class Choosy(EchoStepper):
        def check(self, persona: Persona) -> None:
            if persona.voice:
                raise EngineRefused("no such voice")

    async with working(echo()) as worker:
        worker.engine._stepper = Choosy(3, 0.0, False)
        engine = await gateway(worker)
        with pytest.raises(EngineRefused, match="no such voice"):
            await engine.open(Persona(voice="x"))
        assert engine.capacity().used == 0
        await engine.open(Persona(temperature=0.5, seed=3))
        await engine.stop()


# -- when a worker dies -----------------------------------------------------------------------------


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
