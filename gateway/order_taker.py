"""OrderTaker: does what an agent orders in its text: transfer the caller, or hang up.

Where a caller may be sent is configured by persona, never read from what the model says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from gateway.call import Call, CallEvent
from gateway.call_events import OrderGiven
from gateway.control import CallControl, CannotControl
from gateway.legs.sip_leg import ControlFailed
from gateway.orders import Order

log = logging.getLogger(__name__)


class OrderTaker:
    """For all calls. `transfer_to`: persona name → URI."""

    def __init__(self, control: CallControl, transfer_to: Mapping[str, str]) -> None:
        self.control = control
        self.transfer_to = dict(transfer_to)
        self._obeying: dict[str, asyncio.Task[None]] = {}
        """By call id: one order at a time."""
        control.switchboard.on_admitted(self._admitted)

    async def stop(self) -> None:
        """Leave what is being done."""
        tasks = list(self._obeying.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _admitted(self, call: Call) -> None:
        call.on_event(lambda event: self._take(call, event))

    def _take(self, call: Call, event: CallEvent) -> None:
        if not isinstance(event, OrderGiven) or call.id in self._obeying:
            return
        task = asyncio.get_running_loop().create_task(self._obey(call, event.order), name=f"order {call.id}")
        self._obeying[call.id] = task
        task.add_done_callback(lambda done: self._obeyed(call, done))

    async def _obey(self, call: Call, order: Order) -> None:
        if order == "hangup":
            await self.control.sentence_over(call)
            await self.control.hang_up(call, "the agent said goodbye", by="agent")
            return
        target = self.transfer_to.get(call.persona.name)
        if target is None:
            log.warning("call %s: the agent wants to transfer, but its persona has no transfer_to", call.id)
            return
        try:
            await self.control.transfer(call, target)
        except (CannotControl, ControlFailed) as error:
            log.warning("call %s: the agent keeps the caller: %s", call.id, type(error).__name__)

    def _obeyed(self, call: Call, task: asyncio.Task[None]) -> None:
        self._obeying.pop(call.id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("call %s: an order of the agent failed", call.id, exc_info=error)
