"""Operations: what is done with calls beside carrying them: control, the agent's orders, the watch over long
and silent calls, the operators' API, and the words about each call's line at its end.
"""

from __future__ import annotations

import asyncio
import logging

from gateway.admin_server import AdminServer
from gateway.call import Call
from gateway.caps import CallCaps, CapLimits
from gateway.config import Settings
from gateway.config_phone import OutboundSettings
from gateway.control import CallControl
from gateway.legs.sip import SipLine
from gateway.legs.sip_leg import SipLeg
from gateway.legs.trunks import Trunks
from gateway.order_taker import OrderTaker
from gateway.quality import quality_of_call
from gateway.switchboard import Switchboard
from gateway.watch import WatchLimits
from gateway.watcher import CallWatcher

log = logging.getLogger(__name__)


class Operations:
    """Made once the phone side is; `line` and `trunks` are None where SIP is switched off."""

    def __init__(
        self, switchboard: Switchboard, line: SipLine | None, trunks: Trunks | None, settings: Settings
    ) -> None:
        """Opens nothing."""
        outbound, limits = settings.outbound, settings.limits
        caps = CallCaps(_cap_limits(outbound))
        self.control = CallControl(switchboard, line, trunks, caps, outbound.trunk)
        targets = {name: p.transfer_to for name, p in settings.personas.items() if p.transfer_to}
        self.orders = OrderTaker(self.control, targets)
        longest, silent = limits.max_call_s or None, limits.caller_silence_s or None
        self.watcher = CallWatcher(
            switchboard,
            WatchLimits(longest, silent),
            WatchLimits(min(longest or outbound.max_call_s, outbound.max_call_s), silent),
            limits.silence_question,
        )
        self.admin = None if settings.admin.port is None else AdminServer(self.control, settings.admin)
        self._watching: asyncio.Task[None] | None = None
        switchboard.on_admitted(lambda call: call.on_ended(log_quality))

    async def start(self) -> None:
        """Open the operators' API and begin to watch. Raises OSError: its port is taken."""
        if self.admin is not None:
            await self.admin.open()
        self._watching = asyncio.create_task(self.watcher.run(), name="call watch")
        self._watching.add_done_callback(_log_failure)

    async def stop(self) -> None:
        """After the calls have ended. Idempotent."""
        self.control.stop()
        await self.orders.stop()
        if self._watching is not None:
            self._watching.cancel()
        if self.admin is not None:
            await self.admin.stop()


def log_quality(call: Call) -> None:
    """One line about a phone call's line, without who called whom."""
    quality = quality_of_call(call)
    if quality is None or not isinstance(call.leg, SipLeg) or call.leg.agreed is None:
        return
    agreed = call.leg.agreed
    log.info(
        "call %s line: codec=%s srtp=%s loss=%.4f remote_loss=%.4f jitter_ms=%.1f round_trip_ms=%.0f "
        "mos=%.2f remote_mos=%.2f",
        call.id,
        agreed.codec,
        agreed.srtp.suite if agreed.srtp is not None else "none",
        quality.loss,
        quality.remote_loss,
        quality.jitter_ms,
        quality.round_trip_ms,
        quality.mos,
        quality.remote_mos,
    )


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("calls are no longer watched", exc_info=error)


def _cap_limits(outbound: OutboundSettings) -> CapLimits:
    return CapLimits(
        outbound.enabled,
        outbound.prefixes,
        tuple(host.lower() for host in outbound.hosts),
        outbound.per_minute,
        outbound.concurrent,
    )
