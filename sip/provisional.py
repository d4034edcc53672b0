"""Provisional answers that must not get lost (RFC 3262): the callee repeats, the caller says PRACK."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable

from sip.alarms import Alarm
from sip.core import Core
from sip.message import Request, Response
from sip.transaction import ServerTransaction

_RACK = re.compile(r"(\d{1,10})\s+(\d{1,10})\s+(\S+)\Z")


class ReliableProvisionals:
    """The callee's side: one unacknowledged answer at a time, the next waits (§3)."""

    def __init__(self, core: Core, transaction: ServerTransaction, unheard: Callable[[float], None]) -> None:
        self._core = core
        self._transaction = transaction
        self._unheard = unheard
        self._rseq = core.rng.randint(1, 2**31 - 2)
        self._waiting: deque[Response] = deque()
        self._resend: Alarm | None = None
        self._deadline: Alarm | None = None
        self._interval = core.t1
        self.then: Callable[[float], None] | None = None
        """Called once nothing waits for a PRACK any more: the 2xx, which must not overtake."""

    @property
    def idle(self) -> bool:
        return self._deadline is None

    def send(self, response: Response, now: float) -> None:
        response.headers.add("require", "100rel")
        self._waiting.append(response)
        if self.idle:
            self._send_next(now)

    def _send_next(self, now: float) -> None:
        response = self._waiting.popleft()
        self._rseq += 1
        response.headers.set("rseq", str(self._rseq))
        self._interval = self._core.t1
        self._transaction.respond(response, now)
        self._resend = self._core.alarms.set(now + self._interval, self._on_resend)
        self._deadline = self._core.alarms.set(now + 64 * self._core.t1, self._on_deadline)

    def _on_resend(self, now: float) -> None:
        self._transaction.resend(now)
        self._interval *= 2
        self._resend = self._core.alarms.set(now + self._interval, self._on_resend)

    def _on_deadline(self, now: float) -> None:
        self.stop()
        self._unheard(now)

    def take_prack(self, prack: Request, now: float) -> bool:
        """False: the PRACK names nothing that waits, answer 481."""
        match = _RACK.match((prack.headers.get("rack") or "").strip())
        wanted = (self._rseq, self._transaction.request.cseq.number, "INVITE")
        if match is None or self.idle or (int(match[1]), int(match[2]), match[3]) != wanted:
            return False
        self._cancel_alarms()
        if self._waiting:
            self._send_next(now)
        elif self.then is not None:
            then, self.then = self.then, None
            then(now)
        return True

    def _cancel_alarms(self) -> None:
        for alarm in (self._resend, self._deadline):
            if alarm is not None:
                alarm.cancel()
        self._resend = self._deadline = None

    def stop(self) -> None:
        self._cancel_alarms()
        self._waiting.clear()
        self.then = None


def rseq_of(response: Response) -> int | None:
    """The RSeq of a reliable provisional answer, None for one that is not."""
    value = (response.headers.get("rseq") or "").strip()
    if "100rel" not in response.headers.tokens("require") or not re.fullmatch(r"\d{1,10}", value):
        return None
    return int(value)
