"""The operations that are worth a kernel of their own. This file is what the model calls.

On the CPU each is a few torch operations; on CUDA engine/triton_kernels.py takes over where Triton is
installed, with these as its twins (tests/test_model_kernels.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from engine.model.transformer import View

Attend = Callable[[Tensor, Tensor], Tensor]
"""(queries (N, heads, head_dim), pages (P, 64, 2, heads, head_dim)) -> (N, heads, head_dim)"""


def rms_norm(x: Tensor, alpha: Tensor, eps: float) -> Tensor:
    """x * alpha / sqrt(mean(x²) + eps) over the last dimension, computed in float32."""
    return F.rms_norm(x, alpha.shape, alpha, eps)


def gated(hidden: Tensor, gating: str) -> Tensor:
    """(N, 2 width) -> act(first half) * second half, (N, width)."""
    gate, value = hidden.chunk(2, -1)
    return _ACTIVATIONS[gating](gate).mul_(value)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "mish": F.mish,
}


def rotation(positions: Tensor, frequencies: Tensor) -> Tensor:
    """(N,) frame numbers, (D/2,) -> unit complex numbers (N, 1, 1, D/2)."""
    angles = positions[:, None].float() * frequencies
    return torch.polar(torch.ones_like(angles), angles)[:, None, None]


def rotate(qkv: Tensor, angles: Tensor) -> None:
    """Rotate queries and keys in place, real and imaginary parts interleaved. qkv (N, 3, heads, D)."""
    rows, _, heads, dim = qkv.shape
    pairs = qkv[:, :2].view(rows, 2, heads, dim // 2, 2)
    if qkv.dtype == torch.float32:
        torch.view_as_complex(pairs).mul_(angles)
        return
    turned = torch.view_as_real(torch.view_as_complex(pairs.float().contiguous()).mul_(angles))
    pairs.copy_(turned)


def store(pages: Tensor, at: Tensor, qkv: Tensor) -> None:
    """Write keys and values to their lines. pages (P, 64, 2, heads, D), at (N,), qkv (N, 3, heads, D)."""
    pages.view(-1, *pages.shape[2:]).index_copy_(0, at, qkv[:, 1:].to(pages.dtype))


def plan_attention(view: View, page: int, dtype: torch.dtype) -> Attend:
    """What all layers of a step share: which lines each query sees."""
    groups, queries = view.position.shape
    frame = (view.first[:, :, None] + torch.arange(page, device=view.first.device)).flatten(1)[:, None]
    seen = (frame >= 0) & (frame <= view.position[:, :, None]) & (frame > view.low[:, :, None])
    bias = torch.zeros(seen.shape, device=seen.device, dtype=dtype).masked_fill_(~seen, float("-inf"))[
        :, None
    ]
    flat = view.pages.reshape(-1)

    def attend(q: Tensor, pages: Tensor) -> Tensor:
        lines = pages.index_select(0, flat).to(dtype).view(groups, -1, *pages.shape[2:])
        keys, values = lines[:, :, 0].transpose(1, 2), lines[:, :, 1].transpose(1, 2)
        q = q.reshape(groups, queries, *q.shape[1:]).transpose(1, 2)
        return F.scaled_dot_product_attention(q, keys, values, bias).transpose(1, 2).flatten(0, 1)

    return attend


def choose(
    logits: Tensor, inverse_temperature: Tensor, top_k: Tensor, number: Tensor, ranks: tuple[int, ...]
) -> Tensor:
    """Draw from the top-k softmax of each row by inverse transform in index order.

    logits (B, V), inverse_temperature (B, 1), top_k (B,) int64, number (B, 1) in [0, 1), ranks: the distinct
    values in top_k -> (B,) int64. The first index whose cumulative weight exceeds number * total; entries
    equal to the k-th largest all count.
    """
    if ranks == (1,):
        return logits.argmax(-1)
    logits = logits.float()
    if min(ranks[-1], logits.shape[1]) * 64 <= logits.shape[1]:
        return _choose_few(logits, inverse_temperature, top_k, number, ranks[-1])
    least = _kth_largest(logits, top_k, ranks)
    weights = (logits - logits.amax(-1, keepdim=True)).mul_(inverse_temperature).exp_()
    total = weights.masked_fill_(logits < least, 0.0).cumsum(-1)
    return torch.searchsorted(total, total[:, -1:] * number, right=True)[:, 0]


def _kth_largest(logits: Tensor, top_k: Tensor, ranks: tuple[int, ...]) -> Tensor:
    size = logits.shape[1]
    if len(ranks) == 1:
        return logits.kthvalue(max(1, size - ranks[0] + 1), -1, keepdim=True).values
    top = logits.topk(min(ranks[-1], size), -1).values
    return top.gather(1, (top_k.clamp(max=size) - 1)[:, None])


def _choose_few(
    logits: Tensor, inverse_temperature: Tensor, top_k: Tensor, number: Tensor, most: int
) -> Tensor:
    """The same draw where the candidates are few: only they are put in index order and summed."""
    top, index = logits.topk(most, -1)
    rank = torch.arange(most, device=logits.device)
    weights = (top - top[:, :1]).mul_(inverse_temperature).exp_().masked_fill_(rank >= top_k[:, None], 0.0)
    index, order = index.sort(-1)
    total = weights.gather(1, order).cumsum(-1)
    return index.gather(1, torch.searchsorted(total, total[:, -1:] * number, right=True))[:, 0]
