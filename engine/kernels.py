"""What the model calls: each operation by the fastest means there is for its device and type.

float32 on the CPU: numba (engine/cpu_kernels.py). CUDA: Triton (engine/triton_kernels.py). Anything else,
and wherever neither is installed: plain torch (engine/twins.py).
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from engine import cpu_kernels, twins

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from engine.model.transformer import View

Attend = Callable[[Tensor, Tensor], Tensor]
"""(qkv (N, 3, heads, D), pages (P, 64, 2, heads, D)) -> (N, heads * D); stores the keys and values first."""


@cache
def _numba() -> bool:
    return cpu_kernels.enabled()


@cache
def _triton() -> Any:
    """engine.triton_kernels, or None where Triton is missing or cannot compile."""
    if find_spec("triton") is None:
        return None
    module = import_module("engine.triton_kernels")
    try:
        module.check(torch.device("cuda"))
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        log.warning("Triton cannot compile here (%s): ticks are several times slower. It needs gcc.", error)
        return None
    return module


def _compiled(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and _numba()


@dataclass(frozen=True, slots=True)
class Float8Matrix:
    """float8 (e4m3) values, (in, out) with its columns contiguous, and a float32 scale for each column."""

    values: Tensor
    scale: Tensor  # (1, out)


Matrix = Tensor | Float8Matrix
"""(in, out)"""


def in_rows(weight: Tensor, float8: bool = False) -> Matrix:
    """(out, in) -> (in, out) for `product`: MKL is 1.3 to 2 times faster on a transposed copy."""
    if float8:
        values, scale = twins.quantise_rows(weight)
        return Float8Matrix(values.t(), scale.t())
    return weight.t().contiguous() if weight.device.type == "cpu" else weight.t()


def product(x: Tensor, matrix: Matrix) -> Tensor:
    """x (N, in) -> (N, out); for float8 the rows of x are quantised on the way."""
    if isinstance(matrix, Tensor):
        return torch.mm(x, matrix)
    if x.is_cuda:
        triton = _triton()
        values, scale = triton.quantise_rows(x) if triton else twins.quantise_rows(x)
        return torch._scaled_mm(values, matrix.values, scale, matrix.scale, out_dtype=x.dtype)
    return twins.float8_product(x, matrix.values, matrix.scale)


def product_onto(base: Tensor, x: Tensor, matrix: Matrix) -> Tensor:
    """base + product(x, matrix)"""
    if isinstance(matrix, Tensor):
        return torch.addmm(base, x, matrix)
    return product(x, matrix).add_(base)


def rms_norm(x: Tensor, alpha: Tensor, eps: float) -> Tensor:
    """x * alpha / sqrt(mean(x²) + eps) over the last dimension, computed in float32. x (N, dim)."""
    if _compiled(x):
        out = np.empty(x.shape, np.float32)
        cpu_kernels.kernel("rms_norm")(x.numpy(), alpha.numpy(), eps, out)
        return torch.from_numpy(out)
    if x.is_cuda and (triton := _triton()):
        return triton.rms_norm(x, alpha, eps)  # type: ignore[no-any-return]
    return twins.rms_norm(x, alpha, eps)


def gated(hidden: Tensor, gating: str) -> Tensor:
    """(N, 2 width) -> act(first half) * second half, (N, width)."""
    if gating == "silu" and _compiled(hidden):
        out = np.empty((hidden.shape[0], hidden.shape[1] // 2), np.float32)
        cpu_kernels.kernel("gated")(hidden.numpy(), out)
        return torch.from_numpy(out)
    if gating == "silu" and hidden.is_cuda and (triton := _triton()):
        return triton.gated(hidden)  # type: ignore[no-any-return]
    return twins.gated(hidden, gating)


def plan_attention(view: View, frequencies: Tensor | None, pages: Tensor) -> Attend:
    """What all layers of a step share: which lines each query sees, where its key goes, how it is turned."""
    if pages.dtype == torch.float32 and _compiled(pages):
        return _plan_compiled(view, frequencies)
    if pages.is_cuda and (triton := _triton()):
        return triton.plan_attention(view, frequencies)  # type: ignore[no-any-return]
    return twins.plan_attention(view, frequencies)


def _plan_compiled(view: View, frequencies: Tensor | None) -> Attend:
    places = [part.contiguous().numpy() for part in (view.pages, view.position, view.low, view.first)]
    at = view.at.numpy()
    turn = twins.rotation(view.position.reshape(-1), frequencies) if frequencies is not None else None
    angles = np.zeros((0, 0), np.complex64) if turn is None else turn.numpy()[:, 0, 0]
    store, attend = cpu_kernels.kernel("store"), cpu_kernels.kernel("attend")

    def run(qkv: Tensor, pages: Tensor) -> Tensor:
        rows, _, heads, dim = qkv.shape
        lines, projected, out = pages.numpy(), qkv.numpy(), np.empty((rows, heads, dim), np.float32)
        store(projected, angles, at, lines)
        attend(projected, lines, *places, out)
        return torch.from_numpy(out).view(rows, heads * dim)

    return run


def attend_depth(qkv: Tensor, seen: Tensor, step: int) -> Tensor:
    """Store step k's key and value and look at steps 0 … k.

    qkv (B, 3, heads, D), seen (B, steps, 2, heads, D) -> (B, heads * D).
    """
    if _compiled(qkv):
        batch, _, heads, dim = qkv.shape
        out = np.empty((batch, heads, dim), np.float32)
        cpu_kernels.kernel("depth")(qkv.numpy(), seen.numpy(), step, out)
        return torch.from_numpy(out).view(batch, heads * dim)
    if qkv.is_cuda and (triton := _triton()):
        return triton.attend_depth(qkv, seen, step)  # type: ignore[no-any-return]
    return twins.attend_depth(qkv, seen, step)


def choose(logits: Tensor, inverse_temperature: Tensor, top_k: Tensor, number: Tensor,
           ranks: tuple[int, ...]) -> Tensor:  # fmt: skip
    """Draw from the top-k softmax of each row by inverse transform in index order.

    logits (B, V), inverse_temperature, top_k (int64) and number in [0, 1) (B,), ranks: the distinct values in
    top_k -> (B,) int64: the first index whose cumulative weight exceeds number * total. Entries equal to the
    k-th largest all count.
    """
    if logits.is_cuda:
        if triton := _triton():
            return triton.choose(logits, inverse_temperature, top_k, number)  # type: ignore[no-any-return]
        ranks = (logits.shape[1],)  # a graph outlives the calls it was recorded with
    if ranks != (1,) and _compiled(logits):
        out = np.empty(logits.shape[0], np.int64)
        parts = [part.numpy() for part in (logits, inverse_temperature, top_k, number)]
        cpu_kernels.kernel("choose")(*parts, out)
        return torch.from_numpy(out)
    return twins.choose(logits, inverse_temperature, top_k, number, ranks)
