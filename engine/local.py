"""LocalEngine: a Moshi in this process. A ModelRunner under the tick engine's clock, with admission.

It loads, warms up and measures; then admits calls while the measured tick and the pages forecast allow.
torch is imported when the engine starts, by the runner.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from engine.api import FRAME, Capacity, EngineError, EngineFull, EngineRefused, Persona
from engine.clock import TickTimes
from engine.forecast import BUDGET_MS, PageForecast, slots_within
from engine.frames import Batch, Mask
from engine.model_stepper import ModelStepper
from engine.parking import NOTHING_TO_PARK, Coming, Leaving, Moves
from engine.rows import AudioRows
from engine.slot import RowSlot
from engine.slots import SlotTable
from engine.stepper import Stepped
from engine.tick import TICK_MS, TickEngine
from engine.waiting_room import RoomOptions, WaitingRoom

if TYPE_CHECKING:
    from engine.passage import Arrival
    from engine.runner import ModelRunner, SlotSnapshot

log = logging.getLogger(__name__)

_LEAST_PAGES = 3
"""Of a call under page pressure: two of window and the one being begun."""
_WARM_TICKS, _MEASURED_TICKS = 3, 20
_RUNS = 3
_BUSY = 2.0
"""Times its own work that measuring may last before the log says so."""

Progress = Callable[[str], None]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """Which model, and how it lies on the device. None leaves the checkpoint's or the device's own."""

    source: str
    """A folder, or a Hugging Face repository such as `kyutai/moshiko-pytorch-bf16`."""
    slots: int = 4
    revision: str | None = None
    device: str = "auto"
    dtype: str | None = None
    weight_dtype: str | None = None
    kv_dtype: str | None = None
    context: int | None = None
    pages: int | None = None
    threads: int = 1
    """Of torch on a CPU. A small model is slower with more, and the gateway needs the other cores."""
    budget_ms: float = BUDGET_MS
    parking: RoomOptions = field(default_factory=RoomOptions)
    """Held calls that give their slot away; of the rows, `parking.places` are theirs."""
    calibrate: bool = True
    """False: admit `slots` calls without measuring a tick."""


def load_runner(options: LocalOptions, progress: Progress) -> ModelRunner:
    """Blocks for seconds to minutes. Raises EngineError (CheckpointError, OutOfMemory among them)."""
    try:
        import torch

        from engine.checkpoint import Checkpoint
        from engine.runner import ModelRunner, RunnerOptions
    except ImportError as error:
        raise EngineError(f"{error.name} is not installed: pip install 'moshi-gateway[engine]'") from error
    torch.set_num_threads(options.threads)
    progress(f"looking for {options.source}")
    checkpoint = Checkpoint.find(options.source, options.revision)
    progress(f"loading {checkpoint.name}")
    laid_out = RunnerOptions(
        device=options.device,
        dtype=options.dtype,
        weight_dtype=options.weight_dtype,
        kv_dtype=options.kv_dtype,
        context=options.context,
        pages=options.pages,
    )
    return ModelRunner.load(checkpoint, options.slots, laid_out)


def measure(
    runner: ModelRunner, progress: Progress, budget_ms: float = BUDGET_MS, clock: Clock = time.perf_counter
) -> dict[int, tuple[float, float]]:
    """Median and p99 in ms of a tick by calls at once, doubling until the slots or the budget end."""
    noise = (0.05 * np.random.default_rng(0).standard_normal((runner.slots, FRAME))).astype(np.float32)
    curve: dict[int, tuple[float, float]] = {}
    sizes = [2**k for k in range(16) if 2**k < runner.slots] + [runner.slots]
    for calls in sizes:
        progress(f"measuring {calls} calls at once")
        curve[calls] = _measured(runner, noise, calls, budget_ms, clock)
        if curve[calls][1] > budget_ms:
            break
    return curve


def _measured(
    runner: ModelRunner, noise: Batch, calls: int, budget_ms: float, clock: Clock
) -> tuple[float, float]:
    # A busy neighbour only ever adds time: of up to three runs the quickest tells the device's own.
    best = (math.inf, math.inf)
    for _ in range(_RUNS):
        times = _timed(runner, noise, calls, clock)
        best = min(best, (times.percentile_ms(50), times.percentile_ms(99)), key=lambda run: run[1])
        if best[1] <= budget_ms:
            break
    return best


def _timed(runner: ModelRunner, noise: Batch, calls: int, clock: Clock) -> TickTimes:
    active = np.arange(runner.slots) < calls
    for slot in range(calls):
        runner.open(slot, Persona(seed=slot))
    times = TickTimes()
    for tick in range(_WARM_TICKS + _MEASURED_TICKS):
        began = clock()
        runner.step(noise, active)
        if tick >= _WARM_TICKS:
            times.add(clock() - began)
    for slot in range(calls):
        runner.close(slot)
    return times


class LocalEngine(TickEngine):
    """An Engine over a checkpoint. start() loads it; open() admits by tick time and pages."""

    can_inject = True

    def __init__(
        self,
        options: LocalOptions,
        phase: float = 0.0,
        rows: AudioRows | None = None,
        progress: Progress = log.info,
    ) -> None:
        """rows: where the audio lies, for slots and parked calls. progress: told each stage of start()."""
        rows = rows if rows is not None else AudioRows(options.slots + options.parking.places)
        self.options = replace(options, slots=rows.count)
        self.curve: dict[int, tuple[float, float]] = {}
        """Calls at once -> median and p99 of a tick in ms, as measured at start."""
        self._progress = progress
        self._model: ModelStepper | None = None
        self._runner: ModelRunner | None = None
        self._moves = Moves()
        self._room = WaitingRoom(self, options.parking)
        table = SlotTable(rows.count, max(1, rows.count - options.parking.places))
        super().__init__(f"moshi ({options.source})", _Unloaded(), rows, table, phase)

    async def start(self) -> None:
        await self.load()
        await super().start()

    async def load(self) -> None:
        """Load, warm up, measure; without the clock. Raises EngineError."""
        if self._runner is not None:
            return
        self.adopt(await asyncio.get_running_loop().run_in_executor(None, self._prepare))

    def adopt(self, runner: ModelRunner) -> None:
        """Take a runner that is loaded and has no open slot."""
        self._runner, self.name = runner, runner.name
        self._stepper = self._model = ModelStepper(runner)
        self.table.limit = min(self.table.limit, runner.pages.total // _LEAST_PAGES)

    def _prepare(self) -> ModelRunner:
        runner = load_runner(self.options, self._progress)
        if self.options.calibrate:
            self.table.limit = self._measured_limit(runner)
        # What was made while loading lives as long as the engine: not to be walked at every collection.
        gc.collect()
        gc.freeze()
        return runner

    def _measured_limit(self, runner: ModelRunner) -> int:
        # A neighbour who is busy while this starts may be gone when calls come: where one thread does all the
        # work, its own time counts and what it waited for the processor does not. What a busy machine cannot
        # hold then, admit() sees.
        alone = runner.device.type == "cpu" and self.options.threads == 1
        clock = time.thread_time if alone else time.perf_counter
        began, own = time.perf_counter(), clock()
        self.curve = measure(runner, self._progress, self.options.budget_ms, clock)
        took, worked = time.perf_counter() - began, clock() - own
        if took > _BUSY * worked:
            log.warning(
                "measuring took %.1f s for %.1f s of work: a machine as busy as now breaks up voices",
                took,
                worked,
            )
        limit = slots_within(
            {n: p99 for n, (_, p99) in self.curve.items()}, self.table.limit, self.options.budget_ms
        )
        median = self.curve[1][0] if 1 in self.curve else min(m for m, _ in self.curve.values())
        if median > TICK_MS:
            raise EngineError(
                f"one call takes {median:.0f} ms of every {TICK_MS:.0f} on this device: it needs a faster one"
            )
        if limit < self.table.limit:
            log.warning(
                "%d of %d slots keep a tick within %.0f ms", limit, self.table.limit, self.options.budget_ms
            )
        return max(1, limit)

    def admit(self, persona: Persona) -> None:
        if self._runner is not None:
            self._admit_pages(self._runner.prompt_pages(persona))

    def _admit_pages(self, pages: int) -> None:
        """Raises EngineFull where a further call that begins with so many will not fit."""
        runner, model = self._loaded()
        forecast = PageForecast(runner.pages.total, runner.window_pages, runner.page_frames)
        held = list(model.held().values())
        retry_s = forecast.retry_after_s(len(held))
        if held and not forecast.admits(held, pages):
            raise EngineFull(f"the memory of {len(held)} calls is all there is", retry_s)
        if held and self.times.recent_ms(90) > self.options.budget_ms:
            raise EngineFull(f"{len(held)} calls already take the time there is", retry_s)

    async def park(self, slot: RowSlot) -> SlotSnapshot:
        """Take the call's state out beside the ticks, a second's worth at full length, and close its slot.

        The call goes on until its last pages are taken; where this is cancelled, for good. Raises EngineError
        while its prompt still runs, where it ends meanwhile, and where the host has no memory for it.
        """
        snapshot = await self.take_out(slot)
        slot.close()
        return snapshot

    async def take_out(self, slot: RowSlot) -> SlotSnapshot:
        """As `park`, but the slot stays open and stands still."""
        _, model = self._loaded()
        if slot.ended is not None:
            raise EngineError(NOTHING_TO_PARK)
        leaving = Leaving(self, slot, model.depart)
        try:
            return await self._order(leaving.answer, lambda: self._moves.add(leaving))
        except asyncio.CancelledError:
            self._orders.append(leaving.give_up)
            raise

    async def unpark(self, snapshot: SlotSnapshot, row: int | None = None) -> RowSlot:
        """A slot that goes on where the parked call stopped, as soon as its state is in, beside the ticks.

        Of what its caller says before, the newest frame alone is heard. Raises EngineFull where there is no
        slot or no room for its pages, EngineRefused for a snapshot of another model.
        """
        runner, model = self._loaded()
        runner.accept(snapshot)
        self._admit_pages(len(snapshot.pages))
        slot = self._give(await self._reserve(row))
        coming = Coming(self, slot, lambda row: self._arrive(model, row, snapshot), snapshot.call.muted)
        try:
            await self._order(coming.answer, lambda: self._moves.add(coming))
        except BaseException:
            slot.close()
            raise
        return slot

    def _arrive(self, model: ModelStepper, row: int, snapshot: SlotSnapshot) -> Arrival:
        from engine.runner import OutOfPages

        try:
            return model.arrive(row, snapshot)
        except OutOfPages as error:
            raise EngineFull(f"the parked call does not fit: {error}") from error

    # -- held calls that give their slot away: see WaitingRoom ----------------------------------

    def away(self, slot: RowSlot) -> None:
        self._room.away(slot)

    def release(self, slot: RowSlot) -> None:
        if not self._room.back(slot):
            super().release(slot)

    def leave(self, slot: RowSlot) -> None:
        self._room.leave(slot)
        super().leave(slot)
        self._room.serve()

    def set_aside(self, slot: RowSlot) -> None:
        self.table.set_aside(slot.row)
        self._orders.append(lambda: self._stepper.close(slot.row))

    def has_room(self) -> bool:
        return self.table.open < self.table.limit

    def call_in(self, slot: RowSlot) -> None:
        self.table.call_in(slot.row)

    async def bring_in(self, slot: RowSlot, snapshot: SlotSnapshot) -> None:
        _, model = self._loaded()
        coming = Coming(self, slot, lambda row: model.arrive_anyhow(row, snapshot), snapshot.call.muted)
        await self._order(coming.answer, lambda: self._moves.add(coming))
        super().release(slot)

    def stand_still_again(self, slot: RowSlot) -> None:
        super().hold(slot)

    # -- beside the ticks ---------------------------------------------------------------------------

    def _between(self) -> None:
        if self._runner is not None:
            self._runner.shuttle.collect()
        self._moves.advance()

    async def stop(self) -> None:
        await super().stop()
        await asyncio.gather(*self._room.end(), return_exceptions=True)
        self._moves.clear()
        if self._runner is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._runner.shuttle.wait)

    def _loaded(self) -> tuple[ModelRunner, ModelStepper]:
        if self._runner is None or self._model is None:
            raise EngineError("the model is not loaded: start the engine first")
        return self._runner, self._model

    def capacity(self) -> Capacity:
        now = super().capacity()
        if self._runner is None or self._model is None:
            return now
        pages = self._runner.pages
        figures = {
            "pages": pages.total,
            "pages_used": pages.used,
            "pages_shrunk": self._model.shrunk_pages,
            "parked": self._room.parked,
        }
        return replace(now, detail=now.detail | {name: float(n) for name, n in figures.items()})


class _Unloaded:
    """Stands where the model will be."""

    def check(self, persona: Persona) -> None:
        raise EngineRefused("the model is not loaded: start the engine first")

    def open(self, slot: int, persona: Persona) -> None: ...

    def close(self, slot: int) -> None: ...

    def step(self, pcm: Batch, active: Mask) -> Stepped:
        raise EngineError("the model is not loaded")

    def piece(self, token: int) -> str | None: ...

    def interrupt(self, slot: int, unheard_frames: int) -> None: ...

    def release(self, slot: int) -> None: ...

    def inject(self, slot: int, text: str) -> None: ...
