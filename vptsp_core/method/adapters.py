"""Adapters: small trainable bottlenecks beside or behind the MLP of a frozen block.

The form is AdaptFormer's (Chen et al., "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition",
NeurIPS 2022, section 3.2): LayerNorm, a projection down, ReLU, a projection up, and a scale of 0.1. The VPTSP paper
does not say which of table 9's positions, LayerNorms and initialisations its rows have. The defaults of a run are those
of the released code: parallel, after, lora. Two things in that code depart from AdaptFormer, and we do not follow them:

- It scales before the LayerNorm that may follow the projection up. This LayerNorm cancels every scale.
- It rebuilds each block that gets an adapter, with 12 heads and without biases of Q, K and V. A ViT-S/16 has 6 heads
  and these biases, so this breaks the pretrained model. It may explain the low numbers of adapters in table 1.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

SCALE = 0.1  # s; the best value in AdaptFormer's comparison


class Adapter(nn.Module):
    """The adapter of one block. Its output is added to the output of the block.

    With x the tokens after attention, m(x) the output of the block's MLP with its LayerNorm, and s = 0.1:

    ========  ==============  ===========================
    argument  value           meaning
    ========  ==============  ===========================
    position  ``parallel``    x + m(x) + adapter(x)
    position  ``sequential``  x + m(x) + adapter(m(x))
    norm      ``before``      s * up(relu(down(LN(input))))
    norm      ``after``       s * LN(up(relu(down(input))))
    ========  ==============  ===========================

    Args:
        width, dim: D, and the width between the two projections.
        position, norm: see the table.
        init: the weights of the projections; biases start at zero. ``"lora"``: down as `nn.Linear` starts, up zero.
            ``"bert"``: both normal with standard deviation 0.02. With ``norm="after"``, the output of ``"lora"`` is
            zero only before the first step. Then LayerNorm scales it to full size at any learning rate.
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
        """Return what to add to the block's output, (B, T, D), for x and m(x), both (B, T, D)."""
        inner = x if self.parallel else mlp
        inner = self.norm(inner) if self.norm_first else inner
        out = self.up(torch.relu(self.down(inner)))
        return SCALE * (out if self.norm_first else self.norm(out))
