"""Dialling: the calls we place, from the INVITE to the answer or the refusal."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from gateway.call import Call, CallEvent
from gateway.dial import CannotDial, resolved
from gateway.legs.rtp_ports import NoFreePort
from gateway.legs.sip_calls import LegSockets, SipCalls
from gateway.legs.sip_leg import ControlFailed
from gateway.media.face import MediaError
from gateway.media.messages import FirstPacket
from gateway.switchboard import Offer
from sip.dialog import is_ip
from sip.dns import Dns
from sip.events import CallEnded, Transport
from sip.locate import Lookup, locate
from sip.sdp import AgreedMedia
from sip.settings import Credentials, Destination
from sip.uri import parse_uri

TRANSPORT = re.compile(r";transport=(udp|tcp|tls)\b", re.IGNORECASE)
FIRST_WORDS_S = 1.0
"""How long an agent who called waits for the other side's first packet before it speaks."""


@dataclass(frozen=True, slots=True)
class Outbound:
    """How a call goes out; the defaults send it where its URI says, as ourselves."""

    destination: Destination | None = None
    credentials: Credentials | None = None
    caller: str | None = None
    """Our From URI."""
    alive: Destination | None = None
    """The server that is known to answer: where DNS names several, it is tried first."""


@dataclass(slots=True)
class Dialled:
    """A call we placed that is not answered yet."""

    sockets: LegSockets
    outcome: asyncio.Future[None]
    heard: bool = False
    """Its first packet came before the answer."""
    connected: bool = False


class Dialling:
    """Calls on their way to somebody."""

    def __init__(self, calls: SipCalls) -> None:
        self.calls = calls
        self.lookup: Lookup = Dns()
        self._lots = random.SystemRandom()
        self._dialling: dict[str, Dialled] = {}
        """Until they are answered or fail; by the user agent's id."""

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
        servers = await self._servers(uri, way.destination)
        first, *others = sorted(servers, key=lambda server: server != way.alive)
        peer, transport = await _next_hop(uri, first)
        call = await self.calls.switchboard.admit(Offer("sip", persona, callee=uri, outbound=True))
        sockets: LegSockets | None = None
        try:
            sockets = self.calls.take_sockets()
            dialog = self.calls.agent.invite(
                uri,
                self.calls.local_media(peer, sockets, transport),
                self.calls.now(),
                caller=way.caller,
                credentials=way.credentials,
                destination=first,
                alternatives=tuple(server for server in others if server is not None),
            )
        except (NoFreePort, ValueError) as error:
            if sockets is not None:
                self.calls.give_back(sockets)
            await call.end("gateway", str(error))
            raise CannotDial(str(error)) from error
        leg = self.calls.new_leg(dialog, sockets)
        self._dialling[dialog] = dialled = Dialled(sockets, asyncio.get_running_loop().create_future())
        self.calls.join(call, leg, lambda event: self._on_media(call, dialog, event))
        call.hold_agent()
        dialled.outcome.add_done_callback(lambda outcome: self._dialled(call, dialog, outcome))
        self.calls.shell.transmit()
        return call, dialled.outcome

    async def _servers(self, uri: str, destination: Destination | None) -> Sequence[Destination | None]:
        """Where to try in turn (RFC 3263). A URI that names a port, an address or a host of no domain leads
        where it says: None. Raises CannotDial."""
        try:
            target = parse_uri(uri)
        except ValueError as error:
            raise CannotDial(f"{uri}: {error}") from error
        if destination is not None or target.port is not None or is_ip(target.host):
            return [destination]
        if "." not in target.host.strip("."):
            return [None]
        found = await locate(target, self.lookup, self._lots)
        if not found:
            raise CannotDial(f"{target.host}: it has no address")
        return found

    def _dialled(self, call: Call, dialog: str, outcome: asyncio.Future[None]) -> None:
        dialled = self._dialling.pop(dialog)
        error = None if outcome.cancelled() else outcome.exception()
        if isinstance(error, ControlFailed):
            call.end_soon("caller", str(error))
        elif outcome.cancelled():
            call.end_soon("gateway", "given up")
        if call.media_number is None:
            dialled.sockets.close()

    def hear_early(self, dialog: str, media: AgreedMedia) -> None:
        """Audio may come before the answer; the agent hears and says nothing until then."""
        call, dialled, leg = self.calls.live.get(dialog), self._dialling.get(dialog), self.calls.leg(dialog)
        if call is None or dialled is None or leg is None:
            return
        if call.media_number is not None:
            self.calls.change_media(dialog, media)
            return
        try:
            self.calls.open_media(call, leg, dialled.sockets, media)
        except MediaError as broken:
            call.end_soon("gateway", str(broken))

    def connected(self, dialog: str, media: AgreedMedia) -> None:
        """Our call was answered. The first words wait for the caller's first packet, but not for long."""
        self.hear_early(dialog, media)
        call, dialled = self.calls.live.get(dialog), self._dialling.get(dialog)
        if call is None or dialled is None or call.media_number is None:
            return
        dialled.connected = True
        if dialled.heard:
            call.answered()
        else:
            asyncio.get_running_loop().call_later(FIRST_WORDS_S, call.answered)
        if not dialled.outcome.done():
            dialled.outcome.set_result(None)

    def failed(self, ended: CallEnded) -> bool:
        """The call ended before it was answered, and whoever placed it is told; False: it was not ours, or
        it was answered."""
        dialled = self._dialling.get(ended.call)
        if dialled is None or dialled.outcome.done():
            return False
        dialled.outcome.set_exception(ControlFailed(ended.code, ended.reason))
        return True

    def _on_media(self, call: Call, dialog: str, event: CallEvent) -> None:
        if not isinstance(event, FirstPacket):
            return
        dialled = self._dialling.get(dialog)
        if dialled is not None and not dialled.connected:
            dialled.heard = True  # early media: ringing, or an announcement
        else:
            call.answered()


async def _next_hop(uri: str, destination: Destination | None) -> tuple[str, Transport]:
    """The numeric address that a call goes to, and how. Raises CannotDial."""
    if destination is None:
        transport = TRANSPORT.search(uri)
        return await resolved(uri), cast(Transport, transport[1].lower()) if transport else "udp"
    host = f"[{destination.host}]" if ":" in destination.host else destination.host
    return await resolved(f"sip:{host}:{destination.port}"), destination.transport
