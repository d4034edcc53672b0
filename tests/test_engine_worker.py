"""Engines in other processes: who may speak to them, and who holds which call."""

from __future__ import annotations

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from engine import worker_protocol as wire
from engine.api import EngineError, EngineFull, EngineRefused, Persona, TextSpoken
from engine.echo import EchoEngine, EchoStepper
from engine.worker import WorkerEngine
from tests.workers import echo, gateway, last_frame, turn, until, voice, working

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
