"""CallWatcher: looks at every answered call, and asks, or hangs up, where CallWatch says so."""

from __future__ import annotations

import asyncio
import logging
import time

from gateway.call import Call
from gateway.legs.sip_leg import SipLeg
from gateway.switchboard import Switchboard
from gateway.watch import Action, CallWatch, WatchLimits

log = logging.getLogger(__name__)

LOOK_S = 0.25
"""A level is a mean over 200 ms: who speaks is not missed between two looks."""


class CallWatcher:
    """All calls of one gateway; `outbound` are the limits of those it placed."""

    def __init__(
        self,
        switchboard: Switchboard,
        limits: WatchLimits,
        outbound: WatchLimits,
        question: str = "Are you still there?",
    ) -> None:
        self.switchboard = switchboard
        self.limits = {"inbound": limits, "outbound": outbound}
        self.question = question
        self._watches: dict[str, CallWatch] = {}
        switchboard.on_admitted(lambda call: call.on_ended(self._forget))

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """At every call once; `now` in seconds on a clock that grows."""
        for call in list(self.switchboard.calls.values()):
            if call.answered_at is not None and call.media_number is not None:
                self._look_at(call, now)

    def _forget(self, call: Call) -> None:
        self._watches.pop(call.id, None)

    def _look_at(self, call: Call, now: float) -> None:
        watch = self._watches.get(call.id)
        if watch is None:
            watch = self._watches[call.id] = CallWatch(self.limits[call.direction], now)
        if not watch.limits:
            return
        heard, said = (call.plane.number(call.row, f"level_{way}_dbfs") for way in ("in", "out"))
        held = isinstance(call.leg, SipLeg) and call.leg.held
        match watch.look(now, heard, said, held):
            case Action.ASK:
                if not call.slot.inject(self.question):
                    log.debug("call %s: this engine cannot ask whether the caller is there", call.id)
            case Action.END_LONG | Action.END_SILENT as action:
                call.end_soon("gateway", action.value)
