"""The engine's vocabulary: what a call may ask of a full-duplex model, and what it gets back.

Audio is mono float32 at 24 kHz in [-1, 1]; a frame is 1,920 samples (80 ms), the model's step.
Nothing here imports torch, and nothing here knows a call, a protocol or a socket.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from engine.rows import AudioRows

SAMPLE_RATE = 24_000
"""Hz of every sample that enters or leaves an engine."""
FRAME = 1_920
"""Samples a tick: 80 ms, 12.5 frames a second."""
TICK_S = FRAME / SAMPLE_RATE

Pcm = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Persona:
    """Who the agent is in one call. Values of None leave the engine's (or the checkpoint's) own."""

    name: str = "default"
    voice: str | None = None
    """A name from the engine's allow-list of voices; never a path."""
    text_prompt: str | None = None
    temperature: float | None = None
    top_k: int | None = None
    text_temperature: float | None = None
    text_top_k: int | None = None
    seed: int | None = None
    """None: a new seed a call. With a seed the same input gives the same tokens."""


@dataclass(frozen=True, slots=True)
class AgentFrame:
    """One tick of the agent's voice."""

    index: int
    """0 for the first frame after open()."""
    pcm: Pcm
    """(1920,) float32."""
    text: tuple[str, ...] = ()
    """Pieces of the agent's inner monologue, leading blanks kept."""


@dataclass(frozen=True, slots=True)
class TextSpoken:
    """Text pieces the model emitted in one frame."""

    frame: int
    text: str


@dataclass(frozen=True, slots=True)
class SlotEnded:
    """The engine will produce no more for this slot (remote lost, engine stopped, slot closed)."""

    reason: str


SlotEvent = TextSpoken | SlotEnded


@dataclass(frozen=True, slots=True)
class SlotCounters:
    """What happened to one slot's audio since open()."""

    frames: int = 0
    short_samples: int = 0
    """Samples of silence put in because the caller's audio had not arrived at the tick."""
    dropped_samples: int = 0
    """Caller samples skipped because more than a frame was waiting."""
    missed_ticks: int = 0
    """Ticks of the 80 ms clock that produced no frame (engine late or remote silent)."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How full an engine is."""

    slots: int
    used: int
    retry_after_s: float = 5.0
    """When a refused caller may try again."""
    tick_p50_ms: float = 0.0
    tick_p99_ms: float = 0.0
    late_ticks: int = 0
    dropped_frames: int = 0
    detail: dict[str, float] = field(default_factory=dict)

    @property
    def free(self) -> int:
        return max(0, self.slots - self.used)


class EngineError(Exception):
    """The engine cannot do what was asked; the message says what to do."""


class EngineFull(EngineError):
    """No slot is free. `retry_after_s` is when one may be."""

    def __init__(self, message: str = "every slot is taken", retry_after_s: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineRefused(EngineError):
    """The engine (or the remote behind it) does not want this call: authentication, persona, version."""


class SlotClosed(EngineError):
    """The slot was used after close(), or its engine stopped."""


class BadAudio(EngineError, ValueError):
    """pcm was not finite mono float32, or not one-dimensional."""


@runtime_checkable
class Slot(Protocol):
    """One caller's place in the engine. write() may be called from one thread, read() from the loop
    that opened the slot."""

    @property
    def row(self) -> int:
        """The row of `engine.rows` this slot owns until close()."""
        ...

    @property
    def counters(self) -> SlotCounters: ...

    def write(self, pcm: Pcm) -> None:
        """Append any length of the caller's audio, (n,) float32. Never blocks.

        Raises SlotClosed after close(), BadAudio for anything but finite mono float32.
        Who fills `engine.rows.heard` of this row himself does not call this.
        """
        ...

    async def read(self) -> AgentFrame:
        """The next frame in order. Raises SlotClosed when there will be none.

        A reader more than 24 frames behind loses the oldest (the index tells).
        """
        ...

    def take_events(self) -> list[SlotEvent]:
        """What happened since the last call, oldest first. Never blocks."""
        ...

    def interrupt(self, heard_samples: int | None = None) -> bool:
        """Make the agent stop: its text is held at padding until release(), its audio fades.

        heard_samples counts the slot's output samples the caller really heard. False: this engine
        cannot, and the caller must mute until the agent yields by itself.
        """
        ...

    def hold(self) -> bool:
        """Let time stand still for the agent until release(), as long as the caller cannot hear: it hears and
        says nothing, and begins afterwards as it would have before. False: this engine cannot.
        """
        ...

    def away(self) -> None:
        """After hold(): the caller may stay away for long, and the engine may give his place to others.

        After release() the agent then goes on when there is a place again, or the slot ends and says why.
        """
        ...

    def release(self) -> None:
        """Let the agent speak again after interrupt() or hold()."""
        ...

    def inject(self, text: str) -> bool:
        """Make the agent say these words, one piece a frame, after those it still has to say.

        False: this engine cannot. An interrupt drops what is waiting.
        """
        ...

    def close(self) -> None:
        """Free the place. Idempotent."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Something that holds calls. All methods but `rows` belong to one asyncio loop."""

    @property
    def name(self) -> str:
        """What the banner and the records call it, such as `echo` or `moshi (kyutai/moshiko…)`."""
        ...

    @property
    def rows(self) -> AudioRows:
        """The audio of all slots; a slot's row stays its own from open() to close()."""
        ...

    async def start(self) -> None:
        """Load, warm up, start the clock. Raises EngineError saying what is missing and what to run."""
        ...

    async def open(self, persona: Persona = Persona(), row: int | None = None) -> Slot:
        """Take a slot, on the given free row or any. Raises EngineFull, EngineRefused, EngineError."""
        ...

    def capacity(self) -> Capacity: ...

    async def stop(self) -> None:
        """End every slot and the clock. Idempotent."""
        ...
