"""Mimi, Kyutai's streaming codec: 24 kHz <-> 12.5 frames a second of `codebooks` codes (arXiv 2410.00037).

SEANet convolutions, a transformer on either side at 25 Hz, and a split residual quantiser. Encoder and
decoder keep separate state, because a call's first frames are heard before anything is said.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.kv import PAGE
from engine.model.codec import SlotState, register_codec
from engine.model.config import MimiConfig
from engine.model.rvq import SplitQuantizer
from engine.model.seanet import ConvTranspose, ReplicateConv, build_decoder, build_encoder
from engine.model.streaming import SlotArena
from engine.model.transformer import Pool, Transformer, View
from engine.tensorfiles import open_weights
from engine.weights import Weights

FRAME = 1_920


class Tower:
    """One of Mimi's transformers: its own ring of pages for every slot, `steps` tokens a frame."""

    def __init__(self, weights: Weights, config: MimiConfig, steps: int) -> None:
        self.transformer = Transformer(weights.under("transformer"), config.transformer)
        self.context, self.steps = config.transformer.context, steps
        self.ring = 0
        self.tables = torch.empty(0)
        self.pool: Pool | None = None

    def allocate(self, slots: int, history: int, device: torch.device) -> None:
        self.ring = (self.context + (history + 1) * self.steps - 2) // PAGE + 2
        self.tables = torch.arange((slots + 1) * self.ring, device=device).view(slots + 1, self.ring)
        self.pool = Pool(self.transformer.config, (slots + 1) * self.ring, device, torch.float32)

    def __call__(self, x: Tensor, frames: Tensor, rows: Tensor) -> Tensor:
        """x (B, dim, steps), frames (B,) done before -> (B, dim, steps).

        Kyutai's ring holds `context` entries after a whole chunk is written, so every query of the chunk
        sees back to its last position - context + 1.
        """
        assert self.pool is not None
        position = frames[:, None] * self.steps + torch.arange(self.steps, device=x.device)
        pages = self.tables.index_select(0, rows)
        low = (position[:, -1:] - self.context).expand_as(position)
        view = ring_view(pages, position, low)
        return self.transformer(x.transpose(1, 2), self.pool, view).transpose(1, 2)

    def snapshot(self, slot: int) -> Tensor:
        assert self.pool is not None
        pages = slice(slot * self.ring, (slot + 1) * self.ring)
        return torch.stack([layer[pages] for layer in self.pool.layers]).cpu()

    def restore(self, slot: int, state: Tensor) -> None:
        assert self.pool is not None
        for layer, pages in zip(self.pool.layers, state, strict=True):
            layer[slot * self.ring : (slot + 1) * self.ring] = pages.to(layer.device)


def ring_view(pages: Tensor, position: Tensor, low: Tensor) -> View:
    """A View of page tables used as rings: page number p of a slot stands in column p mod columns.

    pages (B, columns), position and low (B, Tq); the last query of a group is its newest.
    """
    columns = pages.shape[1]
    newest = position[:, -1:] // PAGE
    column = torch.arange(columns, device=pages.device)
    first = (newest - (newest - column) % columns) * PAGE
    at = pages.gather(1, position // PAGE % columns) * PAGE + position % PAGE
    return View(pages, at.reshape(-1), position, low, first)


class Mimi:
    """The Codec (engine/model/codec.py) that Moshi was trained with."""

    def __init__(self, weights: Weights, config: MimiConfig, codebooks: int) -> None:
        dim, hop = config.seanet.dimension, config.seanet.hop
        steps = FRAME // hop
        self.codebooks, self.card, self.device = codebooks, config.bins, weights.device
        self._ears, self._mouth = SlotArena(), SlotArena()
        self._encoder = build_encoder(weights.under("encoder"), config.seanet, self._ears)
        self._encoder_tower = Tower(weights.under("encoder_transformer"), config, steps)
        shape = (dim, dim, 2 * steps)
        self._down = ReplicateConv(
            weights.under("downsample.conv"), shape, self._ears, stride=steps, bias=False
        )
        self._quantizer = SplitQuantizer(weights.under("quantizer"), config, codebooks)
        self._up = ConvTranspose(
            weights.under("upsample.convtr"), shape, self._mouth, stride=steps, groups=dim, bias=False
        )
        self._decoder_tower = Tower(weights.under("decoder_transformer"), config, steps)
        self._decoder = build_decoder(weights.under("decoder"), config.seanet, self._mouth)

    def allocate(self, slots: int, history: int = 0) -> None:
        for arena in (self._ears, self._mouth):
            arena.allocate(slots, history, self.device)
        for tower in (self._encoder_tower, self._decoder_tower):
            tower.allocate(slots, history, self.device)

    def listen_for(self, codes: Collection[int]) -> None:
        """One network gives them all."""

    def reset(self, slots: list[int]) -> None:
        self._ears.reset(slots)
        self._mouth.reset(slots)

    def encode_step(self, pcm: Tensor, rows: Tensor) -> Tensor:
        carry = self._ears.take(rows)
        x = self._encoder(pcm[:, None], carry)
        x = self._encoder_tower(x, carry.steps, rows)
        x = self._down(x, carry)[:, :, 0]
        self._ears.keep(rows, carry)
        return self._quantizer.encode(x)

    def decode_step(self, codes: Tensor, rows: Tensor) -> Tensor:
        carry = self._mouth.take(rows)
        x = self._up(self._quantizer.decode(codes)[:, :, None], carry)
        x = self._decoder_tower(x, carry.steps, rows)
        pcm = self._decoder(x, carry)[:, 0]
        self._mouth.keep(rows, carry)
        return pcm

    def snapshot(self, slot: int) -> SlotState:
        state = {f"ears.{name}": value for name, value in self._ears.snapshot(slot).items()}
        state |= {f"mouth.{name}": value for name, value in self._mouth.snapshot(slot).items()}
        state["ears.pages"] = self._encoder_tower.snapshot(slot)
        state["mouth.pages"] = self._decoder_tower.snapshot(slot)
        return state

    def restore(self, slot: int, state: SlotState) -> None:
        self._ears.restore(slot, {name: state[f"ears.{name}"] for name in ("state", "steps")})
        self._mouth.restore(slot, {name: state[f"mouth.{name}"] for name in ("state", "steps")})
        self._encoder_tower.restore(slot, state["ears.pages"])
        self._decoder_tower.restore(slot, state["mouth.pages"])

    def rewind(self, slot: int, encoder_steps: int, decoder_steps: int) -> None:
        self._ears.rewind(slot, encoder_steps)
        self._mouth.rewind(slot, decoder_steps)


def load_mimi(file: Path, section: dict[str, Any], codebooks: int, device: torch.device) -> Mimi:
    """Build from a safetensors file; `section["config"]` is the JSON of `mimi_config_name`, if any.

    Raises CheckpointError naming what does not fit.
    """
    path = section.get("config")
    config = MimiConfig() if path is None else MimiConfig.read(json.loads(Path(path).read_text()), str(path))
    weights = open_weights(file, device, torch.float32)
    mimi = Mimi(weights, config, codebooks)
    weights.finish()
    return mimi


def register() -> None:
    """Make Mimi loadable by its name."""
    register_codec("mimi", load_mimi)
