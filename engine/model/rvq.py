"""Mimi's split residual vector quantiser, inference only (Kyutai moshi/quantization)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.model.config import MimiConfig
from engine.weights import Weights

_OLD_NAMES = {"embedding_sum": ("embed_sum", "embed_avg"), "cluster_usage": ("cluster_size",)}


class ResidualQuantizer:
    """`levels` codebooks, each coding what the ones before left over."""

    def __init__(self, weights: Weights, config: MimiConfig, stored: int, levels: int) -> None:
        dim, outer = config.quantizer_dim, config.seanet.dimension
        self.project_in = weights.take("input_proj.weight", dim, outer, 1)[:, :, 0]
        project_out = weights.take("output_proj.weight", outer, dim, 1)[:, :, 0]
        books = [
            _codebook(weights.under(f"vq.layers.{i}._codebook"), config.bins, dim) for i in range(stored)
        ]
        self.books = books[:levels]
        self.half_norms = [book.square().sum(1).mul_(-0.5) for book in self.books]
        self.decoded = [F.linear(book, project_out) for book in self.books]
        """(bins, outer) a level: what a code adds to the decoder's input."""

    def encode(self, x: Tensor) -> list[Tensor]:
        """x (B, outer) -> one (B,) int64 a level: the nearest entry, as the largest x·c - |c|²/2."""
        rest = F.linear(x, self.project_in)
        codes = []
        for level, (book, half_norm) in enumerate(zip(self.books, self.half_norms, strict=True)):
            codes.append(torch.addmm(half_norm, rest, book.t()).argmax(-1))
            if level + 1 < len(self.books):
                rest = rest - F.embedding(codes[-1], book)
        return codes


def _codebook(weights: Weights, bins: int, dim: int) -> Tensor:
    def take(name: str, *shape: int) -> Tensor:
        return weights.take(weights.spelling(name, *_OLD_NAMES[name]), *shape)

    for name in ("_initialized", "inited"):
        weights.ignore(name)
    return take("embedding_sum", bins, dim) / take("cluster_usage", bins).clamp(min=1e-5)[:, None]


class SplitQuantizer:
    """One semantic codebook beside the acoustic ones; (B, outer) <-> (B, codebooks)."""

    def __init__(self, weights: Weights, config: MimiConfig, codebooks: int) -> None:
        rest = config.quantizer_levels - 1
        self.first = ResidualQuantizer(weights.under("rvq_first"), config, 1, 1)
        self.rest = ResidualQuantizer(weights.under("rvq_rest"), config, rest, codebooks - 1)
        self.table = torch.cat(self.first.decoded + self.rest.decoded)
        self.base = torch.arange(codebooks, device=self.table.device) * config.bins

    def encode(self, x: Tensor) -> Tensor:
        return torch.stack(self.first.encode(x) + self.rest.encode(x), 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes below 0 are read as 0."""
        return F.embedding_bag(codes.clamp(min=0) + self.base, self.table, mode="sum")
