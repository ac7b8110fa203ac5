"""LoRA (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022) by the package peft.

peft wraps the QKV projection of every block, initialises the factors A and B, and scales their product. `attention`
needs queries apart from keys and values. So `project` computes a part of this projection, by the same steps as peft.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import linear

from vptsp_core.errors import VptspError

_NAME = "default"  # peft's name for the only adapter of a model


def add_lora(backbone: VisionTransformer, rank: int, alpha: float) -> None:
    """Add LoRA to the QKV projection W of every block, in place: x W^T becomes x W^T + (alpha / rank) x A^T B^T.

    timm has one Linear for queries, keys and values, so they share A, (rank, D). B is (3D, rank), and starts at zero.
    Raises VptspError if peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise VptspError(f"method = 'lora' needs the package peft ({error}); pip install peft") from None
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=r"blocks\.\d+\.attn\.qkv"), backbone)


def has_peft() -> bool:
    """Return whether peft is installed."""
    return importlib.util.find_spec("peft") is not None


def is_lora(name: str) -> bool:
    """Return whether the parameter called ``name`` is a factor of LoRA."""
    return ".lora_" in name


def project(projection: Any, x: Tensor, rows: slice) -> Tensor:
    """Return a part of a Linear's output, computed with these rows of its weight: (..., n, D) -> (..., n, rows).

    ``projection`` is an `nn.Linear`, or peft's wrapper around one.
    """
    base = getattr(projection, "base_layer", projection)
    out = linear(x, base.weight[rows], None if base.bias is None else base.bias[rows])
    if base is projection:
        return out
    down, up = projection.lora_A[_NAME].weight, projection.lora_B[_NAME].weight
    return out + linear(linear(x, down), up[rows]) * projection.scaling[_NAME]
