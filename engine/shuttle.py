"""Shuttle: carries pages between the KV cache and ordinary host memory, beside the ticks.

One load is under way at a time. On CUDA a thread of its own carries it on a stream of its own, through pinned
memory for one load; on a CPU it is copied at once. Pages under way have one holder more, so that none is
given to another call before its load has landed. All but the carrying belongs to the tick thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from torch import Tensor

from engine import twins
from engine.kv import PagedCache
from engine.model.transformer import Pool

LOAD = 4
"""Pages a load, and so the most that a tick has copied. A page of Moshi 7B is 32 MiB in bfloat16: a load is
2.6 ms of a bus of 50 GB/s, beside which the tick reads its own memory as before, and some 40 ms of the
shuttle's core to lay it down in fresh memory (by calculation, not measured). So it lands before the next
tick, and a full window of 48 pages is out after a second."""

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Cargo:
    """What a load brought."""

    pages: tuple[Tensor, ...]
    """(layers, 64, 2, heads, head_dim) each, on the host; none for a load into the cache."""
    state: State
    """What came with them: on the host for a load out, on the device for a load in."""


class Shuttle:
    def __init__(self, pool: Pool, cache: PagedCache, threaded: bool | None = None) -> None:
        """threaded: carry in a thread of its own; None: on CUDA."""
        self._device = cache.tables.device
        cuda = self._device.type == "cuda"
        self.load = LOAD
        """Pages a load, at most LOAD."""
        self.carried = 0
        """Pages carried so far, either way."""
        self._cache = cache
        self._dtype = pool.layers[0].dtype
        self._layers = [twins.plain(layer) for layer in pool.layers]
        shape = (LOAD, len(self._layers), *self._layers[0].shape[1:])
        self._berths = torch.empty(shape, dtype=self._layers[0].dtype, pin_memory=cuda)
        self._stream = torch.cuda.Stream(self._device) if cuda else None  # type: ignore[no-untyped-call]
        self._thread = ThreadPoolExecutor(1, "pages") if (cuda if threaded is None else threaded) else None
        self._under_way: Future[Cargo] | None = None
        self._pages: tuple[int, ...] = ()

    def collect(self) -> bool:
        """Let go of what has landed; whether nothing is under way now."""
        if self._under_way is not None and self._under_way.done():
            self._under_way = None
            for page in self._pages:
                self._cache.give_back(page)
        return self._under_way is None

    def wait(self) -> None:
        """Until nothing is under way."""
        if self._under_way is not None:
            wait([self._under_way])
        self.collect()

    def out(self, pages: Sequence[int], state: Callable[[], State] = dict) -> Future[Cargo]:
        """Copy pages of the pool to the host, then what `state` reads. Only when nothing is under way."""
        return self._start(pages, lambda: Cargo(tuple(self._read(pages)), state()))

    def into(
        self, pages: Sequence[int], given: Sequence[Tensor], state: State | None = None
    ) -> Future[Cargo]:
        """Copy what `out` brought to pages of the pool and to the device. Only when nothing is under way."""

        reader = None if self._stream is None else torch.cuda.current_stream(self._device)

        def carry() -> Cargo:
            self._write(pages, given)
            there = {name: value.to(self._device) for name, value in (state or {}).items()}
            if reader is not None:
                for value in there.values():
                    value.record_stream(reader)
            return Cargo((), there)

        return self._start(pages, carry)

    def _start(self, pages: Sequence[int], carry: Callable[[], Cargo]) -> Future[Cargo]:
        assert self._under_way is None, "one load at a time"
        for page in pages:
            self._cache.borrow(page)
        self._pages = tuple(pages)
        self.carried += len(pages)
        before = torch.cuda.current_stream(self._device).record_event() if self._stream is not None else None
        if self._thread is not None:
            load = self._thread.submit(self._carry, carry, before)
        else:
            load = _at_once(lambda: self._carry(carry, before))
        self._under_way = load
        return load

    @torch.inference_mode()
    def _carry(self, carry: Callable[[], Cargo], before: torch.cuda.Event | None) -> Cargo:
        if self._stream is None or before is None:
            return carry()
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(before)
            cargo = carry()
            self._stream.synchronize()
        return cargo

    def _read(self, pages: Sequence[int]) -> list[Tensor]:
        landed = []
        for start in range(0, len(pages), self.load):
            some = pages[start : start + self.load]
            for berth, page in zip(self._berths, some, strict=False):
                for lines, layer in zip(berth, self._layers, strict=True):
                    lines.copy_(layer[page], non_blocking=True)
            self._settle()
            landed += [berth.clone().view(self._dtype) for berth in self._berths[: len(some)]]
        return landed

    def _write(self, pages: Sequence[int], given: Sequence[Tensor]) -> None:
        for start in range(0, len(pages), self.load):
            some = zip(self._berths, pages[start:], given[start : start + self.load], strict=False)
            for berth, page, brought in some:
                berth.copy_(twins.plain(brought))
                for lines, layer in zip(berth, self._layers, strict=True):
                    layer[page].copy_(lines, non_blocking=True)
            self._settle()

    def _settle(self) -> None:
        """The berths may be used again."""
        if self._stream is not None:
            self._stream.synchronize()


def _at_once(carry: Callable[[], Cargo]) -> Future[Cargo]:
    load: Future[Cargo] = Future()
    try:
        load.set_result(carry())
    except (RuntimeError, MemoryError) as error:  # as from a thread: who asks for the result hears of it
        load.set_exception(error)
    return load
