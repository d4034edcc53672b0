"""Browser calls over HTTP: made, refused, listened to, ended. The offers are of a Chromium long gone."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from engine.api import Persona, TextSpoken
from gateway.call import Call
from gateway.routes import MAX_BODY
from tests.live_gateway import LiveGateway, live_gateway

DATA = Path(__file__).parent / "data"
OFFER = (DATA / "offer_chromium_audio.sdp").read_bytes().decode()
VIDEO_OFFER = (DATA / "offer_chromium_video_audio_data.sdp").read_bytes().decode()


@pytest.fixture
async def gateway() -> AsyncIterator[LiveGateway]:
    async with live_gateway(slots=1, personas={"default": Persona(), "guide": Persona("guide")}) as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def call(client: aiohttp.ClientSession, gateway: LiveGateway, **body: object) -> tuple[int, dict, dict]:
    body = {"sdp": OFFER, "type": "offer"} | body
    async with client.post(f"{gateway.url}/api/call", json=body) as answer:
        return answer.status, await answer.json(), dict(answer.headers)


async def events(answer: aiohttp.ClientResponse, until: str) -> list[dict]:
    """The stream's numbered messages up to the first of the given type."""
    found: list[dict] = []
    number = None
    async for line in answer.content:
        if line.startswith(b"id: "):
            number = int(line[4:])
        elif line.startswith(b"data: "):
            message = json.loads(line[6:])
            if number is not None:
                found.append(message | {"id": number})
            if message["type"] == until:
                return found
            number = None
    return found


async def test_a_call_gets_an_answer_and_a_slot(gateway: LiveGateway, client: aiohttp.ClientSession) -> None:
    status, body, headers = await call(client, gateway)
    assert status == 200 and body["type"] == "answer"
    assert headers["Cache-Control"] == "no-store"
    assert "a=fmtp:111 minptime=10;useinbandfec=1" in body["sdp"]
    assert "a=candidate:" in body["sdp"] and "a=setup:active" in body["sdp"]
    assert list(gateway.switchboard.calls) == [body["call"]]
    assert body["id"] != body["call"], "the page's key stands in no log"


async def test_video_and_data_are_refused_in_the_answer(
    gateway: LiveGateway, client: aiohttp.ClientSession
) -> None:
    status, body, _ = await call(client, gateway, sdp=VIDEO_OFFER)
    lines = [line for line in body["sdp"].split("\r\n") if line.startswith("m=")]
    assert status == 200
    assert [line.split()[0] for line in lines] == ["m=video", "m=audio", "m=application"]
    assert [line.split()[1] == "0" for line in lines] == [True, False, True]


async def test_hanging_up_frees_the_slot_before_it_is_confirmed(
    gateway: LiveGateway, client: aiohttp.ClientSession
) -> None:
    _, body, _ = await call(client, gateway)
    async with client.delete(f"{gateway.url}/api/call/{body['id']}") as answer:
        assert answer.status == 204
    assert not gateway.switchboard.calls and gateway.engine.capacity().free == 1
    async with client.delete(f"{gateway.url}/api/call/{body['id']}") as again:
        assert again.status == 204, "a second goodbye is no error"


async def test_a_full_gateway_says_so_and_when_to_come_back(
    gateway: LiveGateway, client: aiohttp.ClientSession
) -> None:
    await call(client, gateway)
    status, body, headers = await call(client, gateway)
    assert status == 503
    assert body["error"] == "all lines are busy" and body["retry_after_s"] > 0
    assert int(headers["Retry-After"]) >= body["retry_after_s"]


async def test_a_draining_or_loading_gateway_takes_no_call(
    gateway: LiveGateway, client: aiohttp.ClientSession
) -> None:
    gateway.http.loading = "the engine is loading"
    status, body, headers = await call(client, gateway)
    assert (status, body["error"]) == (503, "the gateway is starting") and "Retry-After" in headers
    gateway.http.loading = None
    gateway.switchboard.draining = True
    status, body, headers = await call(client, gateway)
    assert (status, body["error"]) == (503, "the gateway is shutting down") and "Retry-After" in headers


async def test_a_persona_is_chosen_by_name(gateway: LiveGateway, client: aiohttp.ClientSession) -> None:
    status, body, _ = await call(client, gateway, persona="guide")
    assert status == 200 and gateway.switchboard.calls[body["call"]].persona.name == "guide"
    status, body, _ = await call(client, gateway, persona="nobody")
    assert status == 404


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 60_000, "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"sdp": 7, "type": "offer"}', "application/json", 400),
        (b'{"sdp": "v=0", "type": "answer"}', "application/json", 400),
        (b'{"sdp": "v=0", "type": "offer"}', "application/json", 400),
        (b'{"sdp": "v=0", "type": "offer", "persona": {}}', "application/json", 400),
        (json.dumps({"sdp": OFFER, "type": "offer"}).encode(), "text/plain", 415),
        (b" " * (MAX_BODY + 1), "application/json", 413),
        (b"{}", "application/json; charset=nonsense", 400),
    ],
)
async def test_a_bad_body_is_answered_and_takes_no_slot(
    gateway: LiveGateway, client: aiohttp.ClientSession, body: bytes, content_type: str, status: int
) -> None:
    headers = {"Content-Type": content_type}
    async with client.post(f"{gateway.url}/api/call", data=body, headers=headers) as answer:
        assert answer.status == status
        assert (await answer.json())["error"]
    assert not gateway.switchboard.calls


async def test_an_offer_aiortc_trips_over_gives_its_slot_back(
    gateway: LiveGateway, client: aiohttp.ClientSession
) -> None:
    for old, new in (
        ("a=fingerprint:sha-256 ", "a=fingerprint:sha-256"),
        ("a=rtpmap:0 PCMU/8000", "a=rtpmap:0 PCMU/x"),
        ("a=ssrc:774409703 cname", "a=ssrc:x cname"),
        ("c=IN IP4 192.0.2.2", "c=OUT IP9 nowhere"),
    ):
        status, body, _ = await call(client, gateway, sdp=OFFER.replace(old, new))
        assert (status, body["error"]) == (400, "the offer cannot be answered"), new
        await gateway.until_calls(0)
    assert gateway.engine.capacity().free == 1


async def test_the_page_hears_the_agents_words_and_why_the_call_ended(
    gateway: LiveGateway, client: aiohttp.ClientSession
) -> None:
    _, body, _ = await call(client, gateway)
    live = gateway.switchboard.calls[body["call"]]
    async with client.get(f"{gateway.url}/api/call/{body['id']}/events") as stream:
        assert stream.content_type == "text/event-stream"
        live.deliver(TextSpoken(3, " hello"))
        assert await events(stream, "text") == [{"type": "text", "text": " hello", "frame": 3, "id": 1}]
        await live.end("gateway", "shutting down")
        ended = await events(stream, "ended")
        assert ended == [{"type": "ended", "by": "gateway", "reason": "shutting down", "id": 2}]
        assert await stream.content.read() == b"\n", "the stream ends with the call"


async def test_a_stream_that_broke_is_taken_up_where_it_was(
    gateway: LiveGateway, client: aiohttp.ClientSession
) -> None:
    _, body, _ = await call(client, gateway)
    live = gateway.switchboard.calls[body["call"]]
    for frame in range(4):
        live.deliver(TextSpoken(frame, f" {frame}"))
    await live.end("agent", "said goodbye")
    url = f"{gateway.url}/api/call/{body['id']}/events"
    async with client.get(url, headers={"Last-Event-ID": "3"}) as stream:
        assert [m.get("text", m["type"]) for m in await events(stream, "ended")] == [" 3", "ended"]
    async with client.get(url, headers={"Last-Event-ID": "what"}) as stream:
        assert len(await events(stream, "ended")) == 5


async def test_the_stream_tells_what_the_gateway_measures(
    gateway: LiveGateway, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.event_stream.STATS_S", 0.1)
    _, body, _ = await call(client, gateway)
    async with client.get(f"{gateway.url}/api/call/{body['id']}/events") as stream:
        async with asyncio.timeout(5):
            assert await events(stream, "stats") == [], "figures are not numbered: only the last matter"


async def test_listeners_of_one_call_are_few(gateway: LiveGateway, client: aiohttp.ClientSession) -> None:
    _, body, _ = await call(client, gateway)
    url = f"{gateway.url}/api/call/{body['id']}/events"
    streams = [await client.get(url) for _ in range(3)]
    async with client.get(url) as fourth:
        assert fourth.status == 429
    for stream in streams:
        stream.close()


async def test_a_call_nobody_knows_is_not_found(gateway: LiveGateway, client: aiohttp.ClientSession) -> None:
    _, body, _ = await call(client, gateway)
    for key in (body["call"], "x" * 22):
        async with client.delete(f"{gateway.url}/api/call/{key}") as answer:
            assert answer.status == 404
        async with client.get(f"{gateway.url}/api/call/{key}/events") as answer:
            assert answer.status == 404
    assert len(gateway.switchboard.calls) == 1


async def post_raw(gateway: LiveGateway) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    body = json.dumps({"sdp": OFFER, "type": "offer"})
    headers = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.http.port)
    writer.write(f"POST /api/call HTTP/1.1\r\n{headers}\r\n\r\n{body}".encode())
    return reader, writer


async def test_a_page_that_goes_away_before_it_is_answered_leaves_nothing_behind(
    gateway: LiveGateway,
) -> None:
    admitted = asyncio.Event()

    def go_away(call: Call) -> None:
        writer.transport.abort()
        admitted.set()

    gateway.switchboard.on_admitted(go_away)
    _, writer = await post_raw(gateway)
    await asyncio.wait_for(admitted.wait(), 5)
    assert await gateway.until_calls(0) < 1.0
    assert gateway.engine.capacity().free == 1


async def test_a_page_that_goes_away_once_answered_is_missed(gateway: LiveGateway) -> None:
    gateway.http.line.settings = replace(gateway.http.line.settings, silence_s=0.5)
    reader, writer = await post_raw(gateway)
    assert b"200" in await reader.readline()
    writer.transport.abort()
    assert await gateway.until_calls(0) < 2.0
    assert gateway.switchboard.served == {("webrtc", "caller"): 1}


async def test_metrics_count_calls_without_naming_them(
    gateway: LiveGateway, client: aiohttp.ClientSession
) -> None:
    _, body, _ = await call(client, gateway)
    await call(client, gateway)
    async with client.get(f"{gateway.url}/metrics") as answer:
        during = await answer.text()
    async with client.delete(f"{gateway.url}/api/call/{body['id']}"):
        pass
    async with client.get(f"{gateway.url}/metrics") as answer:
        after = await answer.text()
    assert 'calls_active{direction="inbound",leg="webrtc"} 1.0' in during
    assert 'calls_refused_total{code="503"} 1.0' in during
    assert 'engine_slots{state="used"} 1.0' in during
    assert 'calls_total{direction="inbound",leg="webrtc",result="unanswered"} 1.0' in after
    assert body["call"] not in during + after and body["id"] not in during + after
