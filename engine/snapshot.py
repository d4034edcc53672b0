"""SlotSnapshot: the whole state of one slot in host memory, to park a call, move it or replay it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from engine.model.codec import SlotState


@dataclass(frozen=True, slots=True)
class SlotSnapshot:
    """Refers to nothing on the device, so it outlives the slot, the runner and (pickled) the process."""

    model: str
    """Which model it belongs to; another one refuses it."""
    frames: int
    """LM frames since open(), prompt included."""
    window: int
    pages: tuple[int, ...]
    """Numbers in the call of the pages below."""
    lines: tuple[Tensor, ...]
    """One (pages, 64, 2, heads, head_dim) a layer."""
    tokens: Tensor
    """(n_q + 1, ring length)"""
    codec: SlotState
    seed: int
    text: tuple[float, int]
    audio: tuple[float, int]
    """(temperature, top-k)"""
    spoken: int
    """Frames its decoder has run."""
    muted: bool
    queue: tuple[int, ...]
    """Text tokens still to be forced."""

    @property
    def nbytes(self) -> int:
        tensors = [*self.lines, self.tokens, *self.codec.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def __repr__(self) -> str:
        return f"SlotSnapshot({self.model}, frames={self.frames}, {self.nbytes / 2**20:.1f} MiB)"
