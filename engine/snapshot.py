"""SlotSnapshot: the whole state of one slot in host memory, to park a call, move it or replay it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from engine.model.codec import SlotState


@dataclass(frozen=True, slots=True)
class CallState:
    """What the host knows of a call."""

    frames: int
    """LM frames since open(), prompt included."""
    window: int
    """Frames it may look back on."""
    spoken: int
    """Frames its decoder has run."""
    seed: int
    text: tuple[float, int]
    audio: tuple[float, int]
    """(temperature, top-k)"""
    muted: bool
    """Interrupted and not yet released."""
    queue: tuple[int, ...]
    """Text tokens still to be forced."""


@dataclass(frozen=True, slots=True)
class SlotSnapshot:
    """Refers to nothing on the device, so it outlives the slot, the runner and (pickled) the process."""

    model: str
    """Which model it belongs to; another one refuses it."""
    call: CallState
    pages: Mapping[int, Tensor]
    """Number of a page in the call -> its keys and values, (layers, 64, 2, heads, head_dim)."""
    tokens: Tensor
    """(n_q + 1, ring length)"""
    codec: SlotState

    @property
    def frames(self) -> int:
        return self.call.frames

    @property
    def nbytes(self) -> int:
        tensors = [*self.pages.values(), self.tokens, *self.codec.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def __repr__(self) -> str:
        return f"SlotSnapshot({self.model}, frames={self.frames}, {self.nbytes / 2**20:.1f} MiB)"
