"""A whole gateway on a free port for tests: echo engine, media plane and clock, switchboard, HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from engine.api import Persona
from engine.echo import EchoEngine
from engine.rows import AudioRows
from gateway.call import Call
from gateway.config import HttpSettings
from gateway.http_server import HttpServer
from gateway.media.clock import MediaClock
from gateway.media.plane import MediaPlane
from gateway.switchboard import Switchboard

ENGINE_PHASE_S = 0.005


@dataclass
class LiveGateway:
    """The parts, started."""

    engine: EchoEngine
    plane: MediaPlane
    switchboard: Switchboard
    http: HttpServer
    changed: asyncio.Event
    """A call came or went."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.port}"

    async def until_calls(self, count: int, limit_s: float = 10.0) -> float:
        """Wait until so many calls live; the seconds it took."""
        started = asyncio.get_running_loop().time()
        async with asyncio.timeout(limit_s):
            while len(self.switchboard.calls) != count:
                self.changed.clear()
                await self.changed.wait()
        return asyncio.get_running_loop().time() - started


@asynccontextmanager
async def live_gateway(
    slots: int = 2,
    *,
    delay_s: float = 0.0,
    greeting: bool = False,
    personas: Mapping[str, Persona] | None = None,
    http: HttpSettings | None = None,
) -> AsyncIterator[LiveGateway]:
    """An echo that answers at once, without a greeting, unless said otherwise."""
    rows = AudioRows(slots)
    engine = EchoEngine(delay_s=delay_s, greeting=greeting, phase=ENGINE_PHASE_S, rows=rows)
    plane = MediaPlane(rows)
    clock = MediaClock(plane)
    switchboard = Switchboard(engine, plane, personas)
    changed = asyncio.Event()

    def admitted(call: Call) -> None:
        changed.set()
        call.on_ended(lambda _: changed.set())

    switchboard.on_admitted(admitted)
    loop = asyncio.get_running_loop()
    plane.on_events = lambda: loop.call_soon_threadsafe(switchboard.deliver_media_events)
    server = HttpServer(switchboard, http or HttpSettings(port=0))
    await server.open()
    await engine.start()
    clock.start()
    server.loading = None
    pump = asyncio.create_task(_carry_text(switchboard))
    try:
        yield LiveGateway(engine, plane, switchboard, server, changed)
    finally:
        await switchboard.drain(0.0)
        pump.cancel()
        await server.stop()
        clock.stop()
        await engine.stop()


async def _carry_text(switchboard: Switchboard) -> None:
    while True:
        await asyncio.sleep(0.08)
        switchboard.deliver_slot_events()
