"""Switchboard: an offer becomes a Call or a refusal. It knows personas, capacity and draining, no protocol.

Admission reserves the engine's slot before anybody is told yes, so a caller who cannot be served hears
it at once and a caller who was answered always has a place.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from engine.api import Engine, EngineError, EngineFull, EngineRefused, Persona
from gateway.call import Call
from gateway.media.face import MediaFace

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a leg knows of a caller before he is let in. All of it is untrusted data."""

    leg: str
    """`sip`, `webrtc`, … : the label in metrics and records."""
    persona: str | None = None
    """A configured persona's name; None takes the default."""
    caller: str = ""
    callee: str = ""
    outbound: bool = False
    """We call him."""
    said: Mapping[str, object] = field(default_factory=dict)
    """What his signalling says of him besides, as JSON."""


class Refused(Exception):
    """The caller is not let in. `code` is SIP's and HTTP's alike (404, 503), the message is for him."""

    def __init__(self, code: int, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


class Switchboard:
    """Lets callers in, keeps the live calls by id, and empties the house on request."""

    def __init__(
        self,
        engine: Engine,
        plane: MediaFace,
        personas: Mapping[str, Persona] | None = None,
    ) -> None:
        self.engine = engine
        self.plane = plane
        self.personas = dict(personas or {"default": Persona()})
        self.calls: dict[str, Call] = {}
        self._rows: dict[int, Call] = {}
        self.draining = False
        self.refused: dict[int, int] = {}
        """Refusals since the start, by code."""
        self.served: dict[tuple[str, str], int] = {}
        """Ended calls since the start, by leg and who ended them."""
        self._admitted_listeners: list[Callable[[Call], None]] = []

    def on_row(self, row: int) -> Call | None:
        """The live call that owns a row."""
        return self._rows.get(row)

    def on_admitted(self, listener: Callable[[Call], None]) -> None:
        """Be told of every call that is let in, before its leg answers."""
        self._admitted_listeners.append(listener)

    def capacity_free(self) -> int:
        """Calls that would be let in now."""
        return 0 if self.draining else self.engine.capacity().free

    async def admit(self, offer: Offer) -> Call:
        """Reserve a slot for the offer. Raises Refused: 503 full or draining, 404 unknown persona."""
        persona = self._persona(offer)
        if self.draining:
            raise self._refusal(503, "the gateway is shutting down", 30.0)
        try:
            slot = await self.engine.open(persona)
        except EngineFull as full:
            raise self._refusal(503, "all lines are busy", full.retry_after_s) from full
        except EngineRefused as refused:
            raise self._refusal(503, str(refused), None) from refused
        except EngineError as error:
            log.error("the engine took no call: %s", error)
            raise self._refusal(503, "the voice engine is not available", 10.0) from error
        if not self.plane.available(slot.row):
            slot.close()
            raise self._refusal(503, "the audio path is starting again", 2.0)
        call = Call(secrets.token_hex(8), offer.leg, slot, persona, self.plane)
        call.caller, call.callee, call.said = offer.caller, offer.callee, offer.said
        call.direction = "outbound" if offer.outbound else "inbound"
        self.calls[call.id] = self._rows[call.row] = call
        call.on_ended(self._forget)
        log.info("call %s admitted leg=%s row=%d", call.id, call.leg_kind, call.row)
        for listener in self._admitted_listeners:
            listener(call)
        return call

    def deliver_media_events(self) -> None:
        """Hand the plane's events to their calls; those of a row's earlier call are nobody's."""
        for event in self.plane.take_events():
            call = self._rows.get(event.row)
            if call is not None and call.media_number == event.call:
                call.deliver(event)

    def deliver_slot_events(self) -> None:
        """Hand the engine's events (text, the end of a slot) to their calls."""
        for call in list(self.calls.values()):
            for event in call.slot.take_events():
                call.deliver(event)

    async def drain(self, limit_s: float) -> int:
        """Refuse newcomers, wait for the calls to finish, end what is left at the limit; how many."""
        self.draining = True
        waiting = [asyncio.ensure_future(call.ended.wait()) for call in self.calls.values()]
        if waiting:
            await asyncio.wait(waiting, timeout=limit_s)
            for waiter in waiting:
                waiter.cancel()
        left = list(self.calls.values())
        await asyncio.gather(*(call.end("gateway", "shutting down") for call in left))
        return len(left)

    def _persona(self, offer: Offer) -> Persona:
        name = offer.persona or "default"
        if name not in self.personas:
            raise self._refusal(404, "no such persona", None)
        return self.personas[name]

    def _refusal(self, code: int, message: str, retry_after_s: float | None) -> Refused:
        self.refused[code] = self.refused.get(code, 0) + 1
        return Refused(code, message, retry_after_s)

    def _forget(self, call: Call) -> None:
        self.calls.pop(call.id, None)
        if self._rows.get(call.row) is call:
            del self._rows[call.row]
        key = (call.leg_kind, call.ended_by)
        self.served[key] = self.served.get(key, 0) + 1
