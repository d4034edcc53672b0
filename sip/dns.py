"""Dns: a small client for what getaddrinfo cannot ask, NAPTR and SRV; the sockets around sip.inquiry."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import struct
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from sip.dialog import is_ip
from sip.dns_message import NAPTR, SRV, Record
from sip.events import Address
from sip.inquiry import Inquiry, Known, Servers, kept_s
from sip.locate import NaptrRecord, SrvRecord

log = logging.getLogger(__name__)
BY_TCP_S = 1.0
ADDRESS_S = 5.0
"""How long the system may take over a host's addresses; a call waits for it."""
KEEP_S, KEEP_NONE_S = 60.0, 5.0
"""How long its answer is believed; it says no time itself."""


def nameservers(path: Path = Path("/etc/resolv.conf")) -> list[str]:
    """The addresses of the system's name servers."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return []
    words = [line.split() for line in lines]
    return [word[1] for word in words if len(word) > 1 and word[0] == "nameserver" and is_ip(word[1])]


class Dns:
    """sip.locate's Lookup. A question that is being asked is not asked twice, and an answer is kept for as
    long as it says; a silent server makes way for the next."""

    def __init__(self, servers: list[Address] | None = None) -> None:
        self._servers = Servers(servers if servers is not None else [(host, 53) for host in nameservers()])
        self._known: Known[tuple[Any, ...]] = Known()
        self._asking: dict[tuple[str, int], asyncio.Task[tuple[Any, ...]]] = {}

    async def srv(self, name: str) -> list[SrvRecord]:
        return [record for record in await self._ask(name, SRV) if isinstance(record, SrvRecord)]

    async def naptr(self, name: str) -> list[NaptrRecord]:
        return [record for record in await self._ask(name, NAPTR) if isinstance(record, NaptrRecord)]

    async def addresses(self, name: str) -> list[str]:
        if is_ip(name):
            return [name]
        return list(await self._once((name, 0), lambda: self._resolve(name)))

    async def _ask(self, name: str, kind: int) -> tuple[Record, ...]:
        return await self._once((name, kind), lambda: self._inquire(name, kind))

    async def _once(
        self, question: tuple[str, int], ask: Callable[[], Coroutine[Any, Any, tuple[Any, ...]]]
    ) -> tuple[Any, ...]:
        loop = asyncio.get_running_loop()
        known = self._known.get(question, loop.time())
        if known is not None:
            return known
        asking = self._asking.get(question)
        if asking is None:
            asking = self._asking[question] = loop.create_task(ask(), name="look up")
            asking.add_done_callback(lambda _: self._asking.pop(question))
        return await asyncio.shield(asking)  # whoever gives up leaves it to the others; it ends by itself

    async def _resolve(self, name: str) -> tuple[str, ...]:
        loop = asyncio.get_running_loop()
        found: tuple[str, ...] = ()
        with suppress(OSError, UnicodeError, TimeoutError):
            async with asyncio.timeout(ADDRESS_S):
                answers = await loop.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
            found = tuple(dict.fromkeys(str(item[4][0]) for item in answers))
        self._known.keep((name, 0), found, KEEP_S if found else KEEP_NONE_S, loop.time())
        return found

    async def _inquire(self, name: str, kind: int) -> tuple[Record, ...]:
        loop = asyncio.get_running_loop()
        servers = self._servers.in_order(loop.time())
        try:
            inquiry = Inquiry(name, kind, secrets.randbits(16), servers, loop.time())
        except (UnicodeError, ValueError):
            return ()
        await _Asking(inquiry).run()
        if inquiry.answer is None and servers:
            log.info("no name server answered")
        self._servers.rest(inquiry.silent(loop.time()), loop.time())
        records = inquiry.answer.records if inquiry.answer else ()
        self._known.keep((name, kind), records, kept_s(inquiry.answer), loop.time())
        return records


class _Asking:
    """The sockets of one inquiry, one a server: only who was asked is heard."""

    def __init__(self, inquiry: Inquiry) -> None:
        self.inquiry = inquiry
        self.loop = asyncio.get_running_loop()
        self.heard = asyncio.Event()
        self.cut: list[Address] = []
        """Servers whose answer has to be asked for again over TCP."""
        self._open: dict[Address, asyncio.DatagramTransport] = {}

    async def run(self) -> None:
        with ExitStack() as closing:
            while not self.inquiry.done:
                await self._ask_who_is_due(closing)
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(self.inquiry.get_timer()):
                        await self.heard.wait()
                self.heard.clear()
                while self.cut and not self.inquiry.done:
                    await self._ask_by_tcp(self.cut.pop())

    async def _ask_who_is_due(self, closing: ExitStack) -> None:
        while (server := self.inquiry.server_to_ask(self.loop.time())) is not None:
            try:
                if server not in self._open:
                    self._open[server] = await self._socket(server)
                    closing.callback(self._open[server].close)
                self._open[server].sendto(self.inquiry.query)
            except OSError:
                self.inquiry.server_failed(server, self.loop.time())

    async def _socket(self, server: Address) -> asyncio.DatagramTransport:
        made = await self.loop.create_datagram_endpoint(lambda: _FromServer(self, server), remote_addr=server)
        return made[0]

    async def _ask_by_tcp(self, server: Address) -> None:
        try:
            async with asyncio.timeout(BY_TCP_S):
                data = await _exchange_by_tcp(server, self.inquiry.query)
            self.inquiry.receive(data, server, self.loop.time())
        except (OSError, EOFError, TimeoutError):
            self.inquiry.server_failed(server, self.loop.time())


class _FromServer(asyncio.DatagramProtocol):
    def __init__(self, asking: _Asking, server: Address) -> None:
        self._asking, self._server = asking, server

    def datagram_received(self, data: bytes, addr: Address) -> None:
        asking = self._asking
        if asking.inquiry.receive(data, self._server, asking.loop.time()):
            asking.cut.append(self._server)
        asking.heard.set()

    def error_received(self, exc: Exception) -> None:
        self._asking.inquiry.server_failed(self._server, self._asking.loop.time())
        self._asking.heard.set()


async def _exchange_by_tcp(server: Address, query: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*server)
    try:
        writer.write(struct.pack("!H", len(query)) + query)
        (size,) = struct.unpack("!H", await reader.readexactly(2))
        return await reader.readexactly(size)
    finally:
        writer.close()
