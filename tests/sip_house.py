"""A gateway's phone side without sockets for SIP: a scripted phone, the user agent, line, switchboard, echo
engine and media plane, stepped by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from engine.api import Persona
from gateway.call import Call
from gateway.legs.rtp_ports import RtpPorts
from gateway.legs.sip import SipLine
from gateway.legs.sip_calls import SipLineSettings
from gateway.switchboard import Switchboard
from sip.message import Request, Response, parse_message
from tests.phone import Bench
from tests.sip_wire import Agent, Script, request

CONTACT = "Contact: <sip:ann@198.51.100.20:5070>\r\nContent-Type: application/sdp\r\n"


@dataclass
class Shell:
    """In the endpoint's place: carries events to the line, and bytes to the scripted phone."""

    script: Script
    line: SipLine | None = None
    seen: int = 0
    transmitted: int = 0
    events: list[object] = field(default_factory=list)

    def transmit(self) -> None:
        self.transmitted += 1
        while (event := self.script.agent.ua.next_event()) is not None:
            self.events.append(event)
            assert self.line is not None
            self.line.receive(event)
        for data, destination in self.script.agent.ua.datagrams_to_send(self.script.now):
            self.script.raw.append((self.script.now, data, destination))
            self.script.sent.append(parse_message(data))


@dataclass
class House:
    bench: Bench
    script: Script
    shell: Shell
    line: SipLine
    switchboard: Switchboard

    def phone_says(self, message: bytes) -> None:
        self.script.agent.ua.receive_datagram(message, self.script.address, self.script.now, "udp")
        self.shell.transmit()

    async def settle(self) -> None:
        """Let tasks run, the plane tick, and its events arrive."""
        for _ in range(8):
            await asyncio.sleep(0)
            self.bench.plane.tick(self.bench.now)
            self.bench.step_number += 1
            self.bench.engine.run_due(self.bench.now)
            self.switchboard.deliver_media_events()
            self.shell.transmit()

    def final(self) -> Response:
        found = [m for m in self.script.sent if isinstance(m, Response) and m.code >= 200]
        self.script.sent.clear()
        assert len(found) == 1, found
        return found[0]

    def requests(self, method: str) -> list[Request]:
        return [m for m in self.script.sent if isinstance(m, Request) and m.method == method]


@asynccontextmanager
async def open_house(
    announcements: Mapping[str, bytes] | None = None, greeting: bool = False
) -> AsyncIterator[House]:
    """Two slots, personas `default` and `anna`, and everybody may call."""
    bench = Bench(count=2, greeting=greeting)
    agent = Agent()
    script = Script(agent)
    shell = Shell(script)
    personas = {"default": Persona(), "anna": Persona("anna")}
    switchboard = Switchboard(bench.engine, bench.plane, personas)
    settings = SipLineSettings(
        public_host="192.0.2.10",
        routes={"100": "anna"},
        announcements=announcements or {},
        clock=lambda: script.now,
    )
    line = SipLine(switchboard, agent.ua, shell, RtpPorts("127.0.0.1"), settings)
    shell.line = line
    yield House(bench, script, shell, line, switchboard)
    for call in list(switchboard.calls.values()):
        call.end_soon("gateway", "the test is over")
    house_ = House(bench, script, shell, line, switchboard)
    await house_.settle()


def ack(answer: Response, **kind: object) -> bytes:
    tag = str(answer.to).split("tag=")[1]
    return request("ACK", branch="z9hG4bK-ack", to_tag=tag, body=None, **kind)  # type: ignore[arg-type]


def reinvite(answer: Response, body: bytes, cseq: int) -> bytes:
    tag = str(answer.to).split("tag=")[1]
    return request(branch=f"z9hG4bK-re{cseq}", to_tag=tag, cseq=cseq, body=body)


def bye(answer: Response) -> bytes:
    tag = str(answer.to).split("tag=")[1]
    return request("BYE", branch="z9hG4bK-bye", to_tag=tag, cseq=2, body=None)


async def answered_call(house: House) -> tuple[Call, Response]:
    house.phone_says(request())
    await house.settle()
    answer = house.final()
    house.phone_says(ack(answer))
    (call,) = house.switchboard.calls.values()
    return call, answer


async def asked(house: House, step: Awaitable[None], method: str) -> tuple[asyncio.Future[None], Request]:
    """Begin a step of call control; the request it sent."""
    doing = asyncio.ensure_future(step)
    await asyncio.sleep(0)
    house.shell.transmit()
    (sent,) = house.requests(method)
    house.script.sent.clear()
    return doing, sent


async def until_sent(house: House, method: str) -> Request:
    """The request of ours that the wait was for; a name is looked up off the loop, in real time."""
    async with asyncio.timeout(5.0):
        while not house.requests(method):
            await asyncio.sleep(0.002)
    (sent,) = house.requests(method)
    house.script.sent.clear()
    return sent


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until it holds."""
    async with asyncio.timeout(5.0):
        while not condition():
            await asyncio.sleep(0.002)
