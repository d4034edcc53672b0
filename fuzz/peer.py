"""A peer, an owner and a clock that do whatever a fuzzer's bytes say, to one user agent."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TypeVar

from sip.agent import CallStateError
from sip.description import SdpError
from sip.events import CallEnded
from sip.message import Request, Response
from sip.settings import Access, Account, AgentSettings, Credentials, Destination, Trunk
from tests.sip_wire import OFFER, OURS, Agent, Script, request, respond

T = TypeVar("T")
STEPS = 24
METHODS = (
    "INVITE", "UPDATE", "BYE", "ACK", "CANCEL", "INFO", "PRACK", "REFER", "NOTIFY", "OPTIONS", "REGISTER",
    "X",
)  # fmt: skip
EXTRAS = (
    "", "Require: 100rel\r\n", "Supported: timer, 100rel\r\nSession-Expires: 100;refresher=uas\r\n",
    "Session-Expires: x\r\n", "RAck: 1 1 INVITE\r\n", "Replaces: call-1@peer;to-tag=a;from-tag=b\r\n",
    "Record-Route: <sip:198.51.100.1;lr>, <sip:x>\r\n", "Content-Type: multipart/mixed;boundary=x\r\n",
    "Event: refer\r\nSubscription-State: active\r\n", "Refer-To: <sip:a@b?Replaces=x>\r\n",
    "Refer-To: <sip:a@b>\r\n", "Authorization: Digest username=\"a\"\r\n", "Expires: 0\r\n",
    "Content-Type: application/dtmf-relay\r\n", "RSeq: 1\r\nRequire: 100rel\r\n", "Min-SE: 4000\r\n",
    'WWW-Authenticate: Digest realm="x", nonce="y"\r\n', "Contact: <sip:x@y>, <sip:z>\r\n",
)  # fmt: skip
BODIES = (
    None,
    OFFER,
    OFFER + b"a=sendonly\r\n",
    b"rubbish",
    OFFER.replace(b"0 8 101", b"18"),
    b"Signal=5\r\n",
)
CODES = (100, 180, 183, 200, 202, 302, 401, 407, 408, 422, 423, 481, 486, 487, 491, 500, 503, 603)
PAUSES = (0.0, 0.1, 1.0, 5.0, 33.0, 200.0)
TRUNK = Trunk("pbx", (), Credentials("1000", "secret"))
HOUSES = (
    AgentSettings(),
    AgentSettings(accept_refer=True, registrar=True, session_expires_s=90),
    AgentSettings(access=Access(trunks=(TRUNK,), unknown="refuse"), max_calls=2),
)
CENTRAL = Destination("198.51.100.20", 5070)


class Bytes:
    """Decisions out of bytes; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def number(self, below: int) -> int:
        value = self._data[self._at] if self.left > 0 else 0
        self._at += 1
        return value % below

    def pick(self, items: Sequence[T]) -> T:
        return items[self.number(len(items))]

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken


class Scene:
    """One agent and everybody around it."""

    def __init__(self, source: Bytes) -> None:
        self.source = source
        self.peer = Script(Agent(source.pick(HOUSES)))
        self.tag = "none"
        self.sent: list[Request] = []

    @property
    def call(self) -> str:
        """One of the calls there were."""
        seen = [event.call for event in self.peer.agent.events if hasattr(event, "call")]
        return self.source.pick(seen[-8:]) if seen else "none"

    def step(self) -> None:
        self.source.pick((self.ask, self.ask, self.answer, self.act, self.wait, self.babble))()
        for message in self.peer.take():
            if isinstance(message, Request) and message.method != "ACK":
                self.sent = [*self.sent[-5:], message]
            elif isinstance(message, Response) and message.code < 300:
                self.tag = message.to.tag or self.tag

    def ask(self) -> None:
        source = self.source
        data = request(
            source.pick(METHODS),
            branch=f"z9hG4bK-{source.number(6)}",
            to_tag=source.pick(("", self.tag, self.tag, "other")),
            call_id=source.pick(("call-1@peer", "call-1@peer", "call-2@peer")),
            cseq=source.number(7),
            body=source.pick(BODIES),
            extra=source.pick(EXTRAS),
        )
        self.peer.deliver(self.damaged(data), source.pick(("udp", "udp", "tcp")))

    def answer(self) -> None:
        if not self.sent:
            return
        source = self.source
        body = source.pick((b"", OFFER, b"rubbish", b"SIP/2.0 200 OK"))
        reply = respond(
            source.pick(self.sent), source.pick(CODES), tag=source.pick(("callee", "fork")), body=body,
            extra=source.pick(EXTRAS),
        )  # fmt: skip
        self.peer.deliver(self.damaged(reply))

    def damaged(self, data: bytes) -> bytes:
        """As it is, or with a few bytes replaced by the fuzzer's."""
        source = self.source
        if source.number(3):
            return data
        at = source.number(256) * len(data) // 256
        new = source.take(source.number(40))
        return data[:at] + new + data[at + source.number(24) :]

    def babble(self) -> None:
        self.peer.deliver(self.source.take(self.source.number(256)))

    def wait(self) -> None:
        self.peer.wait(self.source.pick(PAUSES))

    def act(self) -> None:
        """The owner does something, at a moment that may be the wrong one."""
        agent, now = self.peer.agent.ua, self.peer.now
        call, other = self.call, self.call
        account = Account("desk", "sip:198.51.100.20:5070", "sip:1000@pbx", Credentials("1000", "secret"))
        actions = (
            lambda: agent.ring(call, now),
            lambda: agent.ring(call, now, OURS),
            lambda: agent.accept(call, OURS, now),
            lambda: agent.refuse(call, 486, now),
            lambda: agent.hang_up(call, now),
            lambda: agent.hold(call, now),
            lambda: agent.resume(call, now),
            lambda: agent.transfer(call, "sip:x@192.0.2.99", now),
            lambda: agent.transfer_to_call(call, other, now),
            lambda: agent.report_transfer(call, 200, "OK", now),
            lambda: agent.send_dtmf(call, "5", now),
            lambda: agent.invite("sip:bob@198.51.100.20:5070", OURS, now),
            lambda: agent.register(account, now),
            lambda: agent.unregister("desk", now),
            lambda: agent.watch_trunk("pbx", CENTRAL, now=now),
            lambda: agent.unwatch_trunk("pbx"),
        )
        with contextlib.suppress(CallStateError, SdpError):
            self.source.pick(actions)()
        self.peer.collect()

    def finish(self) -> None:
        """However it went: an hour later nothing is left, and each call has ended at most once."""
        agent = self.peer.agent.ua
        agent.unregister("desk", self.peer.now)
        agent.unwatch_trunk("pbx")
        for call in list(agent._calls.by_id):
            agent.hang_up(call, self.peer.now)
        self.peer.collect()
        self.peer.wait(400)
        core = agent._core
        assert not core.servers and not core.clients and not core._merging
        assert not agent._calls.by_id and not agent._calls.by_dialog and len(core.alarms) == 0
        ended = [event.call for event in self.peer.agent.of(CallEnded)]
        assert len(ended) == len(set(ended))


def play(data: bytes) -> None:
    """Run one story."""
    source = Bytes(data)
    scene = Scene(source)
    for _ in range(STEPS):
        if not source.left:
            break
        scene.step()
    scene.finish()
