"""Stages: one tick on the device, from (n, 1920) of audio to (n, 1920) of audio and n text tokens.

Encoder, language model and decoder over the same batch. Slots that only finish their prompt hear its tone
instead of their caller, and slots that have nothing to say yet do not advance their decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.generation import Generator
from engine.model.codec import Codec


@dataclass(frozen=True, slots=True)
class Tick:
    """One step's batch, on the host; every array has n entries."""

    rows: NDArray[np.int64]
    pcm: NDArray[np.float32]
    """(n, 1920)"""
    forced: NDArray[np.int64]
    """Text token to play, -1 where the model chooses."""
    priming: NDArray[np.bool_]
    """Slots whose prompt is run and whose first free tokens are drawn in this step."""
    speaking: NDArray[np.bool_]
    """Slots that give audio in this step."""
    columns: int
    """Columns of the page table in use by any slot of the batch."""


class Stages(Protocol):
    def run(self, tick: Tick) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """((n, 1920), (n,) text tokens); entries that do not speak hold anything."""
        ...


class EagerStages:
    """Each operation as it comes, batches of exactly the slots that step: the CPU's way."""

    def __init__(self, generator: Generator, codec: Codec, tables: Tensor, tone: Tensor) -> None:
        self._generator, self._codec, self._tables, self._tone = generator, codec, tables, tone

    def run(self, tick: Tick) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        device = self._tables.device
        rows = torch.from_numpy(tick.rows).to(device)
        codes = self._listen(tick, rows)
        forced = torch.from_numpy(tick.forced).to(device)
        said = self._generator.step(codes, rows, self._tables[:, : tick.columns], forced)
        pcm = np.zeros(tick.pcm.shape, np.float32)
        if tick.speaking.all():
            pcm = self._codec.decode_step(said.codes, rows).cpu().numpy()
        elif tick.speaking.any():
            some = torch.from_numpy(np.flatnonzero(tick.speaking)).to(device)
            pcm[tick.speaking] = self._codec.decode_step(said.codes[some], rows[some]).cpu().numpy()
        return pcm, said.text.cpu().numpy()

    def _listen(self, tick: Tick, rows: Tensor) -> Tensor:
        heard = torch.from_numpy(tick.pcm).to(rows.device).nan_to_num(0.0, 0.0, 0.0).clamp_(-1.0, 1.0)
        if not tick.priming.any():
            return self._codec.encode_step(heard, rows)
        codes = self._tone.expand(len(rows), -1).clone()
        some = torch.from_numpy(np.flatnonzero(~tick.priming)).to(rows.device)
        if len(some):
            codes[some] = self._codec.encode_step(heard[some], rows[some])
        return codes
