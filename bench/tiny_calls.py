"""Calls for bench/tiny.py: many at once through one ModelRunner, in lockstep and without a clock."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.tiny_speech import ALL_LINES, FRAME, Pcm, line_said
from engine.api import Persona
from engine.checkpoint import Checkpoint
from engine.runner import ModelRunner, RunnerOptions, SlotSnapshot

LOUD = 0.02
"""Peak of a frame in which the agent can be heard (-34 dBFS)."""
EVENTS = ("<transfer>", "<hangup>")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the agent did in one call."""

    pcm: Pcm
    """(frames * 1920,)"""
    pieces: list[list[str]]
    """Text of each frame."""

    @property
    def loud(self) -> NDArray[np.bool_]:
        """(frames,)"""
        return np.abs(self.pcm.reshape(-1, FRAME)).max(1) > LOUD

    @property
    def acted(self) -> bool:
        """Did she hang up or hand the call on?"""
        return any(piece in EVENTS for frame in self.pieces for piece in frame)

    def words(self, start: int = 0, stop: int | None = None) -> list[str]:
        return [piece.strip() for frame in self.pieces[start:stop] for piece in frame if piece not in EVENTS]

    def line(self, start: int, stop: int | None = None) -> str | None:
        return line_said(self.words(start, stop), ALL_LINES)

    def onset(self, start: int) -> int | None:
        """The first sample from frame `start` on at which the agent is heard."""
        loud = np.flatnonzero(np.abs(self.pcm[start * FRAME :]) > LOUD)
        return start * FRAME + int(loud[0]) if len(loud) else None


class Switch:
    """A runner of `slots` calls on one thread."""

    def __init__(self, folder: Path, slots: int) -> None:
        import torch

        torch.set_num_threads(1)
        self.slots = slots
        self.runner = ModelRunner.load(Checkpoint.find(folder), slots, RunnerOptions(device="cpu"))

    def call(self, callers: list[Pcm], state: SlotSnapshot | None = None) -> list[Outcome]:
        """Hold one call per entry, each as long as its audio (24 kHz), from the start or from a snapshot."""
        outcomes: list[Outcome] = []
        for at in range(0, len(callers), self.slots):
            outcomes += self._together(callers[at : at + self.slots], state)
        return outcomes

    def _together(self, callers: list[Pcm], state: SlotSnapshot | None) -> list[Outcome]:
        frames = max(-(-len(pcm) // FRAME) for pcm in callers)
        heard = np.zeros((self.slots, frames * FRAME), np.float32)
        for slot, pcm in enumerate(callers):
            heard[slot, : len(pcm)] = pcm
            self._enter(slot, state)
        spoken = np.zeros_like(heard)
        pieces: list[list[list[str]]] = [[] for _ in callers]
        active = np.arange(self.slots) < len(callers)
        for frame in range(frames):
            span = slice(frame * FRAME, (frame + 1) * FRAME)
            result = self.runner.step(heard[:, span], active)
            spoken[:, span] = result.pcm
            for slot, texts in enumerate(pieces):
                piece = self.runner.piece(int(result.text[slot])) if result.valid[slot] else None
                texts.append([piece] if piece else [])
        for slot in range(len(callers)):
            self.runner.close(slot)
        return [Outcome(spoken[slot], pieces[slot]) for slot in range(len(callers))]

    def _enter(self, slot: int, state: SlotSnapshot | None) -> None:
        if state is None:
            self.runner.open(slot, self.persona(slot))
        else:
            self.runner.restore(slot, state)

    @staticmethod
    def persona(slot: int) -> Persona:
        return Persona(seed=slot)

    def greeted(self, frames: int = 52) -> SlotSnapshot:
        """A call right after the greeting on a quiet line (white noise at -60 dBFS)."""
        self._enter(0, None)
        rng = np.random.default_rng(0)
        for _ in range(frames):
            heard = rng.normal(0, 1e-3, (self.slots, FRAME)).astype(np.float32)
            self.runner.step(heard, np.arange(self.slots) < 1)
        state = self.runner.snapshot(0)
        self.runner.close(0)
        return state
