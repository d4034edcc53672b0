"""ModelStepper: a ModelRunner as a Stepper; under page pressure the longest calls look back less."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from engine.api import EngineError, Persona
from engine.forecast import relief
from engine.frames import Batch, Mask
from engine.parking import NOTHING_TO_PARK
from engine.stepper import Stepped

if TYPE_CHECKING:
    from engine.passage import Arrival, Departure
    from engine.runner import ModelRunner, SlotSnapshot

log = logging.getLogger(__name__)


class ModelStepper:
    """A ModelRunner as a Stepper: without a free page the longest windows shrink and it steps again."""

    def __init__(self, runner: ModelRunner) -> None:
        self.shrunk_pages = 0
        self._runner = runner
        self._open: set[int] = set()

    def check(self, persona: Persona) -> None:
        self._runner.check(persona)

    def open(self, slot: int, persona: Persona) -> None:
        self._runner.open(slot, persona)
        self._open.add(slot)

    def close(self, slot: int) -> None:
        self._open.discard(slot)
        self._runner.close(slot)

    def held(self) -> dict[int, int]:
        """Pages of each open slot. Any thread may ask."""
        return {slot: self._runner.slot_pages(slot) for slot in list(self._open)}

    def step(self, pcm: Batch, active: Mask) -> Stepped:
        """Raises OutOfPages when every window is at its least and there is still no room."""
        from engine.runner import OutOfPages

        while True:
            try:
                return self._runner.step(pcm, active)
            except OutOfPages:
                if not self._relieve(int(active.sum())) and not self._land():
                    raise

    def _relieve(self, needed: int) -> int:
        freed = sum(self._runner.shrink(slot, pages) for slot, pages in relief(self.held(), needed).items())
        self.shrunk_pages += freed
        return freed

    def _land(self) -> bool:
        """Wait for pages that are being copied; whether one has come free by it."""
        free = self._runner.pages.free
        self._runner.shuttle.wait()
        return self._runner.pages.free > free

    def piece(self, token: int) -> str | None:
        return self._runner.piece(token)

    def interrupt(self, slot: int, unheard_frames: int) -> None:
        self._runner.rewind(slot, unheard_frames)
        self._runner.interrupt(slot)

    def release(self, slot: int) -> None:
        self._runner.release(slot)

    def inject(self, slot: int, text: str) -> None:
        try:
            self._runner.inject(slot, text)
        except ValueError as error:
            log.warning("words for slot %d were dropped: %s", slot, error)

    def depart(self, slot: int) -> Departure:
        if not self._runner.ready(slot):
            raise EngineError(NOTHING_TO_PARK)
        return self._runner.depart(slot)

    def arrive(self, slot: int, snapshot: SlotSnapshot) -> Arrival:
        """Raises EngineRefused, OutOfPages."""
        arrival = self._runner.arrive(slot, snapshot)
        self._open.add(slot)
        return arrival

    def arrive_anyhow(self, slot: int, snapshot: SlotSnapshot) -> Arrival:
        """As `arrive`; where it does not fit, the longest windows shrink, its own among them."""
        from engine.runner import OutOfPages

        try:
            return self.arrive(slot, snapshot)
        except OutOfPages as short:
            keeps = relief(self.held() | {slot: short.needed}, short.needed - short.free)
        own = keeps.pop(slot, None)
        self.shrunk_pages += sum(self._runner.shrink(other, pages) for other, pages in keeps.items())
        arrival = self._runner.arrive(slot, snapshot, own)
        self._open.add(slot)
        return arrival
