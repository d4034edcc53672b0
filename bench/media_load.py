"""What a call costs: share of a core, lateness of sent packets and memory, by the number of calls.

The gateway is `moshi-gateway serve` with the echo engine: signalling, engine and media process together, on
one core where there are two; the callers are processes on the other. It is measured from outside, by what
the system and the callers say. Beside it: baresip's echo (phones), stock aiortc and pipecat's SmallWebRTC
transport (browsers). Cases: `quiet` lines, where the whole path works but speech detection has nothing to
judge; `srtp`; `speech`, callers who speak half of the time; `cancel`, the same with echo cancellation;
`busy`, while /metrics is asked for without a pause on the gateway's core; `normal`, the same with the media
process put back among the ordinary ones, as where SCHED_FIFO is not permitted. Memory is told of calls that
are the first of their gateway.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.processes import Process, children, family
from bench.report import Report, arguments
from tests.peers import LOOPBACK, Gateway, Program, free_udp_port

HERE = Path(__file__).resolve().parent
CORES = sorted(os.sched_getaffinity(0))
SERVER, CALLERS = {CORES[0]}, set(CORES[1:]) or {CORES[0]}
QUICK_S, FULL_S = 3.0, 20.0
FLOOD = """
import http.client, sys
line = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
while True:
    line.request("GET", "/metrics")
    line.getresponse().read()
"""
BARESIP = """\
poll_method epoll
sip_listen {address}
net_interface {host}
call_max_calls 512
call_hold_other_calls no
audio_source aubridge,nil
audio_player aubridge,nil
audio_alert aubridge,nil
ausrc_srate 8000
auplay_srate 8000
ausrc_channels 1
auplay_channels 1
rtp_ports 30000-45000
module_path {modules}
module g711.so
module aubridge.so
module echo.so
module_app account.so
module_app menu.so
"""


def calibration() -> float:
    """Seconds of processor time for a fixed loop."""
    began, total = time.process_time(), 0
    for i in range(3_000_000):
        total += i * i % 7
    return time.process_time() - began


@contextlib.contextmanager
def cores(wanted: set[int]) -> Iterator[None]:
    """What is started within runs there."""
    os.sched_setaffinity(0, wanted)
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)


def gateway(folder: Path, slots: int, cancel: bool = False) -> Gateway:
    folder.mkdir()
    with cores(SERVER):
        return Gateway(
            folder,
            MG_ENGINE__SLOTS=str(slots),
            MG_SIP__SRTP="accept",
            MG_MEDIA__ECHO_CANCEL="on" if cancel else "off",
            MG_LOG__LEVEL="warning",
            OMP_NUM_THREADS="1",
        )


def crowd(script: str, *words: object) -> subprocess.Popen[str]:
    with cores(CALLERS):
        command = [sys.executable, str(HERE / script), *map(str, words)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def during(pid: int, callers: subprocess.Popen[str], seconds: float) -> tuple[dict[str, float], Process]:
    """What the callers say in the end, with the server's share of a core while they talked, and how it was
    then."""
    assert callers.stdout is not None
    said = callers.stdout.readline()
    if said.strip() != "talking":
        callers.wait()
        raise SystemExit("the callers gave up")
    time.sleep(0.5)
    before, began = family(pid), time.monotonic()
    time.sleep(max(1.0, seconds - 1.5))
    after, took = family(pid), time.monotonic() - began
    heard = json.loads(callers.stdout.readline())
    callers.wait()
    heard["core_percent"] = 100 * (after.cpu_s - before.cpu_s) / took
    return heard, after


def measured(calls: int, heard: dict[str, float]) -> dict[str, float]:
    """The columns that all cases have."""
    return {
        "core_percent": round(heard["core_percent"], 1),
        "percent_a_call": round(heard["core_percent"] / calls, 4),
        "missing": int(heard["expected"] - heard["heard"]),
    }


def fifo(pid: int) -> bool:
    return any(os.sched_getscheduler(child) == os.SCHED_FIFO for child in children(pid))


def phones(
    report: Report, running: Gateway, calls: int, seconds: float, case: str = "quiet"
) -> dict[str, float]:
    """One case of phone calls through a gateway; its row."""
    pid = running.process.pid
    empty, before = family(pid), running.metrics()
    sound = "speech" if case in ("speech", "cancel") else "quiet"
    callers = crowd("phone_crowd.py", running.sip_port, calls, seconds, int(case == "srtp"), sound)
    with burning(running) if case in ("busy", "normal") else contextlib.nullcontext():
        heard, after = during(pid, callers, seconds)
    running.wait_for_slots(0, 10.0)
    lost = 'rtp_lost_total{leg="sip"}'
    row = {
        "server": "gateway",
        "leg": "phone",
        "case": case,
        "calls": calls,
        **measured(calls, heard),
        "lost": int(running.metrics().get(lost, 0) - before.get(lost, 0)),
        "late_p50_ms": heard["p50"],
        "late_p99_ms": heard["p99"],
        "fifo": fifo(pid),
    }
    if not before.get('rtp_packets_total{direction="sent",leg="sip"}'):
        row["mb_a_call"] = round((after.memory_mb - empty.memory_mb) / calls, 3)
    report.row(**row)
    return row


@contextlib.contextmanager
def burning(running: Gateway) -> Iterator[None]:
    """Ask for /metrics without a pause."""
    port = re.search(r":(\d+)/", running.page)
    assert port is not None
    with cores(CALLERS):
        flood = subprocess.Popen([sys.executable, "-c", FLOOD, port[1]])
    try:
        yield
    finally:
        flood.kill()
        flood.wait()


def back_to_normal(pid: int) -> None:
    """As where no process may ask for SCHED_FIFO."""
    for child in children(pid):
        os.sched_setscheduler(child, os.SCHED_OTHER, os.sched_param(0))


def baresip(report: Report, folder: Path, calls: int, seconds: float) -> float | None:
    """Its echo of as many phones; percent of a core a call. None where it is not installed."""
    modules = Path("/usr/lib/baresip/modules")
    if not (modules / "echo.so").exists():
        print("baresip-core is not installed: no row of it", file=sys.stderr)
        return None
    folder.mkdir()
    port = free_udp_port()
    address = f"{LOOPBACK}:{port}"
    (folder / "config").write_text(BARESIP.format(address=address, host=LOOPBACK, modules=modules))
    (folder / "accounts").write_text(f"<sip:moshi@{LOOPBACK}>;regint=0;answermode=manual\n")
    (folder / "contacts").write_text("")
    with cores(SERVER), Program(["baresip", "-f", str(folder)], folder) as program:
        program.wait_for("(?i)baresip is ready", 10.0)
        callers = crowd("phone_crowd.py", port, calls, seconds, 0, "quiet")
        heard, _ = during(program.process.pid, callers, seconds)
    found = measured(calls, heard)
    report.row(server="baresip", leg="phone", case="quiet", calls=calls, **found)
    return found["percent_a_call"]


def browsers(report: Report, server: str, running: Program, url: str, calls: int, seconds: float) -> float:
    """Browser calls to one server; percent of a core a call."""
    callers = crowd("webrtc_crowd.py", url, calls, seconds)
    heard, _ = during(running.process.pid, callers, seconds)
    found = measured(calls, heard)
    report.row(server=server, leg="browser", case="quiet", calls=calls, **found)
    return found["percent_a_call"]


def peer(report: Report, folder: Path, server: str, calls: int, seconds: float) -> float:
    """Browser calls to an echo of aiortc or pipecat."""
    folder.mkdir()
    with cores(SERVER):
        running = Program([sys.executable, str(HERE / "webrtc_peers.py"), server], folder)
    with running:
        port = running.wait_for(r"port (\d+)", 30.0)[1]
        return browsers(report, server, running, f"http://{LOOPBACK}:{port}", calls, seconds)


def plain_cases(report: Report, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Everything of a gateway that cancels no echo, and what stands beside it."""
    quick, totals = options.quick, {}
    seconds = QUICK_S if quick else FULL_S
    numbers = options.calls or ([200] if quick else [400, 200, 100, 25])
    with gateway(folder, max(numbers)) as running:
        for calls in numbers:
            totals[f"phone_{calls}"] = phones(report, running, calls, seconds)["percent_a_call"]
        many = min(200, max(numbers))
        for case in ("srtp", "busy") if quick else ("srtp", "speech", "busy"):
            row = phones(report, running, many, seconds, case)
            totals[f"phone_{many}_{case}"] = row["percent_a_call"]
        for calls in (3,) if quick else (1, 3, 5, 10, 20):
            url = running.page.rstrip("/")
            totals[f"browser_{calls}"] = browsers(report, "gateway", running, url, calls, seconds)
            running.wait_for_slots(0, 10.0)
        fewer = 20 if quick else 50
        ours = phones(report, running, fewer, seconds)["percent_a_call"]
        beside = baresip(report, folder / "baresip", fewer, seconds)
        if beside is not None:
            totals["baresip_ratio"] = round(beside / ours, 2)
        if not quick:
            back_to_normal(running.process.pid)
            phones(report, running, many, seconds, "normal")
    for name in ("aiortc", "pipecat"):
        beside = peer(report, folder / name, name, 3, seconds)
        totals[f"{name}_ratio"] = round(beside / totals["browser_3"], 2)
    return totals


def main() -> None:
    counts = {"nargs": "*", "type": int, "default": None, "help": "numbers of phone calls"}
    options = arguments(__doc__, calls=counts)
    report, before_s = Report("media_load", options), calibration()
    with tempfile.TemporaryDirectory() as name:
        totals = plain_cases(report, Path(name) / "plain", options)
        if not options.quick:
            with gateway(Path(name) / "cancel", 200, cancel=True) as running:
                row = phones(report, running, 200, FULL_S, "cancel")
            totals["phone_200_cancel"] = row["percent_a_call"]
    report.finish(**totals, calibration_s=round(before_s, 4), calibration_after_s=round(calibration(), 4))


if __name__ == "__main__":
    main()
