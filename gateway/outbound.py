"""OutboundCall: `moshi-gateway call`. Dials, plays a recording, records both sides, and measures.

It is a gateway of one row: the same user agent, media plane and 80 ms tick, with a Tape in the
engine's place.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

from engine.api import TICK_S
from engine.rows import AudioRows
from engine.slots import SlotTable
from engine.tick import TickEngine
from gateway.audio_file import StereoWav
from gateway.call_report import CallReport
from gateway.config import SipSettings
from gateway.dial import Dial, resolved
from gateway.legs.rtp_ports import RtpPorts
from gateway.legs.sip_calls import LegSockets, local_address
from gateway.legs.sip_leg import rtp_media
from gateway.media.clock import MediaClock
from gateway.media.face import carried
from gateway.media.messages import Closed, FirstPacket, MediaFailed, RtpTimedOut
from gateway.media.plane import MediaPlane
from gateway.stopping import Stopping
from gateway.tape import Tape
from gateway.turns import Levels, answer_latencies
from sip.agent import UserAgent
from sip.endpoint import Endpoint
from sip.events import (
    CallAnswered,
    CallEnded,
    CallHeld,
    CallResumed,
    CallRinging,
    Event,
    MediaChanged,
)
from sip.sdp import AgreedMedia, LocalMedia
from sip.settings import AgentSettings

ROW = 0
TICK_AFTER_MEDIA_S = 0.005
GOODBYE_S = 3.0
"""How long our BYE's answer and the plane's last word are waited for."""


class OutboundCall:
    """One call from dialling to the report. Made and run inside a loop; `say` gets lines of progress."""

    def __init__(self, dial: Dial, sip: SipSettings, peer: str, say: Callable[[str], None]) -> None:
        """`peer`: the numeric address behind the URI (see `resolved`)."""
        self.dial = dial
        self.sip = sip
        self.say = say
        self.report = CallReport()
        self.tape = Tape(dial.speech)
        self.levels = (Levels(), Levels())
        rows = AudioRows(1)
        self.engine = TickEngine("tape", self.tape, rows, SlotTable(1), TICK_AFTER_MEDIA_S)
        self.plane = MediaPlane(rows)
        self.address = sip.public_address or local_address(peer, sip.rtp_host or sip.host)
        agent = AgentSettings(user_agent=sip.user_agent, public_host=self.address, ring_timeout_s=dial.ring_s)
        self.agent = UserAgent(agent, random.SystemRandom())
        self.endpoint = Endpoint(self.agent, self._on_sip)
        self._ssrc = secrets.randbits(32)
        self._dialled_at = 0.0
        self._agreed: AgreedMedia | None = None
        self._changed = asyncio.Event()
        """Something happened that ends a wait: answered, ended, media failed or closed."""
        self._over = False
        self._media_open = False

    async def run(self, stopping: Stopping) -> CallReport:
        """Hold the call until speech and tail are over, the peer hangs up, or stopping is asked.

        Raises OSError (sockets, recording), NoFreePort, MediaError, ValueError for a URI that is none.
        """
        async with AsyncExitStack() as closing:
            wav = StereoWav(self.dial.recording)
            closing.callback(lambda: wav.close() if wav.samples else wav.discard())
            await self._open(closing)
            ports = RtpPorts(self.sip.rtp_host or self.sip.host, *self.sip.rtp_ports)
            sockets = LegSockets(*ports.take_pair(time.monotonic()))
            closing.callback(sockets.close)
            call = self._invite(sockets)
            while self._agreed is None and not self._over and not stopping.asked:
                await self._event(stopping)
            if self._agreed is not None and not self._over:
                rtcp = None if self._agreed.rtcp_mux else sockets.rtcp
                self.plane.open_rtp(ROW, sockets.rtp, rtp_media(self._agreed, self._ssrc), rtcp)
                self._media_open = True
                await self._talk(wav, stopping)
            await self._hang_up(call)
        self.report.answers_s = answer_latencies(*self.levels)
        self.report.duration_s = wav.samples / wav.rate
        return self.report

    async def _open(self, closing: AsyncExitStack) -> None:
        await self.endpoint.open_udp(self.sip.host, 0)
        closing.push_async_callback(self.endpoint.close)
        await self.engine.start()
        closing.push_async_callback(self.engine.stop)
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(self._on_media)

        self.plane.on_events = wake
        clock = MediaClock(self.plane)
        clock.start()
        closing.callback(clock.stop)

    def _invite(self, sockets: LegSockets) -> str:
        media = LocalMedia(
            self.address, sockets.port, codecs=carried(self.sip.codecs), rtcp_port=sockets.own_rtcp_port
        )
        self._dialled_at = time.monotonic()
        call = self.agent.invite(self.dial.uri, media, self._dialled_at)
        self.endpoint.transmit()
        return call

    async def _talk(self, wav: StereoWav, stopping: Stopping) -> None:
        slot = await self.engine.open()
        self.plane.start(ROW)
        frames = (len(self.dial.speech) / 24_000 + self.dial.tail_s) / TICK_S
        while not (self._over or stopping.asked or self.tape.played >= frames):
            await self._event(stopping, within=TICK_S)
            self._record(wav)
        slot.close()
        self._record(wav)

    def _record(self, wav: StereoWav) -> None:
        for said, heard in self.tape.take():
            wav.write(said, heard)
            self.levels[0].add(said)
            self.levels[1].add(heard)

    async def _hang_up(self, call: str) -> None:
        if not self.report.ended_by:
            self.agent.hang_up(call, time.monotonic())
            self.endpoint.transmit()
        if self._media_open:
            self.plane.close(ROW)
        deadline = time.monotonic() + GOODBYE_S
        while (left := deadline - time.monotonic()) > 0 and (self._media_open or not self.report.ended_by):
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                break

    async def _event(self, stopping: Stopping, within: float | None = None) -> None:
        changed = asyncio.ensure_future(self._changed.wait())
        await stopping.or_any(changed, within=within)
        changed.cancel()
        self._changed.clear()

    def _on_sip(self, event: Event) -> None:
        match event:
            case CallRinging(code=code, reason=reason):
                self.say(f"{code} {reason}")
            case CallAnswered(media=media):
                self.report.setup_s = time.monotonic() - self._dialled_at
                self.report.code, self.report.codec = 200, media.codec
                self._agreed = media
                self.say("answered")
            case MediaChanged(media=media) | CallHeld(media=media) | CallResumed(media=media):
                if self._media_open:
                    self.plane.change_rtp(ROW, rtp_media(media, self._ssrc))
            case CallEnded(by=by, code=code, reason=reason):
                self.report.ended_by, self.report.code, self.report.reason = by, code, reason
                self._over = True
            case _:
                return
        self._changed.set()

    def _on_media(self) -> None:
        for event in self.plane.take_events():
            match event:
                case FirstPacket():
                    self.report.first_audio_s = time.monotonic() - self._dialled_at
                case Closed(stats=stats):
                    self.report.stats = stats
                    self._media_open = False
                case RtpTimedOut(silent_s=silent):
                    self.say(f"no audio for {silent:.0f} s: hanging up")
                    self._over = True
                case MediaFailed(reason=reason):
                    self.say(reason)
                    self._over = True
        self._changed.set()


async def place(dial: Dial, sip: SipSettings, say: Callable[[str], None]) -> tuple[CallReport, bool]:
    """Place the call; the report, and whether a signal ended it."""
    stopping = Stopping(asyncio.get_running_loop())
    call = OutboundCall(dial, sip, await resolved(dial.uri), say)
    return await call.run(stopping), stopping.asked
