"""How many calls a second the signalling bears on one core, with sipp as the caller.

    python bench/sip_load.py [--rate 75] [--calls 3000] [--hold-ms 2000] [--json FILE]

Prints calls, failures, CPU a call, the highest number of calls at once, memory before and after, and
what is left of them afterwards. Needs sipp (Debian: sip-tester). Audio is not sent: bench the media apart.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import re
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sip.agent import UserAgent
from sip.endpoint import Endpoint
from sip.events import CallConfirmed, CallEnded, CallOffered, Event
from sip.sdp import LocalMedia
from sip.settings import AgentSettings

MEDIA = LocalMedia("127.0.0.1", 40_000)


class Callee:
    """Answers every call at once, and counts."""

    def __init__(self) -> None:
        self.agent = UserAgent(AgentSettings(max_calls=100_000), random.SystemRandom())
        self.endpoint = Endpoint(self.agent, self.take)
        self.confirmed = self.ended = self.peak = 0

    def take(self, event: Event) -> None:
        match event:
            case CallOffered():
                self.agent.ring(event.call, self.endpoint.now())
                self.agent.accept(event.call, MEDIA, self.endpoint.now())
                self.peak = max(self.peak, self.agent.call_count)
            case CallConfirmed():
                self.confirmed += 1
            case CallEnded():
                self.ended += 1


def resident_kb() -> int:
    match = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(match[1]) if match else 0


async def call(target: str, rate: int, calls: int, hold_ms: int) -> str:
    sipp = await asyncio.create_subprocess_exec(
        "sipp", "-sn", "uac", target, "-i", "127.0.0.1", "-r", str(rate), "-m", str(calls),
        "-d", str(hold_ms), "-l", "100000", "-nostdin",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await sipp.communicate()
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", output.decode(errors="replace"))


async def measure(rate: int, calls: int, hold_ms: int) -> dict[str, float]:
    callee = Callee()
    host, port = await callee.endpoint.open_udp("127.0.0.1", 0)
    before, began = resident_kb(), time.monotonic()
    cpu = time.process_time()
    screen = await call(f"{host}:{port}", rate, calls, hold_ms)
    cpu, took = time.process_time() - cpu, time.monotonic() - began
    failed = re.findall(r"Failed call\s+\|\s+\d+\s+\|\s+(\d+)", screen)
    await asyncio.sleep(33)  # every transaction has had its time
    gc.collect()
    core = callee.agent._core
    result = {
        "rate": rate,
        "calls": calls,
        "confirmed": callee.confirmed,
        "ended": callee.ended,
        "failed": int(failed[-1]) if failed else -1,
        "seconds": round(took, 1),
        "cpu_ms_a_call": round(1_000 * cpu / calls, 3),
        "share_of_a_core": round(cpu / took, 3),
        "peak_calls": callee.peak,
        "rss_kb_before": before,
        "rss_kb_max": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "rss_kb_after": resident_kb(),
        "transactions_left": len(core.servers) + len(core.clients),
        "alarms_left": len(core.alarms),
        "retransmitted": callee.agent.counters.retransmitted,
    }
    await callee.endpoint.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rate", type=int, default=75)
    parser.add_argument("--calls", type=int, default=3_000)
    parser.add_argument("--hold-ms", type=int, default=2_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = asyncio.run(measure(options.rate, options.calls, options.hold_ms))
    for name, value in result.items():
        print(f"{name:18} {value}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
