"""Tape: an engine's stepper that plays a recording to one caller and records what both say.

`moshi-gateway call` holds its calls with it, so that its audio takes the same path as a model's.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.api import FRAME, Pcm, Persona
from engine.frames import Batch, Mask

_UNREAD_FRAMES = 1_500
"""Two minutes of recording wait for their reader before the oldest is lost."""


@dataclass(frozen=True, slots=True)
class TapeStep:
    """See engine.tick.Stepped."""

    pcm: Batch
    text: NDArray[np.int64]
    valid: Mask


class Tape:
    """Plays `speech`, (n,) float32 at 24 kHz, once, then silence; see engine.tick.Stepper."""

    def __init__(self, speech: Pcm) -> None:
        self._frames = np.pad(speech, (0, -len(speech) % FRAME)).astype(np.float32).reshape(-1, FRAME)
        self._recorded: deque[tuple[Pcm, Pcm]] = deque(maxlen=_UNREAD_FRAMES)
        self.played = 0
        """Frames since the call was answered, silence after the end included."""

    @property
    def finished(self) -> bool:
        """All of the speech has been said."""
        return self.played >= len(self._frames)

    def take(self) -> list[tuple[Pcm, Pcm]]:
        """Frames since the last call, oldest first: what we said and what we heard in the same tick, (1920,)
        each. From another thread than step()."""
        taken = []
        while self._recorded:
            taken.append(self._recorded.popleft())
        return taken

    def check(self, persona: Persona) -> None:
        """A tape is nobody: every persona will do."""

    def open(self, slot: int, persona: Persona) -> None:
        self.played = 0

    def close(self, slot: int) -> None:
        pass

    def interrupt(self, slot: int, unheard_frames: int) -> None:
        """A tape does not give way."""

    def release(self, slot: int) -> None:
        pass

    def inject(self, slot: int, text: str) -> None:
        """A tape says what is on it."""

    def piece(self, token: int) -> str | None:
        return None

    def step(self, pcm: Batch, active: Mask) -> TapeStep:
        """(1, 1920) heard in, (1, 1920) of the tape out."""
        said = (
            np.zeros((1, FRAME), np.float32) if self.finished else self._frames[self.played : self.played + 1]
        )
        self._recorded.append((said[0].copy(), pcm[0].copy()))
        self.played += 1
        return TapeStep(said, np.full(1, -1), active)
