"""How many phone calls a gateway bears: sipp calls it, faster and faster, many at once with audio, and
thousands in a row, some of them broken off; and what is left of memory, files and tasks afterwards.

The engine is the echo, so that the figures are those of SIP and media. sipp runs on the same cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.report import Report, arguments
from tests.audio import steady_noise
from tests.peers import LOOPBACK, Gateway, free_udp_port, need, uac
from tests.rtp_caller import to_mulaw

RTP_TIMEOUT_S = 2
PCMU = "a=rtpmap:0 PCMU/8000"
CANCEL = """\
  <send><![CDATA[
CANCEL sip:[service]@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch-2];rport
Max-Forwards: 70
From: <sip:sipp@[local_ip]:[local_port]>;tag=[pid]t[call_number]
To: <sip:[service]@[remote_ip]:[remote_port]>
Call-ID: [call_id]
CSeq: 1 CANCEL
Content-Length: 0

]]></send>
"""
BROKEN_OFF = ("cancelled", "unacknowledged", "vanished")
"""What a caller does instead of a call as calls should be: he cancels while the answer is on its way, never
acknowledges it, or acknowledges it and is not heard of again."""


@dataclass(frozen=True)
class Process:
    """What the system says of a gateway's process."""

    cpu_s: float
    rss_mb: float
    files: int
    threads: int

    @staticmethod
    def of(pid: int) -> Process:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
        rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page / 1e6
        files = len(os.listdir(f"/proc/{pid}/fd"))
        return Process((int(fields[11]) + int(fields[12])) / tick, rss, files, int(fields[17]))


@dataclass(frozen=True)
class Load:
    """One run of sipp."""

    calls: int
    rate: int
    scenario: str
    limit_s: float = 300.0


class Caller:
    """sipp against one gateway."""

    def __init__(self, folder: Path, gateway: Gateway) -> None:
        self.folder, self.gateway = folder, gateway
        self.runs = 0

    def run(self, load: Load) -> dict[str, str]:
        """Place the calls; the last line of sipp's statistics."""
        self.runs += 1
        folder = self.folder / f"run{self.runs}"
        folder.mkdir()
        (folder / "scenario.xml").write_text(load.scenario)
        command = [need("sipp", "sip-tester"), f"{LOOPBACK}:{self.gateway.sip_port}", "-i", LOOPBACK]
        command += ["-sf", "scenario.xml", "-s", "moshi", "-nostdin", "-p", str(free_udp_port())]
        command += ["-m", str(load.calls), "-r", str(load.rate), "-l", str(load.calls), "-mp", "20000"]
        command += ["-trace_stat", "-stf", "statistics.csv", "-fd", "1", "-max_socket", "60000"]
        command += ["-timeout", str(int(load.limit_s))]
        quiet = subprocess.DEVNULL
        subprocess.run(
            command,
            cwd=folder,
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            env={**os.environ, "TERM": "dumb"},
            timeout=load.limit_s + 30,
            check=False,
        )
        header, *lines = (folder / "statistics.csv").read_text().splitlines()
        return dict(zip(header.split(";"), lines[-1].split(";"), strict=False))


def gateway_for(folder: Path, slots: int) -> Gateway:
    folder.mkdir()
    return Gateway(
        folder,
        MG_ENGINE__SLOTS=str(slots),
        MG_MEDIA__RTP_TIMEOUT_S=str(RTP_TIMEOUT_S),
        MG_LOG__LEVEL="warning",
        OMP_NUM_THREADS="1",
    )


def signalling(report: Report, folder: Path, rates: list[int], seconds: int) -> float:
    """Calls of half a second at rising rates; the highest at which none failed."""
    best = 0.0
    with gateway_for(folder, 300) as gateway:
        caller = Caller(folder, gateway)
        caller.run(Load(20, 20, uac(hold_ms=200)))  # what the first calls import and compile
        for rate in rates:
            before, began = Process.of(gateway.process.pid), time.monotonic()
            result = caller.run(Load(rate * seconds, rate, uac(hold_ms=500)))
            took = time.monotonic() - began
            after = Process.of(gateway.process.pid)
            failed = int(result["FailedCall(C)"])
            report.row(
                case="signalling",
                calls_per_s=rate,
                calls=int(result["SuccessfulCall(C)"]),
                failed=failed,
                retransmissions=int(result["Retransmissions(C)"]),
                core_percent=round(100 * (after.cpu_s - before.cpu_s) / took, 1),
            )
            gateway.wait_for_slots(0, 15.0)
            if failed:
                break
            best = rate
    return best


def with_audio(report: Report, folder: Path, calls: int, seconds: int) -> float:
    """So many calls at once, each sending and hearing G.711; the memory a call takes in MB."""
    with gateway_for(folder, calls) as gateway:
        (folder / "noise.ul").write_bytes(to_mulaw(steady_noise(seconds + 5, 8_000)))
        stream = f'<nop><action><exec rtp_stream="{folder}/noise.ul,1,0,PCMU/8000"/></action></nop>'
        scenario = uac(hold_ms=seconds * 1_000, payloads="0", attributes=PCMU)
        scenario = scenario.replace("  <pause", f"  {stream}\n  <pause", 1)
        caller = Caller(folder, gateway)
        caller.run(Load(4, 10, uac(hold_ms=300)))
        gateway.wait_for_slots(0, 10.0)
        idle = Process.of(gateway.process.pid)
        began = time.monotonic()
        command = subprocess.Popen(
            [sys.executable, "-c", _peak(gateway.process.pid, calls / 20 + seconds / 2)],
            stdout=subprocess.PIPE,
            text=True,
        )
        result = caller.run(Load(calls, 20, scenario))
        took = time.monotonic() - began
        peak = float(command.communicate()[0])
        after = Process.of(gateway.process.pid)
        metrics = gateway.metrics()
        report.row(
            case="audio",
            calls=int(result["SuccessfulCall(C)"]),
            failed=int(result["FailedCall(C)"]),
            seconds=seconds,
            core_percent=round(100 * (after.cpu_s - idle.cpu_s) / took, 1),
            received=int(metrics.get('rtp_packets_total{direction="received",leg="sip"}', 0)),
            lost=int(metrics.get('rtp_lost_total{leg="sip"}', 0)),
            late=int(metrics.get('rtp_late_total{leg="sip"}', 0)),
            mb_a_call=round((peak - idle.rss_mb) / calls, 3),
        )
    return (peak - idle.rss_mb) / calls


def left_behind(report: Report, folder: Path, calls: int, aborted: int) -> bool:
    """Thousands of short calls and aborted ones of every kind; whether all is as it was before."""
    with gateway_for(folder, 200) as gateway:
        caller = Caller(folder, gateway)
        pid = gateway.process.pid
        caller.run(Load(400, 50, uac(hold_ms=50)))
        gateway.wait_for_slots(0, 10.0)
        before, tasks = Process.of(pid), gateway.metrics()["event_loop_tasks"]
        clean = True
        for case, loads in (
            ("short", [Load(calls, 60, uac(hold_ms=50))]),
            ("broken off", [Load(aborted, 20, broken_off(kind), limit_s=60.0) for kind in BROKEN_OFF]),
        ):
            for load in loads:
                caller.run(load)
            gateway.wait_for_slots(0, 45.0)
            now, metrics = Process.of(pid), gateway.metrics()
            report.row(
                case=case,
                calls=sum(load.calls for load in loads),
                slots_left=gateway.slots_used(),
                files=now.files - before.files,
                tasks=int(metrics["event_loop_tasks"] - tasks),
                threads=now.threads - before.threads,
                rss_mb=round(now.rss_mb - before.rss_mb, 1),
            )
            # A scrape's own connection may not be closed yet.
            clean &= now.files <= before.files + 1 and now.threads <= before.threads
            clean &= metrics["event_loop_tasks"] <= tasks + 1
    return clean


def broken_off(kind: str) -> str:
    """The scenario of a caller who does not end his call as he should."""
    trying = '  <recv response="100" optional="true"/>'
    head, _, tail = uac(hold_ms=100).partition(trying)
    if kind == "cancelled":
        head = head.replace(' start_rtd="setup"', "")
        return f"{head}{trying}\n{CANCEL}</scenario>\n".replace(' optional="true"', "")
    ringing, _, acknowledged = tail.partition("  <send><![CDATA[\nACK ")
    rest = (
        "" if kind == "unacknowledged" else "  <send><![CDATA[\nACK " + acknowledged.partition("  <pause")[0]
    )
    return f"{head}{trying}{ringing}{rest}</scenario>\n"


def _peak(pid: int, after_s: float) -> str:
    """A program that tells a process's memory in MB after so many seconds."""
    return (
        "import os, time\n"
        f"time.sleep({after_s})\n"
        f"pages = int(open('/proc/{pid}/statm').read().split()[1])\n"
        "print(pages * os.sysconf('SC_PAGE_SIZE') / 1e6)\n"
    )


def main() -> None:
    options = arguments(__doc__)
    report = Report("sip_load", options)
    quick = options.quick
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        best = signalling(report, folder / "signalling", [75] if quick else [25, 50, 75, 100, 150], 4)
        memory = with_audio(report, folder / "audio", 40 if quick else 200, 6 if quick else 60)
        clean = left_behind(report, folder / "left", 200 if quick else 5_000, 10 if quick else 200)
    report.finish(calls_per_s=best, mb_a_call=round(memory, 3), nothing_left_behind=clean)


if __name__ == "__main__":
    main()
