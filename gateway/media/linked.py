"""The receive path's functions, compiled together by numba, or as they are.

Both are the same source, so equal output needs no faith; without numba only time is lost. Compiled code is
kept in a folder named after a digest of the sources: a changed function never meets another's old code.
MOSHI_NUMBA=0 turns compiling off.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

from gateway.media import cells, columns, g711, jitter, plc, rows, rtp_step, stream
from gateway.media.compiled import _cache_dir
from gateway.media.rows import I16, I64, LARGEST_FRAME, ReceiveRows
from gateway.media.rtp_step import F64, U8

log = logging.getLogger(__name__)

_MODULES: tuple[tuple[ModuleType, str], ...] = (
    (plc, "_normalised likeness_by_loops best_lag noise prepare repeated invented conceal merge"),
    (plc, "squeeze stretch"),
    (stream, "wrapped begin replaces position strays enter measure_jitter accept"),
    (cells, "copy_by_loops fill_by_loops lay_by_loops filled_by_loops"),
    (jitter, "empty note_stored store largest note_need first_stored run_length settle discard take peek"),
    (jitter, "is_pause shrink grow scale_time note_background piece pull"),
    (rtp_step, "payload_span header_of samples_of take_packet take_packets pull_rows"),
)
"""Callees before callers."""
_SOURCES = (columns, rows, cells, plc, stream, jitter, rtp_step)
_STANDS_IN = {f"{name}_by_loops": name for name in ("likeness", "copy", "fill", "lay", "filled")}
"""Written once for the compiler and once for numpy."""


class TakePackets(Protocol):
    def __call__(
        self, r: ReceiveRows, rows: I64, data: U8, sizes: I64, times: tuple[int, F64, float],
        tables: I16, left: I64,
    ) -> None: ...  # fmt: skip


class PullRows(Protocol):
    def __call__(self, r: ReceiveRows, rows: I64, tick: int, out: I16, invented: I64) -> None: ...


class Store(Protocol):
    def __call__(self, r: ReceiveRows, row: int, start: int, pcm: I16) -> None: ...


class Steps(NamedTuple):
    """What a tick calls, see rtp_step and jitter."""

    take_packets: TakePackets
    pull_rows: PullRows
    store: Store
    compiled: bool


PLAIN = Steps(rtp_step.take_packets, rtp_step.pull_rows, jitter.store, False)


@contextmanager
def compiler(*sources: str) -> Iterator[Callable[[Any, dict[str, Any]], Any] | None]:
    """Gives njit(function, its globals), caching in a folder for these sources; None without numba."""
    if os.environ.get("MOSHI_NUMBA", "1") == "0":
        yield None
        return
    try:
        import numba
        from numba.core import config as numba_config
    except ImportError:
        log.warning("numba is not usable: phone calls take several times the processor time")
        yield None
        return
    config: Any = numba_config
    usual = config.CACHE_DIR
    config.CACHE_DIR = str(_cache_dir() / f"media-{_digest(*sources)}")

    def njit(function: Any, scope: dict[str, Any]) -> Any:
        known = {**function.__globals__, **scope}
        copy = FunctionType(function.__code__, known, function.__name__, function.__defaults__)
        known[function.__name__] = compiled = numba.njit(nogil=True, cache=True)(copy)
        return compiled

    try:
        yield njit
    finally:
        config.CACHE_DIR = usual


@cache
def steps(compiled: bool) -> Steps:
    """The steps, compiled if wanted and possible. The first time takes seconds, later ones load the cache."""
    if not compiled:
        return PLAIN
    began = time.perf_counter()
    with compiler(*(str(module.__file__) for module in _SOURCES)) as njit:
        if njit is None:
            return PLAIN
        # numba caches nothing that refers to a module; a named tuple of numbers is a constant to it.
        numbers = {name: value for name, value in vars(columns).items() if name.isupper()}
        ready: dict[str, Any] = {"c": namedtuple("Columns", numbers)(**numbers)}
        for module, names in _MODULES:
            for name in names.split():
                ready[_STANDS_IN.get(name, name)] = njit(getattr(module, name), ready)
    found = Steps(ready["take_packets"], ready["pull_rows"], ready["store"], True)
    _warm(found)
    log.info("media steps ready in %.1f s", time.perf_counter() - began)
    return found


def _digest(*sources: str) -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for source in sources:
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()[:16]


def _warm(found: Steps) -> None:
    """Compile for the types that ticks use."""
    r = rows.receive_rows(1)
    rows.configure(r, 0, rows.PCMU, 8_000, 8_000, 400)
    one = np.zeros(1, np.int64)
    times = (1, np.zeros(1), 0.0)
    found.take_packets(r, one, np.zeros((1, 1_500), np.uint8), one.copy(), times, g711.DECODE, one.copy())
    found.pull_rows(r, one, 1, np.zeros((1, LARGEST_FRAME), np.int16), one.copy())
    found.store(r, 0, 0, np.zeros(1, np.int16))
