"""Mouth to ear and back: how long the echo of a voice takes, before, during and after a network misbehaves.

A phone made of two sockets calls `moshi-gateway serve` (echo engine); nothing of its own delays what it
hears, so its round trip is the gateway's share: 80 ms of it are the engine's frame. Chromium, with a WAV file
as its microphone, calls the gateway, stock aiortc and pipecat's SmallWebRTC transport, each a program of its
own; its round trip holds the browser's capture and jitter buffer too. Everything passes a relay on the way,
which misbehaves when told. `after` begins 2 s after it stopped. Milliseconds, medians of windows; `p95` of
the phone's windows on the clean path. `ppm` rows: ten minutes of a sender whose clock is off, by hand.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np
from aiohttp import web

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.media_quality import exact_minutes
from bench.report import Report, arguments
from tests.audio import steady_noise, write_wav
from tests.network import Conditions, Relay
from tests.page_recorder import RATE, SCRIPT, glide, take
from tests.peers import LOOPBACK, Gateway, Program
from tests.rtp_caller import RtpCaller

PEERS = Path(__file__).with_name("webrtc_peers.py")
CLEAN = Conditions()
SETTLE_S, BEFORE_S, RECOVER_S, AFTER_S = 2.0, 1.5, 2.0, 2.0
PAGE = """<!doctype html><title>bench</title><script>
async function call() {
  const pc = new RTCPeerConnection();
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  stream.getTracks().forEach((track) => pc.addTrack(track, stream));
  pc.addEventListener('track', ({ streams, track }) => {
    const audio = new Audio();
    audio.srcObject = streams[0] ?? new MediaStream([track]);
    audio.play();
  });
  await pc.setLocalDescription(await pc.createOffer());
  const { sdp, type } = pc.localDescription;
  const answer = await fetch('/call', { method: 'POST', body: JSON.stringify({ sdp, type }) });
  await pc.setRemoteDescription({ type: 'answer', sdp: (await answer.json()).sdp });
  while (pc.connectionState !== 'connected') await new Promise((done) => setTimeout(done, 50));
}
</script>"""


@dataclass(frozen=True)
class Case:
    """What the network does between two clean stretches."""

    name: str
    lasts_s: float
    conditions: Conditions = CLEAN
    stall_s: float = 0.0
    lose_one: bool = False
    back_too: bool = True
    """What the server sends is treated alike; else only what it hears."""


CASES = (
    Case("one lost", 0.1, lose_one=True),
    Case("5 % loss", 4.0, Conditions(loss=0.05)),
    Case("60 ms jitter, there", 4.0, Conditions(delay_ms=60, jitter_ms=20), back_too=False),
    Case("60 ms jitter", 4.0, Conditions(delay_ms=60, jitter_ms=20)),
    Case("reordering", 4.0, Conditions(delay_ms=30, jitter_ms=15, reorder=True)),
    Case("200 ms stall", 0.2, stall_s=0.2),
)


def misbehave(relay: Relay, case: Case) -> None:
    """Begin."""
    if case.lose_one:
        relay.lose_next()
    if case.stall_s:
        relay.stall(case.stall_s)
    relay.set_conditions(case.conditions, case.conditions if case.back_too else CLEAN)


def behave(relay: Relay) -> None:
    relay.set_conditions(CLEAN, CLEAN)


def phone_row(report: Report, port: int, case: Case) -> tuple[float, float]:
    """One phone call; the p95 of its clean round trips, and by how much it is slower after."""
    with RtpCaller(port) as caller:
        assert caller.invite().startswith("SIP/2.0 200")
        assert caller.media is not None
        with Relay(caller.media) as relay:
            caller.media = relay.address
            begin = SETTLE_S + BEFORE_S
            end = begin + case.lasts_s
            timers = [
                threading.Timer(begin, misbehave, (relay, case)),
                threading.Timer(end, behave, (relay,)),
            ]
            for timer in timers:
                timer.start()
            exchange = caller.stream(steady_noise(end + RECOVER_S + AFTER_S, 8_000))
            caller.bye()
    clean, during, late = (
        1_000 * np.array(exchange.round_trips_s(*span))
        for span in (
            (SETTLE_S, begin),
            (begin, max(end, begin + 1)),
            (end + RECOVER_S, end + RECOVER_S + AFTER_S),
        )
    )
    before, p95, after = float(np.median(clean)), float(np.percentile(clean, 95)), float(np.median(late))
    report.row(
        server="gateway",
        caller="phone",
        case=case.name,
        before_ms=round(before, 1),
        during_ms=round(float(np.median(during)), 1) if len(during) else None,
        after_ms=round(after, 1),
        slower_ms=round(after - before, 1),
        p95_ms=round(p95, 1),
    )
    return p95, after - before


class Desk:
    """The page's server: passes offers on to a server under test, and the media through the relay."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.relay: Relay | None = None
        self.port = 0

    async def page(self, request: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def call(self, request: web.Request) -> web.Response:
        offer = await request.json()
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/api/call", json=offer) as response,
        ):
            answer = await response.json()
        answer["sdp"] = self._detoured(answer["sdp"])
        return web.json_response(answer)

    def _detoured(self, sdp: str) -> str:
        """Its first UDP candidate of the loopback or, failing that, any, as the relay's; no other."""
        found = re.findall(r"a=candidate:\S+ 1 udp \d+ (\S+) (\d+) typ host", sdp, re.I)
        host, port = next((f for f in found if f[0].startswith("127.")), found[0])
        self.relay = Relay((host, int(port)))
        self.relay.__enter__()
        lines = [line for line in sdp.splitlines() if not line.startswith("a=candidate:")]
        at = next(n for n, line in enumerate(lines) if line.startswith("a=ice-ufrag"))
        lines.insert(at, "a=candidate:1 1 udp 2130706431 {} {} typ host".format(*self.relay.address))
        return "\r\n".join(lines) + "\r\n"


@asynccontextmanager
async def desk(url: str) -> AsyncIterator[Desk]:
    made, application = Desk(url), web.Application()
    application.router.add_get("/", made.page)
    application.router.add_post("/call", made.call)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, LOOPBACK, 0).start()
    made.port = runner.addresses[0][1]
    try:
        yield made
    finally:
        await runner.cleanup()
        if made.relay is not None:
            made.relay.__exit__()


async def browser_rows(
    report: Report, server: str, url: str, microphone: Path, cases: tuple[Case, ...]
) -> list[float]:
    """One call of Chromium, in which one case follows another; by how much it is slower after each."""
    from tests.chromium import chromium

    slower = []
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(desk(url))
        browser = await stack.enter_async_context(chromium(microphone))
        page = await (await browser.new_context(permissions=["microphone"])).new_page()
        await page.add_init_script(SCRIPT)
        await page.goto(f"http://{LOOPBACK}:{made.port}/")
        await asyncio.wait_for(page.evaluate("call()"), 20)
        assert made.relay is not None
        await asyncio.sleep(SETTLE_S)
        first: float | None = None

        async def round_trip(seconds: float) -> float:
            await take(page)
            await asyncio.sleep(seconds + 1.0)  # a window needs the second before it
            return (await take(page)).round_trip_ms()

        for case in cases:
            before = await round_trip(BEFORE_S)
            first = first or before
            misbehave(made.relay, case)
            during = await round_trip(max(1.0, case.lasts_s))
            behave(made.relay)
            await asyncio.sleep(RECOVER_S)
            after = await round_trip(AFTER_S)
            slower.append(after - first)
            report.row(
                server=server,
                caller="chromium",
                case=case.name,
                before_ms=round(before, 1),
                during_ms=round(during, 1),
                after_ms=round(after, 1),
                slower_ms=round(after - first, 1),
            )
    return slower


@dataclass(frozen=True)
class Server:
    name: str
    start: Callable[[Path], tuple[Program, str]]


def a_gateway(folder: Path) -> tuple[Program, str]:
    running = Gateway(folder, MG_LOG__LEVEL="warning", OMP_NUM_THREADS="1")
    return running, running.page.rstrip("/")


def a_peer(name: str) -> Callable[[Path], tuple[Program, str]]:
    def start(folder: Path) -> tuple[Program, str]:
        running = Program([sys.executable, str(PEERS), name], folder)
        return running, f"http://{LOOPBACK}:" + running.wait_for(r"port (\d+)", 30.0)[1]

    return start


SERVERS = (
    Server("gateway", a_gateway),
    Server("aiortc", a_peer("aiortc")),
    Server("pipecat", a_peer("pipecat")),
)


def main() -> None:
    options = arguments(__doc__)
    report, quick = Report("media_latency", options), options.quick
    cases = CASES[:1] if quick else CASES
    totals: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        microphone = write_wav(folder / "glide.wav", glide(30 if quick else 120), RATE)
        for server in SERVERS:
            place = folder / server.name
            place.mkdir()
            running, url = server.start(place)
            with running:
                if isinstance(running, Gateway):
                    found = [phone_row(report, running.sip_port, case) for case in cases]
                    totals["phone_p95_ms"] = round(max(p95 for p95, _ in found), 1)
                    totals["phone_slower_ms"] = round(max(slower for _, slower in found), 1)
                slower = asyncio.run(browser_rows(report, server.name, url, microphone, cases))
                totals[f"{server.name}_chromium_slower_ms"] = round(max(slower), 1)
    for ppm in (200.0, -200.0):
        exact_minutes(report, 60 if quick else 600, ppm)
    report.finish(**totals)


if __name__ == "__main__":
    main()
