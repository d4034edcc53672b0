"""Moshi's language model: one temporal step over all streams, then the depth steps of the agent's codes.

Weights and arithmetic only (Kyutai moshi/models/lm.py `LMModel`); who plays which token when is
engine/generation.py's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from engine import kernels
from engine.model.config import LMConfig
from engine.model.depth import Depth
from engine.model.transformer import Norm, Pool, Transformer, View
from engine.weights import Weights

NONE = -1
"""A token that adds nothing to the input (Kyutai `zero_token_id`)."""


class LM:
    """`stored` is what the checkpoint holds; `config` may run fewer depth steps of it."""

    def __init__(self, weights: Weights, stored: LMConfig, depth_steps: int | None = None) -> None:
        config = stored if depth_steps is None else stored.with_depth_steps(depth_steps)
        self.config = config
        dim = config.dim
        tables = [weights.take("text_emb.weight", config.text_card + 1, dim)]
        tables += [weights.take(f"emb.{k}.weight", config.card + 1, dim) for k in range(config.n_q)]
        sizes = [table.shape[0] for table in tables]
        self.table = torch.cat([*tables, torch.zeros(1, dim, device=weights.device, dtype=weights.dtype)])
        """Every embedding, text first, and a row of zeros for tokens that are none."""
        starts = torch.tensor([0, *sizes[:-1]], device=weights.device)
        self.base = starts.cumsum(0)
        self.nothing = self.table.shape[0] - 1
        self.temporal = Transformer(weights.under("transformer"), config.temporal)
        self.out_norm = Norm.take(weights.under("out_norm"), config.norm, dim)
        text_out = config.text_card_out or config.text_card
        self.text_head = kernels.in_rows(weights.take("text_linear.weight", text_out, dim), weights.float8)
        self.text_bias = weights.take("text_linear.bias", text_out) if config.bias_proj else None
        self.depth = Depth(weights, config, stored) if config.dep_q else None
        self.extra_heads = [
            weights.take(f"extra_heads.{i}.weight", config.extra_heads_dim, dim)
            for i in range(config.extra_heads_num_heads)
        ]
        for unused in ("condition_provider", "fuser"):
            weights.ignore_under(unused)

    def reads(self, codebook: int) -> bool:
        """Whether the codes of one of the n_q codebooks, the agent's first, change what the model sees."""
        first = int(self.base[1 + codebook])
        return bool(self.table[first : first + self.config.card + 1].any())

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (N, n_q + 1), text first, -1 for none -> (N, dim): the sum of their embeddings."""
        index = torch.where(tokens < 0, self.nothing, tokens + self.base)
        return F.embedding_bag(index, self.table, mode="sum")

    def hidden(self, inputs: Tensor, pool: Pool, view: View) -> Tensor:
        """inputs (B, Tq, dim) -> normalised output of the temporal transformer, (B, Tq, dim)."""
        seen = self.temporal(inputs, pool, view)
        return self.out_norm(seen.flatten(0, 1)).view_as(seen)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """hidden (N, dim) -> (N, text_card)."""
        if self.text_bias is not None:
            return kernels.product_onto(self.text_bias, hidden, self.text_head)
        return kernels.product(hidden, self.text_head)
