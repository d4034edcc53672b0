"""Engine workers for tests: real WebSockets, and clocks that the test turns by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np

from engine.api import FRAME
from engine.echo import EchoEngine
from engine.slot import RowSlot
from engine.tick import TickEngine
from engine.worker import WorkerEngine, WorkerServer


@dataclass
class Worker:
    engine: TickEngine
    server: WorkerServer
    url: str
    hung: bool = False
    """Its clock stands still from now on."""

    @property
    def calls(self) -> int:
        return sum(len(link.calls) for link in self.server.links)

    @property
    def batches(self) -> int:
        return sum(link.batches for link in self.server.links)


@asynccontextmanager
async def working(engine: TickEngine, token: str | None = None) -> AsyncIterator[Worker]:
    engine.begin(0.0)
    server = WorkerServer(engine, token)
    port = await server.start()
    worker = Worker(engine, server, f"ws://127.0.0.1:{port}/")
    yield worker
    await worker.server.stop()
    await engine.stop()


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not happened():
            await asyncio.sleep(0)


async def turn(engine: WorkerEngine, *workers: Worker, late: int = 0) -> None:
    """One tick of the gateway, then one of each worker that is well, and all messages delivered."""
    batches = [worker.batches for worker in workers]
    assert engine.run_due(engine.clock.deadline + late * engine.clock.period)
    for worker, before in zip(workers, batches, strict=True):
        index = next(k for k, link in enumerate(engine.links) if link.url == worker.url)
        if not worker.hung and engine.links[index].up:
            await _turn_worker(engine, index, worker, before)


async def _turn_worker(engine: WorkerEngine, index: int, worker: Worker, batches: int) -> None:
    held, link = engine._link_of == index, engine.links[index]
    await until(lambda: worker.calls == held.sum())
    if (held & engine._active).any():
        await until(lambda: worker.batches > batches)
    heard = link.batches
    assert worker.engine.run_due(worker.engine.clock.deadline)
    if worker.calls:
        await until(lambda: link.batches > heard)


def echo(slots: int = 3) -> EchoEngine:
    return EchoEngine(slots=slots, delay_s=0.0, greeting=False)


def voice(seed: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(FRAME)).astype(np.float32)


async def gateway(*workers: Worker, slots: int = 6, **options: object) -> WorkerEngine:
    engine = WorkerEngine([worker.url for worker in workers], slots=slots, **options)  # type: ignore[arg-type]
    await engine.connect()
    engine.begin(0.0)
    return engine


async def last_frame(slot: RowSlot) -> np.ndarray:
    rows, row = slot._rows, slot.row
    return rows.read_spoken(row, int(rows.spoken_end[row]) - FRAME, FRAME)


async def main() -> None:
    """`python -m tests.workers`: an echoing worker on its own clock; prints its port, runs until killed."""
    engine = echo(slots=8)
    await engine.start()
    print(await WorkerServer(engine).start(), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
