"""Streams: TCP and TLS connections of one Endpoint, opened, reused and bounded (RFC 3261 §18, RFC 5626)."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Coroutine
from typing import TYPE_CHECKING, cast

from sip.access import site_of
from sip.errors import PeerError
from sip.events import Address, Transport
from sip.framing import StreamFramer
from sip.settings import Destination

if TYPE_CHECKING:
    from sip.endpoint import Endpoint

log = logging.getLogger(__name__)
MAX_STREAMS = 1_000
"""Connections of strangers at once, those in their TLS handshake included; one more is closed as it comes. A
trunk's address always gets one, within what the system allows."""
MAX_UNSENT = 262_144
"""Bytes that wait for a peer that does not read; more, and it is cut off."""
MAX_PONGS = 8
"""Keep-alives answered of what came at once."""
HANDSHAKE_S = 10.0
FIRST_MESSAGE_S = 10.0
MESSAGE_S = 10.0
"""How long a message may take from its first byte to its last."""
IDLE_S = 600.0
"""Without a message or a keep-alive."""
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
        self._strangers: dict[str, int] = {}
        """Connections that came in, by where they came from."""

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None) -> Address:
        loop = asyncio.get_running_loop()
        transport: Transport = "tls" if tls else "tcp"
        accept = (lambda: Handshake(self, tls)) if tls else (lambda: Stream(self, transport, accepted=True))
        server = await loop.create_server(accept, host, port)
        self._servers.append(server)
        return cast(Address, server.sockets[0].getsockname()[:2])

    def enter(self, host: str) -> bool:
        """May one more connection from there come in? Whoever was let in leaves again."""
        allowed = self.endpoint.agent.streams_allowed(host, self.endpoint.now())
        if allowed is not None:
            site = site_of(host)
            there = self._strangers.get(site, 0)
            if there >= allowed or sum(self._strangers.values()) >= MAX_STREAMS:
                return False
            self._strangers[site] = there + 1
        return True

    def leave(self, host: str) -> None:
        left = self._strangers.pop(site_of(host), 0) - 1
        if left > 0:
            self._strangers[site_of(host)] = left

    def run(self, work: Coroutine[None, None, None], name: str) -> None:
        """A task that ends with these streams at the latest."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
        self.run(self._open(destination, key), "connect")

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
                    server_hostname=(destination.domain or destination.host) if tls else None,
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


class Handshake(asyncio.Protocol):
    """A TLS connection that came in, until it is one: counted like any other, and given HANDSHAKE_S."""

    def __init__(self, streams: Streams, tls: ssl.SSLContext) -> None:
        self._streams = streams
        self._tls = tls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        wire = cast(asyncio.Transport, transport)
        host, port = wire.get_extra_info("peername")[:2]
        if not self._streams.enter(host):
            wire.abort()
            return
        wire.pause_reading()
        self._streams.run(self._shake_hands(wire, (host, port)), "handshake")

    async def _shake_hands(self, wire: asyncio.Transport, peer: Address) -> None:
        stream = Stream(self._streams, "tls", accepted=True, entered=peer)
        try:
            secured = await asyncio.get_running_loop().start_tls(
                wire, stream, self._tls, server_side=True, ssl_handshake_timeout=HANDSHAKE_S
            )
        except (OSError, ssl.SSLError, asyncio.CancelledError) as error:
            wire.abort()
            self._streams.leave(peer[0])
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        if secured is None or secured.is_closing():
            self._streams.leave(peer[0])
        else:
            stream.connection_made(secured)


class Stream(asyncio.Protocol):
    """One connection: framing, keep-alives, and a limit to everything."""

    def __init__(
        self, streams: Streams, transport: Transport, accepted: bool = False, entered: Address | None = None
    ) -> None:
        """`accepted`: a peer opened it; `entered`: and it has been counted already, as this one's."""
        self._streams = streams
        self._transport = transport
        self._framer = StreamFramer(streams.endpoint.agent.max_message_bytes)
        self._wire: asyncio.Transport | None = None
        self._peer: Address = entered or ("", 0)
        self._accepted = accepted
        self._entered = entered is not None
        self._greeted = not accepted
        """It has proved useful: whoever connects must say something, whom we call need not."""
        self._inside = False
        self._early = b""
        """What came together with the end of the handshake."""
        self._quiet: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast(asyncio.Transport, transport)
        self._peer = transport.get_extra_info("peername")[:2]
        if self._accepted and not self._entered:
            self._entered = self._streams.enter(self._peer[0])
            if not self._entered:
                self.abort()
                return
        self._streams.open[self._transport, *self._peer] = self
        self._expect(IDLE_S if self._greeted else FIRST_MESSAGE_S)
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)

    def _expect(self, within_s: float) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
        self._quiet = asyncio.get_running_loop().call_later(within_s, self.abort)

    def data_received(self, data: bytes) -> None:
        if self._wire is None:
            self._early += data
            return
        endpoint = self._streams.endpoint
        try:
            messages = self._framer.feed(data)
        except PeerError:
            endpoint.agent.counters.malformed += 1
            self.abort()
            return
        pings = self._framer.take_pings()
        if pings:
            self.write(b"\r\n" * min(pings, MAX_PONGS))
        self._greeted = self._greeted or bool(messages)
        self._wait_on(bool(messages or pings))
        for message in messages:
            endpoint.agent.receive_datagram(message, self._peer, endpoint.now(), self._transport)
        if messages:
            endpoint.transmit()

    def _wait_on(self, progressed: bool) -> None:
        """Set the next deadline. A message that only trickles in moves none, nor do keep-alives of one who
        has said nothing yet."""
        if not self._greeted:
            return
        began = self._framer.inside and (progressed or not self._inside)
        ended = not self._framer.inside and (progressed or self._inside)
        if began or ended:
            self._expect(MESSAGE_S if began else IDLE_S)
        self._inside = self._framer.inside

    def write(self, data: bytes) -> None:
        if self._wire is None or self._wire.is_closing():
            return
        if self._wire.get_write_buffer_size() > MAX_UNSENT:
            self.abort()
            return
        self._wire.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._wire is None:
            return  # the handshake's end sees to it
        if self._quiet is not None:
            self._quiet.cancel()
        if self._entered:
            self._streams.leave(self._peer[0])
        if self._streams.open.get((self._transport, *self._peer)) is self:
            del self._streams.open[self._transport, *self._peer]

    def abort(self) -> None:
        if self._wire is not None:
            self._wire.abort()
