"""Many phones for the load bench, in a process of their own: a packet each every 20 ms, answers timed.

    python bench/phone_crowd.py PORTS_FILE SECONDS SRTP

Prints one JSON line: packets sent and heard, and how late after the 20 ms grid of the monotonic clock the
gateway's packets arrived (milliseconds).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gateway.media.udp_wire import UdpWire
from sip.sdes import SrtpKeys
from sip.srtp import SrtpContext
from tests.phone import HEADER, bound_socket

TICK_S = 0.02
PHASE_S = 0.010
"""The phones speak between two ticks of the gateway."""
OURS, THEIRS = bytes(range(30)), bytes(range(100, 130))
SUITE = "AES_CM_128_HMAC_SHA1_80"


def packets_of(count: int, length: int) -> np.ndarray:
    """(count, length) RTP packets of noise that differs by phone."""
    data = np.random.default_rng(2).integers(0, 256, (count, length)).astype(np.uint8)
    data[:, 0], data[:, 1] = 0x80, 0
    data[:, 8:12] = (0x1000 + np.arange(count)).astype(">u4").view(np.uint8).reshape(-1, 4)
    return data


def stamp(data: np.ndarray, tick: int) -> None:
    data[:, 2:4] = np.array([tick & 0xFFFF], ">u2").view(np.uint8)
    data[:, 4:8] = np.array([tick * 160 & 0xFFFF_FFFF], ">u4").view(np.uint8)


def main() -> None:
    ports = json.loads(Path(sys.argv[1]).read_text())
    seconds, secure = float(sys.argv[2]), sys.argv[3] == "1"
    wire, count = UdpWire(len(ports)), len(ports)
    for row, port in enumerate(ports):
        wire.open(row, bound_socket())
        wire.connect(row, ("127.0.0.1", port))
    contexts = [SrtpContext(SrtpKeys(SUITE, OURS, THEIRS)) for _ in ports] if secure else []
    data = packets_of(count, HEADER.size + 160)
    rows, sizes = np.arange(count), np.full(count, HEADER.size + 160)
    late: list[np.ndarray] = []
    tick, sent, heard = int(time.monotonic() / TICK_S) + 2, 0, 0
    began = last = tick
    while (last - began) * TICK_S < seconds:
        time.sleep(max(0.0, tick * TICK_S + PHASE_S - time.monotonic()))
        stamp(data, tick)
        if secure:
            for row, context in enumerate(contexts):
                wire.send(row, context.protect(data[row].tobytes()))
        else:
            wire.send_rows(rows, data, sizes)
        sent += count
        came = wire.receive(0.0)
        if (tick - began) * TICK_S > 2:
            late.append(came.arrivals % TICK_S * 1000)
            heard += len(came.rows)
        last, tick = tick, tick + 1
    all_late = np.concatenate(late) if late else np.zeros(1)
    # Just before the grid is as good as on it.
    all_late = np.where(all_late > 19.5, all_late - 20, all_late)
    figures = {f"p{p}": round(float(np.percentile(all_late, p)), 3) for p in (50, 99, 100)}
    print(json.dumps({"sent": sent, "heard": heard, **figures}))


if __name__ == "__main__":
    main()
