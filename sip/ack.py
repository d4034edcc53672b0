"""AckWait: a 2xx to an INVITE is the callee's own to repeat until its ACK comes (RFC 3261 §13.3.1.4)."""

from __future__ import annotations

from collections.abc import Callable

from sip.alarms import Alarm
from sip.core import Core
from sip.message import Request
from sip.transaction import T2, ServerTransaction


class AckWait:
    """Repeats at T1, 2·T1 … T2, over any transport; after 64·T1 it tells `lost`."""

    def __init__(
        self,
        core: Core,
        transaction: ServerTransaction,
        now: float,
        acknowledged: Callable[[Request, float], None],
        lost: Callable[[float], None],
    ) -> None:
        self._core = core
        self._transaction = transaction
        self._acknowledged = acknowledged
        self._lost = lost
        self.seq = transaction.request.cseq.number
        self._interval = core.t1
        self._resend: Alarm | None = core.alarms.set(now + core.t1, self._on_resend)
        self._deadline = core.alarms.set(now + 64 * core.t1, self._on_deadline)

    def _on_resend(self, now: float) -> None:
        self._transaction.resend(now)
        self._interval = min(2 * self._interval, T2)
        self._resend = self._core.alarms.set(now + self._interval, self._on_resend)

    def _on_deadline(self, now: float) -> None:
        self.stop()
        self._lost(now)

    def receive(self, ack: Request, now: float) -> None:
        self.stop()
        self._acknowledged(ack, now)

    def stop(self) -> None:
        if self._resend is not None:
            self._resend.cancel()
        self._deadline.cancel()
