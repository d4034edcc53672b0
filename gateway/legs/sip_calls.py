"""SipCalls: the live phone calls of one user agent, and what is done alike for those that came in and those
that go out: ports, addresses, the row's place in the media plane.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from gateway.call import Call, CallEvent
from gateway.legs.rtp_ports import RtpPorts
from gateway.legs.sip_leg import AgentShell, SipLeg
from gateway.media.face import MediaError
from gateway.media.messages import RtpMedia
from gateway.switchboard import Switchboard
from sip.agent import UserAgent
from sip.events import Transport
from sip.sdp import AgreedMedia, LocalMedia, SrtpPolicy


@dataclass(frozen=True, slots=True)
class SipLineSettings:
    """What the gateway's owner decides about phone calls."""

    public_host: str | None = None
    """The address in SDP; None: the local address that faces the caller."""
    codecs: tuple[str, ...] = ("PCMU", "PCMA")
    routes: Mapping[str, str] = field(default_factory=dict)
    """Called user → persona. A user who is not in it gets the persona of his own name, or the default."""
    announcements: Mapping[str, bytes] = field(default_factory=dict)
    """Called user → what he hears before the agent: int16, 24 kHz mono, 60 s at most."""
    srtp: Literal["tls", "accept", "require"] = "tls"
    """Encrypted audio: taken over TLS only, wherever offered, or nothing else taken."""
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class LegSockets:
    """A leg's bound sockets, until the media plane has them."""

    rtp: socket.socket
    rtcp: socket.socket | None
    """On the port above, where that was free."""

    @property
    def port(self) -> int:
        return int(self.rtp.getsockname()[1])

    @property
    def own_rtcp_port(self) -> int | None:
        """What SDP must say of the reports: without a second socket they come to the first (RFC 3605)."""
        return self.port if self.rtcp is None else None

    def close(self) -> None:
        self.rtp.close()
        if self.rtcp is not None:
            self.rtcp.close()


class SipCalls:
    """The calls by the user agent's ids, and what they are made of."""

    def __init__(
        self,
        switchboard: Switchboard,
        agent: UserAgent,
        shell: AgentShell,
        ports: RtpPorts,
        settings: SipLineSettings,
    ) -> None:
        self.switchboard = switchboard
        self.agent = agent
        self.shell = shell
        self.ports = ports
        self.settings = settings
        self.now = settings.clock
        self.live: dict[str, Call] = {}

    def leg(self, dialog: str) -> SipLeg | None:
        """The leg of a live call."""
        call = self.live.get(dialog)
        return call.leg if call is not None and isinstance(call.leg, SipLeg) else None

    def take_sockets(self) -> LegSockets:
        """Raises NoFreePort."""
        return LegSockets(*self.ports.take_pair(self.now()))

    def give_back(self, sockets: LegSockets) -> None:
        """They were taken for nothing."""
        port = sockets.port
        sockets.close()
        self.ports.give_back(port, self.now())

    def new_leg(self, dialog: str, sockets: LegSockets) -> SipLeg:
        return SipLeg(self.agent, self.shell, self.now, dialog, sockets.port)

    def join(self, call: Call, leg: SipLeg, on_event: Callable[[CallEvent], None]) -> None:
        """The call has its leg: it is live until it ends."""
        call.leg = leg
        call.on_event(on_event)
        call.on_ended(lambda _: self._release(leg))
        self.live[leg.dialog] = call

    def open_media(self, call: Call, leg: SipLeg, sockets: LegSockets, agreed: AgreedMedia | None) -> None:
        """The row to the plane, and the sockets with it; nothing is agreed yet where the caller has still to
        answer our offer. Raises MediaError: the sockets are still the caller's to close."""
        media = leg.media_of(agreed) if agreed else RtpMedia("PCMU", 0, None, leg.ssrc)
        muxed = agreed is not None and agreed.rtcp_mux
        rtcp = None if muxed else sockets.rtcp
        number = self.switchboard.plane.open_rtp(call.row, sockets.rtp, media, rtcp)
        if muxed and sockets.rtcp is not None:
            sockets.rtcp.close()
        leg.agreed = agreed
        call.media_opened(number)

    def change_media(self, dialog: str, media: AgreedMedia) -> None:
        """Another codec, address or direction was agreed."""
        call = self.live.get(dialog)
        if call is None or not isinstance(call.leg, SipLeg) or call.ended.is_set():
            return
        call.leg.agreed = media
        try:
            self.switchboard.plane.change_rtp(call.row, call.leg.media_of(media))
        except MediaError as broken:
            call.end_soon("gateway", str(broken))
            return
        call.leg.let_hear(call)

    def local_media(self, peer: str, sockets: LegSockets, transport: Transport) -> LocalMedia:
        """What our side offers or answers to a peer at this address."""
        host = self.settings.public_host or local_address(peer, self.ports.host)
        policy = self.settings.srtp
        srtp: SrtpPolicy = ("accept" if transport == "tls" else "off") if policy == "tls" else policy
        rtcp = sockets.own_rtcp_port
        return LocalMedia(host, sockets.port, codecs=self.settings.codecs, rtcp_port=rtcp, srtp=srtp)

    def _release(self, leg: SipLeg) -> None:
        self.live.pop(leg.dialog, None)
        self.ports.give_back(leg.port, self.now())


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
