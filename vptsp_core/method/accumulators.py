"""Accumulators: how the class embeddings p of a batch update the semantic proxies P of its classes (eq. 3-7, table 7).

An accumulator takes p, (C', k, d): the k class embeddings of each of the batch's C' classes. It also takes the P of
these classes, (C', d), whose rows have length 1, and returns their new P, (C', d). `SemanticProxies` normalises the
result. The LSTM also takes and returns its cells.

With ``semantics="paper"``, the k class embeddings are fed one after another, and P is normalised after each. With
``"released"``, P is normalised only after all k, and the EMA is updated once, with their mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vptsp_core.method.config import RunConfig


def make_accumulator(config: RunConfig) -> nn.Module:
    """Make the accumulator that ``config.accumulator`` names."""
    d, semantics = config.embed_dim, config.semantics
    if config.accumulator == "ema":
        return EMAAccumulator(config.ema_keep, semantics=semantics)
    if config.accumulator == "rnn":
        return RNNAccumulator(d, semantics=semantics)
    if config.accumulator == "lstm":
        return LSTMAccumulator(d, semantics=semantics)
    if config.accumulator == "attention":
        return AttentionAccumulator(d)
    assert config.accumulator in ("gru", "gru_tanh"), config.accumulator
    activation = "tanh" if config.accumulator == "gru_tanh" else "relu"
    return GRUAccumulator(d, activation=activation, dropout=config.gru_dropout, semantics=semantics)


def _weight(embed_dim: int, gates: int = 1) -> nn.Parameter:
    """Make a weight (d, gates * d). The (d, d) part of each gate starts Xavier-uniform by itself."""
    squares = [nn.init.xavier_uniform_(torch.empty(embed_dim, embed_dim)) for _ in range(gates)]
    return nn.Parameter(torch.cat(squares, dim=1))


class GRUAccumulator(nn.Module):
    """The gated recurrent unit of VPTSP-G (eq. 4-7)::

        z = sigmoid(p W_z + P U_z + b_z)
        r = sigmoid(p W_r + P U_r + b_r)
        n = act(p W_n + r * (P U_n) + b_n)
        P <- normal((1 - z) * P + z * n)        (released: (1 - z) * n + z * P)

    The two forms of the last line are the same family of functions, with z and 1 - z exchanged.

    Args:
        embed_dim: d.
        activation: ``"relu"``, or ``"tanh"`` (table 7).
        dropout: probability that an entry of the new P is set to zero in training.
        semantics: ``"paper"`` or ``"released"``.
    """

    def __init__(self, embed_dim: int, *, activation: str = "relu", dropout: float = 0.0, semantics: str) -> None:
        super().__init__()
        self.W_z, self.W_r, self.W_n = (_weight(embed_dim) for _ in range(3))
        self.U_z, self.U_r, self.U_n = (_weight(embed_dim) for _ in range(3))
        self.b_z, self.b_r, self.b_n = (nn.Parameter(torch.zeros(embed_dim)) for _ in range(3))
        self.activation = {"relu": torch.relu, "tanh": torch.tanh}[activation]
        self.dropout = nn.Dropout(dropout)
        self.released = semantics == "released"

    def forward(self, p: Tensor, state: Tensor) -> Tensor:
        """Return the new P: p (C', k, d), state (C', d) -> (C', d)."""
        weight_p = torch.cat([self.W_z, self.W_r, self.W_n], dim=1)
        weight_state = torch.cat([self.U_z, self.U_r, self.U_n], dim=1)
        inputs = p @ weight_p + torch.cat([self.b_z, self.b_r, self.b_n])
        for i in range(p.shape[1]):
            in_z, in_r, in_n = inputs[:, i].chunk(3, dim=-1)
            re_z, re_r, re_n = (state @ weight_state).chunk(3, dim=-1)
            z, r = torch.sigmoid(in_z + re_z), torch.sigmoid(in_r + re_r)
            n = self.activation(in_n + r * re_n)
            if self.released:
                state = self.dropout((1 - z) * n + z * state)
            else:
                state = F.normalize(self.dropout((1 - z) * state + z * n), dim=-1)
        return state


class EMAAccumulator(nn.Module):
    """The moving average of VPTSP-M (eq. 3), without parameters: P <- normal(P + (1 - keep) p), for each p.

    Released: keep * P + (1 - keep) * (mean of the k p).
    """

    def __init__(self, keep: float, *, semantics: str) -> None:
        super().__init__()
        self.keep, self.released = keep, semantics == "released"

    def forward(self, p: Tensor, state: Tensor) -> Tensor:
        """Return the new P: p (C', k, d), state (C', d) -> (C', d)."""
        if self.released:
            return self.keep * state + (1 - self.keep) * p.mean(1)
        for i in range(p.shape[1]):
            state = F.normalize(state + (1 - self.keep) * p[:, i], dim=-1)
        return state


class RNNAccumulator(nn.Module):
    """The plain recurrent unit, P <- tanh(p W + P U + b): `torch.nn.RNNCell` with one bias."""

    def __init__(self, embed_dim: int, *, semantics: str) -> None:
        super().__init__()
        self.W, self.U, self.b = _weight(embed_dim), _weight(embed_dim), nn.Parameter(torch.zeros(embed_dim))
        self.released = semantics == "released"

    def forward(self, p: Tensor, state: Tensor) -> Tensor:
        """Return the new P: p (C', k, d), state (C', d) -> (C', d)."""
        inputs = p @ self.W + self.b
        for i in range(p.shape[1]):
            state = torch.tanh(inputs[:, i] + state @ self.U)
            state = state if self.released else F.normalize(state, dim=-1)
        return state


class LSTMAccumulator(nn.Module):
    """The long short-term memory, `torch.nn.LSTMCell` with one bias. P is its hidden state::

        i, f, o = sigmoid(p W + P U + b), g = tanh(p W + P U + b)       (each gate with its own part of W, U and b)
        cell <- f * cell + i * g
        P <- o * tanh(cell)

    Every class has a cell. It starts at zero, is kept from batch to batch like P, and is never normalised.
    """

    def __init__(self, embed_dim: int, *, semantics: str) -> None:
        super().__init__()
        self.W, self.U = _weight(embed_dim, 4), _weight(embed_dim, 4)  # gates in torch's order: i, f, g, o
        self.b = nn.Parameter(torch.zeros(4 * embed_dim))
        self.released = semantics == "released"

    def forward(self, p: Tensor, state: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new P and cells, both (C', d): p (C', k, d), state (C', d), cell (C', d)."""
        inputs = p @ self.W + self.b
        for j in range(p.shape[1]):
            i, f, g, o = (inputs[:, j] + state @ self.U).chunk(4, dim=-1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            state = torch.sigmoid(o) * torch.tanh(cell)
            state = state if self.released else F.normalize(state, dim=-1)
        return state, cell


class AttentionAccumulator(nn.Module):
    """Cross-attention over the batch: P <- softmax(P W_q (p W_k)^T / sqrt(d)) p W_v.

    The queries are the P of the batch's classes. The keys and values are ALL class embeddings of the batch, those of
    other classes too. The paper gives only the name. This is the plainest form (Vaswani et al., "Attention Is All You
    Need", 2017, eq. 1): one head, no bias, no output projection, no residual. The old P is used only as a query, and
    the order of the class embeddings does not matter, so both semantics are the same.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.W_q, self.W_k, self.W_v = _weight(embed_dim), _weight(embed_dim), _weight(embed_dim)

    def forward(self, p: Tensor, state: Tensor) -> Tensor:
        """Return the new P: p (C', k, d), state (C', d) -> (C', d)."""
        samples = p.flatten(0, 1)
        query, key, value = state @ self.W_q, samples @ self.W_k, samples @ self.W_v
        return F.scaled_dot_product_attention(query[None], key[None], value[None])[0]
