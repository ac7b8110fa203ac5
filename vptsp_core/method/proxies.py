"""Semantic proxies: class embeddings p update the proxies P. P and the ordinary proxies O give the output proxies Q."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vptsp_core.method.accumulators import LSTMAccumulator


class SemanticProxies(nn.Module):
    """The proxies of all C classes.

    - P, ``state``: what the accumulator has made of the class embeddings so far; a buffer, (C, d), rows of length 1.
      Every call of `forward` updates the rows of the batch's classes.
    - O, ``bias``: the ordinary learnable proxies, called proxy bias in the paper; a parameter, (C, d). The second
      optimiser updates them at the rate ``lr_proxy`` (`make_optimizers`).
    - Q, which the loss compares with the sample embeddings (eq. 8): Q = normal((1 - alpha) P + alpha O).

    Args:
        num_classes, embed_dim: C and d.
        accumulator: updates P (see `make_accumulator`). None for methods without semantic proxies: then Q = O.
        alpha: the weight of O in Q.
    """

    state: Tensor
    cell: Tensor  # (C, d), only with an LSTM

    def __init__(self, num_classes: int, embed_dim: int, *, accumulator: nn.Module | None, alpha: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_classes, embed_dim)) / 8)
        self.accumulator, self.alpha = accumulator, alpha
        if accumulator is not None:
            start = nn.init.xavier_uniform_(torch.empty(num_classes, embed_dim))
            self.register_buffer("state", F.normalize(start, dim=-1))
            if isinstance(accumulator, LSTMAccumulator):
                self.register_buffer("cell", torch.zeros(num_classes, embed_dim))

    def forward(self, p: Tensor | None = None, classes: Tensor | None = None) -> Tensor:
        """Update P with the class embeddings of a batch, and return Q.

        Args:
            p: (B, d) class embeddings. The k of a class are next to each other, in the order in which they are fed.
                None without an accumulator.
            classes: (C',) int64, the class of each k embeddings; no class occurs twice.

        Returns:
            (C, d), not yet normalised; `proxy_anchor` normalises it. The batch's classes pass gradient to p and to the
            accumulator, and all classes pass gradient to O. The stored P has no gradient.
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
