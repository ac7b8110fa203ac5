"""The attention of the class token to prompts and tokens, block by block.

Prompts are keys and values only (`method.vit`). The class token's attention is therefore a softmax over the prompts of
the block and the image's tokens. `scaled_dot_product_attention` does not return its weights. Here they are computed in
float32 from the model's own queries and keys, while the images pass through its own blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vptsp_core.data import ImageSet
from vptsp_core.errors import VptspError
from vptsp_core.method.attention import keys_and_values, keys_values_by_head
from vptsp_core.method.backbone import normalisation
from vptsp_core.method.lora import project
from vptsp_core.method.torch_state import torch_defaults
from vptsp_core.method.vit import PromptedViT, run_block
from vptsp_core.runs.embedder import Embedder


@dataclass(frozen=True)
class Looked:
    """The attention of the class token, mean over the heads.

    Attributes:
        weights: for each of L blocks (B, n + T) float32: n prompts, then T tokens. Each row sums to 1.
        prompts: the number n of each block.
        prefix: the number of tokens before the patches. The class token is the first.
        grid: rows and columns of patches.
    """

    weights: list[np.ndarray]
    prompts: list[int]
    prefix: int
    grid: tuple[int, int]

    def patches(self, block: int) -> np.ndarray:
        """Return the attention to the patches in one block: (B, rows, columns)."""
        return self.weights[block][:, self.prompts[block] + self.prefix :].reshape(-1, *self.grid)


@torch_defaults()
@torch.inference_mode()
def class_token(vit: PromptedViT, images: Tensor) -> Looked:
    """Compute the attention of the sample tower's class token in normalised images (B, 3, H, W) on the model's device.

    Raises VptspError if the model pools its patches, because it then does not read the class token.
    """
    if vit.pool != "cls":
        raise VptspError(f"this model pools by {vit.pool!r}: there is no class token whose attention could be shown")
    trunk = vit.backbone
    x = vit.stem(images)
    counts = [*vit.prompt_counts, *[0] * (len(trunk.blocks) - len(vit.prompt_counts))]
    weights, plain = [], len(trunk.blocks) - len(vit.adapters)
    prompt_kvs = vit.prompt_kvs(vit.prompts, vit.prompt_counts)
    for i, (block, prompt_kv) in enumerate(zip(trunk.blocks, prompt_kvs, strict=True)):
        attention, normed = block.attn, block.norm1(x)
        q = project(attention.qkv, normed[:, :1], slice(attention.num_heads * attention.head_dim))
        q = q.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        k, _ = keys_values_by_head(attention, keys_and_values(attention, normed), prompt_kv)
        logits = attention.scale * (attention.q_norm(q) @ attention.k_norm(k).transpose(-2, -1))
        weights.append(logits.softmax(-1)[:, :, 0].mean(1).cpu().numpy())
        x = run_block(block, x, [prompt_kv], adapter=None if i < plain else vit.adapters[i - plain])
    rows, columns = trunk.patch_embed.grid_size
    return Looked(weights, counts, trunk.num_prefix_tokens, (rows, columns))


def to_prompts(looked: Looked) -> np.ndarray:
    """Return the share of the attention that each prompt gets, mean over the images: (L, n).

    n is the largest number of prompts in a block. If a block has fewer, the rest of its row is NaN.
    """
    shares = np.full((len(looked.weights), max(looked.prompts, default=0)), np.nan)
    for i, (weights, count) in enumerate(zip(looked.weights, looked.prompts, strict=True)):
        shares[i, :count] = weights[:, :count].mean(0)
    return shares


def shares(looked: Looked) -> pd.DataFrame:
    """Return the shares of the attention in each block, mean over the images, in percent.

    Returns:
        One row per block, counted from 1: ``prompts`` (all together), ``class token`` (itself), ``patches``, and
        ``other tokens`` if the backbone has register or distillation tokens. These sum to 100. ``prompts if even`` is
        the share of the prompts if every key got the same share.
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
    """Resize and crop images as the model does.

    Returns them normalised on the model's device, (B, 3, H, W), and as pictures to look at, (H, W, 3) uint8 each.
    """
    mean, std = normalisation(embedder.model.vit.backbone)
    pixels = torch.stack([embedder.transform(images.image(int(place))) for place in places])
    shown = pixels.permute(0, 2, 3, 1) * torch.tensor(std) + torch.tensor(mean)
    pictures = (255 * shown.clamp(0, 1)).round().to(torch.uint8).numpy()
    return pixels.to(next(embedder.model.parameters()).device), list(pictures)
