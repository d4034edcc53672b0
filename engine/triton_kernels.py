# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
"""Triton kernels for CUDA, each with a torch twin in engine/twins.py (tests/test_model_triton.py).

Everything a layer does beside its four matrix products: norm, turn and store of the keys, attention split
over pages, gating, and drawing a token. No kernel's launch depends on a value, so graphs can hold them all:
the page loop is bounded by the table, and each part reads the slot's own position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from engine.model.transformer import View

MAX_SPLITS = 16
"""Parts a query's pages are spread over, so that a small batch fills the device."""
ATTEND_WARPS = 2
"""Of _attend_kernel. On an H100 it then reads 3.0 TB/s of bfloat16 pages and 2.8 of float8; with 4 warps 2.9
and 2.0, with the rows as the fastest of the grid 2.7 and 1.8 (B = 32, full windows)."""


@triton.jit
def _rms_norm_kernel(x, alpha, out, dim, eps, block: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, block)
    inside = column < dim
    value = tl.load(x + row * dim + column, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, 0) / dim + eps)
    weight = tl.load(alpha + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * dim + column, (value * (weight * scale)).to(out.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, alpha: Tensor, eps: float) -> Tensor:
    """x (N, dim) -> (N, dim)."""
    x = x.contiguous()
    out = torch.empty_like(x)
    _rms_norm_kernel[(x.shape[0],)](x, alpha, out, x.shape[1], eps, triton.next_power_of_2(x.shape[1]))
    return out


def check(device: torch.device) -> None:
    """Compile one small kernel. Raises whatever keeps Triton from working here, such as no C compiler."""
    rms_norm(torch.ones(1, 16, device=device), torch.ones(16, device=device), 1e-8)


@triton.jit
def _quantise_kernel(x, out, scales, dim, block: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, block)
    inside = column < dim
    value = tl.load(x + row * dim + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), 0), 1e-12) / 448.0
    tl.store(scales + row, scale)
    tl.store(out + row * dim + column, (value / scale).to(out.dtype.element_ty), mask=inside)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, dim) -> float8 (N, dim) and scales (N, 1)."""
    x = x.contiguous()
    out = torch.empty(x.shape, device=x.device, dtype=torch.float8_e4m3fn)
    scales = torch.empty(x.shape[0], 1, device=x.device)
    _quantise_kernel[(x.shape[0],)](x, out, scales, x.shape[1], triton.next_power_of_2(x.shape[1]))
    return out, scales


@triton.jit
def _gated_kernel(hidden, out, width, block: tl.constexpr):
    row, part = tl.program_id(0), tl.program_id(1)
    column = part * block + tl.arange(0, block)
    inside = column < width
    gate = tl.load(hidden + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(hidden + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    gate = (gate / (1.0 + tl.exp(-gate))).to(hidden.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + column, (gate * value).to(out.dtype.element_ty), mask=inside)


def gated(hidden: Tensor) -> Tensor:
    """hidden (N, 2 width) -> silu(first half) * second half, (N, width)."""
    rows, width = hidden.shape[0], hidden.shape[1] // 2
    out = torch.empty(rows, width, device=hidden.device, dtype=hidden.dtype)
    _gated_kernel[(rows, triton.cdiv(width, 1024))](hidden, out, width, 1024)
    return out


@triton.jit
def _store_kernel(
    qkv, position, frequency, at, pages, heads,
    dim: tl.constexpr, half: tl.constexpr, page: tl.constexpr, turned: tl.constexpr, largest: tl.constexpr,
):  # fmt: skip
    """One head of one row: turn its query and key, write its key and value to their line."""
    row, head = tl.program_id(0), tl.program_id(1)
    j = tl.arange(0, half)
    inside = j < dim // 2
    source = qkv + (row * 3 * heads + head) * dim
    line = tl.load(at + row)
    target = pages + (line * 2 * heads + head) * dim
    key_real = tl.load(source + heads * dim + 2 * j, mask=inside, other=0.0).to(tl.float32)
    key_imag = tl.load(source + heads * dim + 2 * j + 1, mask=inside, other=0.0).to(tl.float32)
    if turned:
        angle = tl.load(position + row).to(tl.float32) * tl.load(frequency + j, mask=inside, other=0.0)
        cosine, sine = tl.cos(angle), tl.sin(angle)
        real = tl.load(source + 2 * j, mask=inside, other=0.0).to(tl.float32)
        imag = tl.load(source + 2 * j + 1, mask=inside, other=0.0).to(tl.float32)
        kind = qkv.dtype.element_ty
        tl.store(source + 2 * j, (real * cosine - imag * sine).to(kind), mask=inside)
        tl.store(source + 2 * j + 1, (real * sine + imag * cosine).to(kind), mask=inside)
        turned_real = key_real * cosine - key_imag * sine
        key_imag = key_real * sine + key_imag * cosine
        key_real = turned_real
    value_even = tl.load(source + 2 * heads * dim + 2 * j, mask=inside, other=0.0).to(tl.float32)
    value_odd = tl.load(source + 2 * heads * dim + 2 * j + 1, mask=inside, other=0.0).to(tl.float32)
    kind = pages.dtype.element_ty
    tl.store(target + 2 * j, _bounded(key_real, largest).to(kind), mask=inside)
    tl.store(target + 2 * j + 1, _bounded(key_imag, largest).to(kind), mask=inside)
    tl.store(target + heads * dim + 2 * j, _bounded(value_even, largest).to(kind), mask=inside)
    tl.store(target + heads * dim + 2 * j + 1, _bounded(value_odd, largest).to(kind), mask=inside)


@triton.jit
def _bounded(value, largest: tl.constexpr):
    if largest > 0:
        value = tl.minimum(tl.maximum(value, -largest), largest)
    return value


@triton.jit(do_not_specialize=["queries", "splits", "columns"])
def _attend_kernel(
    qkv, pages, table, position, low, first, partial, weight, scale, heads, columns, queries, splits,
    dim: tl.constexpr, padded: tl.constexpr, page: tl.constexpr,
):  # fmt: skip
    """One head of one query over its share of the pages: unnormalised sum, its maximum and its weight.

    Heads are the fastest of the grid: their lines lie side by side, so neighbours read one stretch of memory.
    """
    head, row, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group = row // queries
    d = tl.arange(0, padded)
    line = tl.arange(0, page)
    real = d < dim
    q = tl.load(qkv + (row * 3 * heads + head) * dim + d, mask=real, other=0.0).to(tl.float32) * scale
    newest, oldest = tl.load(position + row), tl.load(low + row)
    most, total = tl.full([], -1.0e38, tl.float32), tl.full([], 0.0, tl.float32)
    out = tl.zeros([padded], tl.float32)
    share = (columns + splits - 1) // splits
    for column in range(split * share, tl.minimum(columns, (split + 1) * share)):
        begin = tl.load(first + group * columns + column)
        if (begin >= 0) & (begin <= newest) & (begin + page - 1 > oldest):
            base = pages + tl.load(table + group * columns + column) * page * 2 * heads * dim + head * dim
            at = base + line[:, None] * 2 * heads * dim + d[None, :]
            frame = begin + line
            seen = (frame <= newest) & (frame > oldest)
            inside = seen[:, None] & real[None, :]
            keys = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            values = tl.load(at + heads * dim, mask=inside, other=0.0).to(tl.float32)
            score = tl.where(seen, tl.sum(keys * q[None, :], 1), -1.0e38)
            top = tl.maximum(most, tl.max(score, 0))
            shrink = tl.exp(most - top)
            share_of = tl.where(seen, tl.exp(score - top), 0.0)
            out = out * shrink + tl.sum(values * share_of[:, None], 0)
            total = total * shrink + tl.sum(share_of, 0)
            most = top
    place = (row * heads + head) * splits + split
    tl.store(partial + place * padded + d, out)
    tl.store(weight + place * 2, most)
    tl.store(weight + place * 2 + 1, total)


@triton.jit(do_not_specialize=["splits"])
def _combine_kernel(
    partial, weight, out, heads, splits, dim: tl.constexpr, padded: tl.constexpr, most_splits: tl.constexpr
):
    """Join the shares of one head of one query."""
    place = tl.program_id(0) * heads + tl.program_id(1)
    d, part = tl.arange(0, padded), tl.arange(0, most_splits)
    real = part < splits
    most = tl.load(weight + (place * splits + part) * 2, mask=real, other=-1.0e38)
    total = tl.load(weight + (place * splits + part) * 2 + 1, mask=real, other=0.0)
    factor = tl.exp(most - tl.max(most, 0))
    where = partial + (place * splits + part[:, None]) * padded + d[None, :]
    parts = tl.load(where, mask=real[:, None], other=0.0)
    value = tl.sum(parts * factor[:, None], 0) / tl.sum(total * factor, 0)
    tl.store(out + place * dim + d, value.to(out.dtype.element_ty), mask=d < dim)


@triton.jit(do_not_specialize=["step"])
def _depth_kernel(qkv, seen, out, step, steps, heads, scale, dim: tl.constexpr, padded: tl.constexpr,
                  most: tl.constexpr):  # fmt: skip
    """One head of one row: store this depth step's key and value, look at it and at the steps before."""
    row, head = tl.program_id(0), tl.program_id(1)
    d, earlier = tl.arange(0, padded), tl.arange(0, most)
    real = d < dim
    source = qkv + (row * 3 * heads + head) * dim + d
    query = tl.load(source, mask=real, other=0.0).to(tl.float32) * scale
    key = tl.load(source + heads * dim, mask=real, other=0.0)
    value = tl.load(source + 2 * heads * dim, mask=real, other=0.0)
    lines = seen + (row * steps * 2 * heads + head) * dim
    own = lines + step * 2 * heads * dim + d
    tl.store(own, key, mask=real)
    tl.store(own + heads * dim, value, mask=real)
    at = lines + earlier[:, None] * 2 * heads * dim + d[None, :]
    inside = (earlier < step)[:, None] & real[None, :]
    keys = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    values = tl.load(at + heads * dim, mask=inside, other=0.0).to(tl.float32)
    own_score = tl.sum(key.to(tl.float32) * query, 0)
    scores = tl.where(earlier < step, tl.sum(keys * query[None, :], 1), -1.0e38)
    top = tl.maximum(tl.max(scores, 0), own_score)
    weights, own_weight = tl.where(earlier < step, tl.exp(scores - top), 0.0), tl.exp(own_score - top)
    mixed = tl.sum(values * weights[:, None], 0) + value.to(tl.float32) * own_weight
    mixed = mixed / (tl.sum(weights, 0) + own_weight)
    tl.store(out + (row * heads + head) * dim + d, mixed.to(out.dtype.element_ty), mask=real)


def attend_depth(qkv: Tensor, seen: Tensor, step: int) -> Tensor:
    """See engine/kernels.py."""
    rows, _, heads, dim = qkv.shape
    steps = seen.shape[1]
    out = torch.empty(rows, heads * dim, device=qkv.device, dtype=qkv.dtype)
    _depth_kernel[(rows, heads)](
        qkv, seen, out, step, steps, heads, dim**-0.5, dim, triton.next_power_of_2(dim),
        triton.next_power_of_2(steps), num_warps=1,
    )  # fmt: skip
    return out


def splits_for(rows: int, heads: int, columns: int) -> int:
    """Enough parts for some 500 programs, and never fewer than one page each."""
    return max(1, min(MAX_SPLITS, columns, 512 // max(1, rows * heads)))


def plan_attention(view: View, frequencies: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    """See engine/kernels.py."""
    table, first = view.pages.contiguous(), view.first.contiguous()
    position, low = view.position.reshape(-1).contiguous(), view.low.reshape(-1).contiguous()
    queries, columns = view.position.shape[1], table.shape[1]

    def attend(qkv: Tensor, pages: Tensor) -> Tensor:
        rows, _, heads, dim = qkv.shape
        padded, splits = triton.next_power_of_2(dim), splits_for(rows, heads, columns)
        largest = 448.0 if pages.dtype == torch.float8_e4m3fn else 0.0
        turning = frequencies if frequencies is not None else low
        _store_kernel[(rows, heads)](
            qkv, position, turning, view.at, pages, heads,
            dim, max(1, padded // 2), view.page, frequencies is not None, largest,
        )  # fmt: skip
        partial = torch.empty(rows, heads, splits, padded, device=qkv.device)
        weight = torch.empty(rows, heads, splits, 2, device=qkv.device)
        _attend_kernel[(heads, rows, splits)](
            qkv, pages, table, position, low, first, partial, weight, dim**-0.5, heads, columns, queries,
            splits, dim, padded, view.page, num_warps=ATTEND_WARPS,
        )  # fmt: skip
        out = torch.empty(rows, heads * dim, device=qkv.device, dtype=qkv.dtype)
        _combine_kernel[(rows, heads)](partial, weight, out, heads, splits, dim, padded, MAX_SPLITS)
        return out

    return attend


@triton.jit
def _choose_kernel(
    logits, inverse_temperature, top_k, number, out, size, block: tl.constexpr, rounds: tl.constexpr
):
    """One row: the k-th largest by bisection over its float32 bits, then inverse transform in index order."""
    row = tl.program_id(0)
    total_wanted = tl.minimum(tl.load(top_k + row), size).to(tl.int32)
    index = tl.arange(0, block)
    low, high = tl.full([], -2147483647, tl.int32), tl.full([], 2147483647, tl.int32)
    for _ in range(rounds):
        middle = _between(low, high)
        count = tl.full([], 0, tl.int32)
        for start in range(0, size, block):
            inside = start + index < size
            value = tl.load(logits + row * size + start + index, mask=inside, other=0.0).to(tl.float32)
            count += tl.sum(((_order(value) >= middle) & inside).to(tl.int32), 0)
        enough = count >= total_wanted
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle - 1)
    top = tl.full([], -1.0e38, tl.float32)
    for start in range(0, size, block):
        inside = start + index < size
        value = tl.load(logits + row * size + start + index, mask=inside, other=-1.0e38).to(tl.float32)
        top = tl.maximum(top, tl.max(value, 0))
    inverse = tl.load(inverse_temperature + row)
    total = tl.full([], 0.0, tl.float32)
    for start in range(0, size, block):
        total += tl.sum(_weights(logits + row * size, start + index, size, low, top, inverse), 0)
    target = total * tl.load(number + row)
    reached = tl.full([], 0.0, tl.float32)
    chosen, last = tl.full([], -1, tl.int32), tl.full([], 0, tl.int32)
    for start in range(0, size, block):
        weight = _weights(logits + row * size, start + index, size, low, top, inverse)
        sums = reached + tl.cumsum(weight, 0)
        hit = (sums > target) & (weight > 0.0)
        found = tl.min(tl.where(hit, start + index, size), 0)
        chosen = tl.where((chosen < 0) & (found < size), found, chosen)
        last = tl.maximum(last, tl.max(tl.where(weight > 0.0, start + index, 0), 0))
        reached += tl.sum(weight, 0)
    tl.store(out + row, tl.where(chosen < 0, last, chosen).to(tl.int64))


@triton.jit
def _order(value):
    """Integers in the order of the floats."""
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
def _between(low, high):
    """The upper middle, without overflow."""
    return low + ((high.to(tl.int64) - low.to(tl.int64) + 1) // 2).to(tl.int32)


@triton.jit
def _weights(row, index, size, least, top, inverse):
    inside = index < size
    value = tl.load(row + index, mask=inside, other=-1.0e38).to(tl.float32)
    return tl.where(inside & (_order(value) >= least), tl.exp((value - top) * inverse), 0.0)


def choose(logits: Tensor, inverse_temperature: Tensor, top_k: Tensor, number: Tensor) -> Tensor:
    """See engine/kernels.py; parameters (B,), contiguous."""
    rows, size = logits.shape
    out = torch.empty(rows, device=logits.device, dtype=torch.int64)
    block = min(4096, triton.next_power_of_2(size))
    _choose_kernel[(rows,)](logits, inverse_temperature, top_k, number, out, size, block, 32)
    return out
