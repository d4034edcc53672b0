"""A small DNS client for what getaddrinfo cannot ask: NAPTR and SRV (RFC 1035, 2782, 3403)."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import struct
from pathlib import Path

from sip.dialog import is_ip
from sip.errors import PeerError
from sip.locate import NaptrRecord, SrvRecord

log = logging.getLogger(__name__)
SRV, NAPTR = 33, 35
_HEADER = struct.Struct("!HHHHHH")
MAX_RECORDS = 64
TIMEOUT_S = 2.0


class MalformedDns(PeerError):
    """Not an answer to our question."""


def build_query(number: int, name: str, kind: int) -> bytes:
    """Raises UnicodeError or ValueError for a name that DNS cannot hold."""
    labels = [label.encode("idna") for label in name.rstrip(".").split(".")]
    if any(not 0 < len(label) < 64 for label in labels):
        raise ValueError("not a domain name")
    encoded = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return _HEADER.pack(number, 0x0100, 1, 0, 0, 0) + encoded + struct.pack("!HH", kind, 1)


def parse_answer(data: bytes, number: int, kind: int) -> list[SrvRecord | NaptrRecord]:
    """The records of one kind. Raises MalformedDns and nothing else."""
    try:
        got, flags, questions, answers, _, _ = _HEADER.unpack_from(data)
        if got != number or not flags & 0x8000 or questions > 1:
            raise MalformedDns("an answer to another question")
        at = _HEADER.size
        for _ in range(questions):
            at = _name(data, at)[1] + 4
        records: list[SrvRecord | NaptrRecord] = []
        for _ in range(min(answers, MAX_RECORDS)):
            at = _name(data, at)[1]
            found, _, _, length = struct.unpack_from("!HHIH", data, at)
            at += 10
            if found == kind:
                records.append(_srv(data, at) if kind == SRV else _naptr(data, at))
            at += length
        return records
    except (struct.error, IndexError):
        raise MalformedDns("the answer is cut") from None


def _name(data: bytes, at: int) -> tuple[str, int]:
    """(name, where it ends); compression is followed, but not in circles."""
    labels: list[str] = []
    end: int | None = None
    for _ in range(128):
        length = data[at]
        if length == 0:
            return ".".join(labels), at + 1 if end is None else end
        if length & 0xC0 == 0xC0:
            end = at + 2 if end is None else end
            at = (length & 0x3F) << 8 | data[at + 1]
            continue
        labels.append(data[at + 1 : at + 1 + length].decode("ascii", "replace"))
        at += 1 + length
    raise MalformedDns("a name without end")


def _srv(data: bytes, at: int) -> SrvRecord:
    priority, weight, port = struct.unpack_from("!HHH", data, at)
    return SrvRecord(priority, weight, port, _name(data, at + 6)[0])


def _naptr(data: bytes, at: int) -> NaptrRecord:
    order, preference = struct.unpack_from("!HH", data, at)
    texts: list[str] = []
    at += 4
    for _ in range(3):
        texts.append(data[at + 1 : at + 1 + data[at]].decode("ascii", "replace"))
        at += 1 + data[at]
    return NaptrRecord(order, preference, texts[0], texts[1], _name(data, at)[0])


def nameservers(path: Path = Path("/etc/resolv.conf")) -> list[str]:
    """The addresses of the system's name servers."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return []
    words = [line.split() for line in lines]
    return [word[1] for word in words if len(word) > 1 and word[0] == "nameserver" and is_ip(word[1])]


def is_cut(data: bytes) -> bool:
    """There was more than a datagram holds: it must be asked for over TCP (RFC 1035 §4.2.1)."""
    return len(data) > 2 and bool(data[2] & 0x02)


class Dns:
    """sip.locate's Lookup over UDP, and over TCP what is too long for that; a server that does not answer
    makes way for the next."""

    def __init__(self, servers: list[tuple[str, int]] | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._servers = servers if servers is not None else [(host, 53) for host in nameservers()]
        self._timeout_s = timeout_s

    async def srv(self, name: str) -> list[SrvRecord]:
        return [record for record in await self._ask(name, SRV) if isinstance(record, SrvRecord)]

    async def naptr(self, name: str) -> list[NaptrRecord]:
        return [record for record in await self._ask(name, NAPTR) if isinstance(record, NaptrRecord)]

    async def addresses(self, name: str) -> list[str]:
        if is_ip(name):
            return [name]
        try:
            found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError):
            return []
        return list(dict.fromkeys(str(item[4][0]) for item in found))

    async def _ask(self, name: str, kind: int) -> list[SrvRecord | NaptrRecord]:
        number = secrets.randbits(16)
        try:
            query = build_query(number, name, kind)
        except (UnicodeError, ValueError):
            return []
        for server in self._servers:
            try:
                data = await asyncio.wait_for(_exchange(server, query), self._timeout_s)
                if is_cut(data):
                    data = await asyncio.wait_for(_exchange_by_tcp(server, query), self._timeout_s)
                return parse_answer(data, number, kind)
            except (OSError, EOFError, TimeoutError, MalformedDns):
                log.info("a name server did not answer")
        return []


async def _exchange(server: tuple[str, int], query: bytes) -> bytes:
    """One datagram there, one back; only the server asked is heard."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes] = loop.create_future()

    class Asking(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            if not answer.done():
                answer.set_result(data)

        def error_received(self, exc: Exception) -> None:
            if not answer.done():
                answer.set_exception(exc)

    transport, _ = await loop.create_datagram_endpoint(Asking, remote_addr=server)
    try:
        transport.sendto(query)
        return await answer
    finally:
        transport.close()


async def _exchange_by_tcp(server: tuple[str, int], query: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*server)
    try:
        writer.write(struct.pack("!H", len(query)) + query)
        (size,) = struct.unpack("!H", await reader.readexactly(2))
        return await reader.readexactly(size)
    finally:
        writer.close()
