"""Stepper: what makes the agent's frames, one 80 ms step of all slots at a time.

A model, an echo or a line to a remote stands behind it. It knows no clock, no thread and no rows.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.api import Persona
from engine.frames import Batch, Mask


class Stepped(Protocol):
    """What one step gave; the arrays may be reused by the next step."""

    @property
    def pcm(self) -> Batch:
        """(slots, 1920) float32, the agent's audio."""
        ...

    @property
    def text(self) -> NDArray[np.int64]:
        """(slots,) token of the agent's monologue, -1 where none."""
        ...

    @property
    def valid(self) -> Mask:
        """(slots,) where the step produced a frame."""
        ...


class Stepper(Protocol):
    """Advances all slots by 80 ms. All but check() is called by the tick thread alone."""

    def check(self, persona: Persona) -> None:
        """Raises EngineRefused for a persona that cannot be had. Any thread; touches no state."""
        ...

    def open(self, slot: int, persona: Persona) -> None: ...

    def close(self, slot: int) -> None: ...

    def step(self, pcm: Batch, active: Mask) -> Stepped: ...

    def piece(self, token: int) -> str | None: ...

    def interrupt(self, slot: int, unheard_frames: int) -> None:
        """Silence the agent until release(). unheard_frames: its last frames that the caller did not hear."""
        ...

    def release(self, slot: int) -> None: ...

    def inject(self, slot: int, text: str) -> None:
        """Force words; called only where the engine says that it can."""
        ...
