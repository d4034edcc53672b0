"""sipp as a peer: scenarios in a few words, run against an Endpoint on the loopback."""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from sip.agent import UserAgent
from sip.endpoint import Endpoint
from sip.events import CallOffered, Event
from sip.sdp import LocalMedia
from sip.settings import AgentSettings

needs_sipp = pytest.mark.skipif(shutil.which("sipp") is None, reason="sipp is not installed")
MEDIA = LocalMedia("127.0.0.1", 40_000)
SDP = (
    "v=0\no=user1 53655765 2353687637 IN IP[local_ip_type] [local_ip]\ns=-\n"
    "c=IN IP[media_ip_type] [media_ip]\nt=0 0\nm=audio 6000 RTP/AVP 0 8\na=rtpmap:0 PCMU/8000\n{extra}"
)
HEADERS = (
    "Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]\n"
    "From: sipp <sip:sipp@[local_ip]:[local_port]>;tag=[call_number]\n"
    "To: <sip:moshi@[remote_ip]:[remote_port]>{to}\n"
    "Call-ID: [call_id]\nCSeq: {cseq} {method}\nMax-Forwards: 70\n"
    "Contact: <sip:sipp@[local_ip]:[local_port];transport=[transport]>\n{extra}"
)


def message(method: str, cseq: int, *, body: str = "", tagged: bool = True, extra: str = "") -> str:
    """A request of sipp's; `body` is an extra SDP line, "-" for none."""
    uri = "[next_url]" if tagged else "sip:moshi@[remote_ip]:[remote_port]"
    headers = HEADERS.format(to="[peer_tag_param]" if tagged else "", cseq=cseq, method=method, extra=extra)
    sdp = "" if body == "-" else SDP.format(extra=body)
    typed = "Content-Type: application/sdp\n" if sdp else ""
    text = f"{method} {uri} SIP/2.0\n{headers}{typed}Content-Length: [len]\n\n{sdp}"
    again = "" if method == "ACK" else ' retrans="500"'
    return f"<send{again}><![CDATA[\n\n{text}\n]]></send>"


def expect(code: int, optional: bool = False) -> str:
    maybe = ' optional="true"' if optional else ""
    return f'<recv response="{code}"{maybe} rrs="true"/>'


def answer(code: int) -> str:
    """sipp's response to the request it got last."""
    return (
        f"<send><![CDATA[\n\nSIP/2.0 {code} OK\n[last_Via:]\n[last_From:]\n[last_To:]\n[last_Call-ID:]\n"
        "[last_CSeq:]\nContent-Length: 0\n\n]]></send>"
    )


def pause(ms: int) -> str:
    return f'<pause milliseconds="{ms}"/>'


def scenario(*steps: str) -> str:
    return (
        '<?xml version="1.0" encoding="ISO-8859-1" ?>\n<!DOCTYPE scenario SYSTEM "sipp.dtd">\n'
        f'<scenario name="test">{"".join(steps)}</scenario>'
    )


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Site:
    """Our end: an Endpoint whose events go to a function of the test."""

    def __init__(self, settings: AgentSettings | None = None, wait_100: float = 0.0) -> None:
        self.agent = UserAgent(settings or AgentSettings(), random.SystemRandom())
        self.events: list[Event] = []
        self.act: Callable[[Event], None] = self.pick_up
        self.endpoint = Endpoint(self.agent, self._take)

    def _take(self, event: Event) -> None:
        self.events.append(event)
        self.act(event)

    def pick_up(self, event: Event) -> None:
        if isinstance(event, CallOffered):
            self.agent.ring(event.call, self.endpoint.now())
            self.agent.accept(event.call, MEDIA, self.endpoint.now())

    def count(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.events)

    async def connectable(self, port: int) -> None:
        """Wait until somebody listens on a TCP port of this machine."""
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.02)
                    continue
                writer.close()
                return

    async def until(self, condition: Callable[[], bool], within_s: float = 15.0) -> None:
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(0.02)


async def run_sipp(*arguments: str | Path, within_s: float = 60.0) -> tuple[int, str]:
    """(exit status, the end of the screen): 0 says that every call went as the scenario does."""
    process = await asyncio.create_subprocess_exec(
        "sipp",
        *map(str, arguments),
        "-nostdin",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(within_s):
            output, _ = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", output.decode(errors="replace"))
    return process.returncode or 0, text[-3000:]
