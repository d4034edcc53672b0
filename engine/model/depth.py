"""The depth transformer: the agent's codes of one frame, one after the other (Kyutai `depformer`).

Every step has weights of its own and sees the steps before it in the same frame; nothing is kept between
frames, so its keys and values live in one static buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from engine import kernels
from engine.model.config import LMConfig, TransformerConfig
from engine.model.transformer import Layer, Norm
from engine.weights import Weights

Choose = Callable[[Tensor, int], Tensor]
"""(logits (B, card) of step k, k) -> (B,) int64"""


class Depth:
    """Runs the first `config.dep_q` of the `stored` steps a checkpoint holds."""

    def __init__(self, weights: Weights, config: LMConfig, stored: LMConfig) -> None:
        self.config, self.steps = config.depth, config.dep_q
        dim, schedule = self.config.dim, stored.depformer_weights_per_step_schedule or range(stored.dep_q)
        sets = max(schedule) + 1
        used = [schedule[k] for k in range(self.steps)]
        stack = weights.under("depformer")
        layers = [
            _take_sets(stack.under(f"layers.{i}"), self.config, sets, set(used))
            for i in range(self.config.layers)
        ]
        self.layers = [[layer[k] for layer in layers] for k in used]
        inputs = [weights.take(f"depformer_in.{i}.weight", dim, config.dim) for i in range(sets)]
        self.input = kernels.in_rows(torch.cat([inputs[k] for k in used]), weights.float8)
        """(temporal dim, steps * dim): one product for the inputs of all steps."""
        heads = [weights.take(f"linears.{k}.weight", config.card, dim) for k in range(stored.dep_q)]
        self.heads = [kernels.in_rows(head, weights.float8) for head in heads[: self.steps]]
        text = weights.take("depformer_text_emb.weight", config.text_card + 1, dim)
        tables = [
            weights.take(f"depformer_emb.{k}.weight", config.card + 1, dim) for k in range(stored.dep_q - 1)
        ]
        self.tables = [text, *tables[: self.steps - 1]]
        self.kv = torch.empty(0)

    def allocate(self, batch: int) -> None:
        shape = (self.config.layers, batch, self.steps, 2, self.config.heads, self.config.head_dim)
        self.kv = torch.zeros(shape, device=self.tables[0].device, dtype=self.tables[0].dtype)

    def __call__(self, hidden: Tensor, text: Tensor, choose: Choose) -> Tensor:
        """hidden (B, temporal dim), text (B,) -> codes (B, steps) int64."""
        batch = hidden.shape[0]
        kv = self.kv[:, :batch]
        inputs = kernels.product(hidden, self.input).view(batch, self.steps, -1)
        token, codes = text, []
        for k in range(self.steps):
            x = inputs[:, k] + F.embedding(token, self.tables[k])
            for layer, seen in zip(self.layers[k], kv, strict=True):
                qkv = kernels.product(layer.norm1(x), layer.qkv).view(
                    batch, 3, self.config.heads, self.config.head_dim
                )
                x = kernels.product_onto(x, kernels.attend_depth(qkv, seen, k), layer.out)
                x = layer.feed_forward(x)
            token = choose(kernels.product(x, self.heads[k]), k)
            codes.append(token)
        return torch.stack(codes, 1)


def _take_sets(weights: Weights, config: TransformerConfig, sets: int, used: set[int]) -> dict[int, Layer]:
    """One Layer for each set of weights in use; the fused spellings hold all sets along dimension 0."""
    dim, width, attn = config.dim, config.feed_forward, weights.under("self_attn")
    norm1 = Norm.take(weights.under("norm1"), config.norm, dim)
    norm2 = Norm.take(weights.under("norm2"), config.norm, dim)
    qkv = _split(attn, ("in_proj_weight", "in_proj.weight"), "in_projs", sets, 3 * dim, dim)
    out = _split(attn, ("out_proj.weight",), "out_projs", sets, dim, dim)
    layers, rows = {}, partial(kernels.in_rows, float8=weights.float8)
    for k in range(sets):
        gate = weights.under(f"gating.{k}")
        up, down = gate.take("linear_in.weight", 2 * width, dim), gate.take("linear_out.weight", dim, width)
        if k in used:
            layers[k] = Layer(norm1, rows(qkv[k]), rows(out[k]), norm2, rows(up), rows(down), config.gating)
    return layers


def _split(
    weights: Weights, fused: tuple[str, ...], single: str, sets: int, rows: int, dim: int
) -> list[Tensor]:
    if weights.has(f"{single}.0.weight"):
        return [weights.take(f"{single}.{k}.weight", rows, dim) for k in range(sets)]
    return list(weights.take(weights.spelling(*fused), sets * rows, dim).view(sets, rows, dim))
