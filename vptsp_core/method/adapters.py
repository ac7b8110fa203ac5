"""Adapters: small trainable bottlenecks beside or behind the MLP of a frozen block.

The form is AdaptFormer's (Chen et al., "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition",
NeurIPS 2022, section 3.2): LayerNorm, projection down, ReLU, projection up, scale 0.1. The paper does not
state position, LayerNorm or start; a run's defaults are those of the released code: parallel, after, lora. We
do not follow that code where it departs from AdaptFormer:
- it scales (by 1, by default) before the LayerNorm that may follow the projection up, which cancels any scale;
- it rebuilds each block that gets an adapter with 12 heads and without biases of Q, K and V, whatever the backbone has:
  a ViT-S/16 has 6 heads, so this breaks the pretrained model; it may explain the adapters' low numbers in table 1.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

SCALE = 0.1  # AdaptFormer's s, the best in its comparison


class Adapter(nn.Module):
    """One block's adapter. With x the tokens after attention and m(x) the block's MLP, its LayerNorm included:

    ==========  ==============================================
    position    block's output
    ==========  ==============================================
    parallel    x + m(x) + adapter(x)
    sequential  x + m(x) + adapter(m(x))
    ==========  ==============================================

    Args:
        width, dim: D of the tokens, and the width between the two projections.
        norm: ``"before"``: s * up(relu(down(LN(x)))); ``"after"``: s * LN(up(relu(down(x)))).
        init: biases are zero; ``"lora"``: down Kaiming-uniform as `nn.Linear`'s own start, up zero; ``"bert"``: both
            normal with standard deviation 0.02. With ``"after"`` the zero lasts one step: then LayerNorm scales the
            output to full size, 0.1 a number, at any learning rate.
    """

    def __init__(
        self,
        width: int,
        dim: int,
        *,
        position: Literal["parallel", "sequential"],
        norm: Literal["before", "after"],
        init: Literal["lora", "bert"],
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down, self.up = nn.Linear(width, dim), nn.Linear(dim, width)
        self.parallel, self.norm_first = position == "parallel", norm == "before"
        if init == "lora":
            nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
            nn.init.zeros_(self.up.weight)
        else:
            nn.init.normal_(self.down.weight, std=0.02)
            nn.init.normal_(self.up.weight, std=0.02)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, mlp: Tensor) -> Tensor:
        """The addition to the block's output: x, mlp (B, T, D) -> (B, T, D)."""
        inner = x if self.parallel else mlp
        inner = self.norm(inner) if self.norm_first else inner
        out = self.up(torch.relu(self.down(inner)))
        return SCALE * (out if self.norm_first else self.norm(out))
