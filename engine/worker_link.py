"""WorkerLink: a gateway's connection to one engine worker, dialled again for as long as the engine runs.

It knows calls by their numbers and how full the worker is; rows, slots and where calls go are WorkerEngine's.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from typing import Protocol

import aiohttp

from engine import worker_protocol as wire
from engine.api import Capacity, EngineError, EngineFull, EngineRefused, Persona
from engine.chat_line import backoff

log = logging.getLogger(__name__)

_ANSWER_S = 5.0
"""How long a worker may take to greet or to answer an open."""
_UNSENT = 8
"""Frame messages that may wait for the socket; older ones are dropped, as a late frame is of no use."""
HUNG_TICKS = 4
"""Ticks without a message after which a worker that holds calls has hung: 320 to 400 ms after its last."""


class LinkOwner(Protocol):
    """Who hears what a worker says."""

    def heard_batch(self, link: WorkerLink, batch: wire.FrameBatch) -> None: ...

    def heard_end(self, link: WorkerLink, call: int, reason: str) -> None: ...

    def lost(self, link: WorkerLink, reason: str) -> None:
        """The link is down; its calls are to go elsewhere."""
        ...


class WorkerLink:
    """Belongs to one loop; silent_ticks alone is counted by the tick thread."""

    def __init__(
        self, url: str, token: str | None, owner: LinkOwner, until_tick: Callable[[], float]
    ) -> None:
        """until_tick: seconds to the gateway's next tick, for the worker's clock to follow."""
        self.url = url
        self.up = False
        self.draining = False
        self.interrupts = True
        self.injects = False
        self.holds = False
        self.engine = ""
        self.load = Capacity(slots=0, used=0)
        self.batches = 0
        """Frame messages received."""
        self.dropped_batches = 0
        self._token = token
        self._owner = owner
        self._until_tick = until_tick
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._opening: dict[int, asyncio.Future[wire.Opened | wire.Refused]] = {}
        self._unsent: asyncio.Queue[bytes | str] = asyncio.Queue()
        self._watched = 0
        self._silent_ticks = 0

    # -- the connection -----------------------------------------------------------------------------

    async def connect(self, http: aiohttp.ClientSession) -> None:
        """Dial and greet. Raises EngineRefused (token, version), EngineError."""
        socket = await self._dial(http)
        self.draining = False
        try:
            async with asyncio.timeout(_ANSWER_S):
                await socket.send_str(wire.serialise(wire.Greeting(wire.VERSION, 1e3 * self._until_tick())))
                welcome = self._read_welcome(await socket.receive())
                while not self._read_load(await socket.receive()):
                    pass
        except TimeoutError:
            await socket.close()
            raise EngineError(f"the worker {self.url} does not answer") from None
        except BaseException:
            await socket.close()
            raise
        self._socket, self._unsent, self._silent_ticks = socket, asyncio.Queue(), 0
        self.engine, self.interrupts, self.injects = welcome.engine, welcome.interrupts, welcome.injects
        self.holds = welcome.holds
        self.up = True

    async def _dial(self, http: aiohttp.ClientSession) -> aiohttp.ClientWebSocketResponse:
        headers = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await http.ws_connect(
                    self.url, headers=headers, max_msg_size=wire.MAX_MESSAGE, heartbeat=10.0
                )
        except aiohttp.WSServerHandshakeError as error:
            if error.status in (401, 403):
                raise EngineRefused(f"the worker {self.url} refused our token ({error.status})") from None
            raise EngineError(f"the worker {self.url} answered {error.status}") from None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise EngineError(f"the worker {self.url} cannot be reached: {type(error).__name__}") from None

    def _read_welcome(self, received: aiohttp.WSMessage) -> wire.Welcome:
        if received.type is not aiohttp.WSMsgType.TEXT:
            raise EngineError(f"what answers at {self.url} is no engine worker")
        message = wire.parse(received.data)
        if isinstance(message, wire.Fault) and message.code == "version":
            raise wire.WorkerVersionError(message.version)
        if not isinstance(message, wire.Welcome):
            raise EngineError(f"what answers at {self.url} is no engine worker")
        if message.version != wire.VERSION:
            raise wire.WorkerVersionError(message.version)
        return message

    def _read_load(self, received: aiohttp.WSMessage) -> bool:
        if received.type is not aiohttp.WSMsgType.TEXT:
            raise EngineError(f"the worker {self.url} hung up")
        message = wire.parse(received.data)
        self._obey(message)
        return isinstance(message, wire.Load)

    async def run(self, http: aiohttp.ClientSession) -> None:
        """Hold the connection and dial again whenever it is lost; ends only by being cancelled."""
        while True:
            if self.up:
                await self._converse()
            await self._reconnect(http)

    async def _reconnect(self, http: aiohttp.ClientSession) -> None:
        for wait_s in backoff():
            await asyncio.sleep(wait_s)
            try:
                return await self.connect(http)
            except EngineError as error:
                log.debug("worker %s: %s", self.url, error)

    async def _converse(self) -> None:
        socket = self._socket
        if socket is None:
            return
        reason = "its connection was lost"
        sending = asyncio.create_task(self._send_all(socket))
        try:
            async for received in socket:
                if received.type is aiohttp.WSMsgType.BINARY:
                    self.batches += 1
                    self._owner.heard_batch(self, wire.FrameBatch.decode(received.data))
                elif received.type is aiohttp.WSMsgType.TEXT:
                    self._obey(wire.parse(received.data))
        except EngineError as error:
            reason = str(error)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            self.give_up(reason)
            await socket.close()

    async def _send_all(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        try:
            while True:
                message = await self._unsent.get()
                if isinstance(message, bytes):
                    await socket.send_bytes(message)
                else:
                    await socket.send_str(message)
        except (ConnectionError, aiohttp.ClientError) as error:
            log.info("the connection to worker %s broke: %s", self.url, type(error).__name__)
        finally:
            await socket.close()

    def give_up(self, reason: str) -> None:
        """Take the worker for lost: no calls, no frames, until it is dialled anew. Idempotent."""
        if not self.up:
            return
        self.up = False
        self.load = Capacity(slots=0, used=0)
        for answer in self._opening.values():
            if not answer.done():
                answer.set_result(wire.Refused(0, "error", f"the worker {self.url} was lost"))
        self._owner.lost(self, reason)

    async def hang_up(self) -> None:
        """Drop the socket; run() dials again."""
        if self._socket is not None:
            await self._socket.close()

    # -- calls --------------------------------------------------------------------------------------

    async def open(self, call: int, persona: Persona) -> None:
        """Raises EngineFull, EngineRefused, EngineError."""
        answered: asyncio.Future[wire.Opened | wire.Refused] = asyncio.get_running_loop().create_future()
        self._opening[call] = answered
        self.say(wire.Open(call, dataclasses.asdict(persona)))
        try:
            async with asyncio.timeout(_ANSWER_S):
                answer = await answered
        except BaseException as error:
            self.say(wire.Close(call))
            if isinstance(error, TimeoutError):
                raise EngineError(f"the worker {self.url} does not answer") from None
            raise
        finally:
            del self._opening[call]
        if isinstance(answer, wire.Refused):
            raise _raised(answer)
        self._silent_ticks = 0

    def close(self, call: int) -> None:
        self.say(wire.Close(call))
        self._count(-1)

    def _count(self, calls: int) -> None:
        # Until the worker's next report, so that two calls do not go to one free slot.
        self.load = dataclasses.replace(self.load, used=max(0, self.load.used + calls))

    def _obey(self, message: wire.Control) -> None:
        match message:
            case wire.Opened(call=call) | wire.Refused(call=call):
                self._count(isinstance(message, wire.Opened))
                answered = self._opening.get(call)
                if answered is not None and not answered.done():
                    answered.set_result(message)
            case wire.Ended(call, reason):
                self._owner.heard_end(self, call, reason)
            case wire.Load():
                self.load = Capacity(**dataclasses.asdict(message))
            case wire.Draining():
                self.draining = True
            case wire.Fault(code, text):
                log.warning("worker %s: %s fault: %s", self.url, code, text)
            case _:
                raise wire.WorkerProtocolError(f"a worker does not say {type(message).__name__.lower()}")

    def say(self, message: wire.Control) -> None:
        """Queue a control message; nothing while the link is down."""
        if self.up:
            self._unsent.put_nowait(wire.serialise(message))

    def send_batch(self, batch: bytes) -> None:
        """Queue a tick's frames; dropped and counted when the socket is slower than the clock."""
        if not self.up:
            return
        if self._unsent.qsize() >= _UNSENT:
            self.dropped_batches += 1
            return
        self._unsent.put_nowait(batch)

    # -- the watchdog -------------------------------------------------------------------------------

    def watch(self, holds_calls: bool) -> bool:
        """Called each tick; True when the worker has said nothing for HUNG_TICKS while it held calls."""
        silent = holds_calls and self.batches == self._watched
        self._watched = self.batches
        self._silent_ticks = self._silent_ticks + 1 if silent else 0
        return self._silent_ticks >= HUNG_TICKS


def _raised(refused: wire.Refused) -> EngineError:
    if refused.code == "full":
        return EngineFull(refused.message, refused.retry_after_s)
    return EngineRefused(refused.message) if refused.code == "refused" else EngineError(refused.message)
