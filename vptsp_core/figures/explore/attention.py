"""Which prompts the class token attends to, block by block.

Prompts are keys and values only (`method.vit`), so the class token's attention is a softmax over the prompts of the
block and then the image's tokens. `scaled_dot_product_attention` never shows its weights; here they are computed from
the model's own queries and keys, in float32, while the images pass through its own blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from timm.models.vision_transformer import Attention
from torch import Tensor

from vptsp_core.data import ImageSet
from vptsp_core.data.loading import eval_transform
from vptsp_core.errors import VptspError
from vptsp_core.method.attention import keys_and_values, keys_values_by_head
from vptsp_core.method.backbone import normalisation
from vptsp_core.method.lora import project
from vptsp_core.method.vit import PromptedViT, run_block
from vptsp_core.runs.embedder import Embedder


@dataclass(frozen=True)
class Looked:
    """Attention of the class token, mean over the heads.

    Attributes:
        weights: for each of L blocks (B, n + T) float32: n prompts, then T tokens; each row sums to 1.
        prompts: the n of each block.
        prefix: tokens before the patches, of which the class token is the first.
        grid: rows and columns of patches.
    """

    weights: list[np.ndarray]
    prompts: list[int]
    prefix: int
    grid: tuple[int, int]

    def patches(self, block: int) -> np.ndarray:
        """Attention to the patches of one block: (B, rows, columns)."""
        return self.weights[block][:, self.prompts[block] + self.prefix :].reshape(-1, *self.grid)


def attention_weights(attention: Attention, q: Tensor, k: Tensor) -> Tensor:
    """Softmax weights of `method.attention`, (B, heads, Tq, T), of q (B, Tq, A) and k (B, heads, T, A / heads)."""
    q = q.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    logits = attention.q_norm(q) @ attention.k_norm(k).transpose(-2, -1)
    return (logits * attention.scale).softmax(-1)


@torch.inference_mode()
def class_token(vit: PromptedViT, images: Tensor) -> Looked:
    """Where the class token of the sample tower looks in images (B, 3, H, W), normalised, on the model's device. Raises
    VptspError where the model pools its patches, so that no class token is read.
    """
    if vit.pool != "cls":
        raise VptspError(f"this model pools by {vit.pool!r}: there is no class token whose attention could be shown")
    trunk = vit.backbone
    x = vit.stem(images)
    counts = [*vit.prompt_counts, *[0] * (len(trunk.blocks) - len(vit.prompt_counts))]
    weights, plain = [], len(trunk.blocks) - len(vit.adapters)
    for i, (block, count) in enumerate(zip(trunk.blocks, counts, strict=True)):
        attention, normed = block.attn, block.norm1(x)
        prompt_kv = None
        if count:
            assert vit.prompts is not None
            prompt_kv = keys_and_values(attention, block.norm1(vit.prompts[i, :count]))
        q = project(attention.qkv, normed[:, :1], slice(attention.num_heads * attention.head_dim))
        k, _ = keys_values_by_head(attention, keys_and_values(attention, normed), prompt_kv)
        weights.append(attention_weights(attention, q, k)[:, :, 0].mean(1).cpu().numpy())
        x = run_block(block, x, [prompt_kv], adapter=None if i < plain else vit.adapters[i - plain])
    rows, columns = trunk.patch_embed.grid_size
    return Looked(weights, counts, trunk.num_prefix_tokens, (rows, columns))


def to_prompts(looked: Looked) -> np.ndarray:
    """Share of the attention that each prompt gets, mean over the images: (L, most prompts), NaN where a block has
    fewer; without any prompts (L, 0).
    """
    shares = np.full((len(looked.weights), max(looked.prompts, default=0)), np.nan)
    for i, (weights, count) in enumerate(zip(looked.weights, looked.prompts, strict=True)):
        shares[i, :count] = weights[:, :count].mean(0)
    return shares


def shares(looked: Looked) -> pd.DataFrame:
    """Where the attention goes in each block, mean over the images, in percent: a row a block, counted from 1.

    Returns:
        ``prompts`` (all together), ``class token`` (itself), ``patches``, and ``other tokens`` where the backbone has
        register or distillation tokens; these sum to 100. ``prompts if even``: what they would get if every key got the
        same.
    """
    rows = []
    for weights, count in zip(looked.weights, looked.prompts, strict=True):
        mean, first = 100 * weights.mean(0), count + looked.prefix
        row = {"prompts": mean[:count].sum(), "class token": mean[count], "patches": mean[first:].sum()}
        if looked.prefix > 1:
            row["other tokens"] = mean[count + 1 : first].sum()
        rows.append(row | {"prompts if even": 100 * count / len(mean)})
    return pd.DataFrame(rows, index=pd.Index([*range(1, len(rows) + 1)], name="block"))


def as_seen(embedder: Embedder, images: ImageSet, places: Sequence[int]) -> tuple[Tensor, list[np.ndarray]]:
    """Images as the model takes them, resized and cropped: (B, 3, H, W) normalised on its device, and to look at,
    (H, W, 3) uint8 each.
    """
    mean, std = normalisation(embedder.model.vit.backbone)
    transform = eval_transform(embedder.model.config, mean, std)
    pixels = torch.stack([transform(images.image(int(place))) for place in places])
    shown = pixels.permute(0, 2, 3, 1) * torch.tensor(std) + torch.tensor(mean)
    pictures = (255 * shown.clamp(0, 1)).round().to(torch.uint8).numpy()
    return pixels.to(next(embedder.model.parameters()).device), list(pictures)
