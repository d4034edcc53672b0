"""Streams: TCP and TLS connections of one Endpoint, opened, reused and bounded (RFC 3261 §18, RFC 5626)."""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING, cast

from sip.errors import PeerError
from sip.events import Address, Transport
from sip.framing import StreamFramer
from sip.settings import Destination

if TYPE_CHECKING:
    from sip.endpoint import Endpoint

log = logging.getLogger(__name__)
MAX_STREAMS = 1_000
"""Connections at once; one more is closed as it comes."""
MAX_UNSENT = 262_144
"""Bytes that wait for a peer that does not read; more, and it is cut off."""
FIRST_MESSAGE_S = 10.0
IDLE_S = 600.0
CONNECT_S = 5.0
MAX_WAITING = 32
Key = tuple[Transport, str, int]


class Streams:
    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.client_tls: ssl.SSLContext | None = None
        self.open: dict[Key, Stream] = {}
        self._servers: list[asyncio.Server] = []
        self._connecting: dict[Key, list[bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None) -> Address:
        loop = asyncio.get_running_loop()
        transport: Transport = "tls" if tls else "tcp"
        server = await loop.create_server(lambda: Stream(self, transport), host, port, ssl=tls)
        self._servers.append(server)
        return cast(Address, server.sockets[0].getsockname()[:2])

    def send(self, data: bytes, destination: Destination, host: str) -> None:
        """Over the flow if it stands, else over a connection to the address, else over a new one."""
        keys: list[Key] = [(destination.transport, host, destination.port)]
        if destination.flow is not None:
            keys.insert(0, (destination.transport, *destination.flow))
        for key in keys:
            stream = self.open.get(key)
            if stream is not None:
                stream.write(data)
                return
        self._connect(data, destination, keys[-1])

    def _connect(self, data: bytes, destination: Destination, key: Key) -> None:
        waiting = self._connecting.get(key)
        if waiting is not None:
            if len(waiting) < MAX_WAITING:
                waiting.append(data)
            return
        self._connecting[key] = [data]
        task = asyncio.get_running_loop().create_task(self._open(destination, key), name="connect")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, destination: Destination, key: Key) -> None:
        transport, host, port = key
        tls = (self.client_tls or ssl.create_default_context()) if transport == "tls" else None
        try:
            async with asyncio.timeout(CONNECT_S):
                _, stream = await asyncio.get_running_loop().create_connection(
                    lambda: Stream(self, transport),
                    host,
                    port,
                    ssl=tls,
                    server_hostname=destination.host if tls else None,
                )
        except (OSError, TimeoutError, ssl.SSLError):
            self._connecting.pop(key, None)
            self.endpoint.failed(destination)
            return
        for data in self._connecting.pop(key, []):
            stream.write(data)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for server in self._servers:
            server.close()
        for stream in list(self.open.values()):
            stream.abort()
        for server in self._servers:
            await server.wait_closed()


class Stream(asyncio.Protocol):
    """One connection: framing, keep-alives, and a limit to everything."""

    def __init__(self, streams: Streams, transport: Transport) -> None:
        self._streams = streams
        self._transport = transport
        self._framer = StreamFramer(streams.endpoint.agent.max_message_bytes)
        self._wire: asyncio.Transport | None = None
        self._peer: Address = ("", 0)
        self._quiet: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast(asyncio.Transport, transport)
        self._peer = transport.get_extra_info("peername")[:2]
        if len(self._streams.open) >= MAX_STREAMS:
            self.abort()
            return
        self._streams.open[self._transport, *self._peer] = self
        self._expect(FIRST_MESSAGE_S)

    def _expect(self, within_s: float) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
        self._quiet = asyncio.get_running_loop().call_later(within_s, self.abort)

    def data_received(self, data: bytes) -> None:
        endpoint = self._streams.endpoint
        try:
            messages = self._framer.feed(data)
        except PeerError:
            endpoint.agent.counters.malformed += 1
            self.abort()
            return
        for _ in range(self._framer.take_pings()):
            self.write(b"\r\n")
        for message in messages:
            endpoint.agent.receive_datagram(message, self._peer, endpoint.now(), self._transport)
        if messages:
            self._expect(IDLE_S)
            endpoint.transmit()

    def write(self, data: bytes) -> None:
        if self._wire is None or self._wire.is_closing():
            return
        if self._wire.get_write_buffer_size() > MAX_UNSENT:
            self.abort()
            return
        self._wire.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
        if self._streams.open.get((self._transport, *self._peer)) is self:
            del self._streams.open[self._transport, *self._peer]

    def abort(self) -> None:
        if self._wire is not None:
            self._wire.abort()
