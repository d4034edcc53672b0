"""Residual vector quantisation for training: straight-through, moving-average codebooks, dead codes reborn.

van den Oord et al. 2017 (appendix A.1) for the averages; the books themselves live in TinyNet.codebook.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.model.tiny_codec import nearest

DECAY = 0.98
DEAD = 0.02


class RvqTrainer(nn.Module):
    """Averages behind a slice of codebooks (levels, card, dim), which it updates in place."""

    uses: Tensor
    sums: Tensor
    started: Tensor

    def __init__(self, books: Tensor) -> None:
        super().__init__()
        self._books = [books]  # a list, so that the buffer stays the codec's own
        self.register_buffer("uses", torch.ones(books.shape[:2]))
        self.register_buffer("sums", books.clone())
        self.register_buffer("started", torch.zeros(()))

    @property
    def books(self) -> Tensor:
        return self._books[0]

    def forward(self, x: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, dim), keep (B,) levels used -> quantised x, codes (B, T, levels), commitment."""
        left, total, codes = x, torch.zeros_like(x), []
        commitment = x.new_zeros(())
        fresh = self.training and not bool(self.started)
        for level in range(len(self.books)):
            flat = left.detach().reshape(-1, x.shape[-1])
            if fresh:
                self._begin(level, flat)
            index = nearest(flat, self.books[level])
            chosen = self.books[level][index].view_as(x)
            if self.training:
                self._update(level, index, flat)
            used = 1.0 if keep is None else (keep > level).to(x.dtype)[:, None, None]
            commitment = commitment + (used * (left - chosen) ** 2).mean()
            total = total + used * chosen
            left = left - chosen
            codes.append(index.view(x.shape[:-1]))
        self.started.fill_(1.0)
        return x + (total - x).detach(), torch.stack(codes, -1), commitment

    @torch.no_grad()
    def _begin(self, level: int, flat: Tensor) -> None:
        picks = torch.randint(0, len(flat), (self.books.shape[1],))
        self.books[level] = flat[picks] + 0.01 * torch.randn_like(flat[picks])
        self.sums[level] = self.books[level]
        self.uses[level] = 1.0

    @torch.no_grad()
    def _update(self, level: int, index: Tensor, flat: Tensor) -> None:
        count = torch.zeros_like(self.uses[level]).index_add_(0, index, torch.ones(len(index)))
        total = torch.zeros_like(self.sums[level]).index_add_(0, index, flat)
        self.uses[level].mul_(DECAY).add_(count, alpha=1 - DECAY)
        self.sums[level].mul_(DECAY).add_(total, alpha=1 - DECAY)
        dead = self.uses[level] < DEAD
        if bool(dead.any()):
            picks = torch.randint(0, len(flat), (int(dead.sum()),))
            self.sums[level][dead] = flat[picks]
            self.uses[level][dead] = 1.0
        self.books[level] = self.sums[level] / self.uses[level].clamp(min=1e-5)[:, None]
