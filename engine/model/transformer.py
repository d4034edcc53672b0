"""A streaming transformer over paged keys and values, for the temporal model and both of Mimi's.

Pages are shared by all slots: one pool a layer, (pages, 64, 2, heads, head_dim), keys stored rotated, so a
page means the same in whichever slot's table it stands. A batch is B groups of Tq queries; the queries of
one group look at the same pages. Kyutai moshi/modules/transformer.py gives the arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from engine import kernels
from engine.kernels import Matrix
from engine.kv import PAGE
from engine.model.config import TransformerConfig
from engine.weights import Weights


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm (`bias` None) or LayerNorm."""

    weight: Tensor
    bias: Tensor | None
    eps: float

    @classmethod
    def take(cls, weights: Weights, kind: str, dim: int) -> Norm:
        if kind.startswith("rms_norm"):
            alpha = weights.take("alpha", 1, 1, dim).flatten()
            return cls(alpha, None, 1e-8 if kind == "rms_norm_f32" else 1e-5)
        eps = 1e-8 if kind == "layer_norm_f32" else 1e-5
        return cls(weights.take("weight", dim), weights.take("bias", dim), eps)

    def __call__(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return kernels.rms_norm(x, self.weight, self.eps)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights, (in, out) each; layer scales are folded into `out` and `down`."""

    norm1: Norm
    qkv: Matrix  # (dim, 3 dim)
    out: Matrix  # (dim, dim)
    norm2: Norm
    up: Matrix  # (dim, 2 width) gated, (dim, width) otherwise
    down: Matrix  # (width, dim)
    gating: str

    def feed_forward(self, x: Tensor) -> Tensor:
        """x + down(act(up(norm2(x)))), x (N, dim)."""
        hidden = kernels.product(self.norm2(x), self.up)
        hidden = F.gelu(hidden) if self.gating == "none" else kernels.gated(hidden, self.gating)
        return kernels.product_onto(x, hidden, self.down)


def take_layer(weights: Weights, config: TransformerConfig) -> Layer:
    """Both spellings of the attention: `in_proj_weight` / `in_proj.weight` and `in_projs.0.weight`."""
    dim, width, attn = config.dim, config.feed_forward, weights.under("self_attn")
    qkv = attn.take(attn.spelling("in_proj_weight", "in_proj.weight", "in_projs.0.weight"), 3 * dim, dim)
    out = attn.take(attn.spelling("out_proj.weight", "out_projs.0.weight"), dim, dim)
    if config.gating == "none":
        up, down = weights.take("linear1.weight", width, dim), weights.take("linear2.weight", dim, width)
    else:
        gate = weights.under("gating")
        up, down = gate.take("linear_in.weight", 2 * width, dim), gate.take("linear_out.weight", dim, width)
    if config.layer_scale:
        out = out * weights.take("layer_scale_1.scale", dim)[:, None]
        down = down * weights.take("layer_scale_2.scale", dim)[:, None]
    norm1, norm2 = (Norm.take(weights.under(name), config.norm, dim) for name in ("norm1", "norm2"))
    rows = partial(kernels.in_rows, float8=weights.float8)
    return Layer(norm1, rows(qkv), rows(out), norm2, rows(up), rows(down), config.gating)


@dataclass(frozen=True, slots=True)
class View:
    """Where a batch stands: what each query may see and where its own key goes."""

    pages: Tensor
    """(B, n) int64 page numbers; entries never looked at may be any page."""
    at: Tensor
    """(B * Tq,) int64 line page * 64 + frame in page that each query's key and value go to."""
    position: Tensor
    """(B, Tq) int64 frame number of each query."""
    low: Tensor
    """(B, Tq) int64 each query sees frames low < frame <= position."""
    first: Tensor
    """(B, n) int64 frame number of the first line of each page; negative: not in use."""
    page: int = PAGE


class Pool:
    """The keys and values of all slots, one tensor (pages, 64, 2, heads, head_dim) a layer."""

    def __init__(
        self, config: TransformerConfig, pages: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (pages, PAGE, 2, config.heads, config.head_dim)
        self.layers = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.layers)]

    def copy(self, source: int, target: int) -> None:
        """Copy one page."""
        for layer in self.layers:
            layer[target] = layer[source]

    @property
    def nbytes_per_page(self) -> int:
        return sum(layer[0].numel() * layer.element_size() for layer in self.layers)


class Transformer:
    """x (B, Tq, dim) -> the same shape, before the final norm."""

    def __init__(self, weights: Weights, config: TransformerConfig) -> None:
        self.config = config
        self.layers = [take_layer(weights.under(f"layers.{i}"), config) for i in range(config.layers)]
        half = torch.arange(config.head_dim // 2, device=weights.device, dtype=torch.float32)
        self.frequencies = torch.exp(half * (-math.log(config.max_period) * 2 / config.head_dim))

    def __call__(self, x: Tensor, pool: Pool, view: View) -> Tensor:
        groups, queries, dim = x.shape
        x = x.reshape(groups * queries, dim)
        attend = kernels.plan_attention(view, self.frequencies if self.config.rope else None, pool.layers[0])
        for layer, pages in zip(self.layers, pool.layers, strict=True):
            qkv = kernels.product(layer.norm1(x), layer.qkv)
            qkv = qkv.view(-1, 3, self.config.heads, self.config.head_dim)
            x = kernels.product_onto(x, attend(qkv, pages), layer.out)
            x = layer.feed_forward(x)
        return x.view(groups, queries, dim)
