"""Endpoint: the sockets and the one timer around a UserAgent. It moves bytes and decides nothing."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import cast

from sip.agent import UserAgent
from sip.events import Address, Event
from sip.names import Names, reachable
from sip.settings import Destination
from sip.streams import Streams

log = logging.getLogger(__name__)


class Endpoint:
    """Everything belongs to the loop that opens it. `on_event` takes the agent's events in order; what it
    raises is a bug: it is logged and ends nothing. After acting on the agent from outside, transmit()."""

    def __init__(self, agent: UserAgent, on_event: Callable[[Event], None]) -> None:
        self.agent = agent
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._udp: dict[bool, asyncio.DatagramTransport] = {}
        """By `is IPv6`."""
        self._streams = Streams(self)
        self._names = Names(self._loop)
        self._timer: asyncio.TimerHandle | None = None
        self._sending = False

    async def open_udp(self, host: str = "0.0.0.0", port: int = 0) -> Address:
        """Bind a UDP socket, in place of an earlier one, and say where. Raises OSError for a taken port."""
        transport, _ = await self._loop.create_datagram_endpoint(
            lambda: _Datagrams(self), local_addr=(host, port)
        )
        # A burst of callers fits; the kernel gives what it may.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
        bound = transport.get_extra_info("sockname")[:2]
        if (earlier := self._udp.get(":" in bound[0])) is not None:
            earlier.close()
        self._udp[":" in bound[0]] = transport
        self.agent.listen("udp", reachable(bound[0]), bound[1])
        return cast(Address, bound)

    async def open_tcp(self, host: str = "0.0.0.0", port: int = 0) -> Address:
        """Listen on TCP. Raises OSError."""
        bound = await self._streams.listen(host, port, None)
        self.agent.listen("tcp", reachable(bound[0]), bound[1])
        return bound

    async def open_tls(
        self, host: str, port: int, server: ssl.SSLContext, client: ssl.SSLContext | None = None
    ) -> Address:
        """Listen on TLS; `client` is for connections that we open (None: the system's trust). Raises
        OSError."""
        self._streams.client_tls = client
        bound = await self._streams.listen(host, port, server)
        self.agent.listen("tls", reachable(bound[0]), bound[1])
        return bound

    def now(self) -> float:
        return self._loop.time()

    def transmit(self) -> None:
        """Deliver events, send what is to be sent, set the timer."""
        if self._sending:
            return  # an event's owner acted: the loop below goes on
        self._sending = True
        try:
            while self._deliver_events() or self._send_all():
                pass
        finally:
            self._sending = False
        self._set_timer()

    def _deliver_events(self) -> bool:
        delivered = False
        while (event := self.agent.next_event()) is not None:
            delivered = True
            try:
                self._on_event(event)
            except Exception:  # one owner's bug must not deafen the other calls
                log.exception("call %s: an event was not taken", getattr(event, "call", "-"))
        return delivered

    def _send_all(self) -> bool:
        waiting = self.agent.datagrams_to_send(self.now())
        for data, destination in waiting:
            self.send(data, destination)
        return bool(waiting)

    def send(self, data: bytes, destination: Destination) -> None:
        """Send one message; a host name is looked up first, off the loop."""
        host = self._names.lookup(destination.host, lambda: self.send(data, destination))
        if host is None:
            return
        if destination.transport != "udp":
            self._streams.send(data, destination, host)
            return
        transport = self._udp.get(":" in host)
        if transport is None or transport.is_closing():
            self.failed(destination)
        else:
            transport.sendto(data, (host, destination.port))

    def failed(self, destination: Destination) -> None:
        """A destination cannot be reached; the agent hears of it in the loop's next round."""

        def tell() -> None:
            self.agent.send_failed(destination, self.now())
            self.transmit()

        self._loop.call_soon(tell)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        at = self.agent.get_timer()
        self._timer = None if at is None else self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.agent.handle_timer(self.now())
        self.transmit()

    async def close(self) -> None:
        """Close every socket. Calls are not ended: the agent's owner does that before."""
        if self._timer is not None:
            self._timer.cancel()
        for transport in self._udp.values():
            transport.close()
        self._names.close()
        await self._streams.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        endpoint = self._endpoint
        endpoint.agent.receive_datagram(data, (addr[0], addr[1]), endpoint.now())
        endpoint.transmit()

    def error_received(self, exc: Exception) -> None:
        self._endpoint.agent.counters.send_failures += 1
