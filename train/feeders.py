"""Feeders: processes that make batches of training callers, so that a GPU need not wait for one.

A feeder has one thread and no exit of its own: it blocks in a pipe when it is a batch ahead, and is killed
when nobody wants more. (Threads that share tensors while their interpreter ends abort it: "terminate called
without an active exception".)
"""

from __future__ import annotations

import fcntl
import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from train.callers import Batch, Callers, set_aside
from train.data import AgentStore, CallerStore

PIPE_BYTES = 1 << 20
"""A batch has about 3 MB; what is in the pipe need not be waited for."""


def callers_of(state: Path, rows: int, seed: int) -> Callers:
    """Endless batches of a state's training callers, without those set aside."""
    store = CallerStore(state, "train")
    store.utterances, _ = set_aside(store.utterances)
    return Callers(store, AgentStore(state), rows, seed)


class Feeders:
    """Batches on the default device, made by `count` processes or, with 0, here. Ended with the `with`."""

    def __init__(self, state: Path, rows: int, seed: int, count: int) -> None:
        self._here = None if count else callers_of(state, rows, seed)
        self._pipes: list[Connection] = []
        self.processes: list[multiprocessing.process.BaseProcess] = []
        spawn = multiprocessing.get_context("spawn")  # a fork must not inherit what talks to a GPU
        for number in range(count):
            ours, theirs = spawn.Pipe(duplex=False)
            with suppress(OSError):
                fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            arguments = (state, rows, 1_000 * seed + number, theirs)
            process = spawn.Process(target=_feed, args=arguments, name=f"feeder {number}", daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self.processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        for pipe in self._pipes:
            pipe.close()

    def __iter__(self) -> Iterator[Batch]:
        """Raises EOFError when a feeder has died; it has said why."""
        if self._here is not None:
            yield from self._here
        for pipe in cycle(self._pipes):
            pcm, starts, ends, said = pipe.recv()
            yield Batch(torch.from_numpy(pcm).to(torch.get_default_device()), starts, ends, said)


def _feed(state: Path, rows: int, seed: int, pipe: Connection) -> None:
    """A feeder's life. A stop of the whole group is the trainer's to answer: it saves, then it ends us."""
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    with suppress(BrokenPipeError):  # the trainer is gone
        for batch in callers_of(state, rows, seed):
            pipe.send((batch.pcm.numpy(), batch.starts, batch.ends, batch.said))
