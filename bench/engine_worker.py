"""What a worker process costs: paced calls from a gateway to an engine process and back.

`python -m bench.engine_worker [--calls 64] [--seconds 10]` prints one JSON line: the delay a worker adds to
a frame over the same echo in this process, and the CPU of both processes.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import time
from multiprocessing.connection import Connection

import numpy as np

from bench.report import Report, arguments
from engine.api import FRAME, TICK_S
from engine.echo import EchoEngine
from engine.tick import TickEngine
from engine.worker import WorkerEngine, WorkerServer


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def worker(calls: int, pipe: Connection) -> None:
    """An echo behind a WebSocket; sends its port, and its CPU seconds whenever asked."""

    async def serve() -> None:
        engine = EchoEngine(slots=calls, delay_s=0.0, greeting=False)
        await engine.start()
        pipe.send(await WorkerServer(engine).start())
        loop = asyncio.get_running_loop()
        while await loop.run_in_executor(None, pipe.recv) != "stop":
            pipe.send(cpu_s())
        await engine.stop()

    asyncio.run(serve())


async def delays_ms(engine: TickEngine, calls: int, seconds: float) -> list[float]:
    """How long after its tick each frame was in its row, in ms."""
    slots = [await engine.open() for _ in range(calls)]
    voice = (0.1 * np.random.default_rng(0).standard_normal(FRAME)).astype(np.float32)
    delays: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for slot in slots:
            slot.write(voice)
        await asyncio.gather(*(slot.read() for slot in slots))
        delays.append(1e3 * ((time.monotonic() - engine.clock.phase) % TICK_S))
    for slot in slots:
        slot.close()
    return delays


async def measure(calls: int, seconds: float) -> dict[str, float | int | str]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=worker, args=(calls, there), daemon=True)
    process.start()
    port = await asyncio.get_running_loop().run_in_executor(None, here.recv)
    near = EchoEngine(slots=calls, delay_s=0.0, greeting=False)
    far = WorkerEngine([f"ws://127.0.0.1:{port}"], slots=calls)
    results: dict[str, float | int | str] = {"bench": "engine_worker", "calls": calls, "seconds": seconds}
    for name, engine in (("inline", near), ("worker", far)):
        await engine.start()
        here.send("cpu")
        before = (cpu_s(), here.recv())
        delays = await delays_ms(engine, calls, seconds)
        here.send("cpu")
        after = (cpu_s(), here.recv())
        frames = len(delays) * calls
        results[f"{name}_p50_ms"] = round(float(np.percentile(delays, 50)), 2)
        results[f"{name}_p99_ms"] = round(float(np.percentile(delays, 99)), 2)
        results[f"{name}_gateway_cpu_ms_a_frame"] = round(1e3 * (after[0] - before[0]) / frames, 4)
        results[f"{name}_worker_cpu_ms_a_frame"] = round(1e3 * (after[1] - before[1]) / frames, 4)
        await engine.stop()
    here.send("stop")
    process.join(5)
    return results


def main() -> None:
    options = arguments(
        __doc__,
        calls={"type": int, "default": 64},
        seconds={"type": float, "default": 10.0},
    )
    report = Report("engine_worker", options)
    report.row(**asyncio.run(measure(options.calls, options.seconds)))
    report.finish()


if __name__ == "__main__":
    main()
