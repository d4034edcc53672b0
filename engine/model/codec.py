"""Codec: what the engine asks of an audio codec, whichever it is.

Mimi (engine/model/mimi.py) is one; a checkpoint names another with `"codec": {"type": …}` in its
config.json and `register_codec`. State lives in the codec, one row a slot plus one spare row that padding
entries of a batch point to, so a batch is any list of slots and every slot not in it stays untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.api import EngineError

SlotState = dict[str, Tensor]
"""State of one slot: tensors without the slot dimension, on the CPU."""


class Codec(Protocol):
    """24 kHz audio <-> `codebooks` tokens a frame of 1,920 samples, streaming, batched over slots.

    `rows` (B,) int64 on `device` names the slots of a batch; entries equal to `slots` are padding whose
    results nobody reads. A slot appears at most once in a batch. Nothing in the two steps waits for the
    device or branches on a tensor's value, so that a CUDA graph can hold them.
    """

    codebooks: int
    """Codes a frame, both ways."""
    card: int
    """Values of one code: 0 … card - 1."""
    device: torch.device

    def allocate(self, slots: int, history: int = 0) -> None:
        """Make room for `slots` streams, all fresh, that can be rewound by up to `history` steps."""
        ...

    def listen_for(self, codes: Collection[int]) -> None:
        """The codes of callers that are read; `encode_step` may give the others as 0. Never called: all."""
        ...

    def reset(self, slots: list[int]) -> None:
        """Make those streams fresh (before their next step; never inside a captured graph)."""
        ...

    def encode_step(self, pcm: Tensor, rows: Tensor) -> Tensor:
        """One frame of audio (B, 1920) float32 -> codes (B, codebooks) int64; advances the encoders."""
        ...

    def decode_step(self, codes: Tensor, rows: Tensor) -> Tensor:
        """Codes (B, codebooks) int64 -> one frame (B, 1920) float32; advances the decoders.

        Codes below 0 are read as 0 (a slot that has no audio yet; its result is not used, and its
        decoder row was replaced by the spare one).
        """
        ...

    def snapshot(self, slot: int) -> SlotState:
        """The whole streaming state of a slot, copied to the CPU."""
        ...

    def restore(self, slot: int, state: SlotState) -> None:
        """Continue exactly where the snapshot was taken."""
        ...

    def rewind(self, slot: int, encoder_steps: int, decoder_steps: int) -> None:
        """Return a slot to its state that many steps ago; at most `history`."""
        ...


CodecLoader = Callable[[Path, dict[str, Any], int, torch.device], Codec]
"""(weights file, the `codec` section of config.json, codebooks in use, device) -> Codec, not allocated."""

_LOADERS: dict[str, CodecLoader] = {}


def register_codec(kind: str, load: CodecLoader) -> None:
    """Make `"codec": {"type": kind}` loadable. Registering a kind twice replaces it."""
    _LOADERS[kind] = load


def codec_loader(kind: str) -> CodecLoader:
    """Raises EngineError naming the kinds there are."""
    if kind not in _LOADERS:
        known = ", ".join(sorted(_LOADERS))
        raise EngineError(f"config.json asks for codec {kind!r}; this engine knows: {known}")
    return _LOADERS[kind]
