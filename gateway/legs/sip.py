"""SipLine: the phone side. It answers the user agent's events by admitting calls and giving their rows
to the media plane. It decides nothing about SIP (sip/ does) and touches no audio.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from gateway.call import Call, CallEvent
from gateway.legs.rtp_ports import NoFreePort, RtpPorts
from gateway.media.messages import Direction, FirstPacket, RtpMedia, SrtpKeys
from gateway.media.plane import MediaError
from gateway.switchboard import Offer, Refused, Switchboard
from sip.agent import CallStateError, UserAgent
from sip.events import (
    CallAnswered,
    CallConfirmed,
    CallEnded,
    CallHeld,
    CallOffered,
    CallResumed,
    Event,
    MediaChanged,
    Transport,
)
from sip.sdp import AgreedMedia, LocalMedia, SdpError, SrtpPolicy

log = logging.getLogger(__name__)


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


class AgentShell(Protocol):
    """What moves the user agent's bytes after it was told something (sip.endpoint.Endpoint)."""

    def transmit(self) -> None: ...


class SipLeg:
    """The caller's side of one phone call: a dialog of the user agent and an RTP socket."""

    def __init__(self, line: SipLine, dialog: str, port: int) -> None:
        self.line = line
        self.dialog = dialog
        self.port = port
        self.over = False
        self.ssrc = secrets.randbits(32)
        self.agreed: AgreedMedia | None = None

    async def hang_up(self, reason: str) -> None:
        """BYE, or CANCEL, or a final answer: what the dialog's state asks for. Never raises."""
        if not self.over:
            self.line.agent.hang_up(self.dialog, self.line.now())
            self.line.shell.transmit()

    def media_of(self, agreed: AgreedMedia) -> RtpMedia:
        """What the plane must know of an agreed description."""
        return rtp_media(agreed, self.ssrc)


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

    def receive(self, event: Event) -> None:
        """Take one event of the user agent. Never raises for what a peer did."""
        match event:
            case CallOffered():
                task = asyncio.get_running_loop().create_task(self._admit(event), name="admit")
                self._admitting[event.call] = task
                task.add_done_callback(lambda done: self._admitted(event.call, done))
            case CallConfirmed(call=dialog, media=media) | CallAnswered(call=dialog, media=media):
                self._confirmed(dialog, media)
            case (
                MediaChanged(call=dialog, media=media)
                | CallHeld(call=dialog, media=media)
                | CallResumed(call=dialog, media=media)
            ):
                self._change_media(dialog, media)
            case CallEnded(call=dialog, by=by, reason=reason):
                self._ended(dialog, by, reason)

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
        leg = SipLeg(self, offered.call, sock.getsockname()[1])
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
        call.leg = leg
        call.media_opened(number)
        call.on_event(lambda event: self._on_media(call, event))
        call.on_ended(lambda _: self._release(leg))
        self._calls[offered.call] = call

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
        # Who holds us may play music; it is not the caller's voice.
        self.switchboard.plane.deafen(call.row, media.held)

    def _on_media(self, call: Call, event: CallEvent) -> None:
        if isinstance(event, FirstPacket):
            call.answered()  # the ACK may be late or lost; who sends audio has our 200

    def _ended(self, dialog: str, by: str, reason: str) -> None:
        call = self._calls.get(dialog)
        if call is None:
            return
        if isinstance(call.leg, SipLeg):
            call.leg.over = True
        call.end_soon("caller" if by == "peer" else "gateway", reason or f"ended by {by}")

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


def rtp_media(agreed: AgreedMedia, ssrc: int) -> RtpMedia:
    """An agreed description in the media plane's words; `ssrc` is of what we send."""
    keys = agreed.srtp
    return RtpMedia(
        codec=agreed.codec,
        payload_type=agreed.payload_type,
        remote=_sendable(agreed.remote_host, agreed.remote_port),
        ssrc=ssrc,
        dtmf_payload_type=agreed.dtmf_payload_type,
        ptime_ms=agreed.ptime_ms,
        direction=Direction(agreed.direction),
        srtp=None if keys is None else SrtpKeys(keys.suite, keys.send, keys.receive),
        rtcp_remote=None if agreed.rtcp_mux else _sendable(*agreed.remote_rtcp),
        cname=f"{ssrc:08x}",
    )


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


def _sendable(host: str, port: int) -> tuple[str, int] | None:
    """None for the address of an old-style hold or a port that takes nothing."""
    return None if host in ("0.0.0.0", "::") or port == 0 else (host, port)
