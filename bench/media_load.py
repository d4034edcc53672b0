"""What a phone call costs: share of a core, lateness of sent packets, memory, by the number of calls.

The gateway (media plane with RTCP and adaptive playout, media clock, echo engine) runs in a process of its
own, the phones in another. With busy = 1 another thread of the gateway burns Python meanwhile. A calibration
loop is printed beside, since machines differ.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.phone_crowd import OURS, SUITE, THEIRS
from bench.report import Report, arguments

CROWD = Path(__file__).with_name("phone_crowd.py")
SETTLE_S = 2.5


def calibration() -> float:
    """Seconds of processor time for a fixed loop."""
    began, total = time.process_time(), 0
    for i in range(3_000_000):
        total += i * i % 7
    return time.process_time() - began


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def gateway(calls: int, secure: bool, ports_file: Path, seconds: float) -> dict[str, float]:
    """Run the calls and return the figures of this process."""
    from engine.echo import EchoEngine
    from engine.rows import AudioRows
    from gateway.media.clock import MediaClock
    from gateway.media.messages import RtpMedia, SrtpKeys
    from gateway.media.plane import MediaPlane
    from tests.phone import bound_socket

    MediaPlane(AudioRows(1)).close_all()  # compiled code is not a call's
    empty_mb = resident_mb()
    rows = AudioRows(calls)
    engine = EchoEngine(delay_s=0.0, greeting=False, phase=0.005, rows=rows)
    plane = MediaPlane(rows)
    clock = MediaClock(plane)
    await engine.start()
    clock.start()
    keys = SrtpKeys(SUITE, THEIRS, OURS) if secure else None
    ports = []
    for row in range(calls):
        sock = bound_socket()
        ports.append(sock.getsockname()[1])
        media = RtpMedia("PCMU", 0, None, 1 + row, dtmf_payload_type=101, srtp=keys, cname="bench")
        await engine.open(row=row)
        plane.open_rtp(row, sock, media)
        plane.start(row)
    ports_file.write_text(json.dumps(ports))
    await asyncio.sleep(SETTLE_S)
    before, at = time.process_time(), time.monotonic()
    await asyncio.sleep(seconds - SETTLE_S - 0.5)
    share = (time.process_time() - before) / (time.monotonic() - at)
    lateness, stats = clock.lateness(), [plane.stats(row) for row in range(calls)]
    clock.stop()
    await engine.stop()
    return {
        "core_percent": 100 * share,
        "lost": sum(s.lost for s in stats),
        "concealed": sum(s.concealed_samples for s in stats),
        "underrun": sum(s.underrun_samples for s in stats),
        "skipped_ticks": lateness.skipped,
        "tick_late_p99_ms": lateness.p99_ms,
        "tick_work_p99_ms": lateness.work_p99_ms,
        "kb_a_call": 1000 * (resident_mb() - empty_mb) / calls,
        "fifo": float(lateness.fifo),
    }


def burn(stop: threading.Event) -> None:
    """What signalling does at its worst: parse headers without a pause."""
    headers = "".join(f"Header-{i}: value {i};tag=abc\r\n" for i in range(20))
    text = f"INVITE sip:bob@example.com SIP/2.0\r\n{headers}"
    while not stop.is_set():
        dict(line.split(":", 1) for line in text.split("\r\n")[1:] if line)


def serve(calls: int, secure: bool, busy: bool, seconds: float, ports_file: Path) -> None:
    stop = threading.Event()
    if busy:
        threading.Thread(target=burn, args=(stop,), daemon=True).start()
    figures = asyncio.run(gateway(calls, secure, ports_file, seconds))
    stop.set()
    print(json.dumps(figures))


def measure(calls: int, secure: bool, busy: bool, seconds: float) -> dict[str, float]:
    """One gateway process and one crowd; the figures of both."""
    with tempfile.TemporaryDirectory() as folder:
        ports = Path(folder) / "ports.json"
        case = [str(calls), str(int(secure)), str(int(busy)), str(seconds)]
        command = [sys.executable, __file__, "serve", *case]
        server = subprocess.Popen([*command, str(ports)], stdout=subprocess.PIPE, text=True)
        while not ports.exists() or not ports.read_text():
            if server.poll() is not None:
                raise SystemExit("the gateway process ended early")
            time.sleep(0.05)
        crowd = [sys.executable, str(CROWD), str(ports), str(seconds), str(int(secure))]
        heard = json.loads(subprocess.run(crowd, capture_output=True, text=True, check=True).stdout)
        figures = json.loads(server.communicate()[0])
    figures["late_p50_ms"], figures["late_p99_ms"] = heard["p50"], heard["p99"]
    return figures


def main() -> None:
    counts = {"nargs": "*", "type": int, "default": None, "help": "numbers of calls"}
    options = arguments(__doc__, calls=counts)
    report = Report("media_load", options)
    seconds = 8.0 if options.quick else 20.0
    numbers = options.calls or ([25, 200] if options.quick else [25, 100, 200, 400])
    measure(1, False, False, 4.0)  # compile once
    cases = [(n, False, False) for n in numbers] + [(200, True, False), (200, False, True)]
    for calls, secure, busy in cases:
        f = measure(calls, secure, busy, seconds)
        report.row(
            calls=calls,
            srtp=int(secure),
            busy=int(busy),
            core_percent=round(f["core_percent"], 1),
            percent_a_call=round(f["core_percent"] / calls, 4),
            late_p50_ms=f["late_p50_ms"],
            late_p99_ms=f["late_p99_ms"],
            tick_work_p99_ms=round(f["tick_work_p99_ms"], 2),
            lost=f["lost"],
            concealed=f["concealed"],
            underrun=f["underrun"],
            skipped=f["skipped_ticks"],
            kb_a_call=round(f["kb_a_call"]),
            fifo=int(f["fifo"]),
        )
    report.finish(calibration_s=round(calibration(), 3))


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "serve":
        calls, secure, busy = (int(a) for a in sys.argv[2:5])
        serve(calls, bool(secure), bool(busy), float(sys.argv[5]), Path(sys.argv[6]))
    else:
        main()
