"""Sampling with per-slot temperature, top-k and seed, the same whatever shares the batch.

A token is drawn from the top-k softmax by inverse transform in index order, with one number in [0, 1) that
depends on nothing but (slot seed, frame, stream): so a call replays token for token in any batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine import kernels

MASK = 0xFFFFFFFF


def uniforms(seeds: Tensor, frames: Tensor, streams: int) -> Tensor:
    """seeds, frames (B,) int64 -> (B, streams) float32 in [0, 1), 23 bits each.

    A counter hash: two rounds of C. Wellons' lowbias32 over (seed, frame, stream).
    """
    stream = torch.arange(streams, device=seeds.device)
    word = (seeds + frames * 0x9E3779B1)[:, None] ^ (seeds >> 32)[:, None]
    word = _mix(word & MASK) + stream * 0x85EBCA6B
    return (_mix(word & MASK) >> 9) * 2.0**-23


def _mix(x: Tensor) -> Tensor:
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & MASK
    return x ^ (x >> 16)


class Sampler:
    """The sampling parameters of every slot: column 0 for text, column 1 for audio."""

    def __init__(self, slots: int, streams: int, device: torch.device) -> None:
        self.streams = streams
        self.seeds = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        self.inverse_temperature = torch.ones(slots + 1, 2, device=device)
        self.top_k = torch.ones(slots + 1, 2, dtype=torch.int64, device=device)
        self._top_k = np.zeros((slots, 2), np.int64)  # host copy, 0 where the slot is closed
        self._given: dict[int, tuple[int, tuple[float, int], tuple[float, int]]] = {}
        self.ranks: tuple[tuple[int, ...], tuple[int, ...]] = ((1,), (1,))
        """The distinct top-k of the open slots, for text and for audio."""

    def set(self, slot: int, seed: int, text: tuple[float, int], audio: tuple[float, int]) -> None:
        """(temperature, top-k) of each; temperature 0 is greedy."""
        pairs = [(1.0, 1) if temperature == 0 else (1.0 / temperature, k) for temperature, k in (text, audio)]
        self.seeds[slot] = seed
        self.inverse_temperature[slot] = torch.tensor([pair[0] for pair in pairs])
        self.top_k[slot] = torch.tensor([pair[1] for pair in pairs])
        self._top_k[slot] = [pair[1] for pair in pairs]
        self._given[slot] = (seed, text, audio)
        self._gather_ranks()

    def of(self, slot: int) -> tuple[int, tuple[float, int], tuple[float, int]]:
        """What `set` was given."""
        return self._given[slot]

    def clear(self, slot: int) -> None:
        self._top_k[slot] = 0
        self._gather_ranks()

    def _gather_ranks(self) -> None:
        text, audio = (
            tuple(int(k) for k in np.unique(column[column > 0])) or (1,) for column in self._top_k.T
        )
        self.ranks = (text, audio)

    def draw(self, rows: Tensor, frames: Tensor) -> Draw:
        """The random numbers and parameters of one step."""
        numbers = uniforms(self.seeds.index_select(0, rows), frames, self.streams)
        return Draw(
            numbers,
            self.inverse_temperature.index_select(0, rows),
            self.top_k.index_select(0, rows),
            self.ranks,
        )


class Draw:
    """One step's choices; stream 0 is the text, stream 1 + k the agent's code k."""

    def __init__(
        self,
        numbers: Tensor,
        inverse_temperature: Tensor,
        top_k: Tensor,
        ranks: tuple[tuple[int, ...], tuple[int, ...]],
    ) -> None:
        self._numbers = numbers.t().contiguous()  # (streams, B)
        self._inverse, self._top_k = inverse_temperature.t().contiguous(), top_k.t().contiguous()  # (2, B)
        self._ranks = ranks

    def text(self, logits: Tensor) -> Tensor:
        """(B, text_card) -> (B,) int64"""
        return self._choose(logits, 0, 0)

    def audio(self, logits: Tensor, k: int) -> Tensor:
        """(B, card) -> (B,) int64, for the agent's code k."""
        return self._choose(logits, 1, 1 + k)

    def _choose(self, logits: Tensor, kind: int, stream: int) -> Tensor:
        return kernels.choose(
            logits,
            self._inverse[kind],
            self._top_k[kind],
            self._numbers[stream],
            self._ranks[kind],
        )
