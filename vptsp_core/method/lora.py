"""LoRA (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022) through the package peft.

peft defines the method: it wraps the QKV projection of every block, draws the factors and scales them. `method.vit`
needs Q apart from K and V, so `project` computes a part of the projection that peft wrapped, in peft's order.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import linear

from vptsp_core.errors import VptspError

_NAME = "default"  # peft's name of a model's only adapter


def add_lora(backbone: VisionTransformer, rank: int, alpha: float) -> None:
    """Wrap the QKV projection of every block, in place; the factors start as peft draws them (B = 0).

    timm keeps Q, K and V in one Linear, so that the three share A (rank x D), and B is 3D x rank. The product is scaled
    by alpha / rank. No dropout.
    Raises VptspError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise VptspError(f"method = 'lora' needs the package peft ({error}); pip install peft") from None
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=r"blocks\.\d+\.attn\.qkv"), backbone)


def has_peft() -> bool:
    """Whether peft is installed."""
    return importlib.util.find_spec("peft") is not None


def is_lora(name: str) -> bool:
    """Whether a parameter of this name is one of LoRA's factors."""
    return ".lora_" in name


def plain_name(name: str) -> str:
    """The name that a parameter of the backbone has without LoRA."""
    return name.replace(".base_layer.", ".")


def project(projection: Any, x: Tensor, rows: slice) -> Tensor:
    """Some rows of a Linear's output, with LoRA or without: (..., n, D) -> (..., n, rows)."""
    base = getattr(projection, "base_layer", projection)
    out = linear(x, base.weight[rows], None if base.bias is None else base.bias[rows])
    if base is projection:
        return out
    down, up = projection.lora_A[_NAME].weight, projection.lora_B[_NAME].weight
    return out + linear(linear(x, down), up[rows]) * projection.scaling[_NAME]
