"""A caller in Python: a real peer connection that sends and receives Opus packets of its own making."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import aiohttp
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from numpy.typing import NDArray

from engine.opus import OpusDecoder, OpusEncoder
from gateway.legs import aiortc_hooks
from gateway.legs.aiortc_hooks import AudioWire
from gateway.legs.rtp_stream import RtpPacket, RtpStream, parse_rtp
from gateway.media.messages import OpusPacket

PACKET = 480
"""Samples of 24 kHz a packet: 20 ms."""


class Caller:
    """One connection; everything that came is kept with its arrival time."""

    def __init__(self) -> None:
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.wire = AudioWire(self.connection, self._take_rtp, self._take_rtcp)
        self.stream = RtpStream(self.wire.ssrc, 96, "caller")
        self.packets: list[tuple[float, RtpPacket]] = []
        self.reports: list[bytes] = []
        self.key = ""
        self.answer = ""
        self.goodbye = asyncio.Event()
        self.first_packet = asyncio.Event()

    def _take_rtp(self, data: bytes) -> None:
        now = time.monotonic()
        self.stream.receive(data, now)
        self.packets.append((now, parse_rtp(data)))
        self.first_packet.set()

    def _take_rtcp(self, data: bytes) -> None:
        self.reports.append(data)
        if self.stream.receive_rtcp(data, time.monotonic(), time.time()):
            self.goodbye.set()

    async def call(self, url: str) -> None:
        """Offer, be answered, and stand. Raises AssertionError when refused."""
        await self.connection.setLocalDescription(await self.connection.createOffer())
        offer = {"sdp": self.connection.localDescription.sdp, "type": "offer"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/api/call", json=offer) as response,
        ):
            body = await response.json()
            assert response.status == 200, body
        self.key, self.answer = body["id"], body["sdp"]
        await self.connection.setRemoteDescription(RTCSessionDescription(body["sdp"], "answer"))
        # Its first packet says that the gateway, too, has its keys.
        await asyncio.wait_for(self.first_packet.wait(), 10)

    async def speak(self, pcm: NDArray[np.float64], lost: Iterable[int] = ()) -> float:
        """Send the sound (24 kHz) in real time, without the packets named; when the first one went."""
        encoder, lost = OpusEncoder(bitrate=32_000), set(lost)
        started = time.monotonic()
        for n in range(len(pcm) // PACKET):
            payload = encoder.encode(pcm[n * PACKET : (n + 1) * PACKET].astype(np.float32))
            packet = self.stream.wrap(OpusPacket(payload, 960 * n, n == 0), time.time())
            if n not in lost:
                self.wire.send(packet)
            report = self.stream.report(time.monotonic(), time.time())
            if report is not None:
                self.wire.send(report)
            await asyncio.sleep(max(0.0, started + 0.02 * (n + 1) - time.monotonic()))
        return started

    def heard(self) -> NDArray[np.float64]:
        """What came, decoded in order of timestamps, silence where nothing did; 24 kHz."""
        decoder = OpusDecoder()
        origin = self.packets[0][1].timestamp
        places = [((p.timestamp - origin) & 0xFFFFFFFF) // 2 for _, p in self.packets]
        pcm = np.zeros(max(places) + PACKET)
        for place, (_, packet) in sorted(zip(places, self.packets, strict=True), key=lambda pair: pair[0]):
            pcm[place : place + PACKET] = decoder.decode(packet.payload)
        return pcm

    def vanish(self) -> None:
        """Go without a word, as a phone in a lift."""
        for protocol in self.wire._ice._protocols:
            protocol.datagram_received = protocol.transport.sendto = lambda *_: None


@asynccontextmanager
async def caller(url: str) -> AsyncIterator[Caller]:
    """A caller whose call stands."""
    one = Caller()
    try:
        await one.call(url)
        yield one
    finally:
        await aiortc_hooks.close(one.connection)
