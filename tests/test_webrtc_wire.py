"""The hooks in aiortc, between two real connections: what one side sends the other gets, whatever happens."""

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version

import pytest
from aioice import stun
from aiortc import RTCConfiguration, RTCPeerConnection
from aiortc.rtp import RtcpByePacket, RtpPacket

from gateway.legs import aiortc_hooks
from gateway.legs.aiortc_hooks import AudioWire
from gateway.legs.rtp_stream import RtpStream
from gateway.media.messages import OpusPacket


class Side:
    """One end: a connection, its wire, and what arrived."""

    def __init__(self) -> None:
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.rtp: list[bytes] = []
        self.rtcp: list[bytes] = []
        self.arrived = asyncio.Event()
        self.wire = AudioWire(self.connection, self.take_rtp, self.take_rtcp)
        self.stream = RtpStream(self.wire.ssrc, 96, "side")

    def take_rtp(self, data: bytes) -> None:
        self.rtp.append(data)
        self.arrived.set()

    def take_rtcp(self, data: bytes) -> None:
        self.rtcp.append(data)
        self.arrived.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self.arrived.clear()
                await self.arrived.wait()


async def connected(connection: RTCPeerConnection) -> None:
    changed = asyncio.Event()
    connection.on("connectionstatechange", changed.set)
    async with asyncio.timeout(10):
        while connection.connectionState != "connected":
            changed.clear()
            await changed.wait()


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Side, Side]]:
    caller, gateway = Side(), Side()
    await caller.connection.setLocalDescription(await caller.connection.createOffer())
    await gateway.connection.setRemoteDescription(caller.connection.localDescription)
    await gateway.connection.setLocalDescription(await gateway.connection.createAnswer())
    await caller.connection.setRemoteDescription(gateway.connection.localDescription)
    await asyncio.gather(connected(caller.connection), connected(gateway.connection))
    yield caller, gateway
    await asyncio.gather(*(aiortc_hooks.close(side.connection) for side in (caller, gateway)))


def address_of(side: Side) -> tuple[str, int]:
    host = next(c for c in side.wire._ice.local_candidates if "." in c.host)
    return host.host, host.port


def test_the_installed_aiortc_is_one_we_know() -> None:
    aiortc_hooks.check_version()
    assert version("aiortc").startswith(aiortc_hooks.SUPPORTED)


async def test_packets_cross_both_ways_as_they_were(pair: tuple[Side, Side]) -> None:
    caller, gateway = pair
    sent = [caller.stream.wrap(OpusPacket(bytes([n]) * 40, 960 * n, n == 0), 0.0) for n in range(20)]
    for packet in sent:
        assert caller.wire.send(packet)
    await gateway.until(lambda: len(gateway.rtp) == 20)
    assert gateway.rtp == sent
    assert gateway.wire.send(gateway.stream.wrap(OpusPacket(b"back", 0, True), 0.0))
    await caller.until(lambda: bool(caller.rtp))
    assert RtpPacket.parse(caller.rtp[0]).payload == b"back"
    assert RtpPacket.parse(caller.rtp[0]).ssrc == gateway.wire.ssrc


async def test_reports_cross_and_are_told_from_audio(pair: tuple[Side, Side]) -> None:
    caller, gateway = pair
    goodbye = caller.stream.goodbye()
    assert caller.wire.send(goodbye)
    await gateway.until(lambda: bool(gateway.rtcp))
    assert gateway.rtcp == [goodbye] and not gateway.rtp
    assert bytes(RtcpByePacket([caller.wire.ssrc])) in goodbye


async def test_a_peer_that_is_asked_for_a_sign_of_life_gives_one(pair: tuple[Side, Side]) -> None:
    _, gateway = pair
    gateway.wire.last_heard_at = 0.0
    gateway.wire.probe()
    question = gateway.wire._probe
    gateway.wire.probe()
    assert question is not None and gateway.wire._probe is question, "one at a time"
    await asyncio.wait_for(question, 5)
    assert gateway.wire.last_heard_at > 0.0


async def test_what_a_stranger_sends_is_no_sign_of_life(pair: tuple[Side, Side]) -> None:
    _, gateway = pair
    gateway.wire.last_heard_at = 0.0
    heard = asyncio.Event()
    checked = gateway.wire._checked
    gateway.wire._checked = lambda *request: (checked(*request), heard.set())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"\x16\xfe\xfd" + bytes(40), address_of(gateway))
        stranger.sendto(bytes(stun.Message(stun.Method.BINDING, stun.Class.REQUEST)), address_of(gateway))
        await asyncio.wait_for(heard.wait(), 5)
    assert gateway.wire.last_heard_at == 0.0


async def test_no_receiving_code_of_aiortc_runs(pair: tuple[Side, Side]) -> None:
    assert not [t.name for t in threading.enumerate() if "decoder" in t.name]


async def test_garbage_from_anywhere_ends_nothing(pair: tuple[Side, Side]) -> None:
    caller, gateway = pair
    before = gateway.wire.rejected
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for data in (
            b"",
            b"\x80",
            b"\x80\x6f" + bytes(60),
            b"\x81\xc9" + bytes(30),
            b"\x16\xfe\xfd",
            b"\xff" * 9,
        ):
            stranger.sendto(data, address_of(gateway))
    caller.wire.send(caller.stream.wrap(OpusPacket(b"still here", 0, True), 0.0))
    await gateway.until(lambda: bool(gateway.rtp))
    assert gateway.connection.connectionState == "connected"
    assert gateway.wire.rejected - before >= 4
    assert len(gateway.rtp) == 1


async def test_a_replayed_or_changed_packet_is_not_heard(pair: tuple[Side, Side]) -> None:
    caller, gateway = pair
    sealed = caller.wire._dtls._tx_srtp.protect(caller.stream.wrap(OpusPacket(b"once", 0, True), 0.0))
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for data in (changed, sealed, sealed):
            stranger.sendto(data, address_of(gateway))
    caller.wire.send(caller.stream.wrap(OpusPacket(b"twice", 960, False), 0.0))
    await gateway.until(lambda: len(gateway.rtp) >= 2)
    assert [RtpPacket.parse(data).payload for data in gateway.rtp] == [b"once", b"twice"]


async def test_what_our_own_code_raises_is_logged_once_and_ends_nothing(
    pair: tuple[Side, Side], caplog: pytest.LogCaptureFixture
) -> None:
    caller, gateway = pair
    heard = asyncio.Event()

    def stumble(data: bytes) -> None:
        heard.set()
        raise RuntimeError("our own bug")

    gateway.wire._on_rtp = stumble
    with caplog.at_level(logging.ERROR):
        for n in range(3):
            heard.clear()
            caller.wire.send(caller.stream.wrap(OpusPacket(b"x", 960 * n, False), 0.0))
            await asyncio.wait_for(heard.wait(), 5)
    assert gateway.wire.failed == 3
    assert len([r for r in caplog.records if r.exc_info]) == 1
    assert gateway.connection.connectionState == "connected"


async def test_statistics_can_be_read(pair: tuple[Side, Side]) -> None:
    report = await pair[1].connection.getStats()
    assert [s.dtlsState for s in report.values() if s.type == "transport"] == ["connected"]


async def test_nothing_is_sent_before_the_connection_stands_or_after_it_fell() -> None:
    side = Side()
    assert not side.wire.send(side.stream.wrap(OpusPacket(b"early", 0, True), 0.0))
    await aiortc_hooks.close(side.connection)
    assert not side.wire.send(side.stream.wrap(OpusPacket(b"late", 960, False), 0.0))
    assert side.wire.unsent == 2


async def test_a_peer_that_closes_is_noticed(pair: tuple[Side, Side]) -> None:
    caller, gateway = pair
    closed = asyncio.Event()

    @gateway.connection.on("connectionstatechange")
    def changed() -> None:
        if gateway.connection.connectionState == "closed":
            closed.set()

    await aiortc_hooks.close(caller.connection)
    await asyncio.wait_for(closed.wait(), 5)
