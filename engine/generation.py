"""Generation: which token is heard, forced, drawn and said at which frame, for every slot of a batch.

Each stream of a call is delayed by its own number of frames. All of them live in a ring of tokens a slot;
at frame t the caller's code k is written at t + delay, the model's input is read at t, and what it draws
is written at t + 1 (Kyutai moshi/models/lm.py `LMGen._step`, `support_out_of_sync`). Tensors only: who is
in the batch, and which pages it holds, the caller decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model.lm import LM
from engine.model.mimi import ring_view
from engine.model.transformer import Pool
from engine.sampling import Sampler


@dataclass(frozen=True, slots=True)
class Said:
    """One step's result for a batch."""

    text: Tensor
    """(B,) int64, as old as the audio it belongs to."""
    codes: Tensor
    """(B, dep_q) int64"""
    valid: Tensor
    """(B,) bool; False in the first max(delays) steps of a slot."""


class TokenRing:
    """The last tokens of every slot, (slots + 1, n_q + 1, length), and the number of its next frame."""

    def __init__(self, lm: LM, slots: int, history: int) -> None:
        config, device = lm.config, lm.table.device
        self.length = config.max_delay + 2 + history
        self.agent, self.max_delay = config.dep_q, config.max_delay
        streams = config.n_q + 1
        self.tokens = torch.zeros(slots + 1, streams, self.length, dtype=torch.int64, device=device)
        self.frames = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        self._stream = torch.arange(streams, device=device)
        self._delays = torch.tensor(config.delays, device=device)
        self._initial = torch.full((streams,), config.card, device=device)
        self._initial[0] = config.text_card

    def hear(self, rows: Tensor, frames: Tensor, codes: Tensor) -> None:
        """The caller's codes (B, n_q - dep_q) of this frame."""
        at = (frames[:, None] + self._delays[self.agent + 1 :]) % self.length
        self.tokens[rows[:, None], self._stream[self.agent + 1 :], at] = codes

    def inputs(self, rows: Tensor, frames: Tensor) -> Tensor:
        """(B, n_q + 1): what the model reads at this frame."""
        tokens = self.tokens[rows[:, None], self._stream, (frames % self.length)[:, None]]
        return torch.where(frames[:, None] <= self._delays, self._initial, tokens)

    def say(self, rows: Tensor, frames: Tensor, text: Tensor, codes: Tensor) -> Said:
        """Write the agent's tokens for the next frame; returns those that are complete by now."""
        after = frames + 1
        said = torch.cat((text[:, None], codes), 1)
        streams, row = self._stream[: self.agent + 1], rows[:, None]
        self.tokens[row, streams, (after % self.length)[:, None]] = said
        self.frames.index_copy_(0, rows, after)
        if self.max_delay:
            at = (after[:, None] - self.max_delay + self._delays[: self.agent + 1]) % self.length
            said = self.tokens[row, streams, at]
        return Said(said[:, 0], said[:, 1:], after > self.max_delay)


class Generator:
    """The language model with the state of `slots` calls; codes in, codes and text out."""

    def __init__(
        self, lm: LM, slots: int, history: int, pages: int, kv_dtype: torch.dtype | None = None
    ) -> None:
        device = lm.table.device
        self.lm, self.slots = lm, slots
        self.ring = TokenRing(lm, slots, history)
        self.sampler = Sampler(slots, 1 + lm.config.dep_q, device)
        self.pool = Pool(lm.config.temporal, pages + 1, device, kv_dtype or lm.table.dtype)
        self.window = torch.full((slots + 1,), lm.config.context, dtype=torch.int64, device=device)
        if lm.depth is not None:
            lm.depth.allocate(slots + 1)

    def step(self, codes: Tensor, rows: Tensor, tables: Tensor, forced: Tensor) -> Said:
        """Advance the slots `rows` (B,) by one frame.

        codes (B, n_q - dep_q) the caller's, tables (slots + 1, columns) pages (fewer columns will do while
        no slot of the batch uses more), forced (B,) the text token to play, -1 where the model chooses.
        """
        frames = self.ring.frames.index_select(0, rows)
        self.ring.hear(rows, frames, codes)
        hidden = self._read(rows, frames, tables)
        draw = self.sampler.draw(rows, frames)
        text = draw.text(self.lm.text_logits(hidden))
        text = torch.where(forced < 0, text, forced)
        assert self.lm.depth is not None
        return self.ring.say(rows, frames, text, self.lm.depth(hidden, text, draw.audio))

    def _read(self, rows: Tensor, frames: Tensor, tables: Tensor) -> Tensor:
        inputs = self.lm.embed(self.ring.inputs(rows, frames))
        position = frames[:, None]
        low = position - self.window.index_select(0, rows)[:, None]
        view = ring_view(tables.index_select(0, rows), position, low)
        return self.lm.hidden(inputs[:, None], self.pool, view)[:, 0]

    def prefill(self, slot: int, inputs: Tensor, start: int, tables: Tensor) -> None:
        """Run frames start … start + T - 1 of a slot through the temporal transformer alone.

        inputs (T, dim): the summed embeddings of each frame's tokens.
        """
        position = start + torch.arange(inputs.shape[0], device=inputs.device)[None]
        low = position - self.window[slot]
        table = tables[slot][None].clone()  # aligned as any other: Triton compiles anew for one that is not
        self.lm.hidden(inputs[None], self.pool, ring_view(table, position, low))
