"""Whole calls of a Python peer through a live gateway: packets, reports, endings."""

import asyncio
from itertools import pairwise

import aiohttp
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack
from aiortc.rtp import RtcpPacket, RtcpRrPacket, RtcpSrPacket

from gateway.legs.webrtc import WebRtcSettings, presence
from gateway.media.messages import OpusPacket
from gateway.media.plane import MediaError, MediaPlane
from tests.audio import likeness
from tests.live_gateway import live_gateway
from tests.page_recorder import glide
from tests.webrtc_caller import PACKET, caller

SOUND = glide(3, 24_000)


@pytest.mark.slow
async def test_what_is_said_comes_back() -> None:
    async with live_gateway() as gateway, caller(gateway.url) as peer:
        await peer.speak(SOUND)
        heard = peer.heard()
    assert likeness(heard[24_000:], SOUND, 24_000) >= 0.85


@pytest.mark.slow
async def test_sent_packets_are_whole_in_order_and_20_ms_apart() -> None:
    async with live_gateway() as gateway, caller(gateway.url) as peer:
        await peer.speak(SOUND)
        packets = [packet for _, packet in peer.packets]
    assert len(packets) >= 0.9 * len(SOUND) / PACKET
    assert packets[0].marker
    assert {(b.sequence - a.sequence) & 0xFFFF for a, b in pairwise(packets)} == {1}
    assert {(b.timestamp - a.timestamp) & 0xFFFFFFFF for a, b in pairwise(packets)} == {960}


@pytest.mark.slow
async def test_both_sides_know_of_loss_jitter_and_round_trip() -> None:
    async with live_gateway() as gateway, caller(gateway.url) as peer:
        await peer.speak(SOUND, lost=range(50, 150, 4))
        reports = [packet for data in peer.reports for packet in RtcpPacket.parse(data)]
        leg = next(iter(gateway.http.line.legs.values()))
        assert 0 < gateway.plane.number(leg.call.row, "round_trip_ms") < 200, "the media plane is told"
    assert any(isinstance(report, RtcpSrPacket) for report in reports)
    blocks = [b for r in reports if isinstance(r, RtcpSrPacket | RtcpRrPacket) for b in r.reports]
    assert max(block.packets_lost for block in blocks) >= 10
    assert max(block.fraction_lost for block in blocks) / 256 == pytest.approx(0.25, abs=0.1)
    assert peer.stream.round_trip_s is not None and peer.stream.round_trip_s < 0.2


async def test_a_goodbye_ends_the_call() -> None:
    async with live_gateway(slots=1) as gateway, caller(gateway.url) as peer:
        peer.wire.send(peer.stream.wrap(OpusPacket(b"\xf8\xff\xfe", 0, True), 0.0))
        peer.wire.send(peer.stream.goodbye())
        assert await gateway.until_calls(0) < 2.0
        assert gateway.switchboard.served == {("webrtc", "caller"): 1}


async def test_the_gateway_says_goodbye() -> None:
    async with live_gateway(slots=1) as gateway, caller(gateway.url) as peer:
        await next(iter(gateway.switchboard.calls.values())).end("agent", "said goodbye")
        await asyncio.wait_for(peer.goodbye.wait(), 2)


async def test_a_closed_connection_frees_the_slot() -> None:
    async with live_gateway(slots=1) as gateway:
        async with caller(gateway.url):
            await gateway.until_calls(1)
        assert await gateway.until_calls(0) < 2.0


@pytest.mark.slow
async def test_a_caller_that_vanishes_frees_the_slot_within_5_s() -> None:
    async with live_gateway(slots=1) as gateway, caller(gateway.url) as peer:
        await peer.speak(SOUND[:12_000])
        peer.vanish()
        assert await gateway.until_calls(0) < 5.0
        assert gateway.engine.capacity().free == 1


@pytest.mark.parametrize(
    ("audio_at", "life_at", "thought"),
    [
        (99.9, 99.9, "there"),
        (80.0, 99.9, "there"),
        (80.0, 98.9, "quiet"),
        (98.9, 98.9, "quiet"),
        (95.9, 95.9, "gone"),
        (80.0, 95.9, "gone"),
        (None, 95.9, "gone"),
        (None, 99.9, "there"),
    ],
)
def test_a_browser_is_gone_when_nothing_comes_and_not_when_it_is_only_silent(
    audio_at: float | None, life_at: float, thought: str
) -> None:
    assert presence(100.0, 86.0, audio_at, life_at, WebRtcSettings()) == thought


def test_a_browser_of_which_no_audio_ever_came_is_given_up_however_alive() -> None:
    assert presence(100.0, 84.9, None, 100.0, WebRtcSettings()) == "never came"


async def test_a_stock_peer_hears_us() -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    heard = asyncio.Event()

    @connection.on("track")
    async def listen(track: AudioStreamTrack) -> None:
        await track.recv()
        heard.set()

    connection.addTrack(AudioStreamTrack())
    await connection.setLocalDescription(await connection.createOffer())
    offer = {"sdp": connection.localDescription.sdp, "type": "offer"}
    async with live_gateway() as gateway, aiohttp.ClientSession() as session:
        async with session.post(f"{gateway.url}/api/call", json=offer) as response:
            body = await response.json()
        await connection.setRemoteDescription(RTCSessionDescription(body["sdp"], "answer"))
        await asyncio.wait_for(heard.wait(), 10)
        await connection.close()
        await gateway.until_calls(0)


async def test_a_media_path_that_takes_no_call_is_a_refusal_and_frees_the_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: MediaPlane, *_: object) -> None:
        raise MediaError("libopus is missing")

    monkeypatch.setattr(MediaPlane, "open_opus", refuse)
    async with live_gateway(slots=1) as gateway:
        with pytest.raises(AssertionError, match="the audio path is not available"):
            async with caller(gateway.url):
                pass
        await gateway.until_calls(0)
        assert gateway.engine.capacity().free == 1
