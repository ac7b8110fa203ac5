"""From a tower's pooled tokens to an embedding."""

from __future__ import annotations

from torch import Tensor, nn


class Head(nn.Module):
    """LayerNorm, then Linear(D, d); a distilled ViT has two, averaged (as in the released code)."""

    def __init__(self, width: int, embed_dim: int, tokens: int = 1) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(width), _xavier_linear(width, embed_dim)
        if tokens == 2:
            self.dist_norm, self.dist_fc = nn.LayerNorm(width), _xavier_linear(width, embed_dim)
        self.tokens = tokens

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, tokens, D) -> (B, d), not normalised."""
        out = self.fc(self.norm(pooled[:, 0]))
        return out if self.tokens == 1 else (out + self.dist_fc(self.dist_norm(pooled[:, 1]))) / 2


def _xavier_linear(width: int, embed_dim: int) -> nn.Linear:
    linear = nn.Linear(width, embed_dim)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
