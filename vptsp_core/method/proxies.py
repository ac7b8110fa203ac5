"""Semantic proxies: class embeddings p update P; P and O make Q, which the loss sees.

State of a class: its accumulated proxy P, with an LSTM its cell, and its ordinary learnable proxy O ("proxy bias");
its prompts are in `vptsp_core.method.class_prompts`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vptsp_core.method.accumulators import LSTMAccumulator


class SemanticProxies(nn.Module):
    """P of every class (a buffer, saved in checkpoints), O of every class, and Q made of both (eq. 8).

    Args:
        num_classes, embed_dim: C and d.
        accumulator: feeds the batch's class embeddings into P; None for methods without semantic proxies (Q = O).
        alpha: weight of O in Q.
    """

    state: Tensor
    cell: Tensor

    def __init__(self, num_classes: int, embed_dim: int, *, accumulator: nn.Module | None, alpha: float) -> None:
        super().__init__()
        # O; its name and that of P, ``state``, are those of state dicts and checkpoints.
        self.bias = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_classes, embed_dim)) / 8)
        self.accumulator, self.alpha = accumulator, alpha
        if accumulator is not None:
            start = nn.init.xavier_uniform_(torch.empty(num_classes, embed_dim))
            self.register_buffer("state", F.normalize(start, dim=-1))
            if isinstance(accumulator, LSTMAccumulator):
                self.register_buffer("cell", torch.zeros(num_classes, embed_dim))

    def forward(self, p: Tensor | None = None, classes: Tensor | None = None) -> Tensor:
        """Accumulate one batch and give Q of all classes, not yet normalised (the loss does it).

        Args:
            p: (B, d) class embeddings, the B / C' samples of a class next to each other, in the order they are fed.
            classes: (C',) their classes, each once.

        Returns:
            Q, (C, d). p and the accumulator get gradient from the batch's classes, O from all of them. The new P is
            stored without gradient.
        """
        if self.accumulator is None:
            return self.bias
        assert p is not None and classes is not None
        p = p.unflatten(0, (len(classes), -1))
        if isinstance(self.accumulator, LSTMAccumulator):
            rows, cell = self.accumulator(p, self.state[classes], self.cell[classes])
            self.cell.index_copy_(0, classes, cell.detach())
        else:
            rows = self.accumulator(p, self.state[classes])
        rows = F.normalize(rows, dim=-1)
        state = self.state.index_copy(0, classes, rows)
        self.state.index_copy_(0, classes, rows.detach())
        return (1 - self.alpha) * state + self.alpha * self.bias
