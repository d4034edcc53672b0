"""The four transaction state machines of RFC 3261 §17, with RFC 6026's Accepted state, as tables.

A transaction knows its request, where it goes, and its timers. It knows no dialog and no call: what a
response or a time-out means is decided by `user`, whoever made it.

A rule reads: in this state, on this input, go to that state and do these things in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sip.alarms import Alarm, Alarms
from sip.headers import Headers
from sip.message import Request, Response
from sip.settings import Destination

T2 = 4.0
"""Longest interval between retransmissions, seconds (RFC 3261 §17.1.2.2)."""
T4 = 5.0
"""How long a message may stay in the network, seconds."""

Rules = dict[tuple[str, str], tuple[str, tuple[str, ...]]]

INVITE_CLIENT: Rules = {
    ("calling", "1xx"): ("proceeding", ("stop_resend", "stop_deadline", "pass_up")),
    ("calling", "2xx"): ("accepted", ("stop_resend", "pass_up", "linger_64t1")),
    ("calling", "error"): ("completed", ("stop_resend", "acknowledge", "pass_up", "linger_d")),
    ("calling", "resend"): ("calling", ("send", "double")),
    ("calling", "deadline"): ("terminated", ("end", "time_out")),
    ("calling", "unsendable"): ("terminated", ("end", "break_off")),
    ("proceeding", "1xx"): ("proceeding", ("pass_up",)),
    ("proceeding", "2xx"): ("accepted", ("pass_up", "linger_64t1")),
    ("proceeding", "error"): ("completed", ("acknowledge", "pass_up", "linger_d")),
    ("proceeding", "unsendable"): ("terminated", ("end", "break_off")),
    ("accepted", "2xx"): ("accepted", ("pass_up",)),
    ("accepted", "deadline"): ("terminated", ("end",)),
    ("completed", "error"): ("completed", ("acknowledge",)),
    ("completed", "deadline"): ("terminated", ("end",)),
}  # fmt: skip

CLIENT: Rules = {
    ("trying", "1xx"): ("proceeding", ("resend_at_t2", "pass_up")),
    ("trying", "2xx"): ("completed", ("stop_resend", "pass_up", "linger_t4")),
    ("trying", "error"): ("completed", ("stop_resend", "pass_up", "linger_t4")),
    ("trying", "resend"): ("trying", ("send", "double_to_t2")),
    ("trying", "deadline"): ("terminated", ("end", "time_out")),
    ("trying", "unsendable"): ("terminated", ("end", "break_off")),
    ("proceeding", "1xx"): ("proceeding", ("pass_up",)),
    ("proceeding", "2xx"): ("completed", ("stop_resend", "pass_up", "linger_t4")),
    ("proceeding", "error"): ("completed", ("stop_resend", "pass_up", "linger_t4")),
    ("proceeding", "resend"): ("proceeding", ("send", "resend_at_t2")),
    ("proceeding", "deadline"): ("terminated", ("end", "time_out")),
    ("proceeding", "unsendable"): ("terminated", ("end", "break_off")),
    ("completed", "deadline"): ("terminated", ("end",)),
}

INVITE_SERVER: Rules = {
    ("proceeding", "request"): ("proceeding", ("send",)),
    ("proceeding", "send_1xx"): ("proceeding", ("send",)),
    ("proceeding", "send_2xx"): ("accepted", ("send", "linger_64t1")),
    ("proceeding", "send_error"): ("completed", ("send", "start_resend", "linger_64t1")),
    ("accepted", "request"): ("accepted", ("send",)),
    ("accepted", "deadline"): ("terminated", ("end",)),
    ("completed", "request"): ("completed", ("send",)),
    ("completed", "ack"): ("confirmed", ("stop_resend", "linger_t4")),
    ("completed", "resend"): ("completed", ("send", "double_to_t2")),
    ("completed", "deadline"): ("terminated", ("end",)),
    ("completed", "unsendable"): ("terminated", ("end",)),
    ("confirmed", "deadline"): ("terminated", ("end",)),
}

SERVER: Rules = {
    ("trying", "send_1xx"): ("proceeding", ("send",)),
    ("trying", "send_2xx"): ("completed", ("send", "linger_64t1_unreliable")),
    ("trying", "send_error"): ("completed", ("send", "linger_64t1_unreliable")),
    ("proceeding", "request"): ("proceeding", ("send",)),
    ("proceeding", "send_1xx"): ("proceeding", ("send",)),
    ("proceeding", "send_2xx"): ("completed", ("send", "linger_64t1_unreliable")),
    ("proceeding", "send_error"): ("completed", ("send", "linger_64t1_unreliable")),
    ("completed", "request"): ("completed", ("send",)),
    ("completed", "deadline"): ("terminated", ("end",)),
    ("completed", "unsendable"): ("terminated", ("end",)),
}
"""A rule that is not there means: ignore the input."""


class Wire(Protocol):
    """What a transaction needs of its surroundings."""

    alarms: Alarms
    t1: float

    def send(self, data: bytes, destination: Destination) -> None: ...


class Machine:
    """State, timers and the walk through a table; the two sides add what they send."""

    rules: Rules

    def __init__(self, wire: Wire, destination: Destination, state: str, forget: Callable[[], None]) -> None:
        self.wire = wire
        self.destination = destination
        self.state = state
        self._forget = forget
        self._interval = wire.t1
        self._resend: Alarm | None = None
        self._deadline: Alarm | None = None

    @property
    def reliable(self) -> bool:
        return self.destination.transport != "udp"

    def step(self, event: str, now: float) -> bool:
        """Take an input. False: the table has no rule for it here, and nothing was done."""
        rule = self.rules.get((self.state, event))
        if rule is None:
            return False
        self.state, actions = rule
        for action in actions:
            getattr(self, "_" + action)(now)
        return True

    def _arm_resend(self, now: float) -> None:
        self._stop_resend(now)
        self._resend = self.wire.alarms.set(now + self._interval, lambda at: void(self.step("resend", at)))

    def _arm_deadline(self, now: float, after: float) -> None:
        self._stop_deadline(now)
        self._deadline = self.wire.alarms.set(now + after, lambda at: void(self.step("deadline", at)))

    def _start_resend(self, now: float) -> None:
        if not self.reliable:
            self._arm_resend(now)

    def _stop_resend(self, now: float) -> None:
        if self._resend is not None:
            self._resend.cancel()
            self._resend = None

    def _stop_deadline(self, now: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _double(self, now: float) -> None:
        self._interval *= 2
        self._arm_resend(now)

    def _double_to_t2(self, now: float) -> None:
        self._interval = min(2 * self._interval, T2)
        self._arm_resend(now)

    def _resend_at_t2(self, now: float) -> None:
        self._interval = T2
        self._start_resend(now)

    def _linger_64t1(self, now: float) -> None:
        self._arm_deadline(now, 64 * self.wire.t1)

    def _linger_64t1_unreliable(self, now: float) -> None:
        self._arm_deadline(now, 0.0 if self.reliable else 64 * self.wire.t1)

    def _linger_d(self, now: float) -> None:
        self._arm_deadline(now, 0.0 if self.reliable else max(32.0, 64 * self.wire.t1))

    def _linger_t4(self, now: float) -> None:
        self._arm_deadline(now, 0.0 if self.reliable else T4)

    def _end(self, now: float) -> None:
        self._stop_resend(now)
        self._stop_deadline(now)
        self._forget()


def void(_: object) -> None:
    """An alarm has no use for what step() returns."""


class ClientUser(Protocol):
    """Who hears what became of a request."""

    def on_response(self, response: Response, now: float) -> None: ...

    def on_no_response(self, code: int, now: float) -> None:
        """408: nobody answered in time. 503: it could not be sent (RFC 3261 §8.1.3.1)."""
        ...


class ClientTransaction(Machine):
    """One request of ours and its responses."""

    def __init__(
        self,
        wire: Wire,
        request: Request,
        destination: Destination,
        user: ClientUser,
        forget: Callable[[], None],
    ) -> None:
        invite = request.method == "INVITE"
        super().__init__(wire, destination, "calling" if invite else "trying", forget)
        self.rules = INVITE_CLIENT if invite else CLIENT
        self.request = request
        self.user = user
        self._data = request.to_bytes()
        self._response: Response | None = None

    def start(self, now: float) -> None:
        self._start_resend(now)
        self._arm_deadline(now, 64 * self.wire.t1)
        self._send(now)

    def receive(self, response: Response, now: float) -> None:
        self._response = response
        self.step("1xx" if response.code < 200 else "2xx" if response.code < 300 else "error", now)

    def give_up(self, now: float) -> None:
        """Stop waiting for a final response: a CANCEL got its 200 and then nothing (§9.1)."""
        if self.state in ("calling", "trying", "proceeding"):
            self.state = "terminated"
            self._end(now)
            self._time_out(now)

    def _send(self, now: float) -> None:
        self.wire.send(self._data, self.destination)

    def _pass_up(self, now: float) -> None:
        assert self._response is not None
        self.user.on_response(self._response, now)

    def _time_out(self, now: float) -> None:
        self.user.on_no_response(408, now)

    def _break_off(self, now: float) -> None:
        self.user.on_no_response(503, now)

    def _acknowledge(self, now: float) -> None:
        """ACK of a non-2xx: same branch, same place, same Route (§17.1.1.3)."""
        assert self._response is not None
        self.wire.send(ack_of_error(self.request, self._response).to_bytes(), self.destination)


def ack_of_error(invite: Request, response: Response) -> Request:
    items = [("via", str(invite.via)), ("max-forwards", "70")]
    items += [(name, value) for name, value in invite.headers if name in ("from", "call-id", "route")]
    items += [("to", response.headers.get("to") or ""), ("cseq", f"{invite.cseq.number} ACK")]
    return Request("ACK", invite.uri, Headers.of_canonical(items))


class ServerTransaction(Machine):
    """One request of a peer's and our responses to it."""

    def __init__(
        self, wire: Wire, request: Request, destination: Destination, forget: Callable[[], None]
    ) -> None:
        invite = request.method == "INVITE"
        super().__init__(wire, destination, "proceeding" if invite else "trying", forget)
        self.rules = INVITE_SERVER if invite else SERVER
        self.request = request
        self.tag = ""
        """The To tag of our responses, once chosen."""
        self.on_cancel: Callable[[Request, float], None] | None = None
        self.on_respond: Callable[[str, int], None] | None = None
        """Told of each response once, with the request's method."""
        self._data = b""

    @property
    def answered(self) -> bool:
        """A final response was given."""
        return self.state not in ("proceeding", "trying")

    def respond(self, response: Response, now: float) -> None:
        """Send a response, and again for each retransmission of the request. Nothing follows a final one."""
        event = "send_1xx" if response.code < 200 else "send_2xx" if response.code < 300 else "send_error"
        if (self.state, event) in self.rules:
            self._data = response.to_bytes()
            if self.on_respond is not None:
                self.on_respond(self.request.method, response.code)
            self.step(event, now)

    def resend(self, now: float) -> None:
        """The TU's own retransmission of a 2xx (RFC 3261 §13.3.1.4)."""
        self._send(now)

    def _send(self, now: float) -> None:
        if self._data:
            self.wire.send(self._data, self.destination)
