"""Moshi's language model as a training graph, its tensors under Kyutai's names and shapes.

The same arithmetic as engine/model/{lm,depth,transformer}.py, over whole sequences
(tests/test_tiny_lm.py holds the two to equal tokens): RMS norm in float32, interleaved rope, a window of
`context` frames, gated SiLU, a depth transformer with weights of its own for every codebook.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.model.config import LMConfig, TransformerConfig


class RmsNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.alpha.view(-1), 1e-8)


def rotated(x: Tensor, max_period: float) -> Tensor:
    """x (B, heads, T, D), position = index in T, pairs interleaved (Kyutai moshi/modules/rope.py)."""
    half = x.shape[-1] // 2
    frequencies = torch.exp(torch.arange(half) * (-math.log(max_period) / half))
    angles = torch.arange(x.shape[2])[:, None] * frequencies
    cosine, sine = angles.cos(), angles.sin()
    real, imaginary = x.unflatten(-1, (half, 2)).unbind(-1)
    turned = (real * cosine - imaginary * sine, real * sine + imaginary * cosine)
    return torch.stack(turned, -1).flatten(-2)


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads, self.max_period = config.heads, config.max_period
        self.in_proj_weight = nn.Parameter(torch.randn(3 * dim, dim) / math.sqrt(dim))
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # (B, T, dim)
        qkv = functional.linear(x, self.in_proj_weight).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        queries, keys = (rotated(part, self.max_period) for part in (queries, keys))
        seen = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        out: Tensor = self.out_proj(seen.transpose(1, 2).flatten(-2))
        return out


class Gating(nn.Module):
    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(dim, 2 * width, bias=False)
        self.linear_out = nn.Linear(width, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.linear_in(x).chunk(2, -1)
        out: Tensor = self.linear_out(functional.silu(gate) * value)
        return out


class TemporalLayer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = RmsNorm(config.dim), RmsNorm(config.dim)
        self.self_attn = Attention(config)
        self.gating = Gating(config.dim, config.feed_forward)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm1(x), mask)
        return x + self.gating(self.norm2(x))


class DepthAttention(nn.Module):
    def __init__(self, dim: int, heads: int, steps: int) -> None:
        super().__init__()
        self.heads, self.steps = heads, steps
        self.in_proj_weight = nn.Parameter(torch.randn(steps * 3 * dim, dim) / math.sqrt(dim))
        self.out_proj = nn.Linear(dim, steps * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (N, steps, dim)
        dim = x.shape[-1]
        qkv = each_step(x, self.in_proj_weight.view(self.steps, 3 * dim, dim))
        queries, keys, values = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return each_step(seen.transpose(1, 2).flatten(-2), self.out_proj.weight.view(self.steps, dim, dim))


class DepthLayer(nn.Module):
    def __init__(self, config: TransformerConfig, steps: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = RmsNorm(config.dim), RmsNorm(config.dim)
        self.self_attn = DepthAttention(config.dim, config.heads, steps)
        self.gating = nn.ModuleList([Gating(config.dim, config.feed_forward) for _ in range(steps)])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm1(x))
        y = self.norm2(x)
        gates = [self.gating[k](y[:, k]) for k in range(y.shape[1])]
        return x + torch.stack(gates, 1)


def each_step(x: Tensor, weights: Tensor) -> Tensor:
    """x (N, steps, in) through weights (steps, out, in) -> (N, steps, out)."""
    return torch.bmm(x.transpose(0, 1), weights.transpose(1, 2)).transpose(0, 1)


class TrainedLM(nn.Module):
    """The whole model; `state_dict()` is a Kyutai checkpoint."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        dim, depth = config.dim, config.depth
        self.text_emb = nn.Embedding(config.text_card + 1, dim)
        self.emb = nn.ModuleList([nn.Embedding(config.card + 1, dim) for _ in range(config.n_q)])
        self.transformer = nn.ModuleDict(
            {"layers": nn.ModuleList([TemporalLayer(config.temporal) for _ in range(config.num_layers)])}
        )
        self.out_norm = RmsNorm(dim)
        self.text_linear = nn.Linear(dim, config.text_card, bias=False)
        self.depformer_in = nn.ModuleList(
            [nn.Linear(dim, depth.dim, bias=False) for _ in range(config.dep_q)]
        )
        self.depformer_text_emb = nn.Embedding(config.text_card + 1, depth.dim)
        self.depformer_emb = nn.ModuleList(
            [nn.Embedding(config.card + 1, depth.dim) for _ in range(config.dep_q - 1)]
        )
        self.depformer = nn.ModuleDict(
            {"layers": nn.ModuleList([DepthLayer(depth, config.dep_q) for _ in range(depth.layers)])}
        )
        self.linears = nn.ModuleList(
            [nn.Linear(depth.dim, config.card, bias=False) for _ in range(config.dep_q)]
        )
        for table in [self.text_emb, *self.emb]:
            nn.init.normal_(table.weight, std=0.08)

    def embed(self, text: Tensor, codes: Tensor, streams: Sequence[int] | None = None) -> Tensor:
        """text (B, T), codes (B, T, n) of `streams` (default the first n) -> (B, T, dim)."""
        x: Tensor = self.text_emb(text)
        for place, k in enumerate(streams or range(codes.shape[-1])):
            x = x + self.emb[k](codes[..., place])
        return x

    def hidden(self, inputs: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, dim), each frame seeing itself and the `context` - 1 before it."""
        index = torch.arange(inputs.shape[1])
        behind = index[:, None] - index[None]
        mask = (behind >= 0) & (behind < self.config.context)
        x = inputs
        for layer in self.transformer["layers"]:
            x = layer(x, mask)
        out: Tensor = self.out_norm(x)
        return out

    def code_logits(self, hidden: Tensor, text: Tensor, codes: Tensor) -> Tensor:
        """Teacher-forced depth steps: hidden (N, dim), text (N,), codes (N, dep_q) -> (N, dep_q, card)."""
        inputs = torch.stack([layer(hidden) for layer in self.depformer_in], 1)
        before = [self.depformer_text_emb(text)]
        before += [table(codes[:, k]) for k, table in enumerate(self.depformer_emb)]
        x = inputs + torch.stack(before, 1)
        for layer in self.depformer["layers"]:
            x = layer(x)
        return torch.stack([head(x[:, k]) for k, head in enumerate(self.linears)], 1)
