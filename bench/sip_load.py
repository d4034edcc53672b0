"""How many phone calls a gateway bears: sipp calls it, faster and faster, many at once with audio, and
thousands in a row, some of them broken off in every way; and what is left of memory, files and tasks
afterwards.

The engine is the echo, so that the figures are those of SIP and media. sipp runs on the same cores. Where
baresip is installed it is called in the same way, and `times_baresip` says how much more or less the gateway
takes for the same calls.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.processes import Process, family
from bench.report import Report, arguments
from bench.sip_callers import (
    BAD_CALLS,
    BaresipServer,
    Caller,
    Load,
    bad_call,
    cancel_in_one_breath,
    gateway_for,
    tear_streams,
    throw_garbage,
    with_audio,
)
from tests.peers import Gateway, Skipped
from tests.sipp_calls import uac

FORGET_S = 33.0
"""A transaction is remembered for 32 s (RFC 3261 §17): twice that after a 200 that nobody acknowledges, when
a BYE follows that nobody answers."""
STEADY_MB = 5.0
"""What the second half of the short calls may add to the process, whose allocator keeps what it once had."""
Server = Gateway | BaresipServer


class SipLoad:
    """The cases, each against any server; `gateway` or `baresip` is its name in the table."""

    def __init__(self, report: Report, folder: Path, patient: bool) -> None:
        """`patient`: what is left is counted once the last transaction is forgotten."""
        self.report = report
        self.folder = folder
        self.patient = patient
        self.taken: dict[tuple[str, str, object], float] = {}
        """Percent of a core by case, server and load, where no call failed."""

    def signalling(self, name: str, server: Server, rates: list[int], seconds: int) -> float:
        """Calls of half a second at rising rates; the highest at which none failed."""
        best = 0.0
        caller, pid = Caller(self.folder / f"{name} calls", server.sip_port), server.process.pid
        caller.run(Load(20, 20, uac(hold_ms=200)))  # what the first calls import and compile
        for rate in rates:
            before, began = family(pid), time.monotonic()
            result = caller.run(Load(rate * seconds, rate, uac(hold_ms=500), limit_s=seconds + 60))
            core = self._core(pid, before, began)
            failed = rate * seconds - int(result["SuccessfulCall(C)"])
            self.report.row(
                case="signalling",
                server=name,
                calls_per_s=rate,
                calls=int(result["SuccessfulCall(C)"]),
                failed=failed,
                retransmissions=int(result["Retransmissions(C)"]),
                core_percent=core,
                **({} if failed else self._beside("signalling", name, rate, core)),
            )
            if isinstance(server, Gateway):
                server.wait_for_slots(0, 15.0)
            if failed:
                break
            best = rate
        return best

    def audio(self, name: str, server: Server, calls: int, seconds: int) -> float:
        """So many calls at once, each sending and hearing G.711; the memory a call takes in MB."""
        caller, pid = Caller(self.folder / f"{name} audio", server.sip_port), server.process.pid
        scenario = with_audio(caller.folder, seconds * 1_000)
        caller.run(Load(4, 10, uac(hold_ms=300)))
        if isinstance(server, Gateway):
            server.wait_for_slots(0, 10.0)
        idle, began = family(pid), time.monotonic()
        watch = Peak(pid, calls / 20 + seconds / 2)
        result = caller.run(Load(calls, 20, scenario, limit_s=seconds + 60))
        core, memory = self._core(pid, idle, began), (watch.memory_mb() - idle.memory_mb) / calls
        told: dict[str, int] = {}
        if isinstance(server, Gateway):
            metrics = server.metrics()
            names = {
                "received": 'rtp_packets_total{direction="received",leg="sip"}',
                "lost": 'rtp_lost_total{leg="sip"}',
                "late": 'rtp_late_total{leg="sip"}',
            }
            told = {column: int(metrics.get(metric, 0)) for column, metric in names.items()}
        failed = calls - int(result["SuccessfulCall(C)"])
        self.report.row(
            case="audio",
            server=name,
            calls=calls - failed,
            failed=failed,
            seconds=seconds,
            core_percent=core,
            **({} if failed else self._beside("audio", name, calls, core)),
            mb_a_call=round(memory, 3),
            **told,
        )
        return memory

    def left_behind(self, gateway: Gateway, calls: int, bad: int) -> bool:
        """Thousands of short calls, and broken ones of every kind; whether all is as it was before."""
        caller = Caller(self.folder / "left calls", gateway.sip_port)
        caller.run(Load(min(400, calls), 50, uac(hold_ms=50)))
        tear_streams(gateway.sip_port, 8)
        self._settle(gateway)
        start = Remains(gateway)
        kinds: dict[str, Callable[[], dict[str, str] | None]] = {
            kind: lambda kind=kind: caller.run(  # type: ignore[misc]
                Load(bad, 20, bad_call(kind, caller.folder), limit_s=bad / 20 + 45)
            )
            for kind in BAD_CALLS
        }
        kinds["garbage"] = lambda: throw_garbage(gateway.sip_port, 10 * bad)
        kinds["cancelled before the answer"] = lambda: cancel_in_one_breath(gateway.sip_port, bad)
        kinds["torn TCP"] = lambda: tear_streams(gateway.sip_port, bad)
        for kind, act in kinds.items():
            before = answers(gateway)
            written = act()
            self._settle(gateway)
            self.report.row(
                case="broken off",
                kind=kind,
                server="gateway",
                calls=bad,
                **({} if written is None else {"as_written": int(written["SuccessfulCall(C)"])}),
                answers=" ".join(f"{name}×{count}" for name, count in (answers(gateway) - before).items()),
            )
        clean = self._remains(gateway, start, "after the broken ones", bad * len(kinds), 2 * FORGET_S)
        memory = []
        for half in ("first", "second"):
            result = caller.run(Load(calls // 2, 60, uac(hold_ms=50)))
            failed = calls // 2 - int(result["SuccessfulCall(C)"])
            clean &= not failed
            clean &= self._remains(gateway, start, f"after the {half} short ones", calls // 2, FORGET_S)
            memory.append(family(gateway.process.pid).memory_mb)
        return clean and memory[1] - memory[0] <= STEADY_MB

    def _remains(self, gateway: Gateway, start: Remains, case: str, calls: int, wait_s: float) -> bool:
        self._settle(gateway)
        time.sleep(wait_s if self.patient else 0.0)
        now = Remains(gateway)
        self.report.row(
            case=case,
            server="gateway",
            calls=calls,
            slots_left=gateway.slots_used(),
            files=now.process.files - start.process.files,
            tasks=now.tasks - start.tasks,
            threads=now.process.threads - start.process.threads,
            memory_mb=round(now.process.memory_mb - start.process.memory_mb, 1),
        )
        # A scrape's own connection may not be closed yet.
        same = now.process.files <= start.process.files + 1 and now.process.threads <= start.process.threads
        return same and now.tasks <= start.tasks + 1

    @staticmethod
    def _settle(gateway: Gateway) -> None:
        """Until every call is over: one that nobody acknowledges takes 32 s (RFC 3261 §13.3.1.4)."""
        gateway.wait_for_slots(0, 45.0)

    def _core(self, pid: int, before: Process, began: float) -> float:
        took = time.monotonic() - began
        return round(100 * (family(pid).cpu_s - before.cpu_s) / took, 1)

    def _beside(self, case: str, name: str, load: object, core: float) -> dict[str, float]:
        self.taken[case, name, load] = core
        peer = self.taken.get((case, "baresip", load))
        return {"times_baresip": round(core / peer, 2)} if name == "gateway" and peer else {}


def answers(gateway: Gateway) -> Counter[str]:
    """Our final responses so far, such as `INVITE/200`."""
    found: Counter[str] = Counter()
    for name, value in gateway.metrics().items():
        match = re.match(r'sip_responses_total\{code="([2-6]\d\d)",method="(\w+)"', name)
        if match:
            found[f"{match[2]}/{match[1]}"] = int(value)
    return found


class Remains:
    """What a gateway holds at a moment."""

    def __init__(self, gateway: Gateway) -> None:
        self.tasks = int(gateway.metrics()["event_loop_tasks"])
        self.process = family(gateway.process.pid)


class Peak:
    """A process's memory after so many seconds, looked at from another process."""

    def __init__(self, pid: int, after_s: float) -> None:
        root = str(Path(__file__).resolve().parent.parent)
        look = (
            f"import sys, time; sys.path.insert(0, {root!r})\n"
            "from bench.processes import family\n"
            f"time.sleep({after_s})\n"
            f"print(family({pid}).memory_mb)\n"
        )
        self._process = subprocess.Popen([sys.executable, "-c", look], stdout=subprocess.PIPE, text=True)

    def memory_mb(self) -> float:
        return float(self._process.communicate()[0])


def beside(folder: Path, load: SipLoad, rates: list[int], calls: int, seconds: int) -> None:
    """The same calls to baresip, where it is installed."""
    try:
        with baresip_for(folder / "baresip", 2 * calls) as server:
            load.signalling("baresip", server, rates, 4)
    except Skipped:
        print("baresip is not installed: no peer beside us", file=sys.stderr)
        return
    # A fresh one: overload leaves its mark.
    with baresip_for(folder / "baresip-audio", 2 * calls) as server:
        load.audio("baresip", server, calls, seconds)


def baresip_for(folder: Path, calls: int) -> BaresipServer:
    """It takes the port above its own too, which somebody may have; then another pair is tried."""
    folder.mkdir()
    for attempt in range(5):
        try:
            return BaresipServer(folder / str(attempt), calls)
        except AssertionError as error:
            print(error, file=sys.stderr)
    raise SystemExit("baresip does not start")


def main() -> None:
    options = arguments(__doc__)
    report = Report("sip_load", options)
    quick = options.quick
    rates, calls, seconds = ([75], 40, 5) if quick else ([25, 50, 75, 100, 150], 200, 60)
    clean: list[bool] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        load = SipLoad(report, folder, patient=not quick)

        def remains() -> None:
            with gateway_for(folder / "left", 400) as gateway:
                clean.append(load.left_behind(gateway, 200 if quick else 5_000, 5 if quick else 200))

        # 32 s of it are spent waiting for an ACK; a quick run has no time to do so alone.
        waiting = threading.Thread(target=remains)
        if quick:
            waiting.start()
        beside(folder, load, rates, calls, seconds)
        with gateway_for(folder / "gateway", 300) as gateway:
            best = load.signalling("gateway", gateway, rates, 4)
            memory = load.audio("gateway", gateway, calls, seconds)
        if not quick:
            waiting.start()
        waiting.join()
    report.finish(calls_per_s=best, mb_a_call=round(memory, 3), nothing_left_behind=clean == [True])


if __name__ == "__main__":
    main()
