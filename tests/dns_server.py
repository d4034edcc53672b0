"""A name server of a few lines: it knows one SRV record, or is silent, or cannot tell."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

from sip.dns_message import SRV
from sip.events import Address

SRV_DATA = struct.pack("!HHH", 10, 20, 5070) + b"\x03sip\xc0\x0c"
NAPTR_DATA = struct.pack("!HH", 50, 60) + b"\x01s\x07SIP+D2U\x00" + b"\x04_sip\xc0\x0c"
Made = tuple[int, bytes] | tuple[int, bytes, int]
"""A record: kind, data, and seconds if not 60."""


def answer_to(
    query: bytes, records: Sequence[Made], authorities: Sequence[Made] = (), code: int = 0
) -> bytes:
    """A DNS answer whose names point back at the question; `code` may hold flags too."""
    head = struct.pack("!2sHHHHH", query[:2], 0x8180 | code, 1, len(records), len(authorities), 0)
    return head + query[12:] + b"".join(_record(*made) for made in (*records, *authorities))


def _record(kind: int, data: bytes, ttl: int = 60) -> bytes:
    return b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data


def soa(minimum: int) -> bytes:
    """The data of a zone's SOA record."""
    return b"\xc0\x0c\x04root\xc0\x0c" + struct.pack("!5I", 1, 2, 3, 4, minimum)


class Server(asyncio.DatagramProtocol):
    """Answers every question with one SRV record, unless told otherwise."""

    transport: asyncio.DatagramTransport

    def __init__(self, *, silent: bool = False, code: int = 0, flags: int = 0) -> None:
        self.silent, self.code, self.flags = silent, code, flags
        self.asked: list[bytes] = []

    @property
    def address(self) -> Address:
        return self._address

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)
        self._address = cast(Address, transport.get_extra_info("sockname"))

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self.asked.append(data)
        if not self.silent:
            known: list[Made] = [] if self.code or self.flags else [(SRV, SRV_DATA)]
            self.transport.sendto(answer_to(data, known, (), self.code | self.flags), addr)


@asynccontextmanager
async def serving(server: Server, port: int = 0) -> AsyncIterator[Server]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: server, local_addr=("127.0.0.1", port))
    yield server
    transport.close()
