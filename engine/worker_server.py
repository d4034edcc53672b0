"""An engine in a process of its own: the WebSocket that gateways hold calls over.

One task a gateway turns messages into rows and rows into messages; the engine's own clock ticks. A
gateway's bytes can end its own connection, never the process. Protocol: engine/worker_protocol.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import logging
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from aiohttp import WSMsgType, web

from engine import worker_protocol as wire
from engine.api import (
    FRAME,
    EngineError,
    EngineFull,
    EngineRefused,
    Persona,
    TextSpoken,
)
from engine.frames import append_frames
from engine.slot import RowSlot
from engine.tick import TickEngine

log = logging.getLogger(__name__)

FOLLOW_S = 0.008
"""How long after a gateway's tick an idle worker's clock is set to tick: its message is here by then."""
_LOAD_EVERY_S = 1.0
_GREETING_S = 5.0
_GOING_AWAY, _PROTOCOL_ERROR = 1001, 1002


@dataclass
class _Call:
    slot: RowSlot
    sent: int = 0
    """Frames of the agent that have gone out."""
    texts: deque[TextSpoken] = field(default_factory=deque)


class GatewayLink:
    """One gateway's calls on this engine."""

    def __init__(self, engine: TickEngine, socket: web.WebSocketResponse, draining: asyncio.Event) -> None:
        self.calls: dict[int, _Call] = {}
        self.batches = 0
        """Frame messages received."""
        self._engine = engine
        self._socket = socket
        self._draining = draining
        self._opening: set[asyncio.Task[None]] = set()
        self._tick = 0

    async def serve(self) -> None:
        """Until the gateway goes or breaks the protocol; its calls end with it."""
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._greet()
            tasks = [asyncio.create_task(work()) for work in (self._listen, self._speak, self._report)]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except EngineError as error:
            await self._fault(error)
        except (ConnectionError, TimeoutError):
            log.info("a gateway left without a word")
        finally:
            tasks += self._opening
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for call in self.calls.values():
                call.slot.close()
            self.calls.clear()

    async def _fault(self, error: EngineError) -> None:
        code = "version" if isinstance(error, wire.WorkerVersionError) else "protocol"
        await self._send(wire.Fault(code, str(error)))
        await self._socket.close(code=_PROTOCOL_ERROR)

    async def _send(self, message: wire.Control) -> None:
        if not self._socket.closed:
            await self._socket.send_str(wire.serialise(message))

    async def _greet(self) -> None:
        async with asyncio.timeout(_GREETING_S):
            received = await self._socket.receive()
        if received.type is not WSMsgType.TEXT:
            raise wire.WorkerProtocolError("a gateway greets first")
        greeting = wire.parse(received.data)
        if not isinstance(greeting, wire.Greeting):
            raise wire.WorkerProtocolError("a gateway greets first")
        if greeting.version != wire.VERSION:
            raise wire.WorkerVersionError(greeting.version)
        engine = self._engine
        engine.follow(time.monotonic() + greeting.tick_in_ms / 1e3 + FOLLOW_S)
        able = (engine.can_interrupt, engine.can_inject)
        await self._send(wire.Welcome(wire.VERSION, engine.name, *able, holds=True))

    # -- from the gateway ---------------------------------------------------------------------------

    async def _listen(self) -> None:
        async for received in self._socket:
            if received.type is WSMsgType.BINARY:
                self._hear(wire.FrameBatch.decode(received.data))
            elif received.type is WSMsgType.TEXT:
                await self._obey(wire.parse(received.data))

    def _hear(self, batch: wire.FrameBatch) -> None:
        self.batches += 1
        known = [k for k, call in enumerate(batch.calls.tolist()) if call in self.calls]
        rows = [self.calls[int(batch.calls[k])].slot.row for k in known]
        if len(set(rows)) != len(rows):
            raise wire.WorkerProtocolError("a frame message names a call twice")
        heard = self._engine.rows
        append_frames(heard.heard, heard.heard_end, np.array(rows, np.int64), batch.pcm[known])

    async def _obey(self, message: wire.Control) -> None:
        match message:
            case wire.Open():
                if len(self._opening) >= wire.MAX_CALLS:
                    raise wire.WorkerProtocolError("more calls are being opened than there can be")
                opening = asyncio.create_task(self._open(message))
                self._opening.add(opening)
                opening.add_done_callback(self._opening.discard)
            case wire.Close(call):
                if (closed := self.calls.pop(call, None)) is not None:
                    closed.slot.close()
                    await self.report()
            case wire.Interrupt(call, unheard):
                if (held := self.calls.get(call)) is not None:
                    spoken = int(self._engine.rows.spoken_end[held.slot.row])
                    held.slot.interrupt(max(0, spoken - unheard))
            case wire.Hold(call):
                if (held := self.calls.get(call)) is not None:
                    held.slot.hold()
            case wire.Release(call):
                if (held := self.calls.get(call)) is not None:
                    held.slot.release()
            case wire.Inject(call, text):
                if (held := self.calls.get(call)) is not None:
                    held.slot.inject(text)
            case wire.Fault():
                await self._socket.close()
            case _:
                raise wire.WorkerProtocolError(f"a gateway does not say {type(message).__name__.lower()}")

    async def _open(self, asked: wire.Open) -> None:
        try:
            if asked.call in self.calls:
                raise EngineError(f"call {asked.call} is open already")
            if self._draining.is_set():
                raise EngineFull("the worker is draining")
            slot = await self._engine.open(_persona(asked.persona))
        except EngineError as error:
            await self._send(_refusal(asked.call, error))
            return
        self.calls[asked.call] = _Call(slot)
        await self._send(wire.Opened(asked.call))
        await self.report()

    async def hang_up(self) -> None:
        await self._socket.close(code=_GOING_AWAY)

    # -- to the gateway -----------------------------------------------------------------------------

    async def _speak(self) -> None:
        """After each tick one message with every call's frame, be there any or not; without calls nothing."""
        rung = self._engine.bell.wait()
        while True:
            await rung
            # Before looking for frames: a tick that comes while we look must wake us again.
            rung = self._engine.bell.wait()
            if self.calls:
                await self._speak_once()

    async def _speak_once(self) -> None:
        self._collect_texts()
        await self._socket.send_bytes(self._next_batch().encode())
        while any(self._unsent(call) for call in self.calls.values()):
            await self._socket.send_bytes(self._next_batch().encode())
        await self._tell_ends()

    def _unsent(self, call: _Call) -> bool:
        return call.sent < int(self._engine.rows.spoken_end[call.slot.row]) // FRAME

    def _collect_texts(self) -> None:
        for call in self.calls.values():
            call.texts.extend(event for event in call.slot.take_events() if isinstance(event, TextSpoken))

    def _next_batch(self) -> wire.FrameBatch:
        ready = [number for number, call in self.calls.items() if self._unsent(call)]
        pcm = np.zeros((len(ready), FRAME), np.float32)
        texts: list[tuple[int, str]] = []
        for k, number in enumerate(ready):
            call = self.calls[number]
            pcm[k] = self._engine.rows.read_spoken(call.slot.row, call.sent * FRAME, FRAME)
            while call.texts and call.texts[0].frame <= call.sent:
                texts.append((number, call.texts.popleft().text))
            call.sent += 1
        self._tick += 1
        return wire.FrameBatch(self._tick, np.array(ready, np.uint32), pcm, tuple(texts))

    async def _tell_ends(self) -> None:
        for number, call in list(self.calls.items()):
            if call.slot.ended is not None:
                del self.calls[number]
                call.slot.close()
                await self._send(wire.Ended(number, call.slot.ended))

    async def _report(self) -> None:
        while True:
            await self.report()
            await asyncio.sleep(_LOAD_EVERY_S)

    async def report(self) -> None:
        """Tell the gateway how full we are."""
        if self._draining.is_set():
            await self._send(wire.Draining())
        await self._send(wire.Load(**dataclasses.asdict(self._engine.capacity())))


def _persona(values: dict[str, object]) -> Persona:
    names = {f.name for f in dataclasses.fields(Persona)}
    try:
        return Persona(**{name: value for name, value in values.items() if name in names})  # type: ignore[arg-type]
    except TypeError as error:
        raise EngineRefused(f"not a persona: {error}") from None


def _refusal(call: int, error: EngineError) -> wire.Refused:
    if isinstance(error, EngineFull):
        return wire.Refused(call, "full", str(error), error.retry_after_s)
    return wire.Refused(call, "refused" if isinstance(error, EngineRefused) else "error", str(error))


class WorkerServer:
    """Serves one engine to any number of gateways; `/` is the WebSocket, `/health` says how full it is."""

    def __init__(self, engine: TickEngine, token: str | None = None) -> None:
        """token: gateways must send it as Bearer; None lets everyone in who reaches the port."""
        self.links: set[GatewayLink] = set()
        self._engine = engine
        self._token = token
        self._draining = asyncio.Event()
        self._runner: web.AppRunner | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; the engine must be started. Returns the port. Raises OSError when it is taken."""
        app = web.Application()
        app.router.add_get("/", self._serve)
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(app, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if not self._authorised(request):
            return web.Response(status=401, text="this worker wants its token as Authorization: Bearer")
        socket = web.WebSocketResponse(max_msg_size=wire.MAX_MESSAGE, heartbeat=10.0, compress=False)
        await socket.prepare(request)
        link = GatewayLink(self._engine, socket, self._draining)
        self.links.add(link)
        try:
            await link.serve()
        finally:
            self.links.discard(link)
        return socket

    def _authorised(self, request: web.Request) -> bool:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return self._token is None or hmac.compare_digest(given.encode(), self._token.encode())

    async def _health(self, request: web.Request) -> web.Response:
        values = dataclasses.asdict(self._engine.capacity()) | {"draining": self._draining.is_set()}
        return web.json_response(values, status=503 if self._draining.is_set() else 200)

    async def drain(self, limit_s: float) -> None:
        """Refuse new calls, tell the gateways, and wait until the present ones have ended or time is up."""
        self._draining.set()
        await asyncio.gather(*(link.report() for link in self.links), return_exceptions=True)
        try:
            async with asyncio.timeout(limit_s):
                while any(link.calls for link in self.links):
                    await self._engine.bell.wait()
        except TimeoutError:
            log.warning(
                "%d calls were cut at the end of the drain", sum(len(link.calls) for link in self.links)
            )

    async def stop(self) -> None:
        await asyncio.gather(*(link.hang_up() for link in self.links), return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None


async def serve_worker(
    engine: TickEngine,
    host: str,
    port: int,
    token: str | None = None,
    stopping: asyncio.Event | None = None,
    drain_s: float = 600.0,
) -> None:
    """Start the engine and serve it until `stopping` is set; then drain for at most drain_s and stop.

    Raises EngineError (the engine does not start), OSError (the port is taken).
    """
    await engine.start()
    server = WorkerServer(engine, token)
    try:
        bound = await server.start(host, port)
        log.info("engine %s serves %d slots on %s:%d", engine.name, engine.capacity().slots, host, bound)
        await (stopping or asyncio.Event()).wait()
        await server.drain(drain_s)
    finally:
        await server.stop()
        await engine.stop()
