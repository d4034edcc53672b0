"""Messages over TCP and TLS: framing, keep-alives, reuse, limits; and the shell that carries them."""

import asyncio
import random
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from sip.agent import UserAgent
from sip.endpoint import Endpoint
from sip.events import CallAnswered, CallConfirmed, CallEnded, CallOffered, Event
from sip.framing import BrokenStream, StreamFramer
from sip.sdp import LocalMedia
from sip.settings import AgentSettings, Destination
from tests.sip_wire import request

MESSAGES = [request(), request("BYE", branch="z9hG4bK-2"), request("OPTIONS", branch="z9hG4bK-3")]
MEDIA = LocalMedia("127.0.0.1", 40_000)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=40))
def test_messages_come_out_whole_however_they_are_cut(cuts: list[int]) -> None:
    data = b"".join(MESSAGES)
    framer, found, at = StreamFramer(65_535), [], 0
    for cut in cuts:
        found += framer.feed(data[at : at + cut])
        at += cut
    found += framer.feed(data[at:]) if at < len(data) else []
    assert found == MESSAGES


def test_byte_by_byte_with_keepalives_between() -> None:
    framer, found = StreamFramer(65_535), []
    for byte in b"\r\n\r\n" + MESSAGES[0] + b"\r\n\r\n" + MESSAGES[1] + b"\r\n":
        found += framer.feed(bytes([byte]))
    assert found == MESSAGES[:2]


def test_a_double_crlf_is_a_ping_and_a_single_one_a_pong() -> None:
    framer = StreamFramer(65_535)
    assert framer.feed(b"\r\n\r\n") == [] and framer.take_pings() == 1
    assert framer.feed(b"\r\n" + MESSAGES[1]) == [MESSAGES[1]] and framer.take_pings() == 0


def test_a_compact_content_length_is_read_and_a_missing_one_is_nothing() -> None:
    compact = MESSAGES[0].replace(b"Content-Length:", b"l :")
    bare = b"OPTIONS sip:a@b SIP/2.0\r\nCall-ID: x\r\n\r\n"
    assert StreamFramer(65_535).feed(compact + bare) == [compact, bare]


@pytest.mark.parametrize(
    "data",
    [
        b"OPTIONS sip:a SIP/2.0\r\nContent-Length: -1\r\n\r\n",
        b"OPTIONS sip:a SIP/2.0\r\nContent-Length: 5\r\nl: 6\r\n\r\n",
        b"OPTIONS sip:a SIP/2.0\r\nContent-Length: 999999\r\n\r\n",
        b"x" * 40_000,
    ],
)
def test_a_stream_whose_next_message_cannot_be_found_is_broken(data: bytes) -> None:
    with pytest.raises(BrokenStream):
        StreamFramer(65_535).feed(data)


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_garbage_breaks_the_stream_or_waits_for_more(chunks: list[bytes]) -> None:
    framer = StreamFramer(1_000)
    try:
        for chunk in chunks:
            framer.feed(chunk)
    except BrokenStream:
        return


class Phone:
    """An Endpoint that answers whatever comes."""

    def __init__(self, settings: AgentSettings | None = None) -> None:
        self.agent = UserAgent(settings or AgentSettings(), random.SystemRandom())
        self.events: list[Event] = []
        self.endpoint = Endpoint(self.agent, self.take)

    def take(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, CallOffered):
            self.agent.accept(event.call, MEDIA, self.endpoint.now())

    async def until(self, kind: type[Event], count: int = 1) -> None:
        async with asyncio.timeout(10):
            while sum(isinstance(event, kind) for event in self.events) < count:
                await asyncio.sleep(0.005)


@pytest_asyncio.fixture
async def phones() -> AsyncIterator[tuple[Phone, Phone]]:
    made = Phone(), Phone()
    yield made
    for phone in made:
        await phone.endpoint.close()


async def hold_a_call(a: Phone, b: Phone, uri: str) -> None:
    call = a.agent.invite(uri, MEDIA, a.endpoint.now())
    a.endpoint.transmit()
    await a.until(CallAnswered)
    await b.until(CallConfirmed)
    offered = next(event for event in b.events if isinstance(event, CallOffered))
    b.agent.hang_up(offered.call, b.endpoint.now())  # the callee's BYE goes back over the same stream
    b.endpoint.transmit()
    await a.until(CallEnded)
    ended = next(event for event in a.events if isinstance(event, CallEnded))
    assert (ended.call, ended.by) == (call, "peer")


async def test_a_call_over_udp_v4_and_v6(phones: tuple[Phone, Phone]) -> None:
    a, b = phones
    await a.endpoint.open_udp("127.0.0.1")
    _, port = await b.endpoint.open_udp("127.0.0.1")
    await hold_a_call(a, b, f"sip:b@127.0.0.1:{port}")
    for phone in phones:
        phone.events.clear()
        try:
            _, port = await phone.endpoint.open_udp("::1")
        except OSError:
            pytest.skip("this machine has no IPv6 loopback")
    await hold_a_call(a, b, f"sip:b@[::1]:{port}")


async def test_a_name_is_looked_up_off_the_loop(phones: tuple[Phone, Phone]) -> None:
    a, b = phones
    await a.endpoint.open_udp("127.0.0.1")
    _, port = await b.endpoint.open_udp("127.0.0.1")
    await hold_a_call(a, b, f"sip:b@localhost:{port}")


async def test_a_call_over_one_tcp_connection(phones: tuple[Phone, Phone]) -> None:
    a, b = phones
    await a.endpoint.open_tcp("127.0.0.1")
    _, port = await b.endpoint.open_tcp("127.0.0.1")
    await hold_a_call(a, b, f"sip:b@127.0.0.1:{port};transport=tcp")
    assert len(a.endpoint._streams.open) == len(b.endpoint._streams.open) == 1


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    names = "subjectAltName=IP:127.0.0.1,DNS:pbx.example"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", names],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, cert


async def test_a_call_over_tls_with_a_certificate_that_is_checked(
    phones: tuple[Phone, Phone], certificate: tuple[Path, Path]
) -> None:
    a, b = phones
    key, cert = certificate
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(cert, key)
    client = ssl.create_default_context(cafile=str(cert))
    await a.endpoint.open_tls("127.0.0.1", 0, server, client)
    _, port = await b.endpoint.open_tls("127.0.0.1", 0, server, client)
    await hold_a_call(a, b, f"sips:b@127.0.0.1:{port}")
    stranger = Phone()
    await stranger.endpoint.open_tls("127.0.0.1", 0, server, ssl.create_default_context())
    stranger.agent.invite(f"sips:b@127.0.0.1:{port}", MEDIA, stranger.endpoint.now())
    stranger.endpoint.transmit()
    await stranger.until(CallEnded)
    assert isinstance(stranger.events[-1], CallEnded) and stranger.events[-1].code == 503
    await stranger.endpoint.close()


@pytest.mark.parametrize(("domain", "code"), [("pbx.example", 200), ("other.example", 503)])
async def test_a_server_found_by_dns_shows_the_certificate_of_the_domain_that_was_called(
    phones: tuple[Phone, Phone], certificate: tuple[Path, Path], domain: str, code: int
) -> None:
    a, b = phones
    key, cert = certificate
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(cert, key)
    await a.endpoint.open_tls("127.0.0.1", 0, server, ssl.create_default_context(cafile=str(cert)))
    _, port = await b.endpoint.open_tls("127.0.0.1", 0, server)
    found = Destination("127.0.0.1", port, "tls", domain=domain)
    a.agent.invite(f"sips:b@{domain}", MEDIA, a.endpoint.now(), destination=found)
    a.endpoint.transmit()
    if code == 200:
        await b.until(CallOffered)
    else:
        await a.until(CallEnded)
        assert isinstance(a.events[-1], CallEnded) and a.events[-1].code == code


async def test_a_refused_connection_ends_the_call_at_once(phones: tuple[Phone, Phone]) -> None:
    a, b = phones
    await a.endpoint.open_tcp("127.0.0.1")
    _, port = await b.endpoint.open_tcp("127.0.0.1")
    await b.endpoint.close()
    a.agent.invite(f"sip:b@127.0.0.1:{port};transport=tcp", MEDIA, a.endpoint.now())
    a.endpoint.transmit()
    await a.until(CallEnded)
    assert isinstance(a.events[-1], CallEnded) and (a.events[-1].by, a.events[-1].code) == ("error", 503)


async def test_split_and_coalesced_messages_over_a_connection(
    phones: tuple[Phone, Phone],
) -> None:
    phone, _ = phones
    _, port = await phone.endpoint.open_tcp("127.0.0.1")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"\r\n\r\n")
    assert await asyncio.wait_for(reader.readexactly(2), 5) == b"\r\n"
    options = [
        request("OPTIONS", branch=f"z9hG4bK-{n}", call_id=f"{n}").replace(b"/UDP", b"/TCP") for n in (1, 2)
    ]
    data = b"".join(options)
    for at in range(0, len(data), 97):
        writer.write(data[at : at + 97])
        await writer.drain()
    seen = b""
    while seen.count(b"SIP/2.0 200 OK") < 2:
        seen += await asyncio.wait_for(reader.read(4_096), 5)
    writer.write(b"OPTIONS sip:a SIP/2.0\r\nContent-Length: x\r\n\r\n")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    assert phone.agent.counters.malformed == 1
    writer.close()


async def test_garbage_on_the_socket_is_counted_and_calls_go_on(
    phones: tuple[Phone, Phone],
) -> None:
    a, b = phones
    await a.endpoint.open_udp("127.0.0.1")
    _, port = await b.endpoint.open_udp("127.0.0.1")
    rng = random.Random(1)
    noise, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        asyncio.DatagramProtocol, remote_addr=("127.0.0.1", port)
    )
    for _ in range(50):
        noise.sendto(rng.randbytes(rng.randint(1, 1_400)))
    noise.close()
    await hold_a_call(a, b, f"sip:b@127.0.0.1:{port}")
    assert b.agent.counters.malformed == 50


async def test_an_owner_that_fails_on_one_event_still_gets_the_next(
    phones: tuple[Phone, Phone], caplog: pytest.LogCaptureFixture
) -> None:
    a, b = phones
    await a.endpoint.open_udp("127.0.0.1")
    _, port = await b.endpoint.open_udp("127.0.0.1")
    take, failed = b.take, []

    def fail_once(event: Event) -> None:
        if not failed:
            failed.append(event)
            raise RuntimeError("a bug of the owner")
        take(event)

    b.endpoint._on_event = fail_once
    first = a.agent.invite(f"sip:b@127.0.0.1:{port}", MEDIA, a.endpoint.now())
    a.endpoint.transmit()
    async with asyncio.timeout(5):
        while not failed:
            await asyncio.sleep(0.005)
    await hold_a_call(a, b, f"sip:b@127.0.0.1:{port}")
    assert "an event was not taken" in caplog.text and first


async def test_a_port_that_is_taken_says_so(phones: tuple[Phone, Phone]) -> None:
    a, b = phones
    host, port = await a.endpoint.open_udp("127.0.0.1")
    with pytest.raises(OSError):
        await b.endpoint.open_udp(host, port)
