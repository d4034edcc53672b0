"""WebRtcLine: the browsers' side. It answers offers by admitting calls, moves their Opus packets between the
connection and the media plane, and notices who has gone. It decodes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription

from gateway.call import Call
from gateway.legs import aiortc_hooks
from gateway.legs.rtp_stream import RtpStream
from gateway.legs.webrtc_sdp import BadOffer, OfferedAudio, OpusTerms, read_offer, write_answer
from gateway.media.face import MediaError, PacketPort
from gateway.media.messages import OpusMedia, OpusPacket
from gateway.switchboard import Offer, Refused, Switchboard

log = logging.getLogger(__name__)

WATCH_S = 0.25
"""How often legs are looked after: RTCP reports, silence, setups that never end."""
MAX_WAITING = 10
"""Ticks of packets (200 ms) kept for a busy event loop; the oldest are dropped."""


@dataclass(frozen=True, slots=True)
class IceServer:
    """A STUN or TURN server, for the gateway and for browsers."""

    urls: tuple[str, ...]
    username: str | None = None
    credential: str | None = None


@dataclass(frozen=True, slots=True)
class WebRtcSettings:
    """What the gateway's owner decides about browser calls."""

    public_address: str | None = None
    """Announced beside the local addresses, with the same ports (1:1 NAT)."""
    ice_servers: tuple[IceServer, ...] = ()
    terms: OpusTerms = field(default_factory=OpusTerms)
    setup_s: float = 15.0
    """A call of which no audio came for so long is given up, however alive the browser is."""
    silence_s: float = 4.0
    """A browser is gone after so long without any sign of life: audio, a report, a connectivity check."""
    probe_s: float = 1.0
    """One that gave none for so long (it took its track away) is asked for one."""


Presence = Literal["there", "quiet", "gone", "never came"]


def presence(
    now: float, since: float, audio_at: float | None, life_at: float, wanted: WebRtcSettings
) -> Presence:
    """What is to be thought of a browser that sent audio and signs of life last at these times (seconds)."""
    if now - life_at > wanted.silence_s:
        return "gone"
    if audio_at is None:
        return "never came" if now - since > wanted.setup_s else "there"
    return "quiet" if now - life_at > wanted.probe_s else "there"


class WebRtcLeg:
    """One peer connection: the caller's side of one call."""

    def __init__(self, call: Call, offered: OfferedAudio, settings: WebRtcSettings) -> None:
        self.call = call
        self.settings = settings
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=_ice_servers(settings)))
        self.wire = aiortc_hooks.AudioWire(self.connection, self._rtp_received, self._rtcp_received)
        self.stream = RtpStream(self.wire.ssrc, offered.payload_type, secrets.token_hex(8))
        self.port: PacketPort | None = None
        self._since = time.monotonic()
        self._closed = False
        self.connection.on("connectionstatechange", self._state_changed)

    async def answer(self, offered: OfferedAudio) -> str:
        """The SDP answer, candidates included. Raises BadOffer."""
        try:
            await self.connection.setRemoteDescription(RTCSessionDescription(offered.sdp, "offer"))
            await self.connection.setLocalDescription(await self.connection.createAnswer())
        except Exception as error:
            # aiortc's parser raises whatever a strange line makes it trip over.
            log.info("call %s: the offer was refused: %s", self.call.id, type(error).__name__)
            raise BadOffer("the offer cannot be answered") from error
        text = self.connection.localDescription.sdp
        return write_answer(text, offered, self.settings.terms, self.settings.public_address)

    def send(self, packet: OpusPacket) -> None:
        """Send one packet of the agent's voice now."""
        if self.wire.connected:
            self.wire.send(self.stream.wrap(packet, time.time()))

    def watch(self, now: float) -> None:
        """Send a report if one is due; end the call if the browser is gone or never came."""
        report = self.stream.report(now, time.time()) if self.wire.connected else None
        if report is not None:
            self.wire.send(report)
        audio_at, life_at = self.stream.last_received_at, self.wire.last_heard_at
        match presence(now, self._since, audio_at, life_at, self.settings):
            case "gone":
                self.call.end_soon("caller", "the browser is gone")
            case "never came":
                self.call.end_soon("gateway", "no audio came from the browser")
            case "quiet":
                self.wire.probe()

    async def hang_up(self, reason: str) -> None:
        """Say goodbye (RTCP BYE, DTLS close)."""
        await self.close()

    async def close(self) -> None:
        """Free the connection and its sockets. Idempotent; never raises."""
        if self._closed:
            return
        self._closed = True
        self.wire.stop_probing()
        if self.wire.connected:
            self.wire.send(self.stream.goodbye())
        await aiortc_hooks.close(self.connection)

    def _rtp_received(self, data: bytes) -> None:
        now = time.monotonic()
        packet = self.stream.receive(data, now)
        if packet is not None and self.port is not None:
            self.port.receive(packet.sequence, packet.timestamp, packet.payload, packet.marker, now)

    def _rtcp_received(self, data: bytes) -> None:
        if self.stream.receive_rtcp(data, time.monotonic(), time.time()):
            self.call.end_soon("caller", "hung up")
        elif self.port is not None:
            round_trip_ms = 1000 * (self.stream.round_trip_s or 0.0)
            self.call.plane.note_report(self.call.row, self.stream.remote_loss, round_trip_ms)

    def _state_changed(self) -> None:
        state = self.connection.connectionState
        log.debug("call %s: connection %s", self.call.id, state)
        if state == "connected":
            self._since = time.monotonic()
            self.call.answered()
        elif state == "failed":
            self.call.end_soon("gateway", "the connection failed")
        elif state == "closed" and not self._closed:
            self.call.end_soon("caller", "hung up")


class WebRtcLine:
    """All browser calls: offers in, packets out once a tick, one watch for all legs."""

    def __init__(self, switchboard: Switchboard, settings: WebRtcSettings = WebRtcSettings()) -> None:
        aiortc_hooks.check_version()
        self.switchboard = switchboard
        self.settings = settings
        self.legs: dict[int, WebRtcLeg] = {}
        """By row."""
        self.outbox = Outbox(self._send)
        self._watching: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to watch the legs. Call it on the loop that will answer offers."""
        self.outbox.loop = asyncio.get_running_loop()
        self._watching = asyncio.create_task(self._watch(), name="webrtc watch")

    async def stop(self) -> None:
        """Close every connection. The calls should have ended before. Idempotent."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        await asyncio.gather(*(leg.close() for leg in list(self.legs.values())), *self._closing)

    async def answer(self, sdp: str, persona: str | None = None) -> tuple[Call, str]:
        """Let a browser in: its call and our SDP answer. Raises BadOffer, switchboard.Refused."""
        offered = read_offer(sdp)
        call = await self.switchboard.admit(Offer("webrtc", persona))
        try:
            return call, await self._open(call, offered)
        except BaseException as error:
            # Also when the browser goes away while we answer: the slot must come back.
            reason = str(error) if isinstance(error, BadOffer) else "the call could not be set up"
            call.end_soon("gateway", reason)
            raise

    async def _open(self, call: Call, offered: OfferedAudio) -> str:
        leg = WebRtcLeg(call, offered, self.settings)
        call.leg = leg
        self.legs[call.row] = leg
        call.on_ended(lambda _: self._forget(leg))
        answer = await leg.answer(offered)
        terms = self.settings.terms
        media = OpusMedia(offered.payload_type, offered.fec, terms.max_average_bitrate)
        try:
            leg.port = call.plane.open_opus(call.row, media, self.outbox)
        except MediaError as error:
            log.error("call %s: %s", call.id, error)
            raise Refused(503, "the audio path is not available", 10.0) from error
        call.media_opened(leg.port.call)
        return answer

    def _forget(self, leg: WebRtcLeg) -> None:
        if self.legs.get(leg.call.row) is leg:
            del self.legs[leg.call.row]
        task = asyncio.create_task(leg.close(), name=f"close {leg.call.id}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _send(self, packets: list[tuple[int, OpusPacket]]) -> None:
        for row, packet in packets:
            leg = self.legs.get(row)
            if leg is not None:
                leg.send(packet)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            now = time.monotonic()
            for leg in list(self.legs.values()):
                try:
                    leg.watch(now)
                except Exception:
                    log.exception("call %s: its leg failed", leg.call.id)
                    leg.call.end_soon("gateway", "internal error")


class Outbox:
    """Carries each tick's packets from the media thread to the loop; bounded, the oldest tick is dropped."""

    def __init__(self, send: Callable[[list[tuple[int, OpusPacket]]], None]) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.dropped_ticks = 0
        """Ticks whose packets were never sent because the loop was busy for longer than MAX_WAITING."""
        self._send = send
        self._waiting: deque[list[tuple[int, OpusPacket]]] = deque(maxlen=MAX_WAITING)
        self._woken = False

    def __call__(self, packets: list[tuple[int, OpusPacket]], /) -> None:
        """Take one tick's packets; called on the media thread, never blocks."""
        if len(self._waiting) == MAX_WAITING:
            self.dropped_ticks += 1
        self._waiting.append(packets)
        if self._woken or self.loop is None:
            return
        self._woken = True
        try:
            self.loop.call_soon_threadsafe(self._drain)
        except RuntimeError:
            # The loop is closed: the gateway is going down under a media thread that has one tick left.
            self._woken = False

    def _drain(self) -> None:
        self._woken = False
        while self._waiting:
            self._send(self._waiting.popleft())


def _ice_servers(settings: WebRtcSettings) -> list[RTCIceServer]:
    # A gateway that knows its public address needs no server to tell it.
    servers = () if settings.public_address else settings.ice_servers
    return [RTCIceServer(list(s.urls), s.username, s.credential) for s in servers]
