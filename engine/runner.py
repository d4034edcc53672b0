"""ModelRunner: owns every tensor of a full-duplex model and advances N slots by one 80 ms step.

It knows no clock, no asyncio, no rows and no call: the tick thread hands it (slots, 1920) of audio and
takes (slots, 1920) back. Not thread-safe but for `check`, `piece` and the figures: one thread calls the rest.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.api import EngineRefused, Persona
from engine.build import Built, RunnerOptions, build
from engine.checkpoint import Checkpoint
from engine.kv import PAGE, OutOfPages, PagedCache, PageUse
from engine.model.codec import SlotState
from engine.passage import Arrival, Departure
from engine.persona import Casting
from engine.prefill import PromptQueue
from engine.shuttle import Shuttle
from engine.snapshot import CallState, SlotSnapshot
from engine.stages import Tick

__all__ = ["ModelRunner", "OutOfPages", "PageUse", "RunnerOptions", "SlotSnapshot", "StepResult"]

FRAME = 1_920
MAX_QUEUE = 512
"""Text pieces that may wait to be forced."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step gave. Arrays are reused by the step after the next; copy to keep."""

    pcm: NDArray[np.float32]
    """(slots, 1920), zero where not valid."""
    text: NDArray[np.int64]
    """(slots,) token of the inner monologue, -1 where none."""
    valid: NDArray[np.bool_]
    """(slots,) True where the slot produced a frame. False: not active, not open, prompt still running,
    or one of the first `max(delays)` steps of a call, which give no audio."""


class ModelRunner:
    """One model on one device.

    Life of a slot: `open` -> steps until `ready` -> steps with `active` -> `close`.
    """

    page_frames = PAGE

    def __init__(self, built: Built) -> None:
        slots = built.slots
        self.name, self.slots, self.history = built.name, slots, built.options.history
        self._parts = built
        self._lm, self._codec, self._generator = built.generator.lm, built.codec, built.generator
        self._cache: PagedCache = built.cache
        self._stages = built.stages
        self._casting: Casting = built.casting
        self._prompts = PromptQueue(built.generator, built.cache, built.options.prefill_frames)
        self.fingerprint = built.fingerprint
        self.shuttle = Shuttle(built.generator.pool, built.cache)
        self._open = np.zeros(slots, bool)
        self._ready = np.zeros(slots, bool)
        self._priming = np.zeros(slots, bool)
        self._reach = np.zeros(slots, np.int64)  # steps `rewind` can go back
        self._spoken = np.zeros(slots, np.int64)  # steps of the decoder
        self._forced = np.full(slots, -1, np.int64)  # padding while interrupted
        self._queues: dict[int, deque[int]] = {}
        self._results = [self._blank(), self._blank()]

    @classmethod
    def load(cls, checkpoint: Checkpoint, slots: int, options: RunnerOptions | None = None) -> ModelRunner:
        """Build the model from a checkpoint and warm it up (minutes at 7B).

        Raises CheckpointError (an EngineError) naming the file, repo and command for anything missing or
        misshapen, and OutOfMemory (an EngineError) saying how many slots would fit.
        """
        runner = cls(build(checkpoint, slots, options or RunnerOptions()))
        runner.warm_up()
        return runner

    def warm_up(self) -> None:
        """A few steps and chunks of a prompt in slot 0, so that no call pays for compiling and first
        allocations. Before the first call only."""
        self.open(0, Persona(seed=0))
        active = np.arange(self.slots) == 0
        for _ in range(self._lm.config.max_delay + 2):
            self.step(np.zeros((self.slots, FRAME), np.float32), active)
        self.close(0)
        with torch.inference_mode():
            self._prompts.warm_up()

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self._lm.table.device

    @property
    def window_pages(self) -> int:
        """Pages one slot holds at most."""
        return self._cache.columns

    # -- slots ---------------------------------------------------------------------------------------

    def check(self, persona: Persona) -> None:
        """Raises EngineRefused for a voice that is not on the allow-list, or values out of range.

        Touches no tensor: any thread may call it.
        """
        self._casting.check(persona)

    @torch.no_grad()
    def open(self, slot: int, persona: Persona) -> None:
        """Make the slot fresh and queue the persona's prompt, which the next steps run.

        Raises EngineRefused as `check`, ValueError for a slot already open.
        """
        self._must_be_free(slot)
        cast = self._casting.cast(persona)
        self._codec.reset([slot])
        self._generator.ring.frames[slot] = 0
        self._set_window(slot)
        self._generator.sampler.set(slot, cast.seed, cast.text, cast.audio)
        self._forced[slot] = -1
        self._open[slot] = True
        self._ready[slot] = cast.key is None
        if cast.key is not None:
            self._prompts.add(slot, cast.key, self._casting.prompt(persona))

    def close(self, slot: int) -> None:
        """Free the slot's pages. Idempotent."""
        if not self._open[slot]:
            return
        self._cache.clear(slot)
        self._generator.sampler.clear(slot)
        self._prompts.remove(slot)
        self._queues.pop(slot, None)
        self._open[slot] = self._ready[slot] = self._priming[slot] = False
        self._reach[slot] = self._spoken[slot] = 0
        self._forced[slot] = -1

    def ready(self, slot: int) -> bool:
        """The prompt has run; `active` steps produce frames."""
        return bool(self._ready[slot])

    # -- the step ------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, pcm: NDArray[np.float32], active: NDArray[np.bool_]) -> StepResult:
        """Advance every active and ready slot by 80 ms; also run a chunk of the waiting prompts.

        pcm (slots, 1920) float32 24 kHz mono, NaN and infinities read as 0, clipped to [-1, 1];
        active (slots,) bool. A slot that is not active keeps its state exactly.
        Raises ValueError for wrong shapes, OutOfPages when the cache has no page for an active slot
        (shrink or close one; no slot was advanced).
        """
        if pcm.shape != (self.slots, FRAME) or active.shape != (self.slots,):
            raise ValueError(f"pcm must be ({self.slots}, {FRAME}) and active ({self.slots},)")
        self._priming[self._prompts.run()] = True
        rows = np.flatnonzero((active & self._ready) | self._priming)
        result = self._next_result()
        if not len(rows):
            return result
        self._prompts.reserve(rows)
        tick = self._tick(rows, pcm)
        spoken, text = self._stages.run(tick)
        self._cache.advance(rows)
        said = rows[tick.speaking]
        result.pcm[said] = spoken[tick.speaking]
        result.text[said] = text[tick.speaking]
        result.valid[said] = True
        self._count(tick)
        return result

    def _tick(self, rows: NDArray[np.int64], pcm: NDArray[np.float32]) -> Tick:
        forced = self._forced[rows]
        for slot in [slot for slot in self._queues if slot in rows]:
            forced[np.searchsorted(rows, slot)] = self._queues[slot].popleft()
            if not self._queues[slot]:
                del self._queues[slot]
        frames, priming = self._cache.frames[rows], self._priming[rows]
        speaking = ~priming & (frames + 1 > self._lm.config.max_delay)
        columns = min(self._cache.columns, int(frames.max()) // PAGE + 1)
        return Tick(rows, pcm[rows].astype(np.float32, copy=False), forced, priming, speaking, columns)

    def _count(self, tick: Tick) -> None:
        self._reach[tick.rows] = np.minimum(self._reach[tick.rows] + ~tick.priming, self.history)
        self._spoken[tick.rows] += tick.speaking
        self._ready[tick.rows] = True
        self._priming[tick.rows] = False

    # -- text ----------------------------------------------------------------------------------------

    def piece(self, token: int) -> str | None:
        """The text of a token (leading blank kept); None for padding, end of padding and specials."""
        return self._parts.vocabulary.piece(token)

    def interrupt(self, slot: int) -> None:
        """Force the slot's text to padding from the next step until `release`; audio is still produced."""
        self._queues.pop(slot, None)
        self._forced[slot] = self._lm.config.existing_text_padding_id

    def release(self, slot: int) -> None:
        """Let the model choose its text again."""
        self._forced[slot] = -1

    def inject(self, slot: int, text: str) -> None:
        """Force words onto the agent's text stream, one piece a frame, after those already queued.

        Raises ValueError past 512 queued pieces or for a slot not open. `interrupt` empties the queue.
        """
        if not self._open[slot]:
            raise ValueError(f"slot {slot} is not open")
        tokens = self._parts.vocabulary.encode(text)
        queue = self._queues.get(slot, deque())
        if len(queue) + len(tokens) > MAX_QUEUE:
            raise ValueError(f"{len(queue)} pieces are waiting and {len(tokens)} more would pass {MAX_QUEUE}")
        if tokens:
            self._queues[slot] = queue
            queue.extend(tokens)

    # -- state ---------------------------------------------------------------------------------------

    def depart(self, slot: int) -> Departure:
        """Begin to copy the slot's state to host memory while it goes on.

        Raises ValueError for a slot that is not ready.
        """
        if not self._ready[slot]:
            raise ValueError(f"slot {slot} is not ready")
        return Departure(self, slot)

    def arrive(self, slot: int, snapshot: SlotSnapshot, most: int | None = None) -> Arrival:
        """Open a free slot with the snapshot's pages, to be filled while others step.

        most: pages it may have (2 or more); the newest then, as after `shrink`. Raises EngineRefused as
        `accept`, OutOfPages when it does not fit.
        """
        self._must_be_free(slot)
        self.accept(snapshot)
        numbers = list(snapshot.pages)[-(most or len(snapshot.pages)) :]
        numbered = list(zip(numbers, self._prompts.take(len(numbers)), strict=True))
        self._cache.install(slot, numbered, snapshot.frames, snapshot.call.window)
        if len(numbers) < len(snapshot.pages):
            self._cache.shrink(slot, len(numbers))
        self._open[slot] = True
        return Arrival(self, slot, snapshot)

    def accept(self, snapshot: SlotSnapshot) -> None:
        """Raises EngineRefused when the snapshot is of another model. Any thread may call it."""
        if snapshot.model != self.fingerprint:
            raise EngineRefused(f"the snapshot is of {snapshot.model}, this is {self.fingerprint}")

    def snapshot(self, slot: int) -> SlotSnapshot:
        """The slot's state in host memory, all of it now. The slot goes on unchanged.

        Raises ValueError for a slot that is not ready.
        """
        departure = self.depart(slot)
        departure.finish()
        self.shuttle.wait()
        snapshot = departure.snapshot()
        assert snapshot is not None
        return snapshot

    def restore(self, slot: int, snapshot: SlotSnapshot) -> None:
        """Open a free slot in that state, all of it now: its next tokens are those of an uninterrupted run.

        Raises EngineRefused when the snapshot is of another model, OutOfPages when it does not fit.
        """
        arrival = self.arrive(slot, snapshot)
        while not arrival.advance():
            self.shuttle.wait()

    def pages_of(self, slot: int) -> list[tuple[int, int]]:
        """(page number in the call, page of the pool), oldest first."""
        return self._cache.pages_of(slot)

    def settled_pages(self, slot: int) -> int:
        """Pages of the call, by number, that no step and no rewind will write again."""
        return int(self._cache.frames[slot] - self._reach[slot]) // PAGE

    def call_state(self, slot: int) -> CallState:
        """What a snapshot holds of the host's side."""
        seed, text, audio = self._generator.sampler.of(slot)
        return CallState(
            frames=int(self._cache.frames[slot]),
            window=int(self._cache.window[slot]),
            spoken=int(self._spoken[slot]),
            seed=seed,
            text=text,
            audio=audio,
            muted=bool(self._forced[slot] >= 0),
            queue=tuple(self._queues.get(slot, ())),
        )

    def small_state(self, slot: int) -> dict[str, Tensor]:
        """What a snapshot holds of the device's side besides pages, on the host: `tokens` and the codec's."""
        return {"tokens": self._generator.ring.tokens[slot].cpu().clone(), **self._codec.snapshot(slot)}

    @torch.inference_mode()
    def seat(self, slot: int, call: CallState, tokens: Tensor, codec: SlotState) -> None:
        """Let a slot that has its pages filled step from now on."""
        ring = self._generator.ring
        ring.tokens[slot] = tokens
        ring.frames[slot] = call.frames
        self._set_window(slot)
        self._codec.restore(slot, codec)
        self._generator.sampler.set(slot, call.seed, call.text, call.audio)
        self._ready[slot] = True
        self._spoken[slot] = call.spoken
        self._forced[slot] = self._lm.config.existing_text_padding_id if call.muted else -1
        if call.queue:
            self._queues[slot] = deque(call.queue)

    @torch.inference_mode()
    def rewind(self, slot: int, frames: int) -> int:
        """Return the slot to its state `frames` steps ago; words waiting to be forced are dropped.

        Returns the steps really rewound: at most `history`, and not into the prompt.
        """
        frames = int(min(frames, self._reach[slot]))
        if frames <= 0:
            return 0
        decoded = int(min(frames, self._spoken[slot]))
        self._cache.rewind(slot, frames)
        self._generator.ring.frames[slot] -= frames
        self._codec.rewind(slot, frames, decoded)
        self._reach[slot] -= frames
        self._spoken[slot] -= decoded
        self._queues.pop(slot, None)
        return frames

    # -- pages ---------------------------------------------------------------------------------------

    @property
    def pages(self) -> PageUse:
        return self._cache.use

    def slot_pages(self, slot: int) -> int:
        """Pages the slot holds now, shared ones included."""
        return self._cache.slot_pages(slot)

    def forecast(self, frames: int) -> int:
        """Pages the open slots will need beyond today's if each runs `frames` more frames."""
        return self._cache.forecast(np.flatnonzero(self._open), frames)

    def prompt_pages(self, persona: Persona) -> int:
        """Pages a call of this persona takes before its first frame that are not shared yet."""
        key = self._casting.key(persona)
        if key is None:
            return 0
        prefix = self._prompts.prefixes.get(key)
        if prefix is not None:
            return self._prompts.prefixes.own_pages(prefix)
        return -(-self._casting.prompt(persona).frames // PAGE)

    @torch.no_grad()
    def shrink(self, slot: int, pages: int) -> int:
        """Forget the slot's oldest frames until it holds `pages` (at least 2). Returns pages freed."""
        freed = self._cache.shrink(slot, pages)
        self._set_window(slot)
        return freed

    # -- small parts ---------------------------------------------------------------------------------

    def _must_be_free(self, slot: int) -> None:
        if self._open[slot]:
            raise ValueError(f"slot {slot} is already open")

    def _set_window(self, slot: int) -> None:
        self._generator.window[slot] = int(self._cache.window[slot])

    def _blank(self) -> StepResult:
        return StepResult(
            np.zeros((self.slots, FRAME), np.float32), np.full(self.slots, -1), np.zeros(self.slots, bool)
        )

    def _next_result(self) -> StepResult:
        self._results.reverse()
        result = self._results[0]
        result.pcm[result.valid] = 0.0
        result.text[:] = -1
        result.valid[:] = False
        return result
