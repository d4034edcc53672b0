"""Calls for bench/barge_in.py: live over SIP and WebRTC in real time, and stepped in made-up time.

Both give the same record of a call: when what left the caller, what came to him when, what the gateway said.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import aiohttp
import numpy as np
from aiortc import RTCSessionDescription

from bench.barge_scenes import RATE, FarEnd, Script, TalkingStepper, upsampled
from bench.echo_scenes import EchoPath, Pcm
from engine.api import Persona
from engine.opus import OpusDecoder, OpusEncoder
from engine.rows import AudioRows
from engine.slots import SlotTable
from engine.tick import TickEngine
from gateway import config
from gateway.app import App
from gateway.call import Call
from gateway.duplex import Policy
from gateway.floor import Floor
from gateway.legs import aiortc_hooks
from gateway.legs.rtp_stream import parse_rtp
from gateway.media.messages import OpusPacket, RtpMedia
from gateway.media.plane import MediaPlane, MediaSettings
from gateway.media.processing import DuplexProcessing
from gateway.switchboard import Offer, Switchboard
from tests.phone import Phone, bound_socket
from tests.rtp_caller import PACKET, RtpCaller, from_mulaw, to_mulaw
from tests.webrtc_caller import Caller

STEP_S = 0.02
ENGINE_AFTER_S = 0.005


@dataclass
class Record:
    """One call. Times are seconds of one clock."""

    rate: int
    script: Script
    departures: list[float] = field(default_factory=list)
    """When the script's block of that number went out."""
    arrivals: list[tuple[float, Pcm]] = field(default_factory=list)
    events: list[tuple[float, object]] = field(default_factory=list)
    """As they were delivered to the call."""
    ended: float | None = None
    """Seconds after which the gateway ended a live call before the caller did."""
    stalls: list[tuple[float, float]] = field(default_factory=list)
    """When this machine stood still, and for how many seconds."""

    def disturbed(self, first: float, last: float, longest_s: float = 0.04) -> bool:
        """Whether the machine stood still for longer than that between two times."""
        return any(first <= at + length and at <= last and length > longest_s for at, length in self.stalls)

    def left_at(self, sample: int) -> float:
        """When the packet with that sample of the script went out."""
        return self.departures[min(sample // (RATE // 50), len(self.departures) - 1)]


# -- stepped


class StepPhone(Phone):
    """A G.711 phone with a far end, in a stepped call."""

    def __init__(self, script: Script, far: FarEnd) -> None:
        super().__init__(np.zeros(PACKET, np.int16))
        self.far, self.record = far, Record(RATE, script)

    def step(self, now: float) -> None:
        start = self.sent * PACKET
        block = self.far.next()
        words = self.record.script.pcm[start : start + PACKET]
        block[: len(words)] += words
        self.sent += 1
        self.record.departures.append(now)
        datagram = self.packet(to_mulaw(block))
        if not self.far.lost():
            self.sock.sendto(datagram, self.peer)

    def take(self, now: float) -> None:
        self.listen(0)
        for _, _, _, payload in self.heard:
            pcm = from_mulaw(payload).astype(np.float32)
            self.far.play(pcm)
            self.record.arrivals.append((now, pcm))
        self.heard.clear()


class SteppedCalls:
    """Many calls through one plane, engine and floor, as fast as the machine goes."""

    def __init__(self, count: int, agents: dict[int, Pcm]) -> None:
        """agents: the agent's voice by rate."""
        self._voice = agents[RATE]
        rows, self.stepper = AudioRows(count), TalkingStepper(count, agents[24_000])
        self.engine = TickEngine("talker", self.stepper, rows, SlotTable(count), ENGINE_AFTER_S)
        processing = DuplexProcessing(count)
        self.plane = MediaPlane(rows, MediaSettings(kernel_times=False), processing)
        personas = {"default": Persona(), **{policy.value: Persona(policy.value) for policy in Policy}}
        self.switchboard = Switchboard(self.engine, self.plane, personas)
        self.floor = Floor(self.switchboard, processing, {policy.value: policy for policy in Policy})
        self.phones: list[StepPhone] = []
        self.number = 1_000
        self.engine.begin(self.now + ENGINE_AFTER_S)

    @property
    def now(self) -> float:
        return self.number * STEP_S

    async def call(self, policy: Policy, script: Script, path: EchoPath) -> Record:
        """A call that stands. Its record grows as time is stepped."""
        call = await self.switchboard.admit(Offer("sip", policy.value))
        far = FarEnd(RATE, path, self._voice, seed=100 + len(self.phones))
        phone = StepPhone(script, far)
        call.on_event(lambda event: phone.record.events.append((self.now, event)))
        sock = bound_socket()
        phone.peer = sock.getsockname()
        media = RtpMedia("PCMU", 0, phone.sock.getsockname(), 77)
        call.media_opened(self.plane.open_rtp(call.row, sock, media))
        call.answered()
        self.phones.append(phone)
        return phone.record

    async def run(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP_S)):
            self.number += 1
            for phone in self.phones:
                phone.step(self.now)
            self.plane.tick(self.now)
            self.engine.run_due(self.now + ENGINE_AFTER_S)
            for phone in self.phones:
                phone.take(self.now)
            if self.number % 4 == 0:
                await asyncio.sleep(0)
                self.switchboard.deliver_media_events()
                self.floor.carry()

    def close(self) -> None:
        self.plane.close_all()
        for phone in self.phones:
            phone.sock.close()


# -- live


class Leg(Protocol):
    """A caller's end of a live call, `rate` Hz, blocks of 20 ms."""

    rate: int
    came: list[tuple[float, Pcm]]

    async def call(self) -> None: ...
    def send(self, pcm: Pcm, lost: bool) -> None: ...
    async def close(self) -> None: ...


class SipLeg:
    """Raw sockets, G.711 (tests/rtp_caller.py)."""

    rate = RATE

    def __init__(self, app: App) -> None:
        self.caller = RtpCaller(app.sip_port)
        self.came: list[tuple[float, Pcm]] = []

    async def call(self) -> None:
        answer = await asyncio.to_thread(self.caller.invite)
        if not answer.startswith("SIP/2.0 200"):
            raise RuntimeError(f"the call was refused: {answer.splitlines()[0]}")
        self.caller.rtp.setblocking(False)
        asyncio.get_running_loop().add_reader(self.caller.rtp, self._take)

    def _take(self) -> None:
        data, now = self.caller.rtp.recv(2_048), time.monotonic()
        kind = struct.unpack_from("!xB", data)[0] & 0x7F
        if kind == 0 and len(data) == 12 + PACKET:
            self.came.append((now, from_mulaw(data[12:]).astype(np.float32)))

    def send(self, pcm: Pcm, lost: bool) -> None:
        if not lost:
            self.caller.send(to_mulaw(pcm))
        self.caller._sequence = (self.caller._sequence + 1) & 0xFFFF
        self.caller._timestamp = (self.caller._timestamp + PACKET) & 0xFFFFFFFF

    async def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.caller.rtp)
        self.caller.rtp.setblocking(True)
        await asyncio.to_thread(self.caller.bye)
        self.caller.__exit__()


class _Page(Caller):
    """tests/webrtc_caller.py's caller, decoding as packets come."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.came = OpusDecoder(), list[tuple[float, Pcm]]()

    def _take_rtp(self, data: bytes) -> None:
        super()._take_rtp(data)
        pcm = self.decoder.decode(parse_rtp(data).payload).astype(np.float32)
        self.came.append((self.packets.pop()[0], pcm))


class WebLeg:
    """aiortc, Opus at 24 kHz."""

    rate = 24_000

    def __init__(self, app: App) -> None:
        assert app.http is not None
        self.url = f"http://127.0.0.1:{app.http.port}"
        self.page, self.encoder = _Page(), OpusEncoder(bitrate=32_000)
        self.came, self.sent = self.page.came, 0

    async def call(self) -> None:
        connection = self.page.connection
        await connection.setLocalDescription(await connection.createOffer())
        offer = {"sdp": connection.localDescription.sdp, "type": "offer"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/api/call", json=offer) as response,
        ):
            body = await response.json()
            if response.status != 200:
                raise RuntimeError(f"the call was refused: {response.status}")
        await connection.setRemoteDescription(RTCSessionDescription(body["sdp"], "answer"))
        await asyncio.wait_for(self.page.first_packet.wait(), 10)

    def send(self, pcm: Pcm, lost: bool) -> None:
        payload = self.encoder.encode(np.clip(pcm, -1, 1))
        packet = self.page.stream.wrap(OpusPacket(payload, 960 * self.sent, self.sent == 0), time.time())
        self.sent += 1
        if not lost:
            self.page.wire.send(packet)
        report = self.page.stream.report(time.monotonic(), time.time())
        if report is not None:
            self.page.wire.send(report)

    async def close(self) -> None:
        await aiortc_hooks.close(self.page.connection)


LEGS: dict[str, type[SipLeg] | type[WebLeg]] = {"sip": SipLeg, "webrtc": WebLeg}


@asynccontextmanager
async def served(policy: Policy, voice: Pcm, slots: int) -> AsyncIterator[App]:
    """A whole gateway on free ports of the loopback whose agent reads aloud."""
    settings = config.Settings(
        http=config.HttpSettings(port=0),
        sip=config.SipSettings(host="127.0.0.1", port=0, rtp_ports=(0, 0)),
        engine=config.EngineSettings(kind="echo", slots=slots, greeting=False),
        media=config.MediaSettings(echo_cancel="on"),
        personas={"default": config.PersonaSettings(duplex=policy.value)},
    )
    app = App(settings)
    assert isinstance(app.engine, TickEngine)
    app.engine._stepper = TalkingStepper(slots, voice)
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


async def live_call(
    app: App, leg: Leg, script: Script, path: EchoPath, agent: Pcm, door: asyncio.Lock
) -> Record:
    """Call, say the script in real time with the far end under it, hang up.

    agent: his voice at the leg's rate; door: one call enters at a time.
    """
    record = Record(leg.rate, script)
    loop = asyncio.get_running_loop()
    pcm = await asyncio.to_thread(upsampled, script.pcm, leg.rate // RATE)
    admitted, gone = list[Call](), list[float]()
    async with door:
        app.switchboard.on_admitted(admitted.append)
        await leg.call()
    admitted[0].on_event(lambda event: record.events.append((time.monotonic(), event)))
    admitted[0].on_ended(lambda _: gone.append(time.monotonic()))
    far, block = FarEnd(leg.rate, path, agent, seed=7, wait=2), leg.rate // 50
    began = loop.time()
    for number in range(len(pcm) // block):
        for came in leg.came[len(record.arrivals) :]:
            record.arrivals.append(came)
            far.play(came[1])
        leg.send(far.next() + pcm[number * block : (number + 1) * block], far.lost())
        record.departures.append(time.monotonic())
        await asyncio.sleep(max(0.0, began + STEP_S * (number + 1) - loop.time()))
    record.arrivals += leg.came[len(record.arrivals) :]
    record.ended = gone[0] - record.departures[0] if gone else None
    await leg.close()
    return record
