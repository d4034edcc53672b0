"""SlotArena: the small streaming state of all slots as one flat tensor, one row a slot.

A streaming network keeps a few samples per layer between steps. Here all of them live side by side in
(slots + 1, size), so a step gathers its batch once, every layer reads and writes a view, and one copy
puts the batch back; a slot not in the batch is not touched (Kyutai's exec mask, moshi/modules/streaming.py).
The last row is spare: padding entries of a batch point to it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Carry:
    """One batch's state during one step: `get` what the last step left, `put` what the next one needs."""

    def __init__(self, spans: list[tuple[int, int, tuple[int, ...]]], old: Tensor, steps: Tensor) -> None:
        self._spans = spans
        self.old = old  # (B, size)
        self.new = torch.empty_like(old)
        self.steps = steps  # (B,) steps done before this one

    def get(self, field: int) -> Tensor:
        """(B, *shape)"""
        start, stop, shape = self._spans[field]
        return self.old[:, start:stop].view(-1, *shape)

    def put(self, field: int, value: Tensor) -> None:
        """value (B, *shape); every field is put once a step."""
        start, stop, shape = self._spans[field]
        self.new[:, start:stop].view(-1, *shape).copy_(value)

    def leave(self, first: int) -> None:
        """Fields from this one on stay as they are: their layers do not step."""
        start = self._spans[first][0]
        self.new[:, start:] = self.old[:, start:]


class SlotArena:
    """Fields are added while a network is built, memory is allocated once, zero is the fresh state."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int, tuple[int, ...]]] = []
        self.size = 0
        self.slots = 0
        self.history = 0
        self.state = torch.empty(0)
        self.past = torch.empty(0)
        self.steps = torch.empty(0, dtype=torch.int64)

    def add(self, *shape: int) -> int:
        """A field of that shape for each slot; returns its number."""
        self._spans.append((self.size, self.size + math.prod(shape), shape))
        self.size += math.prod(shape)
        return len(self._spans) - 1

    def allocate(self, slots: int, history: int, device: torch.device) -> None:
        """Fresh state for `slots` streams; the last `history` states of each are kept for `rewind`."""
        self.slots, self.history = slots, history
        self.state = torch.zeros(slots + 1, self.size, device=device)
        self.past = torch.zeros(slots + 1, max(1, history), self.size if history else 0, device=device)
        self.steps = torch.zeros(slots + 1, dtype=torch.int64, device=device)

    def take(self, rows: Tensor) -> Carry:
        """The state of those slots, rows (B,) int64."""
        return Carry(self._spans, self.state.index_select(0, rows), self.steps.index_select(0, rows))

    def keep(self, rows: Tensor, carry: Carry) -> None:
        """Store what the step put, and remember what was there before it."""
        if self.history:
            self.past[rows, carry.steps % self.history] = carry.old
        self.state.index_copy_(0, rows, carry.new)
        self.steps.index_copy_(0, rows, carry.steps + 1)

    def reset(self, slots: list[int]) -> None:
        self.state[slots] = 0.0
        self.steps[slots] = 0

    def rewind(self, slot: int, steps: int) -> None:
        """The state `steps` steps ago, at most `history`."""
        if steps == 0:
            return
        if steps > self.history:
            raise ValueError(f"{steps} steps ago is older than the {self.history} kept")
        self.steps[slot] -= steps
        self.state[slot] = self.past[slot, int(self.steps[slot]) % self.history]

    def snapshot(self, slot: int) -> dict[str, Tensor]:
        return {"state": self.state[slot].cpu().clone(), "steps": self.steps[slot].cpu().clone()}

    def restore(self, slot: int, state: dict[str, Tensor]) -> None:
        self.state[slot] = state["state"].to(self.state.device)
        self.steps[slot] = state["steps"].to(self.steps.device)
