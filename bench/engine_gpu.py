"""Calls a GPU holds: `python -m bench.engine_gpu --out results.jsonl` (under 10 minutes on an H200).

Random Moshi 7B weights made on the device, full-size Mimi, host audio in and out. Every figure is a JSON
line, written as soon as it is known, so a time-out keeps what was measured. `--tiny` tries all of it on a
CPU. For Kyutai's line beside ours: `pip install --no-deps moshi==0.2.13 einops sphn`.

Lines: device (copy bandwidth, matrix peak), kyutai (PyPI's moshi with its own graphs, if installed), ours
(paced ticks, by batch and length of calls), stages, storm (calls joining with a shared prompt), snapshot.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.gpu_model import Model, build_runner, kyutai_step, model_for
from engine.api import EngineError, Persona
from engine.kv import PAGE, OutOfPages
from engine.runner import ModelRunner

TICK_S, MEAN_FRAMES, BUDGET_MS = 0.08, 2_250, 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """One way of holding the model, and the batches to try."""

    name: str
    kv_dtype: str | None
    weight_dtype: str | None
    batches: tuple[int, ...]
    full: tuple[int, ...]
    """Batches to try with every window full."""


PLANS = (
    Plan("bf16", None, None, (1, 8, 32, 64, 96, 110, 116), (32, 64)),
    Plan("fp8-kv", "float8", None, (1, 32, 96, 128, 160), (32, 96)),
    Plan("fp8", "float8", "float8", (1, 32, 96, 128, 192, 220, 256), (32, 128)),
)
TINY_PLANS = (Plan("fp32", None, None, (1, 2, 4), (2,)), Plan("fp8", "float8", "float8", (2,), ()))


class Report:
    """JSON lines to the screen and the file, at once."""

    def __init__(self, path: Path | None, limit_s: float) -> None:
        self._file = path.open("a") if path else None
        self._end = time.monotonic() + limit_s

    def line(self, kind: str, **values: Any) -> None:
        text = json.dumps({"kind": kind, **values})
        print(text, flush=True)
        if self._file:
            self._file.write(text + "\n")
            self._file.flush()

    @property
    def left_s(self) -> float:
        return self._end - time.monotonic()


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repeat: int) -> float:
    """Median of `repeat` timed runs, after two."""
    times = []
    for turn in range(repeat + 2):
        settle(device)
        begin = time.perf_counter()
        work()
        settle(device)
        if turn >= 2:
            times.append(time.perf_counter() - begin)
    return float(np.median(times))


def measure_device(report: Report, device: torch.device) -> tuple[float, float]:
    """(bytes a second of a copy, read and written; multiply-adds a second of a matrix product)"""
    small = device.type == "cpu"
    source = torch.empty(2**24 if small else 2**31, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() / seconds(partial(target.copy_, source), device, 10)
    source = target = torch.empty(0)
    size, dtype = (512, torch.float32) if small else (8192, torch.bfloat16)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    peak = size**3 / seconds(partial(torch.mm, left, right), device, 10)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    report.line("device", name=name, copy_GBps=round(bandwidth / 1e9, 1), TMACps=round(peak / 1e12, 2))
    return bandwidth, peak


def percentiles(times: list[float]) -> dict[str, float]:
    ms = np.array(times) * 1e3
    return {"p50_ms": round(float(np.median(ms)), 2), "p99_ms": round(float(np.percentile(ms, 99)), 2)}


def run_kyutai(
    report: Report, model: Model, device: torch.device, batches: tuple[int, ...], ticks: int
) -> None:
    for batch in batches:
        try:
            step = kyutai_step(model, device, batch)
        except ImportError:
            report.line("kyutai", skipped="PyPI's moshi is not installed")
            return
        except torch.cuda.OutOfMemoryError:
            report.line("kyutai", batch=batch, out_of_memory=True)
            continue
        times = []
        for tick in range(ticks + 5):
            begin = time.perf_counter()
            step()
            settle(device)
            if tick >= 5:
                times.append(time.perf_counter() - begin)
        report.line("kyutai", batch=batch, full_window=True, **percentiles(times))
        del step
        release(device)


def release(device: torch.device) -> None:
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def lengths(batch: int, context: int, full: bool) -> list[int]:
    """Frames lived by each call: full windows, or at a random time of calls of 3 minutes' mean."""
    if full:
        return [context] * batch
    ages = -MEAN_FRAMES * np.log(1 - (np.arange(batch) + 0.5) / batch)
    return [max(4, int(age)) for age in ages]


def fill(runner: ModelRunner, frames: list[int]) -> None:
    """Open slots as if each had lived that many frames; what its window holds does not change the time."""
    cache, ring = runner._cache, runner._generator.ring
    for slot, age in enumerate(frames):
        runner.open(slot, Persona(seed=slot))
        rows = np.array([slot])
        while cache.frames[slot] < age:
            count = int(min(PAGE, age - cache.frames[slot]))
            cache.reserve(rows, count)
            cache.advance(rows, count)
        ring.frames[slot] = age
    cache.push()


def empty(runner: ModelRunner) -> None:
    for slot in range(runner.slots):
        runner.close(slot)


def paced(runner: ModelRunner, batch: int, ticks: int, pace_s: float) -> tuple[list[float], int]:
    """Times of `ticks` steps on an absolute clock, and how many ended after their slot."""
    active = np.arange(runner.slots) < batch
    pcm = (np.random.default_rng(0).standard_normal((runner.slots, 1_920)) * 0.1).astype(np.float32)
    times, missed, due = [], 0, time.perf_counter()
    for tick in range(ticks + 5):
        now = time.perf_counter()
        if now < due:
            time.sleep(due - now)
        begin = time.perf_counter()
        runner.step(pcm, active)
        took = time.perf_counter() - begin
        due = max(due + pace_s, begin)
        if tick >= 5:
            times.append(took)
            missed += took > TICK_S
    return times, missed


def roofline_ms(runner: ModelRunner, frames: list[int], bandwidth: float, peak: float) -> float:
    """The least a tick can take: weights once and live keys and values at copy speed, or the products."""
    lm, pool = runner._lm, runner._generator.pool
    weights = lm_bytes(lm)
    kv = pool.nbytes_per_page / PAGE * sum(min(age, lm.config.context) for age in frames)
    products = lm_weights(lm) * len(frames)
    return max((weights + kv) / bandwidth, products / peak) * 1e3


def matrices(lm: Any) -> Iterator[Any]:
    for layer in [*lm.temporal.layers, *(layer for step in lm.depth.layers for layer in step)]:
        yield from (layer.qkv, layer.out, layer.up, layer.down)
    yield from (lm.text_head, lm.depth.input, *lm.depth.heads)


def values(lm: Any) -> Iterator[Tensor]:
    return (matrix if isinstance(matrix, Tensor) else matrix.values for matrix in matrices(lm))


def lm_weights(lm: Any) -> int:
    return sum(part.numel() for part in values(lm))


def lm_bytes(lm: Any) -> int:
    return sum(part.numel() * part.element_size() for part in values(lm))


def run_ours(
    report: Report, runner: ModelRunner, plan: Plan, ticks: int, speeds: tuple[float, float]
) -> None:
    pace_s = TICK_S if runner._parts.options.device == "cuda" else 0.0
    context = runner._lm.config.context
    for batch, full in [*((b, False) for b in plan.batches), *((b, True) for b in plan.full)]:
        if report.left_s < ticks * TICK_S + 10:
            report.line("ours", plan=plan.name, skipped="out of time")
            return
        ages = lengths(batch, context, full)
        try:
            fill(runner, ages)
            times, missed = paced(runner, batch, ticks, pace_s)
        except (OutOfPages, IndexError) as error:
            report.line(
                "ours", plan=plan.name, batch=batch, full_window=full, does_not_fit=type(error).__name__
            )
            empty(runner)
            continue
        floor = roofline_ms(runner, ages, *speeds)
        figures, live = percentiles(times), sum(min(age, context) for age in ages)
        report.line(
            "ours", plan=plan.name, batch=batch, full_window=full, live_frames=live,
            **figures, missed=missed, fits=figures["p99_ms"] <= BUDGET_MS, roofline_ms=round(floor, 2),
            of_roofline=round(floor / figures["p50_ms"], 3), pages=runner.pages.used,
        )  # fmt: skip
        split_stages(report, runner, plan, batch)
        empty(runner)


def split_stages(report: Report, runner: ModelRunner, plan: Plan, batch: int) -> None:
    """Milliseconds of encoder, language model and decoder, replayed alone."""
    replays = getattr(runner._stages, "replays", None)
    if not replays:
        return
    size = next(size for size in sorted(replays) if size >= batch)
    device = runner._cache.tables.device
    names = ("encoder", "lm", "decoder")
    split = {f"{name}_ms": round(seconds(replay, device, 10) * 1e3, 3)
             for name, replay in zip(names, replays[size], strict=True)}  # fmt: skip
    report.line("stages", plan=plan.name, batch=batch, size=size, **split)


def run_storm(report: Report, runner: ModelRunner, plan: Plan) -> None:
    """Half the slots talk; the others join at once with one persona's prompt."""
    live = max(1, runner.slots // 4)
    joining = range(live, min(runner.slots, 2 * live + 1))
    fill(runner, lengths(live, runner._lm.config.context, False))
    for slot in joining:
        runner.open(slot, Persona(text_prompt="you are a kind host who answers the phone " * 8, seed=slot))
    pcm = np.zeros((runner.slots, 1_920), np.float32)
    active, times, begin = np.arange(runner.slots) < live, [], time.perf_counter()
    while not all(runner.ready(slot) for slot in joining) and len(times) < 500:
        started = time.perf_counter()
        runner.step(pcm, active)
        times.append(time.perf_counter() - started)
    report.line("storm", plan=plan.name, live=live, joining=len(joining), ticks=len(times),
                all_ready_s=round(time.perf_counter() - begin, 3), **percentiles(times))  # fmt: skip
    empty(runner)


def run_snapshot(report: Report, runner: ModelRunner, plan: Plan) -> None:
    """One call out and in again: at once, and in loads beside the ticks of others."""
    window, live = runner._lm.config.context, max(1, runner.slots // 4)
    fill(runner, [min(1_656, window), *lengths(live, window, False)][: runner.slots])
    device = runner._cache.tables.device
    pcm, others = np.zeros((runner.slots, 1_920), np.float32), np.arange(runner.slots) > 0
    others &= runner._open

    def ticking(turn: Callable[[], bool]) -> list[float]:
        times = []
        while True:
            started = time.perf_counter()
            over = turn()
            runner.step(pcm, others)
            times.append(time.perf_counter() - started)
            if over:
                return times
            time.sleep(max(0.0, TICK_S - times[-1]))

    for _ in range(3):
        runner.step(pcm, others)
    settle(device)
    quiet = iter(range(20))
    alone = ticking(lambda: next(quiet) == 19)
    departure = runner.depart(0)
    out = ticking(departure.advance)
    departure.finish()
    out += ticking(lambda: departure.snapshot() is not None)
    begin = time.perf_counter()
    snapshot = runner.snapshot(0)
    taken = time.perf_counter() - begin
    runner.close(0)
    arrival = runner.arrive(0, snapshot)
    into = ticking(arrival.advance)
    runner.close(0)
    begin = time.perf_counter()
    runner.restore(0, snapshot)
    settle(device)
    restored = time.perf_counter() - begin
    report.line("snapshot", plan=plan.name, frames=snapshot.frames, MiB=round(snapshot.nbytes / 2**20, 1),
                load=runner.shuttle.load, live=int(others.sum()), ticks_out=len(out), ticks_in=len(into),
                tick_ms=longest(alone), tick_out_ms=longest(out), tick_in_ms=longest(into),
                take_ms=round(taken * 1e3, 1), restore_ms=round(restored * 1e3, 1))  # fmt: skip
    empty(runner)


def longest(times: list[float]) -> float:
    return round(max(times) * 1e3, 1)


QUICK_MINUTES = 0.8
QUICK_TICKS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="at most a minute; without a GPU the tiny model")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on whatever device there is")
    parser.add_argument("--json", "--out", dest="out", type=Path, help="also append the lines to this file")
    parser.add_argument("--ticks", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--plans", default="", help="comma-separated names; all by default")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.minutes = min(arguments.minutes, QUICK_MINUTES)
        arguments.ticks = min(arguments.ticks, QUICK_TICKS)
        arguments.tiny |= not torch.cuda.is_available()
    report = Report(arguments.out, arguments.minutes * 60)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not arguments.tiny:
        parser.error("no CUDA device here: try --tiny")
    model = model_for(arguments.tiny)
    speeds = measure_device(report, device)
    wanted = [name for name in arguments.plans.split(",") if name]
    plans = [plan for plan in (TINY_PLANS if arguments.tiny else PLANS) if not wanted or plan.name in wanted]
    for number, plan in enumerate(plans):
        slots = max(plan.batches)
        try:
            runner = build_runner(model, device, slots, plan.kv_dtype, plan.weight_dtype)
        except (EngineError, MemoryError, torch.cuda.OutOfMemoryError) as error:
            report.line("ours", plan=plan.name, does_not_fit=f"{type(error).__name__} at {slots} slots")
            release(device)
            continue
        run_ours(report, runner, plan, arguments.ticks, speeds)
        run_storm(report, runner, plan)
        run_snapshot(report, runner, plan)
        del runner
        release(device)
        if number == 0:
            run_kyutai(
                report, model, device, (1, 2) if arguments.tiny else (1, 8, 16, 32), min(50, arguments.ticks)
            )


if __name__ == "__main__":
    main()
