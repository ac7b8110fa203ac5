"""Attention with prompts, whose keys and values are put before the tokens' (see `vptsp_core.method.vit`)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention
from torch import Tensor

from vptsp_core.method.lora import project

KEYS_AT_ONCE = 32  # bf16 values in a row of an AMX tile or in an AVX-512 register


def keys_and_values(attention: Attention, normed: Tensor) -> Tensor:
    """The K and V rows of the QKV projection alone: (..., n, D) -> (..., n, 2A), keys before values.

    A is the attention width (heads times head size, usually D).
    """
    return project(attention.qkv, normed, slice(attention.num_heads * attention.head_dim, None))


def attend(attention: Attention, q: Tensor, kv: Tensor, prompt_kv: Tensor | None = None) -> Tensor:
    """Multi-head attention over the prompts' keys and values and the tokens', before the output projection.

    Args:
        q: (B, Tq, A).
        kv: (B, T, 2A), the tokens' keys, then their values.
        prompt_kv: (n, 2A) shared by all rows, (C, n, 2A) one group of B / C adjacent rows each, or None.

    Returns:
        (B, Tq, A).
    """
    q = attention.q_norm(q.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2))
    by_matmul = uses_matmul_attention(q)
    keys, padded = (0 if prompt_kv is None else prompt_kv.shape[-2]) + kv.shape[1], None
    if by_matmul:  # rows of whole vector registers: softmax and products then take a third less time
        padded = -(-keys // KEYS_AT_ONCE) * KEYS_AT_ONCE
    k, v = keys_values_by_head(attention, kv, prompt_kv, padded)
    k = attention.k_norm(k)
    if q.device.type == "mps":  # torch 2.11 gives wrong numbers there for other strides (pytorch issue 181133)
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    if by_matmul:
        out = _matmul_attention(q, k, v, attention.scale, keys)
    else:
        out = F.scaled_dot_product_attention(q, k, v, scale=attention.scale)
    out = out.transpose(1, 2).flatten(2)
    return attention.norm(out) if hasattr(attention, "norm") else out


def uses_matmul_attention(q: Tensor) -> bool:
    """Whether `attend` takes two batched products and a softmax in place of torch's fused attention: for bf16 on a CPU,
    where the fused form's backward pass takes several times as long. q: (B, heads, T, A / heads).
    """
    return q.device.type == "cpu" and q.dtype is torch.bfloat16


def keys_values_by_head(
    attention: Attention, kv: Tensor, prompt_kv: Tensor | None = None, padded: int | None = None
) -> Tensor:  # fmt: skip
    """Keys and values of prompts, tokens and zeros up to ``padded``, written once: (2, B, heads, keys, A / heads)."""
    parts = [kv]
    if prompt_kv is not None:
        shared = prompt_kv
        if prompt_kv.dim() == 3:
            shared = prompt_kv.repeat_interleave(kv.shape[0] // prompt_kv.shape[0], 0)
        parts.insert(0, shared.expand(kv.shape[0], -1, -1))
    parts = [part.unflatten(-1, (2, attention.num_heads, -1)).permute(2, 0, 3, 1, 4) for part in parts]
    if padded is not None:
        missing = padded - sum(part.shape[3] for part in parts)
        parts.append(parts[-1].new_zeros(()).expand(*parts[-1].shape[:3], missing, parts[-1].shape[-1]))
    return torch.cat(parts, dim=3) if len(parts) > 1 else parts[0]


def _matmul_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, keys: int) -> Tensor:
    """`scaled_dot_product_attention` as two batched products around a softmax; keys from ``keys`` on are padding."""
    scores = (q.contiguous() * scale) @ k.transpose(-2, -1)
    # In place, hidden from autograd: the softmax makes the gradient of these columns 0 in any case.
    scores.detach()[..., keys:] = -math.inf
    return scores.softmax(-1) @ v
