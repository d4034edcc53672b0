"""The operations worth a kernel of their own, as plain torch operations: right everywhere, fast nowhere.

engine/cpu_kernels.py (numba) and engine/triton_kernels.py are their fast twins; engine/kernels.py chooses.
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
_FLOAT8_MAX = 448.0


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
    lines = plain(pages).view(-1, *pages.shape[2:])
    lines.index_copy_(0, at, plain(to_pages(qkv[:, 1:], pages.dtype)))


def plain(pages: Tensor) -> Tensor:
    """float8 as bytes: torch cannot index it everywhere."""
    return pages.view(torch.uint8) if pages.dtype == torch.float8_e4m3fn else pages


def to_pages(values: Tensor, dtype: torch.dtype) -> Tensor:
    """In the type of the cache; float8 has no infinity, so what is too large becomes its largest."""
    return (
        values.clamp(-_FLOAT8_MAX, _FLOAT8_MAX).to(dtype)
        if dtype == torch.float8_e4m3fn
        else values.to(dtype)
    )


def plan_attention(view: View, frequencies: Tensor | None) -> Attend:
    """See engine/kernels.py: gather the pages, then torch's attention."""
    groups, queries = view.position.shape
    page = torch.arange(view.page, device=view.first.device)
    frame = (view.first[:, :, None] + page).flatten(1)[:, None]
    seen = (frame >= 0) & (frame <= view.position[:, :, None]) & (frame > view.low[:, :, None])
    bias = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, float("-inf"))[:, None]
    flat = view.pages.reshape(-1)
    angles = rotation(view.position.reshape(-1), frequencies) if frequencies is not None else None

    def attend(qkv: Tensor, pages: Tensor) -> Tensor:
        if angles is not None:
            rotate(qkv, angles)
        store(pages, view.at, qkv)
        lines = (
            plain(pages)
            .index_select(0, flat)
            .view(pages.dtype)
            .to(qkv.dtype)
            .view(groups, -1, *pages.shape[2:])
        )
        keys, values = lines[:, :, 0].transpose(1, 2), lines[:, :, 1].transpose(1, 2)
        q = qkv[:, 0].reshape(groups, queries, *qkv.shape[2:]).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, keys, values, bias.to(q.dtype))
        return out.transpose(1, 2).reshape(groups * queries, -1)

    return attend


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, dim) -> float8 values and the float32 scale (N, 1) that brings them back."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / _FLOAT8_MAX
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


def float8_product(x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """What a float8 product gives: both sides rounded, the sum in float32."""
    rounded, rows = quantise_rows(x)
    return (torch.mm(rounded.float(), values.float()) * rows * scale).to(x.dtype)


def attend_depth(qkv: Tensor, seen: Tensor, step: int) -> Tensor:
    """See engine/kernels.py; the first step sees itself alone."""
    seen[:, step] = qkv[:, 1:]
    if step == 0:
        return qkv[:, 2].reshape(qkv.shape[0], -1)
    keys, values = seen[:, : step + 1, 0].transpose(1, 2), seen[:, : step + 1, 1].transpose(1, 2)
    return F.scaled_dot_product_attention(qkv[:, 0][:, :, None], keys, values).flatten(1)


def choose(
    logits: Tensor, inverse_temperature: Tensor, top_k: Tensor, number: Tensor, ranks: tuple[int, ...]
) -> Tensor:
    """See engine/kernels.py."""
    if ranks == (1,):
        return logits.argmax(-1)
    logits, inverse_temperature, number = logits.float(), inverse_temperature[:, None], number[:, None]
    if min(ranks[-1], logits.shape[1]) * 64 <= logits.shape[1]:
        return _choose_few(logits, inverse_temperature, top_k, number, ranks[-1])
    least = _kth_largest(logits, top_k, ranks)
    weights = (logits - logits.amax(-1, keepdim=True)).mul_(inverse_temperature).exp_()
    total = weights.masked_fill_(logits < least, 0.0).cumsum(-1)
    return torch.searchsorted(total, total[:, -1:] * number, right=True)[:, 0]


def _kth_largest(logits: Tensor, top_k: Tensor, ranks: tuple[int, ...]) -> Tensor:
    """The least value that counts in each row, (B, 1)."""
    size = logits.shape[1]
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
