"""SipLine: the phone side. It answers the user agent's events by admitting calls and giving their rows
to the media plane. It decides nothing about SIP (sip/ does) and touches no audio.
"""

from __future__ import annotations

import asyncio
import logging

from gateway.call import Call, CallEvent
from gateway.call_events import StateChanged
from gateway.legs.announcing import Announcing
from gateway.legs.dialling import Dialling, Outbound
from gateway.legs.rtp_ports import NoFreePort, RtpPorts
from gateway.legs.said import said_of
from gateway.legs.sip_calls import SipCalls, SipLineSettings
from gateway.legs.sip_leg import AgentShell, SipLeg
from gateway.media.face import MediaError
from gateway.media.messages import Announced, FirstPacket
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
    EarlyMediaAccepted,
    EarlyMediaStarted,
    Event,
    MediaChanged,
)
from sip.sdp import AgreedMedia, SdpError

log = logging.getLogger(__name__)


class SipLine:
    """All phone legs of one user agent."""

    def __init__(
        self,
        switchboard: Switchboard,
        agent: UserAgent,
        shell: AgentShell,
        ports: RtpPorts,
        settings: SipLineSettings | None = None,
    ) -> None:
        self.switchboard = switchboard
        self.agent = agent
        self.shell = shell
        self.calls = SipCalls(switchboard, agent, shell, ports, settings or SipLineSettings())
        self.now = self.calls.now
        self.announcing = Announcing(self.calls)
        self.dialling = Dialling(self.calls)
        self._admitting: dict[str, asyncio.Task[None]] = {}

    def receive(self, event: Event) -> None:
        """Take one event of the user agent. Never raises for what a peer did."""
        leg = self.calls.leg(getattr(event, "call", ""))
        if leg is not None:
            leg.receive(event)
        match event:
            case CallOffered():
                task = asyncio.get_running_loop().create_task(self._admit(event), name="admit")
                self._admitting[event.call] = task
                task.add_done_callback(lambda done: self._admitted(event.call, done))
            case EarlyMediaAccepted(call=dialog, media=media):
                self._agree(dialog, media)
                self.announcing.accepted_early(dialog, media)
            case CallConfirmed(call=dialog, media=media):
                self._confirmed(dialog, media)
            case CallRinging(call=dialog):
                self._say(dialog, StateChanged("ringing"))
            case DtmfReceived(call=dialog, digit=digit, duration_ms=duration_ms):
                self._press(dialog, digit, duration_ms)
            case EarlyMediaStarted(call=dialog, media=media):
                self.dialling.hear_early(dialog, media)
            case CallAnswered(call=dialog, media=media):
                self.dialling.connected(dialog, media)
            case (
                MediaChanged(call=dialog, media=media)
                | CallHeld(call=dialog, media=media)
                | CallResumed(call=dialog, media=media)
            ):
                self.calls.change_media(dialog, media)
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
            "sip",
            self._persona(offered.called.user),
            caller=offered.caller.user,
            callee=offered.called.user,
            said=said_of(offered),
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
            self.agent.hang_up(offered.call, self.now())  # it had its answer already
            await call.end("gateway", str(broken))
        except SdpError as unfit:
            await self._give_up(offered.call, call, unfit.code)
        except CallStateError:
            await call.end("caller", "cancelled")  # the caller gave up while the slot was opened
        finally:
            self.shell.transmit()

    def _answer(self, offered: CallOffered, call: Call) -> None:
        """200 or 183 with our port, and the row to the plane; undone by the call's end() if a step fails."""
        sockets = self.calls.take_sockets()
        leg = self.calls.new_leg(offered.call, sockets)
        try:
            agreed = self.announcing.answer(offered, call, sockets)
            self.calls.open_media(call, leg, sockets, agreed)
        except Exception:
            self.announcing.forget(offered.call)
            self.calls.give_back(sockets)
            raise
        self.calls.join(call, leg, lambda event: self._on_media(call, leg, event))

    async def place(self, uri: str, persona: str | None = None, way: Outbound | None = None) -> Call:
        """Call somebody: see Dialling.place."""
        return await self.dialling.place(uri, persona, way)

    async def dial(
        self, uri: str, persona: str | None = None, way: Outbound | None = None
    ) -> tuple[Call, asyncio.Future[None]]:
        """Call somebody, and do not wait: see Dialling.dial."""
        return await self.dialling.dial(uri, persona, way)

    def _confirmed(self, dialog: str, media: AgreedMedia) -> None:
        call, leg = self.calls.live.get(dialog), self.calls.leg(dialog)
        if call is not None:
            self._agree(dialog, media)
            if leg is not None:
                leg.let_hear(call)  # a caller may hold us from his first offer on
            self.announcing.confirmed(dialog, call)

    def _agree(self, dialog: str, media: AgreedMedia) -> None:
        """What came out of the offer and its answer, if the row does not know it yet."""
        leg = self.calls.leg(dialog)
        if leg is not None and leg.agreed != media:
            self.calls.change_media(dialog, media)

    def _say(self, dialog: str, event: CallEvent) -> None:
        call = self.calls.live.get(dialog)
        if call is not None:
            call.deliver(event)

    def _press(self, dialog: str, digit: str, duration_ms: int) -> None:
        call = self.calls.live.get(dialog)
        if call is not None:
            call.press(digit, duration_ms, "info")

    def _on_media(self, call: Call, leg: SipLeg, event: CallEvent) -> None:
        if isinstance(event, Announced):
            self.announcing.announced(leg.dialog, call)
        elif isinstance(event, FirstPacket) and not self.announcing.awaited(leg.dialog):
            call.answered()  # the ACK may be late or lost; who sends audio has our 200

    def _ended(self, ended: CallEnded) -> None:
        self.announcing.forget(ended.call)
        call = self.calls.live.get(ended.call)
        if call is None:
            return
        call.final_code = ended.code
        if not self.dialling.failed(ended):
            call.end_soon(
                "caller" if ended.by == "peer" else "gateway", ended.reason or f"ended by {ended.by}"
            )

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
        name = self.calls.settings.routes.get(called_user, called_user)
        return name if name in self.switchboard.personas else None
