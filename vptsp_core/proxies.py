"""Semantic proxies: the embeddings of class prompts are accumulated, the loss sees Q.

State of a class: its accumulated proxy P and its ordinary learnable proxy O ("proxy bias"); its prompts are in
`vptsp_core.class_table`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GRUAccumulator(nn.Module):
    """The gated update of a class proxy (eq. 4-7).

    ``gate(p, P) = act(p W + P U + b)``, the candidate's recurrent term is ``r * (P U_n)``. The released code keeps
    ``(1 - z) n + z P``, the paper prints ``(1 - z) P + z n``: the same family, z and 1 - z exchanged.
    """

    def __init__(self, embed_dim: int, *, activation: str = "relu", dropout: float = 0.0, semantics: str) -> None:
        super().__init__()

        def weight() -> nn.Parameter:
            return nn.Parameter(nn.init.xavier_uniform_(torch.empty(embed_dim, embed_dim)))

        self.W_z, self.W_r, self.W_n = weight(), weight(), weight()
        self.U_z, self.U_r, self.U_n = weight(), weight(), weight()
        self.b_z, self.b_r, self.b_n = (nn.Parameter(torch.zeros(embed_dim)) for _ in range(3))
        self.activation = {"relu": torch.relu, "tanh": torch.tanh}[activation]
        self.dropout = nn.Dropout(dropout)
        self.released = semantics == "released"

    def forward(self, p: Tensor, state: Tensor) -> Tensor:
        """Feed k samples of each class one after another: p (C, k, d), state (C, d) -> (C, d)."""
        weight_p = torch.cat([self.W_z, self.W_r, self.W_n], dim=1)
        weight_state = torch.cat([self.U_z, self.U_r, self.U_n], dim=1)
        inputs = p @ weight_p + torch.cat([self.b_z, self.b_r, self.b_n])
        for i in range(p.shape[1]):
            in_z, in_r, in_n = inputs[:, i].chunk(3, dim=-1)
            re_z, re_r, re_n = (state @ weight_state).chunk(3, dim=-1)
            z, r = torch.sigmoid(in_z + re_z), torch.sigmoid(in_r + re_r)
            n = self.activation(in_n + r * re_n)
            if self.released:
                state = self.dropout((1 - z) * n + z * state)  # normalised once, after all k
            else:
                state = F.normalize(self.dropout((1 - z) * state + z * n), dim=-1)
        return state


class EMAAccumulator(nn.Module):
    """The moving average of a class proxy (eq. 3, VPTSP-M); nothing in it learns.

    Released: keep P + (1 - keep) mean(p). Paper: normal(P + (1 - keep) p), sample by sample.
    """

    def __init__(self, keep: float, *, semantics: str) -> None:
        super().__init__()
        self.keep, self.released = keep, semantics == "released"

    def forward(self, p: Tensor, state: Tensor) -> Tensor:
        """p (C, k, d), state (C, d) -> (C, d)."""
        if self.released:
            return self.keep * state + (1 - self.keep) * p.mean(1)
        for i in range(p.shape[1]):
            state = F.normalize(state + (1 - self.keep) * p[:, i], dim=-1)
        return state


class SemanticProxies(nn.Module):
    """P of every class (a buffer that travels in checkpoints), O of every class, and Q made of both (eq. 8).

    Args:
        num_classes, embed_dim: C and d.
        accumulator: feeds the batch's class embeddings into P; None for methods without semantic proxies (Q = O).
        alpha: share of O in Q.
    """

    state: Tensor

    def __init__(self, num_classes: int, embed_dim: int, *, accumulator: nn.Module | None, alpha: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_classes, embed_dim)) / 8)
        self.accumulator, self.alpha = accumulator, alpha
        if accumulator is not None:
            start = nn.init.xavier_uniform_(torch.empty(num_classes, embed_dim))
            self.register_buffer("state", F.normalize(start, dim=-1))

    def forward(self, p: Tensor | None = None, classes: Tensor | None = None) -> Tensor:
        """Accumulate one batch and give Q of all classes, not yet normalised (the loss does it).

        Args:
            p: (B, d) class embeddings, the B / C' samples of a class next to each other, in the order they are fed.
            classes: (C',) their classes, each once.

        Returns:
            (C, d). Gradient reaches p and the accumulator through the batch's classes, O through all; P itself is
            carried over without gradient.
        """
        if self.accumulator is None:
            return self.bias
        assert p is not None and classes is not None
        rows = self.accumulator(p.unflatten(0, (len(classes), -1)), self.state[classes])
        rows = F.normalize(rows, dim=-1)
        state = self.state.index_copy(0, classes, rows)
        self.state.index_copy_(0, classes, rows.detach())
        return (1 - self.alpha) * state + self.alpha * self.bias
