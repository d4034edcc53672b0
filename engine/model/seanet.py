"""SEANet encoder and decoder of Mimi, streaming only (Kyutai moshi/modules/seanet.py, conv.py).

Causal convolutions that keep their last kernel - stride inputs (or, transposed, their last partial
outputs) in a SlotArena. Zero padding at the start equals a fresh, zeroed state.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.model.config import SeanetConfig
from engine.model.streaming import Carry, SlotArena
from engine.weights import Weights

Module = Callable[[Tensor, Carry], Tensor]


class Conv:
    """Causal Conv1d: (B, in, T) -> (B, out, T / stride), T a multiple of stride."""

    def __init__(
        self,
        weights: Weights,
        shape: tuple[int, int, int],
        arena: SlotArena,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        chin, chout, kernel = shape
        self.weight = weights.take("conv.conv.weight", chout, chin, kernel)
        self.bias = weights.take("conv.conv.bias", chout) if bias else None
        self.stride, self.dilation = stride, dilation
        self.pad = (kernel - 1) * dilation + 1 - stride
        self.field = arena.add(chin, self.pad) if self.pad else -1

    def __call__(self, x: Tensor, carry: Carry) -> Tensor:
        if self.pad:
            x = torch.cat((self.previous(x, carry), x), -1)
            carry.put(self.field, x[..., -self.pad :])
        return F.conv1d(x, self.weight, self.bias, self.stride, 0, self.dilation)

    def previous(self, x: Tensor, carry: Carry) -> Tensor:
        return carry.get(self.field)


class ReplicateConv(Conv):
    """A Conv whose first step is padded with its own first sample: Mimi's 25 -> 12.5 Hz down-sampling."""

    def previous(self, x: Tensor, carry: Carry) -> Tensor:
        return torch.where((carry.steps == 0)[:, None, None], x[..., :1], carry.get(self.field))


class ConvTranspose:
    """Causal ConvTranspose1d: (B, in, T) -> (B, out, T * stride); the overlap is added to the next step."""

    def __init__(
        self,
        weights: Weights,
        shape: tuple[int, int, int],
        arena: SlotArena,
        *,
        stride: int,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        chin, chout, kernel = shape
        self.weight = weights.take("convtr.convtr.weight", chin, chout // groups, kernel)
        self.bias = weights.take("convtr.convtr.bias", chout) if bias else None
        self.stride, self.groups, self.overlap = stride, groups, kernel - stride
        self.field = arena.add(chout, self.overlap)

    def __call__(self, x: Tensor, carry: Carry) -> Tensor:
        y = self._spread(x)
        y[..., : self.overlap] += carry.get(self.field)
        partial = y[..., -self.overlap :]
        carry.put(self.field, partial if self.bias is None else partial - self.bias[:, None])
        return y[..., : -self.overlap]

    def _spread(self, x: Tensor) -> Tensor:
        if self.groups == x.shape[1] and x.shape[-1] == 1 and self.bias is None:
            # The same products; cuDNN takes 0.5 ms for them at B = 32 on an H100.
            return x * self.weight[:, 0]
        return F.conv_transpose1d(x, self.weight, self.bias, self.stride, groups=self.groups)


class ResidualBlock:
    """x + conv1(ELU(conv3(ELU(x)))), the skip connection being the identity."""

    def __init__(
        self, weights: Weights, dim: int, config: SeanetConfig, dilation: int, arena: SlotArena
    ) -> None:
        hidden = dim // config.compress
        kernel = config.residual_kernel_size
        self.first = Conv(weights.under("block.1"), (dim, hidden, kernel), arena, dilation=dilation)
        self.second = Conv(weights.under("block.3"), (hidden, dim, 1), arena)

    def __call__(self, x: Tensor, carry: Carry) -> Tensor:
        return x + self.second(F.elu(self.first(F.elu(x), carry)), carry)


def elu(x: Tensor, carry: Carry) -> Tensor:
    return F.elu(x)


class Stack:
    """Modules in order. `weights` are numbered by position, the activations counted too."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights.under("model")
        self.modules: list[Module] = []

    def next(self) -> Weights:
        return self._weights.under(str(len(self.modules)))

    def __call__(self, x: Tensor, carry: Carry) -> Tensor:
        for module in self.modules:
            x = module(x, carry)
        return x


def build_encoder(weights: Weights, config: SeanetConfig, arena: SlotArena) -> Stack:
    """(B, 1, samples) -> (B, dimension, samples / hop)."""
    stack, width = Stack(weights), config.n_filters
    stack.modules.append(Conv(stack.next(), (config.channels, width, config.kernel_size), arena))
    for ratio in reversed(config.ratios):
        for j in range(config.n_residual_layers):
            stack.modules.append(ResidualBlock(stack.next(), width, config, config.dilation_base**j, arena))
        stack.modules.append(elu)
        stack.modules.append(Conv(stack.next(), (width, 2 * width, 2 * ratio), arena, stride=ratio))
        width *= 2
    stack.modules.append(elu)
    stack.modules.append(Conv(stack.next(), (width, config.dimension, config.last_kernel_size), arena))
    return stack


def build_decoder(weights: Weights, config: SeanetConfig, arena: SlotArena) -> Stack:
    """(B, dimension, T) -> (B, 1, T * hop)."""
    stack, width = Stack(weights), config.n_filters * 2 ** len(config.ratios)
    stack.modules.append(Conv(stack.next(), (config.dimension, width, config.kernel_size), arena))
    for ratio in config.ratios:
        stack.modules.append(elu)
        stack.modules.append(ConvTranspose(stack.next(), (width, width // 2, 2 * ratio), arena, stride=ratio))
        width //= 2
        for j in range(config.n_residual_layers):
            stack.modules.append(ResidualBlock(stack.next(), width, config, config.dilation_base**j, arena))
    stack.modules.append(elu)
    stack.modules.append(Conv(stack.next(), (width, config.channels, config.last_kernel_size), arena))
    return stack
