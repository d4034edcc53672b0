"""PromptQueue: prompts that wait to be run, a chunk a step, beside the live calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.generation import Generator
from engine.kv import PAGE, OutOfPages, PagedCache
from engine.prefix import Key, PrefixCache
from engine.prompt import Prompt

Given = TypeVar("Given")


@dataclass(slots=True)
class _Waiting:
    """A slot whose prompt is not run yet."""

    slot: int
    key: Key
    prompt: Prompt
    done: int = 0


class PromptQueue:
    """First come, first served, one prompt at a time; a prompt that was run before is adopted at once.

    A call whose prompt finds no page waits: live calls go first.
    """

    def __init__(self, generator: Generator, cache: PagedCache, chunk: int) -> None:
        self._generator, self._cache, self._chunk = generator, cache, min(chunk, PAGE)
        self.prefixes = PrefixCache(cache, generator.pool)
        self._waiting: list[_Waiting] = []

    def warm_up(self) -> None:
        """Run chunks that belong to nobody in slot 0, which is left fresh: on CUDA the first ones compile
        their kernels, for half a second that live calls must not pay."""
        slot, device = np.array([0]), self._cache.tables.device
        dim, dtype = self._generator.lm.config.dim, self._generator.lm.table.dtype
        for count in (self._chunk, min(17, self._chunk), 1):
            self.reserve(slot, count)
            inputs = torch.zeros(count, dim, device=device, dtype=dtype)
            self._generator.prefill(0, inputs, 0, self._cache.tables)
            self._cache.clear(0)
        self._cache.push()

    def add(self, slot: int, key: Key, prompt: Prompt) -> None:
        self._waiting.append(_Waiting(slot, key, prompt))

    def remove(self, slot: int) -> None:
        self._waiting = [waiting for waiting in self._waiting if waiting.slot != slot]

    def reserve(self, rows: NDArray[np.int64], frames: int = 1) -> None:
        """Pages for the next frames, at the expense of kept prompts. Raises OutOfPages."""
        self._evicting(lambda: self._cache.reserve(rows, frames))
        self._cache.push()

    def take(self, count: int) -> list[int]:
        """Fresh pages, at the expense of kept prompts. Raises OutOfPages."""
        return self._evicting(lambda: self._cache.take(count))

    def _evicting(self, ask: Callable[[], Given]) -> Given:
        while True:
            try:
                return ask()
            except OutOfPages:
                if not self.prefixes.evict():
                    raise

    def run(self) -> list[int]:
        """One chunk of the oldest prompt; returns the slots whose prompt is complete."""
        complete = [
            waiting.slot for waiting in list(self._waiting) if waiting.done == 0 and self._adopt(waiting)
        ]
        if self._waiting and self._prefill(self._waiting[0]):
            complete.append(self._finish(self._waiting[0]))
        return complete

    def _adopt(self, waiting: _Waiting) -> bool:
        prefix = self.prefixes.get(waiting.key)
        if prefix is None:
            return False
        try:
            self.prefixes.adopt(waiting.slot, prefix)
        except OutOfPages:
            return False
        self._finish(waiting)
        return True

    def _prefill(self, waiting: _Waiting) -> bool:
        """Run a chunk; True when it was the last."""
        prompt, start = waiting.prompt, waiting.done
        count = min(self._chunk, prompt.frames - start)
        if start + count > self._cache.context:
            count = min(
                count, self._cache.history + 1
            )  # the ring must keep what the chunk's first frame sees
        slot = np.array([waiting.slot])
        try:
            self.reserve(slot, count)
        except OutOfPages:
            return False
        inputs = self._inputs(prompt, start, count)
        self._generator.prefill(waiting.slot, inputs, start, self._cache.tables)
        self._cache.advance(slot, count)
        waiting.done += count
        if waiting.done < prompt.frames:
            return False
        self.prefixes.store(waiting.key, waiting.slot, prompt)
        return True

    def _inputs(self, prompt: Prompt, start: int, count: int) -> Tensor:
        tokens = prompt.tokens[:, start : start + count].t().contiguous()
        inputs = self._generator.lm.embed(tokens.to(self._cache.tables.device))
        if prompt.embeddings is not None and start < len(prompt.embeddings):
            given = prompt.embeddings[start : start + count].to(inputs)
            inputs[: len(given)] = given
        return inputs

    def _finish(self, waiting: _Waiting) -> int:
        """Hand the prompt's last tokens to the ring; the next step draws the first free ones."""
        ring, frames, slot = self._generator.ring, waiting.prompt.frames, waiting.slot
        columns = torch.arange(frames, waiting.prompt.tokens.shape[1])
        ring.tokens[slot, :, columns % ring.length] = waiting.prompt.tokens[:, frames:].to(ring.tokens.device)
        ring.frames[slot] = frames
        self._waiting.remove(waiting)
        return slot
