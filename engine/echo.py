"""EchoEngine: the engine's interface without weights. A greeting, then the caller's own voice.

For plumbing and load tests: with delay 0 and no greeting, frames come back sample for sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.api import FRAME, SAMPLE_RATE, EngineError, Persona
from engine.frames import Batch, Mask
from engine.rows import AudioRows
from engine.slots import SlotTable
from engine.tick import TickEngine

_NOTES_HZ = (523.25, 659.26, 783.99)  # C5 E5 G5
_NOTE_S = 0.28
_FADE_S = 0.05
_LEVEL = 0.1  # peak: -20 dBFS
_FRAMES_A_WORD = 4
MAX_DELAY_S = 30.0


def greeting_frames() -> Batch:
    """Three rising notes, faded in and out, peak -20 dBFS: (frames, 1920) float32."""
    t = np.arange(int(_NOTE_S * SAMPLE_RATE)) / SAMPLE_RATE
    envelope = np.sin(0.5 * np.pi * np.clip(np.minimum(t, _NOTE_S - t) / _FADE_S, 0.0, 1.0)) ** 2
    tones = [np.sin(2 * np.pi * hz * t) * envelope for hz in _NOTES_HZ]
    signal = _LEVEL * np.concatenate(tones)
    return np.pad(signal, (0, -len(signal) % FRAME)).astype(np.float32).reshape(-1, FRAME)


def greeting_words(delay_s: float) -> tuple[str, ...]:
    """The greeting in pieces as a model would speak them, leading blanks kept."""
    heard = f"{delay_s:g} s later" if delay_s else "at once"
    words = f"Hello! This is an echo: you hear your own voice {heard}.".split(" ")
    return (words[0], *(f" {word}" for word in words[1:]))


@dataclass(frozen=True, slots=True)
class EchoStep:
    """See engine.stepper.Stepped."""

    pcm: Batch
    text: NDArray[np.int64]
    valid: Mask


class EchoStepper:
    """One ring for all slots: what went in `delay` samples ago comes out, the greeting on top."""

    def __init__(self, slots: int, delay_s: float, greeting: bool) -> None:
        if not 0.0 <= delay_s <= MAX_DELAY_S:
            raise EngineError(f"the echo's delay must be 0 to {MAX_DELAY_S:g} s, not {delay_s:g}")
        self._delay = round(delay_s * SAMPLE_RATE)
        frames = -(-self._delay // FRAME) + 1
        self._past: Batch = np.zeros((slots, frames * FRAME), np.float32)
        self._at = 0
        self._age: NDArray[np.int64] = np.zeros(slots, np.int64)
        self._silent: Mask = np.zeros(slots, np.bool_)
        self._greeting = greeting_frames() if greeting else np.zeros((0, FRAME), np.float32)
        self._words = greeting_words(delay_s) if greeting else ()

    def check(self, persona: Persona) -> None:
        """An echo is nobody: every persona will do."""

    def open(self, slot: int, persona: Persona) -> None:
        self._past[slot] = 0.0
        self._age[slot] = 0
        self._silent[slot] = False

    def close(self, slot: int) -> None:
        pass

    def interrupt(self, slot: int, unheard_frames: int) -> None:
        self._silent[slot] = True

    def release(self, slot: int) -> None:
        self._silent[slot] = False

    def inject(self, slot: int, text: str) -> None:
        """Never called: this engine has no words of its own."""

    def step(self, pcm: Batch, active: Mask) -> EchoStep:
        """(slots, 1920) in and out; every active slot gets a frame."""
        length = self._past.shape[1]
        self._past[:, self._at : self._at + FRAME] = pcm
        start = (self._at - self._delay) % length
        wrapped = max(0, start + FRAME - length)
        out = self._past[:, start : start + FRAME]
        if wrapped:
            out = np.concatenate([out, self._past[:, :wrapped]], axis=1)
        self._at = (self._at + FRAME) % length
        greeted = np.flatnonzero(active & (self._age < len(self._greeting)))
        if len(greeted):
            out = out.copy()
            out[greeted] += self._greeting[self._age[greeted]]
        text = self._word_now(active)
        self._age[active] += 1
        return EchoStep(out, text, active)

    def _word_now(self, active: Mask) -> NDArray[np.int64]:
        word, rest = np.divmod(self._age, _FRAMES_A_WORD)
        speaks = active & ~self._silent & (rest == 0) & (word < len(self._words))
        return np.where(speaks, word, -1)

    def piece(self, token: int) -> str | None:
        return self._words[token]


class EchoEngine(TickEngine):
    """An Engine that gives every caller his own voice `delay_s` later, after a greeting if wanted."""

    def __init__(
        self,
        slots: int = 64,
        delay_s: float = 1.0,
        greeting: bool = True,
        phase: float = 0.0,
        rows: AudioRows | None = None,
    ) -> None:
        """rows: where the audio lies; its count is the number of slots. Raises EngineError."""
        rows = rows if rows is not None else AudioRows(slots)
        stepper = EchoStepper(rows.count, delay_s, greeting)
        super().__init__("echo", stepper, rows, SlotTable(rows.count), phase)
