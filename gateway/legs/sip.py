"""SipLine: the phone side. It answers the user agent's events by admitting calls and giving their rows
to the media plane. It decides nothing about SIP (sip/ does) and touches no audio.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

from gateway.call import Call, CallEvent
from gateway.call_events import StateChanged
from gateway.dial import CannotDial, resolved
from gateway.legs.rtp_ports import NoFreePort, RtpPorts
from gateway.legs.sip_leg import AgentShell, ControlFailed, SipLeg
from gateway.media.face import MediaError
from gateway.media.messages import FirstPacket, RtpMedia
from gateway.switchboard import Offer, Refused, Switchboard
from sip.agent import CallStateError, UserAgent
from sip.events import (
    CallAnswered,
    CallConfirmed,
    CallEnded,
    CallHeld,
    CallOffered,
    CallResumed,
    CallRinging,
    DtmfReceived,
    EarlyMediaStarted,
    Event,
    MediaChanged,
    Transport,
)
from sip.sdp import AgreedMedia, LocalMedia, SdpError, SrtpPolicy
from sip.settings import Credentials, Destination

log = logging.getLogger(__name__)

TRANSPORT = re.compile(r";transport=(udp|tcp|tls)\b", re.IGNORECASE)
FIRST_WORDS_S = 1.0
"""How long an agent who called waits for the other side's first packet before it speaks."""


@dataclass(frozen=True, slots=True)
class SipLineSettings:
    """What the gateway's owner decides about phone calls."""

    public_host: str | None = None
    """The address in SDP; None: the local address that faces the caller."""
    codecs: tuple[str, ...] = ("PCMU", "PCMA")
    routes: Mapping[str, str] = field(default_factory=dict)
    """Called user → persona. A user who is not in it gets the persona of his own name, or the default."""
    srtp: Literal["tls", "accept", "require"] = "tls"
    """Encrypted audio: taken over TLS only, wherever offered, or nothing else taken."""
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class Outbound:
    """How a call goes out; the defaults send it where its URI says, as ourselves."""

    destination: Destination | None = None
    credentials: Credentials | None = None
    caller: str | None = None
    """Our From URI."""


@dataclass(slots=True)
class Dialled:
    """A call we placed that is not answered yet."""

    sock: socket.socket
    outcome: asyncio.Future[None]
    heard: bool = False
    """Its first packet came before the answer."""
    connected: bool = False


class SipLine:
    """All phone legs of one user agent."""

    def __init__(
        self,
        switchboard: Switchboard,
        agent: UserAgent,
        shell: AgentShell,
        ports: RtpPorts,
        settings: SipLineSettings = SipLineSettings(),
    ) -> None:
        self.switchboard = switchboard
        self.agent = agent
        self.shell = shell
        self.ports = ports
        self.settings = settings
        self.now = settings.clock
        self._calls: dict[str, Call] = {}
        """Live calls by the user agent's id."""
        self._admitting: dict[str, asyncio.Task[None]] = {}
        self._dialling: dict[str, Dialled] = {}
        """Calls we place, until they are answered or fail; by the user agent's id."""

    def receive(self, event: Event) -> None:
        """Take one event of the user agent. Never raises for what a peer did."""
        leg = self._leg(getattr(event, "call", ""))
        if leg is not None:
            leg.receive(event)
        match event:
            case CallOffered():
                task = asyncio.get_running_loop().create_task(self._admit(event), name="admit")
                self._admitting[event.call] = task
                task.add_done_callback(lambda done: self._admitted(event.call, done))
            case CallConfirmed(call=dialog, media=media):
                self._confirmed(dialog, media)
            case CallRinging(call=dialog):
                self._say(dialog, StateChanged("ringing"))
            case DtmfReceived(call=dialog, digit=digit, duration_ms=duration_ms):
                self._press(dialog, digit, duration_ms)
            case EarlyMediaStarted(call=dialog, media=media):
                self._hear_early(dialog, media)
            case CallAnswered(call=dialog, media=media):
                self._connected(dialog, media)
            case (
                MediaChanged(call=dialog, media=media)
                | CallHeld(call=dialog, media=media)
                | CallResumed(call=dialog, media=media)
            ):
                self._change_media(dialog, media)
                if not isinstance(event, MediaChanged):
                    self._say(dialog, StateChanged("held" if isinstance(event, CallHeld) else "resumed"))
            case CallEnded(call=dialog):
                self._ended(event)

    async def stop(self) -> None:
        """Wait for offers that are being answered."""
        if self._admitting:
            await asyncio.wait(list(self._admitting.values()), timeout=5.0)

    async def _admit(self, offered: CallOffered) -> None:
        offer = Offer(
            "sip", self._persona(offered.called.user), caller=offered.caller.user, callee=offered.called.user
        )
        try:
            call = await self.switchboard.admit(offer)
        except Refused as refused:
            self._refuse(offered.call, refused)
            return
        try:
            self._answer(offered, call)
        except NoFreePort as full:
            log.error("call %s: %s", call.id, full)
            await self._give_up(offered.call, call, 503)
        except MediaError as broken:
            log.error("call %s: %s", call.id, broken)
            self.agent.hang_up(offered.call, self.now())  # it had its 200 already
            await call.end("gateway", str(broken))
        except SdpError as unfit:
            await self._give_up(offered.call, call, unfit.code)
        except CallStateError:
            await call.end("caller", "cancelled")  # the caller gave up while the slot was opened
        finally:
            self.shell.transmit()

    def _answer(self, offered: CallOffered, call: Call) -> None:
        """200 with our port, and the row to the plane; undone by the caller's end() if a step fails."""
        sock = self.ports.take(self.now())
        leg = SipLeg(self.agent, self.shell, self.now, offered.call, sock.getsockname()[1])
        try:
            local = self._local_media(offered.source[0], leg.port, offered.transport)
            agreed = self.agent.accept(offered.call, local, self.now())
            media = leg.media_of(agreed) if agreed else RtpMedia("PCMU", 0, None, leg.ssrc)
            number = self.switchboard.plane.open_rtp(call.row, sock, media)
        except Exception:
            sock.close()
            self.ports.give_back(leg.port, self.now())
            raise
        leg.agreed = agreed
        call.media_opened(number)
        self._join(call, leg)

    def _join(self, call: Call, leg: SipLeg) -> None:
        call.leg = leg
        call.on_event(lambda event: self._on_media(call, event))
        call.on_ended(lambda _: self._release(leg))
        self._calls[leg.dialog] = call

    async def place(self, uri: str, persona: str | None = None, way: Outbound | None = None) -> Call:
        """Call somebody; returns once it was answered. Raises as dial(), and ControlFailed with the final
        code when it was not answered."""
        call, answer = await self.dial(uri, persona, way)
        await answer
        return call

    async def dial(
        self, uri: str, persona: str | None = None, way: Outbound | None = None
    ) -> tuple[Call, asyncio.Future[None]]:
        """Reserve a slot and send the INVITE: the call, and what is done once it was answered, or fails
        with ControlFailed and the final code. Cancelling that gives the call up.

        Raises switchboard.Refused (full, draining, unknown persona), CannotDial.
        """
        way = way or Outbound()
        peer, transport = await _next_hop(uri, way.destination)
        call = await self.switchboard.admit(Offer("sip", persona, callee=uri, outbound=True))
        sock: socket.socket | None = None
        try:
            sock = self.ports.take(self.now())
            dialog = self.agent.invite(
                uri,
                self._local_media(peer, sock.getsockname()[1], transport),
                self.now(),
                caller=way.caller,
                credentials=way.credentials,
                destination=way.destination,
            )
        except (NoFreePort, ValueError) as error:
            if sock is not None:
                self.ports.give_back(sock.getsockname()[1], self.now())
                sock.close()
            await call.end("gateway", str(error))
            raise CannotDial(str(error)) from error
        leg = SipLeg(self.agent, self.shell, self.now, dialog, sock.getsockname()[1])
        self._dialling[dialog] = dialled = Dialled(sock, asyncio.get_running_loop().create_future())
        self._join(call, leg)
        dialled.outcome.add_done_callback(lambda outcome: self._dialled(call, dialog, outcome))
        self.shell.transmit()
        return call, dialled.outcome

    def _dialled(self, call: Call, dialog: str, outcome: asyncio.Future[None]) -> None:
        dialled = self._dialling.pop(dialog)
        error = None if outcome.cancelled() else outcome.exception()
        if isinstance(error, ControlFailed):
            call.end_soon("caller", str(error))
        elif outcome.cancelled():
            call.end_soon("gateway", "given up")
        if call.media_number is None:
            dialled.sock.close()

    def _hear_early(self, dialog: str, media: AgreedMedia) -> None:
        """Audio may come before the answer; the agent hears and says nothing until then."""
        call, dialled = self._calls.get(dialog), self._dialling.get(dialog)
        if call is None or dialled is None or not isinstance(call.leg, SipLeg):
            return
        if call.media_number is not None:
            self._change_media(dialog, media)
            return
        try:
            number = self.switchboard.plane.open_rtp(call.row, dialled.sock, call.leg.media_of(media))
        except MediaError as broken:
            call.end_soon("gateway", str(broken))
            return
        call.media_opened(number)
        call.leg.agreed = media

    def _connected(self, dialog: str, media: AgreedMedia) -> None:
        """Our call was answered. The first words wait for the caller's first packet, but not for long."""
        self._hear_early(dialog, media)
        call, dialled = self._calls.get(dialog), self._dialling.get(dialog)
        if call is None or dialled is None or call.media_number is None:
            return
        dialled.connected = True
        if dialled.heard:
            call.answered()
        else:
            asyncio.get_running_loop().call_later(FIRST_WORDS_S, call.answered)
        if not dialled.outcome.done():
            dialled.outcome.set_result(None)

    def _confirmed(self, dialog: str, media: AgreedMedia) -> None:
        call = self._calls.get(dialog)
        if call is None:
            return
        if isinstance(call.leg, SipLeg) and call.leg.agreed != media:
            self._change_media(dialog, media)
        call.answered()

    def _change_media(self, dialog: str, media: AgreedMedia) -> None:
        call = self._calls.get(dialog)
        if call is None or not isinstance(call.leg, SipLeg) or call.ended.is_set():
            return
        call.leg.agreed = media
        try:
            self.switchboard.plane.change_rtp(call.row, call.leg.media_of(media))
        except MediaError as broken:
            call.end_soon("gateway", str(broken))
            return
        call.leg.let_hear(call)

    def _say(self, dialog: str, event: CallEvent) -> None:
        call = self._calls.get(dialog)
        if call is not None:
            call.deliver(event)

    def _press(self, dialog: str, digit: str, duration_ms: int) -> None:
        call = self._calls.get(dialog)
        if call is not None:
            call.press(digit, duration_ms, "info")

    def _on_media(self, call: Call, event: CallEvent) -> None:
        if not isinstance(event, FirstPacket) or not isinstance(call.leg, SipLeg):
            return
        dialled = self._dialling.get(call.leg.dialog)
        if dialled is not None and not dialled.connected:
            dialled.heard = True  # early media: ringing, or an announcement
        else:
            call.answered()  # the ACK may be late or lost; who sends audio has our 200

    def _ended(self, ended: CallEnded) -> None:
        call = self._calls.get(ended.call)
        if call is None:
            return
        call.final_code = ended.code
        dialled = self._dialling.get(ended.call)
        if dialled is not None and not dialled.outcome.done():
            dialled.outcome.set_exception(ControlFailed(ended.code, ended.reason))
            return
        call.end_soon("caller" if ended.by == "peer" else "gateway", ended.reason or f"ended by {ended.by}")

    def _leg(self, dialog: str) -> SipLeg | None:
        call = self._calls.get(dialog)
        return call.leg if call is not None and isinstance(call.leg, SipLeg) else None

    def _release(self, leg: SipLeg) -> None:
        self._calls.pop(leg.dialog, None)
        self.ports.give_back(leg.port, self.now())

    def _refuse(self, dialog: str, refused: Refused) -> None:
        headers: tuple[tuple[str, str], ...] = ()
        if refused.retry_after_s is not None:
            headers = (("Retry-After", str(max(1, round(refused.retry_after_s)))),)
        self._final(dialog, refused.code, headers)
        self.shell.transmit()

    async def _give_up(self, dialog: str, call: Call, code: int) -> None:
        self._final(dialog, code, ())
        await call.end("gateway", f"refused with {code}")

    def _final(self, dialog: str, code: int, headers: tuple[tuple[str, str], ...]) -> None:
        try:
            self.agent.refuse(dialog, code, self.now(), headers=headers)
        except CallStateError:
            log.debug("the caller gave up before he was refused")

    def _admitted(self, dialog: str, task: asyncio.Task[None]) -> None:
        self._admitting.pop(dialog, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an offered call failed", exc_info=error)
            self.agent.hang_up(dialog, self.now())
            self.shell.transmit()

    def _persona(self, called_user: str) -> str | None:
        name = self.settings.routes.get(called_user, called_user)
        return name if name in self.switchboard.personas else None

    def _local_media(self, peer: str, port: int, transport: Transport) -> LocalMedia:
        host = self.settings.public_host or local_address(peer, self.ports.host)
        policy = self.settings.srtp
        srtp: SrtpPolicy = ("accept" if transport == "tls" else "off") if policy == "tls" else policy
        return LocalMedia(host, port, codecs=self.settings.codecs, srtp=srtp)


async def _next_hop(uri: str, destination: Destination | None) -> tuple[str, Transport]:
    """The numeric address that a call goes to, and how. Raises CannotDial."""
    if destination is None:
        transport = TRANSPORT.search(uri)
        return await resolved(uri), cast(Transport, transport[1].lower()) if transport else "udp"
    host = f"[{destination.host}]" if ":" in destination.host else destination.host
    return await resolved(f"sip:{host}:{destination.port}"), destination.transport


def local_address(peer: str, bound: str) -> str:
    """The address of this machine that a peer can answer to: the bound one, or the one that faces him."""
    if bound not in ("0.0.0.0", "::", ""):
        return bound
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((peer, 9))  # UDP: sends nothing, only asks for the route
            return str(probe.getsockname()[0])
        except OSError:
            return "::1" if family == socket.AF_INET6 else "127.0.0.1"
