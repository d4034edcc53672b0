"""HTTP connections that ask for nothing, and bodies that are none: what they cost, and whom."""

from __future__ import annotations

import asyncio
import gzip
import logging
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from gateway import door, logs
from gateway.config import LogSettings
from tests.live_gateway import LiveGateway, live_gateway

Streams = list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]


@pytest.fixture
async def gateway() -> AsyncIterator[LiveGateway]:
    async with live_gateway() as running:
        yield running


async def connected(gateway: LiveGateway, said: bytes, count: int = 1) -> Streams:
    made = [await asyncio.open_connection("127.0.0.1", gateway.http.port) for _ in range(count)]
    for _, writer in made:
        writer.write(said)
    return made


def sweep(gateway: LiveGateway, after_s: float) -> None:
    assert gateway.http._runner is not None and gateway.http._runner.server is not None
    gateway.http.door.sweep(gateway.http._runner.server, time.monotonic() + after_s)


async def closed(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read(1) == b""
    except ConnectionError:
        return True


async def test_half_a_request_is_waited_for_ten_seconds_and_a_whole_one_is_answered(
    gateway: LiveGateway,
) -> None:
    ((half, one),) = await connected(gateway, b"POST /api/call HTTP/1.1\r\nHost: a\r\n")
    ((whole, other),) = await connected(gateway, b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await whole.readuntil(b"}")).startswith(b"HTTP/1.1 200")
    sweep(gateway, 0.0)
    sweep(gateway, door.FIRST_S - 1)
    assert gateway.http.door.closed == 0
    sweep(gateway, door.FIRST_S + 1)
    assert await closed(half) and gateway.http.door.closed == 1, "who has asked may ask again"
    sweep(gateway, door.NEXT_S + 1)
    assert await closed(whole)
    one.close()
    other.close()


async def test_of_too_many_connections_the_longest_waiting_make_room_and_no_stream_of_a_call(
    gateway: LiveGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "MOST", 5)
    hoard = await connected(gateway, b"GET /", 8)
    sweep(gateway, 0.0)
    async with aiohttp.ClientSession() as session, session.get(gateway.url + "/health") as answer:
        assert answer.status == 200
    sweep(gateway, 0.0)
    assert 3 <= gateway.http.door.closed <= 4
    for _, writer in hoard:
        writer.close()


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b'{"sdp": ' + b"9" * 10_000 + b"}", {}),
        (b"\x1f\x8bnothing", {"Content-Encoding": "gzip"}),
        (b"[" * 100_000, {}),
        (b"\xff\xfe{", {"Content-Type": "application/json; charset=utf-16"}),
        (b"{}", {"Content-Type": "application/json; charset=nonsense"}),
    ],
)
async def test_a_body_that_is_no_json_is_the_senders_fault(
    gateway: LiveGateway, body: bytes, headers: dict[str, str]
) -> None:
    told = {"Content-Type": "application/json", **headers}
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.url + "/api/call", data=body, headers=told) as answer,
    ):
        assert (answer.status, await answer.json()) == (400, {"error": "the body is not JSON"})


async def test_a_small_body_that_unpacks_to_a_large_one_is_too_large(gateway: LiveGateway) -> None:
    told = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    packed = gzip.compress(b"a" * 20_000_000)
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.url + "/api/call", data=packed, headers=told) as answer,
    ):
        assert answer.status == 413


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nAuthorization secret\r\n\r\n",
        b"POST /api/call HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nContent-Encoding: gzip\r\nContent-Length: 6\r\n\r\nsecret",
    ],
    ids=["no HTTP", "no gzip"],
)
async def test_what_is_wrongly_sent_is_not_logged(
    gateway: LiveGateway, capsys: pytest.CaptureFixture[str], said: bytes
) -> None:
    logs.configure(LogSettings())
    try:
        ((reader, writer),) = await connected(gateway, said)
        assert b" 400 " in await reader.readline()
        await reader.read()
        writer.close()
        logged = capsys.readouterr().err
        assert "secret" not in logged and "aiohttp.server" not in logged
    finally:
        root = logging.getLogger()
        for handler in [h for h in root.handlers if isinstance(h.formatter, logs.TextLines)]:
            root.removeHandler(handler)
