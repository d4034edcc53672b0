"""Many browsers for the load bench, in a process of their own: real peer connections that send Opus packets
made beforehand and count what comes back, so that they cost as little as ICE, DTLS and SRTP allow.

    python bench/webrtc_crowd.py URL CALLS SECONDS

Prints `talking` once all calls stand, then one JSON line: packets sent and heard.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.opus import OpusEncoder
from gateway.legs import aiortc_hooks
from gateway.media.messages import OpusPacket
from tests.audio import steady_noise
from tests.webrtc_caller import PACKET, Caller

LOOP_S = 4.0
"""Of sound, said again and again."""


class Browser(Caller):
    """Counts what comes and keeps nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.heard_packets = 0

    def _take_rtp(self, data: bytes) -> None:
        self.heard_packets += 1
        self.first_packet.set()


async def crowd(url: str, calls: int, seconds: float) -> dict[str, int]:
    encoder = OpusEncoder(bitrate=32_000)
    sound = steady_noise(LOOP_S, 24_000).astype("float32")
    payloads = [encoder.encode(sound[at : at + PACKET]) for at in range(0, len(sound), PACKET)]
    browsers = [Browser() for _ in range(calls)]
    talking = asyncio.ensure_future(talk(browsers, payloads))
    for browser in browsers:
        await browser.call(url)
    print("talking", flush=True)
    for browser in browsers:
        browser.heard_packets = 0
    await asyncio.sleep(seconds)
    talking.cancel()
    heard = sum(browser.heard_packets for browser in browsers)
    await asyncio.gather(*(aiortc_hooks.close(browser.connection) for browser in browsers))
    return {"expected": int(seconds * 50) * calls, "heard": heard}


async def talk(browsers: list[Browser], payloads: list[bytes]) -> None:
    """Every 20 ms a packet of each whose connection stands."""
    started = time.monotonic()
    number = 0
    while True:
        payload = payloads[number % len(payloads)]
        for browser in browsers:
            if browser.wire.connected:
                packet = OpusPacket(payload, 960 * number, number == 0)
                browser.wire.send(browser.stream.wrap(packet, time.time()))
                report = browser.stream.report(time.monotonic(), time.time())
                if report is not None:
                    browser.wire.send(report)
        number += 1
        await asyncio.sleep(max(0.0, started + 0.02 * number - time.monotonic()))


def main() -> None:
    url, calls, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    print(json.dumps(asyncio.run(crowd(url, calls, seconds))), flush=True)


if __name__ == "__main__":
    main()
