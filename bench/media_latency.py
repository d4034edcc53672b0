"""Echo round trip of a phone call, before, during and after each disturbance of the network.

A phone sends band noise through a seeded bad network to the gateway's media plane (its thread, an echo engine
without delay) and what comes back is aligned to what was said, second by second. The round trip counts from a
packet's departure to the arrival of the packet that carries its echo: it holds the engine's 80 ms frame.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.report import Report, arguments
from engine.echo import EchoEngine
from engine.rows import AudioRows
from gateway.media import g711
from gateway.media.clock import MediaClock
from gateway.media.messages import RtpMedia
from gateway.media.plane import MediaPlane
from tests.audio import align, steady_noise
from tests.network import Conditions, Link, Relay
from tests.phone import HEADER, Phone, bound_socket

TICK_S = 0.02
NETWORK = Conditions(delay_ms=20)
CASES: dict[str, Conditions | str] = {
    "clean": NETWORK,
    "one packet lost": "lose",
    "5 % loss": Conditions(delay_ms=20, loss=0.05),
    "60 ms jitter": Conditions(delay_ms=80, jitter_ms=20),
    "reordering": Conditions(delay_ms=40, jitter_ms=10, reorder=True),
    "200 ms stall": "stall",
}


@dataclass
class Trip:
    """What one phone said and heard, by the clock."""

    began: float
    said: np.ndarray
    arrivals: list[tuple[float, int, bytes]] = field(default_factory=list)

    def heard(self) -> np.ndarray:
        """What a phone without a buffer would play: each packet at its arrival, 8 kHz since `began`."""
        out = np.zeros(len(self.said) + 16_000)
        first_at, first_stamp = self.arrivals[0][0], self.arrivals[0][1]
        for _, timestamp, payload in self.arrivals:
            at = round((first_at - self.began) * 8_000) + ((timestamp - first_stamp) & 0xFFFF_FFFF)
            if 0 <= at < len(out) - 160:
                out[at : at + 160] = g711.decode(np.frombuffer(payload, np.uint8), 0)
        return out

    def round_trip_ms(self, start_s: float, end_s: float) -> float:
        """Of what was said in between, with the network's own delay."""
        part = slice(int(start_s * 8_000), int(end_s * 8_000))
        heard = self.heard()[part.start : part.stop + 8_000]
        return align(heard, self.said[part].astype(np.float64), 8_000).lag / 8


def talk(phone: Phone, seconds: float, said: np.ndarray, actions: dict[float, object]) -> Trip:
    """Send a packet every 20 ms; call each action at its second."""
    waiting = sorted(actions.items())
    began = time.monotonic() + TICK_S
    trip = Trip(began, said)
    for i in range(int(seconds / TICK_S)):
        time.sleep(max(0.0, began + i * TICK_S - time.monotonic()))
        lost = False
        while waiting and waiting[0][0] <= i * TICK_S:
            lost = waiting.pop(0)[1]() == "lose"  # type: ignore[operator]
        phone.say(lost)
        while True:
            try:
                data = phone.sock.recv(2_000)
            except BlockingIOError:
                break
            _, kind, _, timestamp, _ = HEADER.unpack_from(data)
            if kind & 127 == 0:
                trip.arrivals.append((time.monotonic(), timestamp, data[12:]))
    return trip


async def measure(
    plane: MediaPlane, engine: EchoEngine, case: Conditions | str, spans: list[float]
) -> list[float]:
    """Round trips before, during and after, in ms; spans are the ends of the three in seconds."""
    slot = await engine.open(row=0)
    ours = bound_socket()
    said = (steady_noise(spans[-1] + 2) * 20_000).astype(np.int16)
    phone = Phone(said)
    plane.open_rtp(0, ours, RtpMedia("PCMU", 0, None, 7))
    plane.start(0)
    up = Link(NETWORK, 5)
    with Relay(ours.getsockname(), up, Link(NETWORK, 6)) as relay:
        phone.peer = relay.address
        rough = case if isinstance(case, Conditions) else NETWORK
        actions: dict[float, object] = {
            spans[0]: lambda: setattr(up, "conditions", rough),
            spans[1]: lambda: setattr(up, "conditions", NETWORK),
        }
        if case == "lose":
            actions[spans[0]] = lambda: "lose"
        if case == "stall":
            actions[spans[0]] = lambda: relay.stall(0.2)
        trip = await asyncio.to_thread(talk, phone, spans[2], said, actions)
    plane.close(0)
    slot.close()
    await asyncio.sleep(0.1)
    phone.sock.close()
    windows = ((spans[0] - 1.5, spans[0]), (spans[1] - 1.5, spans[1]), (spans[1] + 2, spans[1] + 3.5))
    return [trip.round_trip_ms(*window) for window in windows]


async def run(report: Report, quick: bool) -> None:
    rows = AudioRows(1)
    engine = EchoEngine(delay_s=0.0, greeting=False, phase=0.005, rows=rows)
    plane = MediaPlane(rows)
    clock = MediaClock(plane)
    await engine.start()
    clock.start()
    spans = [3.0, 5.0, 9.0] if quick else [6.0, 12.0, 17.0]
    for name, case in CASES.items():
        before, during, after = await measure(plane, engine, case, spans)
        own = before - 2 * NETWORK.delay_ms
        values = {"before_ms": before, "during_ms": during, "after_2s_ms": after, "more_ms": after - before}
        report.row(network=name, **{k: round(v, 1) for k, v in values.items()}, gateway_ms=round(own, 1))
    clock.stop()
    await engine.stop()
    plane.close_all()


def main() -> None:
    options = arguments(__doc__)
    report = Report("media_latency", options)
    asyncio.run(run(report, options.quick))
    report.finish()


if __name__ == "__main__":
    main()
