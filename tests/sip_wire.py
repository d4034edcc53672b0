"""A fake wire for SIP tests: user agents and scripted peers, joined by a clock that only the test moves."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import TypeVar

from sip.agent import UserAgent
from sip.events import CallOffered, Event
from sip.message import Request, Response, parse_message
from sip.sdp import LocalMedia
from sip.settings import AgentSettings, Destination

E = TypeVar("E")
US, PEER = ("192.0.2.10", 5060), ("198.51.100.20", 5070)
OURS = LocalMedia("192.0.2.10", 40_000)
THEIRS = LocalMedia("198.51.100.20", 50_000)
OFFER = (
    b"v=0\r\no=- 1 1 IN IP4 198.51.100.20\r\ns=-\r\nc=IN IP4 198.51.100.20\r\nt=0 0\r\n"
    b"m=audio 50000 RTP/AVP 0 8 101\r\na=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-15\r\n"
)


class Agent:
    """One UserAgent at an address, with its events kept."""

    def __init__(self, settings: AgentSettings | None = None, address: tuple[str, int] = US, seed: int = 1):
        self.address = address
        self.ua = UserAgent(settings or AgentSettings(), random.Random(seed))
        self.ua.listen("udp", *address)
        self.events: list[Event] = []

    def drain(self) -> None:
        while (event := self.ua.next_event()) is not None:
            self.events.append(event)

    def of(self, kind: type[E]) -> list[E]:
        self.drain()
        return [event for event in self.events if isinstance(event, kind)]

    def one(self, kind: type[E]) -> E:
        found = self.of(kind)
        assert len(found) == 1, f"{kind.__name__}: {self.events}"
        return found[0]

    def kinds(self) -> list[str]:
        self.drain()
        return [type(event).__name__ for event in self.events]


class Script:
    """A peer that the test speaks for: it keeps what our agent sent, and sends what the test writes."""

    def __init__(self, agent: Agent, address: tuple[str, int] = PEER) -> None:
        self.agent = agent
        self.address = address
        self.now = 0.0
        self.sent: list[Request | Response] = []
        self.raw: list[tuple[float, bytes, Destination]] = []
        self.last_invite: Request | None = None

    def deliver(self, message: Request | Response | bytes, transport: str = "udp") -> None:
        data = message if isinstance(message, bytes) else message.to_bytes()
        self.agent.ua.receive_datagram(data, self.address, self.now, transport)  # type: ignore[arg-type]
        self.collect()

    def collect(self) -> None:
        for data, destination in self.agent.ua.datagrams_to_send(self.now):
            self.raw.append((self.now, data, destination))
            self.sent.append(parse_message(data))
        self.agent.drain()

    def wait(self, seconds: float) -> None:
        """Let time pass, ringing every alarm at its own time."""
        until = self.now + seconds
        while (at := self.agent.ua.get_timer()) is not None and at <= until:
            self.now = max(self.now, at)
            self.agent.ua.handle_timer(self.now)
            self.collect()
        self.now = until

    def wait_for(self, method: str, seconds: float) -> Request:
        """Let time pass until our agent sends a request; its retransmissions are still to come."""
        until = self.now + seconds
        while (at := self.agent.ua.get_timer()) is not None and at <= until:
            self.wait(at - self.now)
            found = [m for m in self.take() if isinstance(m, Request) and m.method == method]
            if found:
                return found[0]
        raise AssertionError(f"no {method} in {seconds} s")

    def take(self) -> list[Request | Response]:
        """What our agent sent since the last take()."""
        self.collect()
        taken, self.sent = self.sent, []
        return taken

    def response(self) -> Response:
        """The one response among what was sent since the last take(), 100 Trying aside."""
        found = [m for m in self.take() if isinstance(m, Response) and m.code != 100]
        assert len(found) == 1, [m.start_line() for m in found]
        return found[0]

    def request(self, method: str) -> Request:
        found = [m for m in self.take() if isinstance(m, Request) and m.method == method]
        assert len(found) == 1, [m.start_line() for m in found]
        return found[0]

    def codes(self) -> list[int]:
        return [m.code for m in self.take() if isinstance(m, Response)]

    def count(self, predicate: Callable[[Request | Response], bool]) -> int:
        return sum(predicate(m) for m in self.take())


def request(
    method: str = "INVITE",
    *,
    branch: str = "z9hG4bK-1",
    to_tag: str = "",
    from_tag: str = "caller",
    call_id: str = "call-1@peer",
    cseq: int = 1,
    body: bytes | None = OFFER,
    extra: str = "",
    uri: str = "sip:moshi@192.0.2.10:5060",
) -> bytes:
    """A request of the scripted peer, as bytes."""
    body = body if method in ("INVITE", "UPDATE", "PRACK", "ACK", "INFO") and body is not None else b""
    typed = "Content-Type: application/sdp\r\n" if body and "Content-Type" not in extra else ""
    to = f";tag={to_tag}" if to_tag else ""
    return (
        f"{method} {uri} SIP/2.0\r\n"
        f"Via: SIP/2.0/UDP 198.51.100.20:5070;branch={branch};rport\r\n"
        f'From: "Ann" <sip:ann@198.51.100.20>;tag={from_tag}\r\n'
        f"To: <sip:moshi@192.0.2.10>{to}\r\n"
        f"Call-ID: {call_id}\r\nCSeq: {cseq} {method}\r\nMax-Forwards: 70\r\n"
        f"Contact: <sip:ann@198.51.100.20:5070>\r\n{extra}{typed}"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def respond(
    request: Request, code: int, *, tag: str = "callee", body: bytes = b"", extra: str = "", reason: str = "X"
) -> bytes:
    """The scripted peer's response to a request of ours."""
    copied = ("via", "from", "call-id", "cseq")
    headers = "".join(f"{name}: {value}\r\n" for name, value in request.headers if name in copied)
    to = request.headers.get("to") or ""
    if ";tag=" not in to and code != 100:
        to += f";tag={tag}"
    typed = "Content-Type: application/sdp\r\n" if body else ""
    contact = "Contact: <sip:callee@198.51.100.20:5070>\r\n" if "Contact:" not in extra else ""
    return (
        f"SIP/2.0 {code} {reason}\r\n{headers}To: {to}\r\n{contact}{extra}{typed}"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode("utf-8", "surrogateescape") + body


def answered_call(settings: AgentSettings | None = None, extra: str = "") -> tuple[Script, str, str]:
    """A call that came in and is up: (peer, call id, our To tag)."""
    peer = Script(Agent(settings))
    peer.deliver(request(extra=extra))
    call = peer.agent.events[-1].call  # type: ignore[union-attr]
    peer.agent.ua.accept(call, OURS, peer.now)
    tag = peer.response().to.tag or ""
    peer.deliver(request("ACK", branch="z9hG4bK-ack", to_tag=tag, body=None))
    peer.take()
    return peer, call, tag


def placed_call(settings: AgentSettings | None = None, extra: str = "") -> tuple[Script, str, Request]:
    """A call of ours that was answered: (peer, call id, our INVITE)."""
    peer = Script(Agent(settings))
    call = peer.agent.ua.invite("sip:bob@198.51.100.20:5070", OURS, peer.now)
    invite = peer.request("INVITE")
    peer.deliver(respond(invite, 200, body=OFFER, extra=extra))
    peer.take()
    return peer, call, invite


class Pair:
    """Two agents on one wire. `lose(data, number)` says which datagrams vanish; delay is fixed."""

    def __init__(self, a: Agent, b: Agent, delay_s: float = 0.02) -> None:
        self.agents = (a, b)
        self.delay_s = delay_s
        self.now = 0.0
        self.lose: Callable[[bytes, int], bool] = lambda data, number: False
        self.seen: list[str] = []
        self._flying: list[tuple[float, int, bytes, Agent, Agent]] = []
        self._number = 0

    def _collect(self) -> None:
        for agent, other in (self.agents, self.agents[::-1]):
            for data, destination in agent.ua.datagrams_to_send(self.now):
                assert (destination.host, destination.port) == other.address, destination
                self._number += 1
                self.seen.append(re.sub(r" SIP/2.0$| sip:\S+", "", data.split(b"\r\n", 1)[0].decode()))
                if not self.lose(data, self._number):
                    self._flying.append((self.now + self.delay_s, self._number, data, agent, other))
            agent.drain()

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        self._collect()
        while True:
            times = [flight[0] for flight in self._flying]
            times += [at for agent in self.agents if (at := agent.ua.get_timer()) is not None]
            if not times or min(times) > until:
                break
            self.now = max(self.now, min(times))
            self._arrive()
            for agent in self.agents:
                agent.ua.handle_timer(self.now)
            self._collect()
        self.now = until

    def _arrive(self) -> None:
        arrived = sorted(flight for flight in self._flying if flight[0] <= self.now)
        self._flying = [flight for flight in self._flying if flight[0] > self.now]
        for _, _, data, sender, receiver in arrived:
            receiver.ua.receive_datagram(data, sender.address, self.now)
            receiver.drain()


def pair(a: AgentSettings | None = None, b: AgentSettings | None = None) -> tuple[Pair, Agent, Agent]:
    """(wire, caller at US, callee at PEER)."""
    caller, callee = Agent(a, US, 1), Agent(b, PEER, 2)
    return Pair(caller, callee), caller, callee


def offered(settings: AgentSettings | None = None, data: bytes | None = None) -> tuple[Script, str]:
    peer = Script(Agent(settings))
    peer.deliver(data or request())
    return peer, peer.agent.one(CallOffered).call


def forgotten(peer: Script) -> bool:
    """Nothing of any call is left: no transaction, dialog or alarm."""
    core, calls = peer.agent.ua._core, peer.agent.ua._calls
    return not (core.servers or core.clients or calls.by_id or calls.by_dialog or len(core.alarms))


def requests(peer: Script, method: str) -> list[Request]:
    return [m for m in peer.take() if isinstance(m, Request) and m.method == method]
