"""GraphStages: the tick on CUDA as three graph replays, over batches rounded up to a few sizes.

Every input lies in a buffer of fixed place: who is in the batch, what is forced, the audio. Padding entries
point to the spare row, so their results go nowhere. The host writes pinned buffers, replays, and waits once.
On a CPU the same code runs without graphs, which is how the tests hold it against EagerStages.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.generation import Generator
from engine.model.codec import Codec
from engine.stages import Tick

FRAME = 1_920
_ROWS, _EARS, _MOUTHS, _FORCED, _PRIMING = range(5)

Replay = Callable[[], None]


def sizes_for(slots: int) -> list[int]:
    """Batch sizes worth a graph: 1, 2, 4, 8, then every 8 to 64, every 16 to 128, every 32, and all slots."""
    steps = [1, 2, 4, *range(8, 64, 8), *range(64, 128, 16), *range(128, slots, 32)]
    return [size for size in steps if size < slots] + [slots]


class GraphStages:
    """See engine/stages.py `Stages`."""

    def __init__(self, generator: Generator, codec: Codec, tables: Tensor, tone: Tensor) -> None:
        device, slots = tables.device, generator.slots
        pinned = device.type == "cuda"
        self._generator, self._codec, self._tables, self._tone = generator, codec, tables, tone
        self._spare = slots
        self._host_ints = torch.full((5, slots), slots, pin_memory=pinned)
        self._host_pcm = torch.zeros(slots, FRAME, pin_memory=pinned)
        self._host_out = torch.zeros(slots, FRAME, pin_memory=pinned)
        self._host_text = torch.zeros(slots, dtype=torch.int64, pin_memory=pinned)
        self._ints, self._pcm = self._host_ints.to(device, copy=True), self._host_pcm.to(device, copy=True)
        self._out, self._text = torch.zeros_like(self._pcm), torch.zeros_like(self._ints[0])
        self._codes = torch.zeros(slots, len(tone), dtype=torch.int64, device=device)
        self._said = torch.zeros(slots, generator.lm.config.dep_q, dtype=torch.int64, device=device)
        self.sizes = sizes_for(slots)
        self._pool = torch.cuda.graph_pool_handle() if pinned else None
        self.replays: dict[int, tuple[Replay, Replay, Replay]] = {}
        """Encoder, language model and decoder of each batch size."""

    def warm_up(self) -> None:
        """Record every size, largest first so that the smaller ones reuse its memory."""
        self._ints[:] = self._spare
        for size in reversed(self.sizes):
            parts = (self._listen, self._think, self._speak)
            self.replays[size] = tuple(self._record(part, size) for part in parts)  # type: ignore[assignment]

    def run(self, tick: Tick) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        count = len(tick.rows)
        size = next(size for size in self.sizes if size >= count)
        self._fill(tick, count)
        self._ints.copy_(self._host_ints, non_blocking=True)
        self._pcm[:count].copy_(self._host_pcm[:count], non_blocking=True)
        for replay in self.replays[size]:
            replay()
        self._host_out[:count].copy_(self._out[:count], non_blocking=True)
        self._host_text[:count].copy_(self._text[:count], non_blocking=True)
        if self._pool is not None:
            torch.cuda.current_stream().synchronize()
        return self._host_out[:count].numpy(), self._host_text[:count].numpy()

    def _fill(self, tick: Tick, count: int) -> None:
        ints = self._host_ints.numpy()
        ints[:, count:] = self._spare
        ints[_ROWS, :count] = tick.rows
        ints[_EARS, :count] = np.where(tick.priming, self._spare, tick.rows)
        ints[_MOUTHS, :count] = np.where(tick.speaking, tick.rows, self._spare)
        ints[_FORCED, :count] = tick.forced
        ints[_PRIMING, :count] = tick.priming
        self._host_pcm.numpy()[:count] = tick.pcm

    def _listen(self, size: int) -> None:
        heard = self._pcm[:size].nan_to_num(0.0, 0.0, 0.0).clamp(-1.0, 1.0)
        codes = self._codec.encode_step(heard, self._ints[_EARS, :size])
        self._codes[:size] = torch.where(self._ints[_PRIMING, :size, None] == 1, self._tone, codes)

    def _think(self, size: int) -> None:
        rows, forced = self._ints[_ROWS, :size], self._ints[_FORCED, :size]
        said = self._generator.step(self._codes[:size], rows, self._tables, forced)
        self._text[:size] = said.text
        self._said[:size] = said.codes

    def _speak(self, size: int) -> None:
        self._out[:size] = self._codec.decode_step(self._said[:size], self._ints[_MOUTHS, :size])

    def _record(self, part: Callable[[int], None], size: int) -> Replay:
        """A replay of one part; the run before it compiles and allocates what a graph may not."""
        part(size)
        if self._pool is None:
            return lambda: part(size)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            part(size)
        return graph.replay
