"""Attention with prompts: their keys and values are put before those of the tokens (see `vptsp_core.method.vit`).

With queries q, keys k and values v of the tokens, and keys k_p and values v_p of the prompts, each head computes
softmax(q [k_p; k]^T / sqrt(A / heads)) [v_p; v]. A is the width of attention: the number of heads times the size of a
head, usually D.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention
from torch import Tensor

from vptsp_core.method.lora import project

KEYS_AT_ONCE = 32  # bf16 numbers in a row of an AMX tile or in an AVX-512 register, which are computed together


def keys_and_values(attention: Attention, normed: Tensor) -> Tensor:
    """Return keys and values, (..., n, 2A), keys first, of tokens or prompts (..., n, D) after LayerNorm."""
    return project(attention.qkv, normed, slice(attention.num_heads * attention.head_dim, None))


def attend(attention: Attention, q: Tensor, kv: Tensor, prompt_kv: Tensor | None = None) -> Tensor:
    """Return the output of multi-head attention, before the output projection.

    Args:
        attention: the block's module, for its heads and norms.
        q: (B, Tq, A), the queries.
        kv: (B, T, 2A), the keys and values of the tokens, from `keys_and_values`.
        prompt_kv: the keys and values of the prompts: (n, 2A) for all rows, (C', n, 2A) for B / C' adjacent rows
            each, or None.

    Returns:
        (B, Tq, A).
    """
    q = attention.q_norm(q.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2))
    by_matmul = uses_matmul_attention(q)
    k, v = keys_values_by_head(attention, kv, prompt_kv, padded=by_matmul)
    k = attention.k_norm(k)
    if by_matmul:
        keys = kv.shape[1] + (0 if prompt_kv is None else prompt_kv.shape[-2])
        out = _matmul_attention(q, k, v, attention.scale, keys)
    else:
        if q.device.type == "mps":  # torch 2.11 gives wrong numbers there for other strides (pytorch issue 181133)
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out = F.scaled_dot_product_attention(q, k, v, scale=attention.scale)
    return attention.norm(out.transpose(1, 2).flatten(2))


def uses_matmul_attention(q: Tensor) -> bool:
    """Return whether `attend` replaces torch's fused attention by two batched products and a softmax.

    It does for bf16 on a CPU, where the backward pass of the fused form takes several times as long. ``q`` is
    (B, heads, Tq, A / heads).
    """
    return q.device.type == "cpu" and q.dtype is torch.bfloat16


def keys_values_by_head(
    attention: Attention, kv: Tensor, prompt_kv: Tensor | None = None, *, padded: bool = False
) -> Tensor:  # fmt: skip
    """Return the keys, then the values, of prompts and tokens, split into heads: (2, B, heads, keys, A / heads).

    The arguments are those of `attend`. If ``padded``, zeros follow, up to a multiple of `KEYS_AT_ONCE` keys: softmax
    and products of whole vector registers take a third less time.
    """
    parts = [kv]
    if prompt_kv is not None:
        if prompt_kv.dim() == 3:
            prompt_kv = prompt_kv.repeat_interleave(kv.shape[0] // prompt_kv.shape[0], 0)
        parts.insert(0, prompt_kv.expand(kv.shape[0], -1, -1))
    parts = [part.unflatten(-1, (2, attention.num_heads, -1)).permute(2, 0, 3, 1, 4) for part in parts]
    if padded:
        missing = -sum(part.shape[3] for part in parts) % KEYS_AT_ONCE
        parts.append(parts[-1].new_zeros(()).expand(*parts[-1].shape[:3], missing, parts[-1].shape[-1]))
    return torch.cat(parts, dim=3) if len(parts) > 1 else parts[0]


def _matmul_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, keys: int) -> Tensor:
    """Return `F.scaled_dot_product_attention` by two products and a softmax. Keys from index ``keys`` are padding."""
    scores = (q.contiguous() * scale) @ k.transpose(-2, -1)
    # In place and without autograd: the gradient of these columns is 0 in any case, because of the softmax.
    scores.detach()[..., keys:] = -math.inf
    return scores.softmax(-1) @ v
