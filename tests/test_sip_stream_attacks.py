"""What an attacker does with connections: trickle, hoard, ping, never shake hands."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from sip import access, streams
from sip.framing import StreamFramer
from sip.settings import Access, AgentSettings, Trunk
from tests.sip_wire import request
from tests.softphone import self_signed
from tests.test_sip_streams import Phone, hold_a_call

MESSAGE = request("OPTIONS").replace(b"/UDP", b"/TCP")
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Phone]:
    made = Phone()
    yield made
    await made.endpoint.close()


async def knock(port: int) -> Connection:
    return await asyncio.open_connection("127.0.0.1", port)


async def is_shut(connection: Connection) -> bool:
    """The other side closes it without a word."""
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(connection[0].read(), 5) == b""
    return True


async def is_served(connection: Connection) -> bool:
    connection[1].write(MESSAGE)
    return (await asyncio.wait_for(connection[0].readline(), 5)).startswith(b"SIP/2.0 200")


class Wire(asyncio.Transport):
    """A connection that only keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 5)})
        self.written: list[bytes] = []
        self.gone = False

    def write(self, data: object) -> None:
        assert isinstance(data, bytes)
        self.written.append(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.gone

    def abort(self) -> None:
        self.gone = True


def accepted(site: Phone) -> tuple[streams.Stream, Wire]:
    stream, wire = streams.Stream(site.endpoint._streams, "tcp", accepted=True), Wire()
    stream.connection_made(wire)
    return stream, wire


def deadline(stream: streams.Stream) -> float:
    assert stream._quiet is not None
    return stream._quiet.when()


def test_a_message_cut_at_each_of_its_bytes_comes_out_whole() -> None:
    for at in range(len(MESSAGE)):
        framer = StreamFramer(65_535)
        assert framer.feed(MESSAGE[:at]) + framer.feed(MESSAGE[at:]) == [MESSAGE]
        assert not framer.inside


def test_headers_are_read_once_however_slowly_the_body_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    read, measure = [], StreamFramer._body_length
    monkeypatch.setattr(
        StreamFramer, "_body_length", staticmethod(lambda head: read.append(1) or measure(head))
    )
    framer = StreamFramer(65_535)
    found = [message for byte in request() for message in framer.feed(bytes([byte]))]
    assert found == [request()] and len(read) == 1


async def test_who_only_pings_gets_no_more_time_and_who_trickles_neither(site: Phone) -> None:
    stream, _wire = accepted(site)
    first = deadline(stream)
    stream.data_received(b"\r\n\r\n" + MESSAGE[:50])
    for at in range(50, 60):
        stream.data_received(MESSAGE[at : at + 1])
    assert deadline(stream) == first and first - site.endpoint.now() <= streams.FIRST_MESSAGE_S
    stream.data_received(MESSAGE[60:])
    assert deadline(stream) - site.endpoint.now() > streams.IDLE_S - 1
    stream.data_received(MESSAGE[:10])
    begun = deadline(stream)
    assert begun - site.endpoint.now() <= streams.MESSAGE_S
    stream.data_received(MESSAGE[10:30])
    assert deadline(stream) == begun, "a second message that trickles in moves nothing"
    stream.data_received(MESSAGE[30:] + MESSAGE[:10])
    assert deadline(stream) > begun, "but a new one has its own time"


async def test_keep_alives_keep_a_known_phone_connected(site: Phone) -> None:
    """A phone that registered over TCP may say nothing but CRLF for an hour (RFC 5626 §4.4.1)."""
    stream, wire = accepted(site)
    stream.data_received(MESSAGE)
    before = deadline(stream)
    stream.data_received(b"\r\n\r\n")
    assert deadline(stream) > before and wire.written[-1] == b"\r\n"


async def test_a_thousand_pings_are_answered_in_one_breath(site: Phone) -> None:
    stream, wire = accepted(site)
    stream.data_received(b"\r\n" * 2_000)
    assert wire.written == [b"\r\n" * streams.MAX_PONGS]


async def test_a_connection_that_says_nothing_is_closed(site: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "FIRST_MESSAGE_S", 0.05)
    _, port = await site.endpoint.open_tcp("127.0.0.1")
    connection = await knock(port)
    connection[1].write(b"OPTIONS sip:")
    assert await is_shut(connection)


async def test_one_address_cannot_take_all_connections(site: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "MAX_STREAMS_EACH", 3)
    _, port = await site.endpoint.open_tcp("127.0.0.1")
    held = [await knock(port) for _ in range(3)]
    assert await is_served(held[2])
    assert await is_shut(await knock(port))
    held[0][1].close()
    async with asyncio.timeout(5):
        while not await is_served_or_shut(await knock(port)):
            await asyncio.sleep(0)


async def is_served_or_shut(connection: Connection) -> bool:
    """True for served; the place may not be free yet."""
    try:
        return await is_served(connection)
    except ConnectionError:
        return False


async def test_a_trunk_comes_in_though_strangers_fill_the_house(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_STREAMS", 0)
    for trunks, let_in in (((), False), ((Trunk("pbx", ("127.0.0.1",)),), True)):
        site = Phone(AgentSettings(access=Access(trunks=trunks)))
        _, port = await site.endpoint.open_tcp("127.0.0.1")
        connection = await knock(port)
        assert await (is_served(connection) if let_in else is_shut(connection))
        await site.endpoint.close()


async def test_who_is_banned_cannot_connect(site: Phone) -> None:
    _, port = await site.endpoint.open_tcp("127.0.0.1")
    site.agent._reception._gate._banned["127.0.0.1"] = site.endpoint.now() + 600
    assert await is_shut(await knock(port))


async def test_a_handshake_that_never_comes_is_given_up_and_counted(
    site: Phone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "MAX_STREAMS_EACH", 2)
    cert, key = self_signed(tmp_path)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(cert, key)
    client = ssl.create_default_context(cafile=str(cert))
    _, port = await site.endpoint.open_tls("127.0.0.1", 0, server, client)
    silent = [await knock(port) for _ in range(2)]
    assert await is_shut(await knock(port)), "those who have not shaken hands count"
    silent[0][1].close()
    silent[1][1].write(b"GET / HTTP/1.1\r\n\r\n")  # no handshake either
    await asyncio.wait_for(silent[1][0].read(), 5)
    async with asyncio.timeout(5):
        while site.endpoint._streams._strangers:
            await asyncio.sleep(0.005)
    monkeypatch.setattr(streams, "HANDSHAKE_S", 0.05)
    assert await is_shut(await knock(port))
    monkeypatch.setattr(streams, "HANDSHAKE_S", 10.0)
    phone = Phone()
    await phone.endpoint.open_tls("127.0.0.1", 0, server, client)
    await hold_a_call(phone, site, f"sips:b@127.0.0.1:{port}")
    await phone.endpoint.close()
    async with asyncio.timeout(5):
        while site.endpoint._streams._strangers or site.endpoint._streams.open:
            await asyncio.sleep(0.005)


async def test_what_comes_with_the_end_of_the_handshake_is_not_lost(site: Phone) -> None:
    stream = streams.Stream(site.endpoint._streams, "tls", accepted=True, entered=("127.0.0.1", 5))
    stream.data_received(MESSAGE[:20])
    stream.data_received(MESSAGE[20:])
    wire = Wire()
    stream.connection_made(wire)
    assert site.agent.counters.received == 1 and wire.written[0].startswith(b"SIP/2.0 200")
